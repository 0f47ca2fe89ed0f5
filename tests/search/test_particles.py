"""Particles: drawn again by hand, weights that telescope, the weighted vote where nothing is drawn, the cost."""

import asyncio
import random
from dataclasses import replace

import pytest
import search_tree as tree
from search_letters import Continues, Letters

from maieutic.core.selection import weighted_vote
from maieutic.errors import ConfigError, DataError
from maieutic.protocols import Sampling
from maieutic.search import Question
from maieutic.search.particles import Particle, Particles, drawn_again
from maieutic.search.prefix import EMPTY, Prefix


class At:
    """A draw that is always this."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


def pool(*values: float) -> list[Particle]:
    return [Particle(Prefix(tokens=(i,)), None, value) for i, value in enumerate(values)]


def drawn(values, start: float, uneven: float = 1.0) -> list[int]:
    return [each.prefix.tokens[0] for each in drawn_again(pool(*values), uneven, At(start))]


def test_drawn_again_by_hand():
    """Weights .5 .3 .2 0 end at .5 .8 1 1; four places (i + start) / 4."""
    weights = (0.5, 0.3, 0.2, 0.0)
    assert drawn(weights, 0.0) == [0, 0, 1, 1]  # 0 .25 .5 .75: a place at an end belongs to the next
    assert drawn(weights, 0.5) == [0, 0, 1, 2]  # .125 .375 .625 .875
    assert drawn(weights, 0.9) == [0, 0, 1, 2]  # .225 .475 .725 .975
    assert drawn((0.0, 0.0, 0.2, 0.0), 0.3) == [2, 2, 2, 2]
    assert drawn((0.0, 0.0), 0.3) == [0, 1]  # nothing is known to be better


def test_how_often_each_is_drawn_is_its_share():
    counts = [0] * 3
    for seed in range(2000):
        for each in drawn_again(pool(0.6, 0.3, 0.1), 1.0, random.Random(seed)):
            counts[each.prefix.tokens[0]] += 1
    # 3 · (.6, .3, .1) a draw; the number of each differs from that by less than 1, so its error by less than 1 / √2000
    assert [count / 2000 for count in counts] == pytest.approx([1.8, 0.9, 0.3], abs=3 / 2000**0.5)


def test_even_weights_are_left_as_they_are():
    # (Σw)² / Σw² of .6 .4 .4 .6 is 4 / 1.04 = 3.85, of .9 .1 .1 .1 it is 1.44 / .84 = 1.71
    assert drawn((0.6, 0.4, 0.4, 0.6), 0.9, uneven=0.96) == [0, 1, 2, 3]
    assert drawn((0.6, 0.4, 0.4, 0.6), 0.9, uneven=0.97) != [0, 1, 2, 3]
    assert drawn((0.9, 0.1, 0.1, 0.1), 0.5, uneven=0.42) == [0, 1, 2, 3]
    assert drawn((0.9, 0.1, 0.1, 0.1), 0.5, uneven=0.43) == [0, 0, 0, 2]  # .15 .45 .75 1.05 of 1.2; ends .9 1 1.1 1.2


def test_weights_telescope():
    before = Particle(EMPTY, value=0.5)
    assert before.weight == 0.5
    [kept, _] = drawn_again([before, replace(before, value=0.5)], 1.0, At(0.1))
    assert kept.weight == 0.5  # as even as can be: not drawn
    [first, second] = drawn_again([before, Particle(EMPTY, value=0.0)], 1.0, At(0.1))
    assert first.weight == second.weight == 1.0
    assert Particle(EMPTY, first, 0.4, first.drawn_at).weight == pytest.approx(0.8)  # .5 · .8 = .4


VALUES = {"a;": 0.1, "b;": 0.4, "a;.": 0.1, "b;.": 0.2}


def letters(script, n: int, budget: int = 1000, **options):
    chat, sampler = Letters(), Continues(script)
    judge = options.pop("values", lambda prompt, rows: [VALUES[said(row)] for row in rows])
    search = Particles(sampler, chat, lambda text: text or None, values=judge, particles=n, delimiter=";", **options)
    found = asyncio.run(search.solve(Question(chat.encode("?"), Sampling(12, 1.0, chat.stop_ids, "k")), budget))
    return found, sampler


def said(row) -> str:
    return Letters().decode(row) + "." * (row[-1] == 0)


def one_step(shown: str, key: str) -> str:
    """The first of four siblings begins with b, the others with a; then the end."""
    return "." if ";" in shown else "b;" if key.endswith("/0") else "a;"


def test_four_particles_by_hand():
    """b a a a with values .4 .1 .1 .1: effective number .49 / .19 = 2.6 of 4, which is below .7 · 4. Drawn again with
    shares 4/7 and 1/7 each, so b twice or three times, and each weighs 1. Then the ends: b .2 / .4, a .1 / .1."""
    found, sampler = letters(one_step, 4, uneven=0.7)
    (_, _, first), *rest = sampler.asked
    assert first == 4
    counts = {shown: n for shown, _, n in rest}
    assert counts["?b;"] in (2, 3)
    assert sum(counts.values()) == 4
    assert [each.score for each in found.candidates] == pytest.approx(
        [0.5] * counts["?b;"] + [1.0] * (4 - counts["?b;"])
    )
    # four steps of two tokens, four ends; each was judged
    assert (found.cost.generated, found.cost.judged, found.cost.calls) == (12, 8, 1 + len(rest))
    # b;b weigh .5 each, and each a; 1: two against two is 1 against 2
    assert found.answer == ("a;" if counts["?b;"] == 2 else "b;")


def test_what_is_never_drawn_again_is_the_weighted_vote():
    for key in "abcdef":
        search = Particles(
            tree.policy(), tree.CHAT, tree.read, values=lambda p, rows: [len(set(row)) / 6 for row in rows],
            particles=9, uneven=0.0, delimiter=";",
        )  # fmt: skip
        found = asyncio.run(search.solve(tree.question(key=key), 10_000))
        weights = [len(set(each.completion.tokens)) / 6 for each in found.candidates]
        assert [each.score for each in found.candidates] == weights
        assert found.answer == weighted_vote([each.answer for each in found.candidates], weights)


def test_a_judge_that_is_right_keeps_what_can_become_right():
    plain = [solve(key=f"{i}", uneven=0.0) for i in range(10)]
    drawn_ = [solve(key=f"{i}") for i in range(10)]

    def right(found) -> int:
        return sum(each.answer == tree.WANTED for each in found.candidates)

    # a sample is right with .3 · .6 · .1 = .018; particles are lost only where none of 12 has the third letter, .9¹²
    assert sum(map(right, drawn_)) > 10 * sum(map(right, plain))
    assert all(each.answer == tree.WANTED for each in drawn_ if right(each))


def solve(budget: int = 10_000, key: str = "k", temperature: float = 1.0, sampler=None, **options):
    given = {"values": tree.exact, "particles": 12, **options}
    search = Particles(sampler or tree.policy(), tree.CHAT, tree.read, delimiter=";", **given)
    return asyncio.run(search.solve(tree.question(key=key, temperature=temperature), budget))


@pytest.mark.parametrize("budget", [1, 2, 3, 11, 24, 40, 83])
def test_the_budget_is_kept_and_what_was_sampled_is_counted(budget: int):
    sampler = tree.policy()
    found = solve(budget, sampler=sampler, step_tokens=2)
    assert found.cost.generated == min(budget, 12 * 7)
    assert found.cost.calls == len(sampler.asked)
    assert found.cost.prefilled == sum(len(tokens) for tokens, _ in sampler.asked)
    assert found.candidates
    assert found == solve(budget, step_tokens=2)


def test_at_temperature_0_it_is_the_greedy_completion():
    found = solve(temperature=0.0, values=lambda p, rows: [0.5] * len(rows))
    assert [each.text for each in found.candidates] == ["a ; a ; a ;"]
    assert found.cost.generated == 7


def test_what_cannot_be():
    for wrong in ({"particles": 0}, {"uneven": 1.5}, {"depth": 0}):
        with pytest.raises(ConfigError, match="expected at least 1"):
            solve(**wrong)
    with pytest.raises(DataError, match="expected 0 or more"):
        solve(values=lambda p, rows: [-0.5] * len(rows))
