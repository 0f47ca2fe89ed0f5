"""pass@k, strict majority, vote and best-of-k against numbers worked by hand and against enumeration of all subsets."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.core.estimators import Nulls, Ties, best_of_k, pass_at_k, strict_majority_at_k, vote_at_k

NULL = -1


def partitions(total: int, most: int) -> Iterator[list[int]]:
    """The ways to write `total` as a falling sum of parts up to `most`."""
    if total == 0:
        yield []
    for first in range(min(total, most), 0, -1):
        for rest in partitions(total - first, first):
            yield [first, *rest]


def all_votes(largest: int) -> Iterator[tuple[int, list[int], int]]:
    """Every (correct, counts of wrong answers, nulls) with 1..largest samples."""
    for n in range(1, largest + 1):
        for correct in range(n + 1):
            for nulls in range(n - correct + 1):
                for others in partitions(n - correct - nulls, n):
                    yield correct, others, nulls


def mean_over_subsets(labels: list[int], k: int, worth: Callable[[Counter[int]], float]) -> float:
    drawn = [worth(Counter(subset)) for subset in itertools.combinations(labels, k)]
    return sum(drawn) / len(drawn)


def vote_worth(ties: Ties, null_votes: Nulls) -> Callable[[Counter[int]], float]:
    def worth(votes: Counter[int]) -> float:
        rivals = [v for label, v in votes.items() if label > 0 or (label == NULL and null_votes is Nulls.WRONG_ANSWER)]
        mine = votes[0]
        if mine == 0 or mine < max(rivals, default=0):
            return 0.0
        tied = rivals.count(mine)
        return {Ties.EXPECTED: 1 / (1 + tied), Ties.OPTIMISTIC: 1.0, Ties.PESSIMISTIC: float(tied == 0)}[ties]

    return worth


def labelled(correct: int, others: list[int], nulls: int) -> list[int]:
    wrong = [answer for answer, count in enumerate(others, start=1) for _ in range(count)]
    return [0] * correct + wrong + [NULL] * nulls


def test_pass_at_k_by_hand() -> None:
    # n = 10, c = 3.  k = 1: 3/10.  k = 2: 1 - (7*6)/(10*9) = 1 - 42/90 = .533333.
    # k = 5: 1 - C(7,5)/C(10,5) = 1 - 21/252 = .916667.  k = 8: only 7 wrong ones, so one of 8 is right.
    got = [float(pass_at_k(10, 3, k)) for k in (1, 2, 5, 8)]
    assert got == pytest.approx([0.3, 0.533333, 0.916667, 1.0], abs=1e-6)
    # The plug-in 1 - (1 - c/n)^k = 1 - .7^5 = .83193 is biased low.
    assert got[2] > 1 - 0.7**5 + 0.08


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_ratio_of_binomials(nck: tuple[int, int, int]) -> None:
    n, c, k = nck
    assert float(pass_at_k(n, c, k)) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-13)


def test_pass_at_k_ends_and_monotone() -> None:
    n = 30
    c = np.arange(n + 1)
    table = np.stack([pass_at_k(n, c, k) for k in range(1, n + 1)])  # [k, c]
    assert (np.diff(table, axis=0) >= -1e-12).all()
    assert (np.diff(table, axis=1) >= -1e-12).all()
    assert table[0] == pytest.approx(c / n)
    assert table[-1].tolist() == [0.0] + [1.0] * n


def test_ten_thousand_samples_neither_overflow_nor_vanish() -> None:
    n = 10_000
    # One correct of 10^4: the chance to draw it is k/n.
    assert float(pass_at_k(n, 1, 1)) == pytest.approx(1e-4, rel=1e-12)
    assert float(pass_at_k(n, 1, 5000)) == pytest.approx(0.5, rel=1e-10)
    # Half of them correct and k odd: by symmetry exactly one half.
    assert float(strict_majority_at_k(n, 5000, 5001)) == pytest.approx(0.5, abs=1e-10)
    assert float(strict_majority_at_k(n, n, n)) == 1.0
    assert float(strict_majority_at_k(n, 3, 9_000)) == 0.0
    # Two answers with as many samples each: one half, ties shared.
    assert float(vote_at_k(5000, [5000], 64)) == pytest.approx(0.5, abs=1e-10)
    # No other answer at all: right unless all 64 are nulls, (1/2)^64 about 5e-20.
    assert float(vote_at_k(5000, [], 64, nulls=5000)) == pytest.approx(1.0, abs=1e-12)
    assert best_of_k(np.arange(n), np.arange(n) == n - 1, 2500) == pytest.approx(0.25)


def test_strict_majority_by_hand() -> None:
    # n = k = 8: five of eight is a majority, four of eight is not.
    assert strict_majority_at_k(8, np.arange(9), 8).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    # n = 16, c = 8: [C(8,5)^2 + C(8,6)C(8,2) + C(8,7)C(8,1) + 1] / C(16,8)
    #   C(8,5)C(8,3) = 3136, C(8,6)C(8,2) = 784, C(8,7)C(8,1) = 64, 1  ->  3985 / 12870 = .309635
    assert float(strict_majority_at_k(16, 8, 8)) == pytest.approx(3985 / 12870)
    assert float(strict_majority_at_k(64, 32, 8)) == pytest.approx(0.353923, abs=1e-6)
    # n to infinity: Binomial(8, 1/2) >= 5 is (56 + 28 + 8 + 1)/256 = .363281
    assert float(strict_majority_at_k(10**8, 5 * 10**7, 8)) == pytest.approx(93 / 256, abs=1e-6)


def test_strict_majority_is_the_mean_over_all_subsets() -> None:
    for n, k in itertools.combinations_with_replacement(range(1, 9), 2):
        n, k = max(n, k), min(n, k)
        got = strict_majority_at_k(n, np.arange(n + 1), k)
        for c in range(n + 1):
            expected = mean_over_subsets(labelled(c, [1] * (n - c), 0), k, lambda v, k=k: float(v[0] > k / 2))
            assert got[c] == pytest.approx(expected, abs=1e-12), (n, c, k)


def test_vote_by_hand() -> None:
    # Three correct, two of one wrong answer, one of another; k = 1..6.
    # k = 2: CC 3/15 wins; of the 15 pairs, 2 x 3 + 3 = 9 are C with another (worth 1/2): (3 + 4.5)/15 = .5.
    expected = [0.5, 0.5, 0.6, 0.7, 0.75, 1.0]
    pessimistic = [0.5, 0.2, 0.5, 0.6, 0.5, 1.0]
    optimistic = [0.5, 0.8, 0.8, 0.8, 1.0, 1.0]
    for ties, want in ((Ties.EXPECTED, expected), (Ties.PESSIMISTIC, pessimistic), (Ties.OPTIMISTIC, optimistic)):
        assert [float(vote_at_k(3, [2, 1], k, ties=ties)) for k in range(1, 7)] == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("ties", Ties)
@pytest.mark.parametrize("null_votes", Nulls)
def test_vote_is_the_mean_over_all_subsets(ties: Ties, null_votes: Nulls) -> None:
    cases = list(all_votes(7))
    worth = vote_worth(ties, null_votes)
    for k in range(1, 8):
        large = [case for case in cases if case[0] + sum(case[1]) + case[2] >= k]
        correct, others, nulls = zip(*large)
        got = vote_at_k(correct, others, k, ties=ties, nulls=nulls, null_votes=null_votes)
        for case, value in zip(large, got):
            assert value == pytest.approx(mean_over_subsets(labelled(*case), k, worth), abs=1e-12), (case, k)


def test_a_null_takes_a_place_and_casts_no_vote() -> None:
    # One correct, three nulls, k = 2: the correct one is drawn in 3 of 6 pairs and then wins alone.
    assert float(vote_at_k(1, [], 2, nulls=3)) == pytest.approx(0.5)
    # As a wrong answer of their own, the null drawn with it ties: half as often.
    assert float(vote_at_k(1, [], 2, nulls=3, null_votes=Nulls.WRONG_ANSWER)) == pytest.approx(0.25)
    # Nothing but nulls: wrong, not undecided.
    assert float(vote_at_k(0, [], 2, nulls=3)) == 0.0


counts = st.tuples(st.integers(0, 9), st.lists(st.integers(0, 6), max_size=5), st.integers(0, 4))


@given(counts.filter(lambda c: c[0] + sum(c[1]) + c[2] > 0), st.data())
def test_strict_below_vote_below_pass(case: tuple[int, list[int], int], data: st.DataObject) -> None:
    correct, others, nulls = case
    n = correct + sum(others) + nulls
    k = data.draw(st.integers(1, n))
    strict, passed = float(strict_majority_at_k(n, correct, k)), float(pass_at_k(n, correct, k))
    worst = float(vote_at_k(correct, others, k, nulls=nulls, ties=Ties.PESSIMISTIC, null_votes=Nulls.WRONG_ANSWER))
    vote = float(vote_at_k(correct, others, k, nulls=nulls))
    best = float(vote_at_k(correct, others, k, nulls=nulls, ties=Ties.OPTIMISTIC))
    slack = 1e-12
    assert strict <= worst + slack <= vote + 2 * slack <= best + 3 * slack <= passed + 4 * slack


def test_equal_counts_have_equal_votes_in_any_company() -> None:
    # A paired comparison must see exactly 0 where nothing changed, whatever else is in the table.
    alone = vote_at_k([5], [[2, 1]], 4)[0]
    among = vote_at_k([1, 5, 40], [[9, 3, 3, 1], [0, 1, 2], [1] * 24], 4)[1]
    assert alone == among


def test_best_of_k_by_hand() -> None:
    # Scores .1 .2 .3 .4 .9, correct 1 1 1 0 0 (ascending).  k = 2: weights C(i-1,1)/C(5,2) = 0 .1 .2 .3 .4
    # -> .1 + .2 = .3.  k = 5: the best of all is wrong.  k = 1: 3/5.
    scores, correct = [0.2, 0.3, 0.1, 0.9, 0.4], [1, 1, 1, 0, 0]
    assert [float(best_of_k(scores, correct, k)) for k in (1, 2, 5)] == pytest.approx([0.6, 0.3, 0.0])


def test_best_of_k_is_the_mean_over_all_subsets() -> None:
    rng = np.random.default_rng(0)
    for n in range(1, 8):
        scores = rng.integers(0, 4, (12, n))  # few levels: ties everywhere
        correct = rng.integers(0, 2, (12, n))
        for k in range(1, n + 1):
            got = best_of_k(scores, correct, k)
            for row in range(12):
                drawn = []
                for subset in map(list, itertools.combinations(range(n), k)):
                    top = scores[row, subset].max()
                    drawn.append(correct[row, subset][scores[row, subset] == top].mean())
                assert got[row] == pytest.approx(np.mean(drawn), abs=1e-12)


def test_perfect_scores_make_best_of_k_pass_at_k_and_constant_ones_pass_at_1() -> None:
    correct = (np.arange(12) < np.arange(13)[:, None]).astype(float)  # c = 0..12 of n = 12
    c = np.arange(13)
    for k in (1, 4, 12):
        assert best_of_k(correct, correct, k) == pytest.approx(pass_at_k(12, c, k), abs=1e-12)
        assert best_of_k(np.zeros_like(correct), correct, k) == pytest.approx(c / 12, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(4, 2, 5), "got k = 5 with 4 samples"),
        (lambda: pass_at_k(4, 2, 0), "got k = 0"),
        (lambda: pass_at_k(4, 5, 2), "0 <= c <= n"),
        (lambda: pass_at_k(4, -1, 2), "0 <= c <= n"),
        (lambda: pass_at_k(4.5, 1, 2), "whole numbers"),
        (lambda: strict_majority_at_k([8, 3], [1, 1], 4), "with 3 samples"),
        (lambda: vote_at_k(2, [1], 4), "with 3 samples"),
        (lambda: vote_at_k(2, [-1], 1), "negative count"),
        (lambda: vote_at_k([2, 3], [[1]], 1), "2 correct counts and 1 lists"),
        (lambda: best_of_k([1, 2], [1], 1), r"scores \(2,\) and correct \(1,\)"),
        (lambda: best_of_k([1, math.nan], [1, 0], 1), "not a number"),
        (lambda: best_of_k([1, 2], [1, 0], 3), "got k = 3 with 2 samples"),
    ],
)
def test_impossible_requests_say_what_was_got(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_problems_of_different_difficulty_explain_both_numbers_of_a_small_model():
    """79 % pass@8 beside 30 % majority of 8: success probabilities p ~ Beta(.74, 1.2), whose mean is .38, give both,
    where a p of .38 for all would give pass@8 of .978. Counts of 64 samples of such a problem are beta-binomial."""

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    n, counts = 64, np.arange(65)
    chance = np.array(
        [math.comb(n, c) * math.exp(log_beta(0.74 + c, 1.2 + n - c) - log_beta(0.74, 1.2)) for c in counts]
    )
    assert chance.sum() == pytest.approx(1)
    mean = {k: float(chance @ pass_at_k(n, counts, k)) for k in (1, 8)}
    assert mean[1] == pytest.approx(0.74 / 1.94) == pytest.approx(0.381, abs=5e-4)
    assert mean[8] == pytest.approx(0.792, abs=2e-3)
    assert float(chance @ strict_majority_at_k(n, counts, 8)) == pytest.approx(0.302, abs=1e-3)
    alike = np.array([math.comb(n, c) * 0.38**c * 0.62 ** (n - c) for c in counts])
    assert float(alike @ pass_at_k(n, counts, 8)) == pytest.approx(0.978, abs=5e-4)
