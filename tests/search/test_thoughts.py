"""Tree of Thoughts: the game of 24 against brute force, the value cache, depth first with pruning, the budget."""

import asyncio
import itertools
import random
from collections import Counter

import pytest
import search_tree as tree

from maieutic.backends.scripted import ScriptedTexts
from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Sampling
from maieutic.search import Question
from maieutic.search.thinking import GameOf24, Plain, lines
from maieutic.search.tree import DepthFirst, Thoughts
from maieutic.tasks.countdown import GAME_OF_24, moves, solvable, state
from maieutic.tasks.number_games import check_chain
from maieutic.types import Message

#: Every set of four cards from 1 to 13; some are looked at, solvable or not.
CARDS = list(itertools.combinations_with_replacement(range(1, 14), 4))
SOME = random.Random(24).sample(CARDS, 12)


def player(judge) -> ScriptedTexts:
    """Proposes every legal move of what it is shown, in the order of `moves`; `judge(numbers)` is its verdict."""

    def script(text: str, sibling: int) -> str:
        if "Possible next moves" in text:
            shown = text.partition("Left: ")[2].splitlines()[0].split()
            return "\n".join(f"- {words}" for words, _ in moves(state(shown)))
        return judge(state(text.partition("these: ")[2].partition("?")[0].split()))

    return ScriptedTexts(script)


def perfect(numbers) -> str:
    return "it is sure" if solvable(numbers) else "impossible"


def ask(numbers=(4, 6, 6, 8)) -> Question:
    words = f"make 24 from {' '.join(map(str, numbers))} , each once"
    return Question((1,), Sampling(4000, 1.0, frozenset({0}), "k"), (Message("user", words),))


def game(sampler: ScriptedTexts, kind=Thoughts, **options) -> Thoughts:
    options = {"keep": 1, "depth": 3, "propose_tokens": 4000, **options}
    return kind(sampler, sampler, lambda text: text or None, thinking=GameOf24(), generate="propose", **options)


def solve(search, question=None, budget: int = 1_000_000):
    return asyncio.run(search.solve(question or ask(), budget))


@pytest.mark.parametrize(("keep", "numbers"), [(1, cards) for cards in SOME] + [(3, cards) for cards in SOME[:3]])
def test_perfect_verdicts_solve_what_can_be_solved(keep: int, numbers):
    found = solve(game(player(perfect), keep=keep, judgements=1), ask(numbers))
    verdict = check_chain(found.answer, numbers, 24, GAME_OF_24)
    assert verdict.correct == solvable(numbers)


def test_some_of_these_can_be_solved_and_some_not():
    assert 0 < sum(map(solvable, SOME)) < len(SOME)


def test_equal_verdicts_and_one_state_are_the_chain_of_first_proposals():
    found = solve(game(player(lambda numbers: "likely")))
    chain, now = [], state((4, 6, 6, 8))
    while len(now) > 1:
        words, now = moves(now)[0]
        chain.append(words)
    assert lines(found.answer) == chain
    assert found.best.score == 3.0  # three verdicts, each counting 1
    assert not any(found.best.completion.mask)  # no token was chosen in its place


class Rooms(Plain):
    """A walk in which states come up again: from anywhere one goes left or right."""

    def proposed(self, problem, state, reply):
        return ["left\n", "right\n"]


def test_a_state_is_asked_about_once():
    sampler = ScriptedTexts(lambda text, sibling: "sure")
    search = Thoughts(sampler, sampler, lambda text: text, thinking=Rooms(), generate="propose", keep=2, depth=4)
    found = solve(search)
    assert len(found.log) == 2 + 3 * 4  # from each of two states the same two, at four levels
    asked = Counter(text for text, _ in sampler.asked if "End with one word" in text)
    assert sorted(asked.values()) == [1, 1]
    assert found.cost.judged == 2
    seen: list[tuple[int, ...]] = []

    def noted(prompt, rows):
        seen.extend(rows)
        return tree.exact(prompt, rows)

    wide = Thoughts(tree.policy(), tree.CHAT, tree.read, evaluate="judge", values=noted, delimiter=";")
    assert solve(wide, tree.question()).cost.judged == len(seen) == len(set(seen))


def test_duplicates_in_a_step_are_worth_0_and_do_not_go_on():
    search = Thoughts(
        tree.policy(), tree.CHAT, tree.read, evaluate="judge", values=lambda p, rows: [1.0] * len(rows), delimiter=";"
    )
    found = solve(search, tree.question())
    first = [row for row in found.log if row["depth"] == 1]
    assert len(first) == 5  # five samples of three letters
    assert sum(row["value"] for row in first) == len({row["step"] for row in first}) < 5
    assert all(row["value"] for row in found.log if row["kept"])


def test_votes_choose_and_draws_follow_values():
    def script(text: str, sibling: int) -> str:
        return "I take choice 2" if "Choice 1" in text else "one\ntwo\nthree"

    sampler = ScriptedTexts(script)
    found = solve(
        Thoughts(
            sampler, sampler, lambda text: text, generate="propose", evaluate="vote", keep=1, depth=2, judgements=4
        ),
    )
    assert found.answer == "two\ntwo\n"
    assert found.best.score == 4.0
    first = Counter(
        solve(
            Thoughts(
                tree.policy(), tree.CHAT, tree.read, evaluate="judge", select="sample", keep=1, depth=1, children=20,
                values=lambda p, rows: [{1: 3.0, 2: 1.0}.get(row[0], 0.0) for row in rows], delimiter=";",
            ),
            tree.question(key=f"{seed}"),
        ).best.text
        for seed in range(40)
    )  # fmt: skip
    assert set(first) == {"a ;", "b ;"}
    assert first["a ;"] > first["b ;"]


def test_depth_first_goes_back_where_nothing_is_worth_it():
    # "a" looks best, and nothing below it is worth anything: the search comes back and takes "b"
    def values(prompt, rows):
        texts = [tree.CHAT.decode(row) for row in rows]
        return [
            2.0 if text == "a ;" else 0.1 if text.startswith("a") else float("b ; a ; c ;".startswith(text))
            for text in texts
        ]

    search = DepthFirst(
        tree.policy(), tree.CHAT, tree.read, evaluate="judge", values=values, delimiter=";", children=30, threshold=0.5
    )
    found = solve(search, tree.question())
    assert found.answer == tree.WANTED
    gone_into = [row for row in found.log if row["kept"]]
    assert [row["step"].strip() for row in gone_into] == ["a ;", "b ;", "a ;", "c ;", ""]
    few = DepthFirst(
        tree.policy(), tree.CHAT, tree.read, evaluate="judge", values=values, delimiter=";", children=30, threshold=0.5,
        expansions=2,
    )  # fmt: skip
    cut = solve(few, tree.question())
    assert cut.answer is None
    assert max(row["depth"] for row in cut.log) == 2


def test_depth_first_plays_the_game_too():
    found = solve(game(player(perfect), DepthFirst, threshold=1.0))
    assert check_chain(found.answer, (4, 6, 6, 8), 24, GAME_OF_24).correct


@pytest.mark.parametrize("kind", [Thoughts, DepthFirst])
@pytest.mark.parametrize("budget", [1, 30, 400, 900, 2500])
def test_the_budget_pays_for_proposals_and_verdicts(kind, budget: int):
    sampler = player(perfect)
    search = game(sampler, kind, judge_tokens=20, propose_tokens=600)
    found = solve(search, budget=budget)
    assert 1 <= found.cost.generated <= budget
    assert found.cost.calls == len(sampler.asked)
    assert found.candidates
    assert found == solve(game(player(perfect), kind, judge_tokens=20, propose_tokens=600), budget=budget)


def test_words_are_read():
    plain = Plain()
    assert plain.valued(["It is likely, no: sure", "impossible", "who knows"]) == pytest.approx(20.001)
    assert [plain.voted(reply, 3) for reply in ("choice 2", "4", "none", "of 3, the 1st is 1")] == [1, None, None, 0]
    assert plain.proposed("p", "s\n", "1. one\n\n- two\n(3) three") == ["s\none\n", "s\ntwo\n", "s\nthree\n"]
    assert plain.over("p", "x\nAnswer: 4\n")
    assert not plain.over("p", "")
    thinking = GameOf24()
    assert thinking.given("make 100 from 5 20 , each once") == (state([5, 20]), 100)
    assert thinking.given("Input:\n4 6 6 8") == (state([4, 6, 6, 8]), 24)
    assert thinking.proposed(ask().messages[0].content, "", "4 + 6 = 10 left 6 8 10\n4 + 6 = 11 left 6 8 11\nhm") == [
        "4 + 6 = 10 left 6 8 10\n"
    ]


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="no values"):
        Thoughts(tree.policy(), tree.CHAT, tree.read, evaluate="judge")
    with pytest.raises(UnknownName, match="did you mean 'propose'"):
        Thoughts(tree.policy(), tree.CHAT, tree.read, generate="proposed")
    with pytest.raises(ConfigError, match="keep=0"):
        Thoughts(tree.policy(), tree.CHAT, tree.read, keep=0)
