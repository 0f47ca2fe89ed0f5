"""Step-level beam search: one beam is a chain, values that are right lose no solution, the width shrinks."""

import asyncio
import re

import pytest
import search_tree as tree
from search_letters import Continues, Letters

from maieutic.backends.toy import STOP
from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.protocols import Sampling
from maieutic.search import Question
from maieutic.search.beam import Beam
from maieutic.search.prefix import EMPTY, Growth
from maieutic.search.spending import Purse
from maieutic.steps import split_steps
from maieutic.types import Finish


def beam(sampler=None, values=tree.exact, **options) -> Beam:
    return Beam(sampler or tree.policy(), tree.CHAT, tree.read, values=values, delimiter=";", **options)


def solve(search: Beam, budget: int = 10_000, **asked):
    return asyncio.run(search.solve(tree.question(**asked), budget))


def test_one_beam_of_one_child_is_the_chain_of_its_samples():
    found = solve(beam(beams=1, children=1))
    # by hand: step after step, each from the tokens before it, with the key of its level and beam
    sampler, growth = tree.policy(), Growth(tree.CHAT, ";")
    chain = EMPTY
    for level in range(4):
        [[chain]] = asyncio.run(growth.grow(Purse(sampler, 100), tree.question(), [(chain, 1, f"{level}/0")]))
    assert found.best.completion.tokens == chain.tokens
    assert found.best.completion.logprobs == chain.logprobs
    assert found.cost.generated == 7 == len(chain.tokens)
    assert chain.tokens[-1] == STOP


def test_at_temperature_0_it_is_the_greedy_completion():
    sampler = tree.policy()
    [greedy] = asyncio.run(sampler.sample(tree.PROMPT, tree.question(temperature=0.0).sampling, 1))
    found = solve(beam(beams=3, children=5), temperature=0.0)
    assert found.best.completion == greedy
    assert found.best.text == "a ; a ; a ;"


@pytest.mark.parametrize("seed", range(6))
def test_exact_values_find_a_solution_that_is_among_the_children(seed: int):
    found = solve(beam(beams=1, children=12), key=f"{seed}")
    # by hand from the log: follow the wanted steps for as long as they were among the children of the one before
    parent, steps = None, [step.strip() for step in split_steps(tree.WANTED, ";")]
    for depth, step in enumerate(steps, 1):
        offered = [r for r in found.log if r["depth"] == depth and r["parent"] == parent and r["step"].strip() == step]
        if not offered:
            break
        assert offered[0]["kept"]
        parent = offered[0]["node"]
    assert (found.answer == tree.WANTED) == bool(offered)


def test_twelve_children_nearly_always_have_the_step():
    found = [solve(beam(beams=2, children=12), key=f"{seed}").answer == tree.WANTED for seed in range(20)]
    # P(all three steps among 12 samples) >= (1 - .7¹²)(1 - .4¹²)(1 - .9²⁴), the last with both beams: about .9
    assert sum(found) >= 14


def test_beams_that_say_the_same_are_one_and_ended_beams_make_room():
    found = solve(beam(beams=3, children=4, values=lambda p, rows: [len(row) for row in rows]))
    by_depth = {d: [r for r in found.log if r["depth"] == d] for d in (1, 2, 3, 4)}
    for rows in by_depth.values():
        assert len({(r["parent"], r["step"]) for r in rows}) == len(rows)
        assert sum(r["kept"] for r in rows) <= 3
    assert sum(r["kept"] for r in by_depth[1]) == 3  # the first step was sampled 12 times
    assert all(r["finished"] for r in by_depth[4])
    assert len(found.candidates) == sum(r["kept"] and r["finished"] for r in found.log)
    assert all(each.completion.finish is Finish.STOP for each in found.candidates)


#: Values of beginnings, of two chains that are whole after a step: A (.9 .9 .3 .9) and B (.6 .6 .6 .6), and C (.7 .8).
PATHS = {"a": (0.9, 0.9, 0.3, 0.9), "b": (0.6, 0.6, 0.6, 0.6), "c": (0.7, 0.8)}


def letter(key: str) -> str:
    """The three siblings of the first step begin with a, b and c; later steps go on with the same letter."""
    return "abc"[int(key.rpartition("/")[2]) % 3]


def paths(shown: str, key: str) -> str:
    text = shown.removeprefix("?")
    mine = text[0] if text else letter(key)
    return "." if text.count(";") == len(PATHS[mine]) - 1 else f"{mine};"


def along(_prompt, rows):
    """The value of each beginning: that of its last step, an end being a step."""
    texts = [Letters().decode(row) for row in rows]
    return [PATHS[text[0]][text.count(";") - (row[-1] != 0)] for text, row in zip(texts, rows, strict=True)]


@pytest.mark.parametrize(
    ("aggregate", "answer", "scores"),
    [
        ("last", "a", {"a": 0.9, "b": 0.6, "c": 0.8}),
        ("min", "c", {"a": 0.3, "b": 0.6, "c": 0.7}),
        ("prod", "c", {"a": 0.2187, "b": 0.1296, "c": 0.56}),  # .9 · .9 · .3 · .9; .6⁴; .7 · .8, the shorter
    ],
)
def test_what_the_answer_is_chosen_by(aggregate, answer, scores):
    found = letters(3, 1, aggregate=aggregate)
    got = {each.text[0]: each.score for each in found.candidates}
    assert got == pytest.approx(scores)
    assert found.answer[0] == max(got, key=got.get) == answer
    assert [row["kept"] for row in found.log] == [True] * (4 + 4 + 2)  # what goes on is kept by its last value
    assert found.cost == letters(3, 1).cost


def letters(beams: int, children: int, script=paths, values=along, **options):
    chat = Letters()
    search = Beam(
        Continues(script), chat, lambda text: text or None, values=values, beams=beams, children=children,
        delimiter=";", **options,
    )  # fmt: skip
    asked = Question(chat.encode("?"), Sampling(12, 1.0, chat.stop_ids, "k"))
    return asyncio.run(search.solve(asked, 1000))


def test_beams_apart_compete_with_their_siblings_only():
    """Six first steps, a b c a b c, worth .9 .6 .7. Together the three different ones are kept; apart, of (a b) a, of
    (c a) a, of (b c) c."""
    together = letters(3, 2)
    assert [row["step"] for row in together.log if row["depth"] == 1 and row["kept"]] == ["a;", "b;", "c;"]
    assert len([row for row in together.log if row["depth"] == 1]) == 3
    apart = letters(3, 2, apart=True)
    first = [(row["step"], row["kept"]) for row in apart.log if row["depth"] == 1]
    assert first == [("a;", True), ("b;", False), ("c;", False), ("a;", True), ("b;", False), ("c;", True)]
    # two subtrees say the same, each with samples of its own
    assert sorted(each.text for each in apart.candidates) == ["a;a;a;", "a;a;a;", "c;"]


def test_one_beam_apart_is_one_beam():
    for key in "xyz":
        assert solve(beam(beams=1, children=4), key=key) == solve(beam(beams=1, children=4, apart=True), key=key)


def test_beams_that_vote():
    """Apart, a ends twice with .5 each, and c once with .8: c is the best, and a has the larger sum."""

    def values(prompt, rows):
        return [0.5 if row[-1] == 0 and row[0] == ord("a") else value for row, value in zip(rows, along(prompt, rows))]

    assert letters(3, 2, values=values, apart=True).answer == "c;"
    voted = letters(3, 2, values=values, apart=True, vote=True)
    assert voted.answer == "a;a;a;"
    assert voted.best.score == 0.5


def test_a_depth_that_is_too_small_leaves_what_is_cut():
    found = solve(beam(beams=2, children=3, depth=2))
    assert {each.completion.finish for each in found.candidates} == {Finish.LENGTH}
    assert found.best.score == max(each.score for each in found.candidates)
    assert found.answer is None


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 13, 20, 41])
def test_the_budget_is_kept_and_what_was_sampled_is_counted(budget: int):
    sampler = tree.policy()
    found = solve(beam(sampler, beams=2, children=3, step_tokens=2), budget)
    assert 1 <= found.cost.generated <= budget
    assert found.cost.calls == len(sampler.asked)
    assert found.cost.prefilled == sum(len(tokens) for tokens, _ in sampler.asked)
    assert found.candidates


def test_the_same_seed_is_the_same_search_and_tools_see_the_whole():
    assert solve(beam(), key="x") == solve(beam(), key="x")
    assert solve(beam(children=2), key="x").log != solve(beam(children=2), key="y").log


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="expected at least 1"):
        beam(beams=0)
    with pytest.raises(UnknownName, match="did you mean 'prod'"):
        beam(aggregate="prd")
    for options, said in (({"aggregate": "prod"}, "below 0"), ({"vote": True}, "at least 0")):
        with pytest.raises(DataError, match=said):
            letters(3, 1, values=lambda prompt, rows: [-0.5] * len(rows), **options)
    with pytest.raises(ConfigError, match="an expression"):
        Growth(tree.CHAT, re.compile("; "))
    with pytest.raises(ConfigError, match="step_tokens=0"):
        Growth(tree.CHAT, ";", 0)
