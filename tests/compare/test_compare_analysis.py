"""What is said of results that were written by hand, and how often it is wrong where there is nothing to say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maieutic.compare.analyse import adjusted, analyse, compare, compared
from maieutic.compare.measures import values
from maieutic.compare.verdict import between, learnt, verdict
from maieutic.evaluate import Evaluation, Problem, Sample
from maieutic.types import Finish


def test_values_and_differences_by_hand(make_results):
    # 4 samples of 2 problems, 2 seeds. a: pass@1 (4/4 + 2/4)/2 = .75 and (3/4 + 1/4)/2 = .5: mean .625
    # b: (2/4 + 2/4)/2 = .5 and (1/4 + 1/4)/2 = .25: mean .375. The difference: .25 with each seed
    found = analyse(make_results({"a": [[4, 2], [3, 1]], "b": [[2, 2], [1, 1]]}), "test")
    assert found.arms["a"]["pass@1"].by_seed == (0.75, 0.5)
    assert found.arms["a"]["pass@1"].interval.value == pytest.approx(0.625)
    (pair,) = found.pairs
    assert (pair.new, pair.old, pair.metric, pair.seeds, pair.problems) == ("b", "a", "pass@1", 2, 2)
    assert pair.effect.interval.value == pytest.approx(-0.25)
    assert pair.over_seeds.low == pair.over_seeds.high == pytest.approx(-0.25)  # both seeds say the same
    # k = 2: pass@2 of c = 4, 2, 3, 1 of 4 is 1, 1 − 1/6, 1, 1/2: mean .833333; b: 5/6, 5/6, 1/2, 1/2: .666667
    other = next(each for each in found.others if each.metric == "pass@2")
    assert other.effect.interval.value == pytest.approx(0.666667 - 0.833333, abs=1e-6)
    assert other.p_adjusted is None
    assert not other.claimed


def test_pairs_or_all_against_one():
    assert compared(["a", "b", "c"], None) == [("b", "a"), ("c", "a"), ("c", "b")]
    assert compared(["a", "b", "c"], "b") == [("a", "b"), ("c", "b")]


def test_seeds_are_paired_where_both_arms_have_them(make_results):
    results = make_results({"a": [[4, 2], [3, 1]], "b": [[2, 2]]})
    (pair,) = analyse(results, "test").pairs
    assert pair.seeds == 1
    said = verdict(results, analyse(results, "test"))
    assert "Without a complete run, and left out: b (seed 2)." in said


def test_reranking_by_likelihood_and_different_solutions():
    def sample(correct: bool, text: str, logprob: float | None) -> Sample:
        return Sample(text, text[-1], correct, Finish.STOP, 3, logprob)

    rows = (
        sample(True, "1 + 1 = 2", -0.5), sample(True, "1  +  1 = 2 ", -0.2),  # the same solution
        sample(True, "2 = 2", -0.9), sample(False, "3", -0.1),
    )  # fmt: skip
    never = tuple(sample(False, "?", None) for _ in range(4))  # could not be made: no likelihood
    table = Evaluation("test", (Problem("p0", None, rows), Problem("p1", None, never)))
    assert values(table, "unique").tolist() == [2.0, 0.0]
    # of two samples drawn from four the likelier one counts: the wrong one (−.1) is in 3 of 6 pairs, so 1/2 are right
    assert values(table, "rerank@2").tolist() == pytest.approx([0.5, 0.0])
    assert values(table, "rerank@4").tolist() == [0.0, 0.0]
    assert values(table, "pass@4").tolist() == [1.0, 0.0]


def test_a_selection_is_never_above_pass_at_k(make_results):
    """A31: whatever chooses among k samples, it finds no correct one where there is none."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = tuple(
            Sample(str(answer), str(answer), bool(answer == 1), Finish.STOP, 2, float(rng.normal()))
            for answer in rng.integers(0, 4, 8)
        )
        table = Evaluation("test", (Problem("p", None, rows),))
        for k in (1, 3, 8):
            best = values(table, f"pass@{k}")[0]
            assert all(values(table, f"{how}@{k}")[0] <= best + 1e-9 for how in ("rerank", "vote", "strict"))


@pytest.mark.parametrize("deviation", [0.0, 0.5])
def test_a_true_null_is_not_called_a_difference(make_results, drawn, deviation):
    """A32: of 200 studies of three arms that are alike, at most 5 % (and sampling error) claim a difference.

    Seeds differ by luck of that deviation on the log-odds; problems differ in difficulty, as they do.
    """
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        logits = 1.5 * rng.standard_normal(40)
        tables = [np.array(drawn(rng, logits, 8, 3, deviation)) / 8 for _ in range(3)]
        family = adjusted(
            [compare(tables[i], tables[j], (str(i), str(j)), "pass@1") for i, j in ((1, 0), (2, 0), (2, 1))]
        )
        wrong += any(pair.claimed for pair in family)
    # 5 % of 200 is 10; two standard errors of that are 2 · √(200 · .05 · .95) = 6.2
    assert wrong <= 16


def test_a_difference_that_is_there_is_found(make_results, drawn):
    rng = np.random.default_rng(2)
    logits = rng.standard_normal(150)
    old, new = drawn(rng, logits, 8, 3, 0.05), drawn(rng, logits, 8, 3, 0.05, shift=1.0)
    results = make_results({"old": old, "new": new}, start=old, n=8)
    found = analyse(results, "test")
    assert found.pairs[0].claimed
    low, value, high = (100 * x for x in (
        found.pairs[0].effect.interval.low, found.pairs[0].effect.interval.value, found.pairs[0].effect.interval.high
    ))  # fmt: skip
    said = verdict(results, found)
    assert (
        f"new is better than old on pass@1 by {value:.1f} points ({low:.1f} to {high:.1f}; 3 seeds, 150 problems)."
        in said
    )


def effect(make_results, new, old):
    found = analyse(make_results({"a": old, "b": new}, start=old), "test")
    return found, found.pairs[0]


def test_no_order_within_what_overlaps(make_results):
    rows = [[4, 0, 2, 1, 3, 2]] * 3
    moved = [[4, 1, 2, 0, 3, 2]] * 3  # one problem up, one down
    found, pair = effect(make_results, moved, rows)
    assert not pair.claimed
    said = between(pair, len(found.pairs))
    assert said.startswith("No difference between b and a could be seen on pass@1: it may lie between −")
    assert said.endswith("points (3 seeds, 6 problems).")
    assert "better" not in said


def test_one_seed_claims_nothing_however_large_the_difference(make_results):
    results = make_results({"a": [[0] * 50], "b": [[4] * 50]}, start=[[0] * 50])
    found = analyse(results, "test")
    assert not found.pairs[0].claimed
    said = verdict(results, found)
    assert any(sentence.startswith("With one seed nothing can be said of b and a") for sentence in said)
    assert not any("better" in sentence or "learnt" in sentence for sentence in said)


def test_what_looks_like_a_difference_alone_but_not_among_many():
    # three seeds alike; 60 problems at .4 and −.2 in turn: mean .1, deviation √(60 · .09 / 59) = .302532, so
    # t = .1 / (.302532 / √60) = 2.5604 with 59 degrees of freedom, p = .013: enough alone, not 20 times over
    x = np.array([[0.4, -0.2] * 30] * 3)
    pair = compare(x, np.zeros_like(x), ("a", "b"), "pass@1")
    assert pair.effect.p_value == pytest.approx(0.013, abs=5e-4)
    assert adjusted([pair])[0].claimed
    nothing = compare(np.zeros_like(x), np.zeros_like(x), ("c", "d"), "pass@1")
    among = adjusted([pair, *[nothing] * 19])[0]
    assert not among.claimed
    assert "but of 20 comparisons one may look so by chance" in between(among, 20)


def test_learnt_something_new_or_only_became_surer(make_results):
    # 60 problems, 4 samples. The start solves 40 of them, one sample of two, and never the other 20.
    start = [[2] * 40 + [0] * 20] * 3
    surer = [[4] * 40 + [0] * 20] * 3
    new = [[4] * 40 + [3] * 20] * 3
    lost = [[4] * 20 + [0] * 40] * 3
    results = make_results({"surer": surer, "new": new, "lost": lost}, start=start)
    said = " ".join(verdict(results, analyse(results, "test")))
    assert "surer became better than the model it started from: pass@1 changed by +33.3 points" in said
    assert "surer became surer of what its start could do already; no novel solutions were seen: pass@2" not in said
    # pass@2 of 2 in 4 is 5/6: making it 1 is a gain in pass@2 too, but one that k = 4 (any of the four) does not see
    wide = make_results({"surer": surer, "new": new, "lost": lost}, start=start,
                        evaluation={"tasks": "test", "samples": 4, "k": 4, "max_completion_length": 6})  # fmt: skip
    said = " ".join(verdict(wide, analyse(wide, "test")))
    assert "surer became surer of what its start could do already; no novel solutions were seen: pass@4" in said
    assert "new learnt something new, as far as 4 samples tell: within them it solves more problems" in said
    assert "lost lost solutions that its start had: pass@4 changed by −33.3 points" in said


def test_an_arm_that_spent_more_than_the_budget_is_named(make_results):
    results = make_results({"a": [[4, 2]] * 3, "b": [[2, 2]] * 3}, budget={"samples": 5})
    said = verdict(results, analyse(results, "test"))
    assert "Not quite equal: a spent 160 % of the budget of samples, for its steps are large." in said


def test_a_gain_that_only_looks_so_alone_says_that(make_results):
    """The interval leaves 0 out, but not for all comparisons of the kind at once."""
    start, new = [[2] * 40 + [0] * 20] * 3, [[4] * 40 + [3] * 20] * 3
    evaluation = {"tasks": "test", "samples": 4, "k": 4, "max_completion_length": 6}
    results = make_results({"new": new, "same": start}, start=start, evaluation=evaluation)
    found = analyse(results, "test")
    among = replace(found, gains=tuple(replace(gain, p_adjusted=0.07) for gain in found.gains))
    said = learnt(among, "new")
    assert said[0].startswith("That new became better than the model it started from cannot be claimed: pass@1 changed")
    assert f"but of {len(found.gains)} comparisons one may look so by chance (p = 0.07 among them)" in said[0]
    assert said[1].startswith("That new learnt something new cannot be claimed: pass@")
