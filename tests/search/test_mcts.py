"""Tree search: the formulas by hand, what is conserved, what converges, and what never changes."""

import asyncio
import math
import random

import pytest
import search_tree as tree
from hypothesis import given, settings
from hypothesis import strategies as some

from maieutic.errors import ConfigError, UnknownName
from maieutic.search.judges import signed
from maieutic.search.mcts import MCTS, UCT, share
from maieutic.search.prefix import EMPTY
from maieutic.search.visits import Descent, Node, puct, uct, under_way
from maieutic.types import Finish


def mcts(sampler=None, values=tree.exact, **options) -> MCTS:
    return MCTS(sampler or tree.policy(), tree.CHAT, tree.read, values=values, delimiter=";", **options)


def rollouts(sampler=None, **options) -> UCT:
    return UCT(sampler or tree.policy(), tree.CHAT, tree.read, delimiter=";", **options)


def solve(search, budget: int = 100_000, **asked):
    return asyncio.run(search.solve(tree.question(**asked), budget))


def test_puct_and_uct_by_hand():
    rule = puct(1.25)
    assert rule(0.5, 0.6, 4, 2) == pytest.approx(1.0)  # .5 + 1.25 · .6 · 2 / 3
    assert rule(-0.2, 0.3, 4, 1) == pytest.approx(0.175)  # −.2 + 1.25 · .3 · 2 / 2
    assert rule(0.0, 0.1, 4, 0) == pytest.approx(0.25)  # 0 + 1.25 · .1 · 2 / 1
    assert uct(2.0)(0.4, 1.0, 10, 3) == pytest.approx(2.152174, abs=1e-6)  # .4 + 2 · √(ln 10 / 3)
    assert uct()(0.0, 1.0, 10, 0) == math.inf


def hand_made(values, priors=(0.25,) * 4) -> Node:
    """Two children with two leaves each; the leaves' values as given."""
    root = Node(EMPTY, children=[])
    for i in range(2):
        child = Node(EMPTY, root, prior=0.5, children=[])
        child.children = [Node(EMPTY, child, priors[2 * i + j], values[2 * i + j]) for j in range(2)]
        root.children.append(child)
    return root


def play(root: Node, descent: Descent, times: int, seed: str = "s") -> list[int]:
    draw = random.Random(seed)
    for _ in range(times):
        path = descent.path(root, draw)
        descent.carry_back(path, path[-1].value)
    return [leaf.visits for child in root.children for leaf in child.children]


@pytest.mark.parametrize("rule", [puct(1.25), uct(0.5)])
@pytest.mark.parametrize("best", range(4))
def test_the_best_leaf_of_a_known_tree_is_visited_most(rule, best: int):
    values = [0.2, 0.3, 0.1, 0.25]
    values[best] = 0.9
    root = hand_made(values)
    visits = play(root, Descent(rule, 0.0, revisit=True), 2000)
    assert visits[best] > 0.9 * 2000
    assert root.visits == sum(child.visits for child in root.children) == sum(visits) == 2000
    assert root.q == pytest.approx(sum(v * n for v, n in zip(values, visits, strict=True)) / 2000)


def test_without_exploration_it_is_greedy_and_with_nothing_else_visits_follow_the_priors():
    values, priors = [0.2, 0.3, 0.1, 0.4], (0.1, 0.9, 0.7, 0.3)
    greedy = play(hand_made(values, priors), Descent(puct(0.0), 0.0, revisit=True), 300)
    assert sorted(greedy)[:3] == [0, 0, 0]  # whichever came first is better than the 0 of all others
    blind = play(hand_made(values, priors), Descent(puct(1e9), 0.0, revisit=True), 2000)
    for got, (i, p) in zip(blind, enumerate(priors), strict=True):
        siblings = priors[i - i % 2] + priors[i - i % 2 + 1]
        assert got == pytest.approx(1000 * p / siblings, abs=2)


def test_visits_under_way_are_taken_back():
    root = hand_made([0.5, 0.5, 0.5, 0.5])
    descent, draw = Descent(puct(1.25), 0.0), random.Random("a")
    first = descent.path(root, draw)
    under_way(first, 1)
    second = descent.path(root, draw)
    assert second[1] is not first[1]  # the first looks lost: 0 − 1
    under_way(second, 1)
    under_way(first, -1)
    under_way(second, -1)
    assert all(node.pending == 0 and node.visits == 0 for node in (*first, *second))


def test_closed_leaves_are_not_visited_again_and_close_their_parents():
    root = hand_made([0.1, 0.2, 0.3, 0.4])
    assert play(root, Descent(puct(1.25)), 4) == [1, 1, 1, 1]
    assert root.closed
    assert Descent(puct(1.25)).path(root, random.Random()) is None


def check_counts(found, simulations: int, leaves: int = 1) -> None:
    """N(root) simulations at most; a node's visits are its children's and its own, Q is within the values."""
    rows = {row["node"]: row for row in found.log}
    below: dict[int | None, int] = {}
    for row in rows.values():
        below[row["parent"]] = below.get(row["parent"], 0) + row["visits"]
        assert row["q"] is None or -1 <= row["q"] <= 1
    for number, visits in below.items():
        if number is None:
            assert visits + 1 <= simulations  # the first simulation was the root's own
        else:
            assert rows[number]["visits"] == visits + 1  # its own, when it was valued


@pytest.mark.parametrize("leaves", [1, 3])
def test_what_is_carried_back_is_conserved(leaves: int):
    found = solve(mcts(values=signed(tree.exact), simulations=30, children=25, leaves=leaves))
    check_counts(found, 30, leaves)
    assert found.answer == tree.WANTED
    # 30 simulations; the root's own and those of its children
    assert sum(row["visits"] for row in found.log if row["parent"] is None) in range(20, 30)


def test_it_finds_what_a_chain_rarely_finds():
    chain = [solve(mcts(simulations=4, children=1), key=f"{i}").answer == tree.WANTED for i in range(10)]
    found = [solve(mcts(simulations=30, children=25), key=f"{i}").answer == tree.WANTED for i in range(10)]
    assert sum(found) > sum(chain)
    assert sum(found) >= 8  # a single sample: .3 · .6 · .1; that 25 have each letter: more than .9 a step


@pytest.mark.parametrize("make", [mcts, rollouts])
def test_the_same_seed_is_the_same_search_whatever_is_searched_beside_it(make):
    search = make(simulations=8)

    async def three():
        return await asyncio.gather(*(search.solve(tree.question(key=key), 10_000) for key in "aba"))

    first, other, second = asyncio.run(three())
    assert first == second == solve(search, 10_000, key="a")
    assert first.log != other.log


def test_nothing_that_grows_changes_what_it_grew_from():
    search = mcts(simulations=20)
    found = solve(search)
    by_number = {row["node"]: row for row in found.log}

    def whole(row) -> str:
        return (whole(by_number[row["parent"]]) if row["parent"] is not None else "") + row["step"]

    finished = [whole(row) for row in found.log if row["finished"]]
    assert sorted(finished) == sorted(candidate.text for candidate in found.candidates)
    for candidate in found.candidates:
        completion = candidate.completion
        assert tree.CHAT.decode(completion.tokens) == candidate.text
        assert len(completion.tokens) == len(completion.mask) == len(completion.logprobs)
        before = tree.PROMPT
        for token, logprob in zip(completion.tokens, completion.logprobs, strict=True):
            assert math.exp(logprob) == pytest.approx(tree.chances(before)[token])  # its own tokens' chances
            before = (*before, token)


@settings(max_examples=25, deadline=None)
@given(some.integers(1, 90), some.sampled_from([1, 2, 4]), some.booleans(), some.sampled_from([None, 2, 3]))
def test_budgets_are_kept_and_everything_sampled_is_counted(budget, leaves, rolled, step_tokens):
    sampler = tree.policy()
    make = rollouts if rolled else mcts
    found = solve(make(sampler, simulations=12, children=3, leaves=leaves, step_tokens=step_tokens), budget)
    assert 1 <= found.cost.generated <= budget
    assert found.cost.calls == len(sampler.asked)
    assert found.cost.prefilled == sum(len(tokens) for tokens, _ in sampler.asked)
    assert found.candidates[found.chosen] is found.best
    check_counts(found, 12, leaves)


def test_priors_are_of_the_mean_token_and_may_be_normalised():
    plain = solve(mcts(simulations=1, children=12))
    rows = {row["step"].strip(): row["prior"] for row in plain.log}
    assert rows["a ;"] == pytest.approx(math.sqrt(0.6))  # exp((ln .6 + ln 1) / 2)
    assert rows["b ;"] == pytest.approx(math.sqrt(0.3))
    sampler = tree.policy()
    search = mcts(sampler, simulations=2, children=12, normalise=True, c=1e9, values=lambda p, rows: [0.0] * len(rows))
    found = solve(search)
    assert max(found.log, key=lambda row: row["visits"])["step"].strip() == "a ;"


def test_a_verdict_on_what_is_finished_outweighs_the_judge():
    wrong = solve(mcts(values=lambda p, rows: [0.5] * len(rows), simulations=30, children=25, c=4.0))
    told = solve(
        mcts(
            values=lambda p, rows: [0.0] * len(rows),
            terminal=lambda p, rows: [2 * value - 1 for value in tree.exact(p, rows)],
            simulations=40, children=25, c=4.0,
        )
    )  # fmt: skip
    assert told.best.score in (1.0, -1.0)
    assert (told.best.score == 1.0) == (tree.WANTED in {c.text for c in told.candidates})
    assert {c.score for c in wrong.candidates} == {0.5}


def test_the_ways_to_choose_an_answer():
    by_value = solve(mcts(simulations=30, children=25))
    by_visits = solve(mcts(simulations=30, children=25, choose="visits"))
    by_vote = solve(mcts(simulations=30, children=25, choose="vote"))
    assert [c.text for c in by_value.candidates] == [c.text for c in by_vote.candidates]  # the same tree
    assert by_value.answer == by_visits.answer == tree.WANTED
    counts = [c.answer for c in by_vote.candidates]
    assert counts.count(by_vote.answer) == max(counts.count(answer) for answer in counts)


def test_rollouts_value_a_leaf_by_how_often_its_answer_was_given():
    assert share("a", ["a", "b", None, "a"]) == 0.5
    assert share(None, [None, "a"]) == 0.0
    found = solve(rollouts(simulations=10, rollouts=2), max_tokens=7)
    answers = [c.answer for c in found.candidates]
    assert len(answers) >= 20 - 1  # two a simulation, but of the finished leaves, which are attempts themselves
    for candidate in found.candidates:
        assert candidate.score == pytest.approx(share(candidate.answer, answers))
    assert answers.count(found.answer) == max(answers.count(answer) for answer in answers)
    scored = solve(rollouts(simulations=25, rollouts=2, score=tree.exact, choose="value"), key="b")
    assert scored.answer == tree.WANTED
    assert scored.best.score == 1.0


def test_what_did_not_end_is_an_attempt_only_where_nothing_did():
    found = solve(mcts(simulations=30, depth=2))
    assert {c.completion.finish for c in found.candidates} == {Finish.LENGTH}
    assert found.answer is None
    found = solve(mcts(simulations=2, children=27))  # the root and one child were expanded, the other two were not
    assert {c.text.count(";") for c in found.candidates} == {2}
    short = solve(mcts(), 1)
    assert (short.cost.generated, len(short.candidates), short.best.completion.finish) == (1, 1, Finish.LENGTH)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="leaves=0"):
        mcts(leaves=0)
    with pytest.raises(ConfigError, match="rollouts=0"):
        rollouts(rollouts=0)
    with pytest.raises(UnknownName, match="did you mean 'value'"):
        mcts(choose="values")
