"""Progressive widening: when a node is given a further child, by hand; what it costs; what it finds that was missed.

A letter and ";" is a step, each character a token, and a full stop ends: "a;a;." has five tokens.
"""

import asyncio
import math

import pytest
import search_tree as tree
from search_letters import Continues, Letters

from maieutic.errors import ConfigError
from maieutic.protocols import Sampling
from maieutic.search import Question
from maieutic.search.mcts import MCTS, UCT
from maieutic.search.prefix import EMPTY
from maieutic.search.visits import Descent, Node, Widening, puct


def test_how_many_children_a_node_wants():
    def node(visits: int, sampled: int) -> Node:
        return Node(EMPTY, children=[Node(EMPTY)], visits=visits, sampled=sampled)

    widening = Widening(2.0, 0.5)
    # 2 · √N: 2 at one visit, 2.83 at two, 4 at four, 4.47 at five
    wanted = {(1, 1): True, (1, 2): False, (2, 2): True, (4, 3): True, (4, 4): False, (5, 4): True, (5, 5): False}
    assert {key: widening.wanted(node(*key)) for key in wanted} == wanted
    assert [math.ceil(1.5 * n**0.25) for n in (1, 16, 81)] == [2, 3, 5]
    assert not Widening(1.5, 0.25).wanted(node(16, 3))
    assert Widening(1.5, 0.25).wanted(node(81, 4))
    assert not Widening(9.0).wanted(Node(EMPTY, visits=4))  # a leaf is expanded, not widened


def test_a_node_is_closed_only_when_it_wants_no_other_child():
    root = Node(EMPTY, children=[Node(EMPTY, closed=True)], visits=4, sampled=1)
    inner = Node(EMPTY, root, children=[Node(EMPTY, closed=True)], visits=4, sampled=1)
    descent = Descent(puct(), widening=Widening(1.0))
    for node, sampled, closed in (
        (root, 1, False), (root, 3, False), (root, 4, True),  # the root: until one sample in four is new
        (inner, 1, False), (inner, 2, True),  # 1 < √4, 2 is not
    ):  # fmt: skip
        node.sampled = sampled
        descent.close([node])
        assert node.closed == closed


VALUES = {"a": 0.2, "b": 0.9}


def values(_prompt, rows):
    return [VALUES[Letters().decode(row)[0]] for row in rows]


def said(shown: str, key: str) -> str:
    """Two steps and the end: "a;" where a node is expanded, "b;" where it is widened."""
    return "." if shown.count(";") == 2 else "b;" if "wider" in key else "a;"


def letters(sampler, budget: int = 1000, temperature: float = 1.0, **options):
    given = {"children": 1, "simulations": 6, "c": 0.1, "values": values, "delimiter": ";", **options}
    search = MCTS(sampler, Letters(), lambda text: text if text.count(";") == 2 else None, **given)
    sampling = Sampling(12, temperature, Letters().stop_ids, "k")
    return asyncio.run(search.solve(Question(Letters().encode("?"), sampling), budget))


def test_six_simulations_by_hand():
    """C = 1, α = ½, c = .1, every prior e^−.5 = .607, unvisited children have their parent's Q.

    1  root: a          worth .2                           N(root) = 1, 1 < √1 no
    2  a: aa            .2                                 N(root) = 2
    3  1 < √2: root is given b. a: .2 + .1 · .607 · √2 / 2 = .243; b: .2 + .1 · .607 · √2 = .286. b: ba    .9
    4  2 < √3 no. b is best, its one child is ba: ba.                                                      .9
    5  2 < √4 no. b: N = 2, 1 < √2: b is given bb. ba: .9 + .043; bb: .9 + .086. bb: bb.                   .9
    6  N(root) = 5, 2 < √5: root is given b again, which it has: nothing new, 3 < √5 no. Down b to an end. .9
    """
    sampler = Continues(said)
    found = letters(sampler, widen=1.0)
    asked = ["?", "?a;", "?", "?b;", "?b;a;", "?b;", "?b;b;", "?"]
    assert [(shown, n) for shown, _, n in sampler.asked] == [(shown, 1) for shown in asked]
    assert [(row["parent"], row["step"]) for row in found.log] == [
        (None, "a;"), (0, "a;"), (None, "b;"), (2, "a;"), (3, ""), (2, "b;"), (5, ""),
    ]  # fmt: skip
    assert [row["visits"] for row in found.log[:4]] == [1, 0, 4, 1 + (found.log[4]["visits"])]
    # six steps of two tokens and two ends of one; what was read is what was shown; the repeated b is judged no more
    assert (found.cost.generated, found.cost.calls, found.cost.judged) == (14, 8, 7)
    assert found.cost.prefilled == sum(map(len, asked)) == 22
    assert sorted(each.text for each in found.candidates) == ["b;a;", "b;b;"]


def test_without_it_a_node_has_the_children_of_its_expansion():
    sampler = Continues(said)
    found = letters(sampler)
    assert [shown for shown, _, _ in sampler.asked] == ["?", "?a;", "?a;a;"]
    assert [each.text for each in found.candidates] == ["a;a;"]


def test_at_temperature_0_there_is_no_other_child_to_ask_for():
    sampler = Continues(said)
    assert letters(sampler, temperature=0.0, widen=4.0).candidates == letters(sampler, temperature=0.0).candidates


@pytest.mark.parametrize("budget", range(1, 15))
def test_the_budget_ends_it_anywhere(budget: int):
    found = letters(Continues(said), budget, widen=1.0)
    assert found.cost.generated == budget  # the six simulations take 14
    whole = letters(Continues(said), widen=1.0)
    assert [row["step"] for row in found.log[:-1]] == [row["step"] for row in whole.log[: len(found.log) - 1]]


def test_a_node_that_says_one_thing_only_is_left_alone():
    """Every sample is "a;": two steps and the end, each widened as its visits allow, the root to four samples."""
    sampler = Continues(lambda shown, key: "." if shown.count(";") == 2 else "a;")
    found = letters(sampler, widen=1.0, simulations=100)
    assert [row["step"] for row in found.log] == ["a;", "a;", ""]
    # four simulations: a has N = 3 and two samples, aa N = 2 and two; then all is closed but the root
    assert sorted(shown for shown, _, _ in sampler.asked) == sorted(["?"] * 4 + ["?a;"] * 2 + ["?a;a;"] * 2)


def test_priors_of_later_children_share_the_whole():
    found = letters(Continues(said), widen=1.0, normalise=True, simulations=3)
    assert found.log[0]["prior"] == pytest.approx(math.exp(-0.5))  # the log has what was sampled
    alone = solve(tree.policy(), simulations=30, children=2, widen=2.0, normalise=True, c=4.0)
    assert {row["step"].strip() for row in alone.log if row["parent"] is None} == {"a ;", "b ;", "c ;"}


def solve(sampler, key: str = "k", make=MCTS, **options):
    if make is MCTS:
        options["values"] = tree.exact
    search = make(sampler, tree.CHAT, tree.read, delimiter=";", **options)
    return asyncio.run(search.solve(tree.question(key=key), 100_000))


@pytest.mark.parametrize("make", [MCTS, UCT])
def test_it_finds_what_its_first_children_did_not_have(make):
    first = [solve(tree.policy(), f"{i}", make, simulations=60, children=2) for i in range(8)]
    wider = [solve(tree.policy(), f"{i}", make, simulations=60, children=2, widen=2.0) for i in range(8)]

    def wanted(found) -> bool:
        return any(each.text == tree.WANTED for each in found.candidates)

    assert sum(map(wanted, wider)) > sum(map(wanted, first))
    for found in wider:
        assert found == solve(tree.policy(), f"{wider.index(found)}", make, simulations=60, children=2, widen=2.0)


def test_what_cannot_be():
    for wrong in ({"widen": 0.0}, {"widen": math.inf}, {"widen": 1.0, "alpha": 0.0}, {"alpha": 1.5}):
        with pytest.raises(ConfigError, match="expected widen above 0"):
            letters(Continues(said), **wrong)
