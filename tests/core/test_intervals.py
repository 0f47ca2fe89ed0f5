"""Intervals and paired tests: published numbers, enumeration, and simulated coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.core.estimators import pass_at_k
from maieutic.core.intervals import (
    Ends,
    Interval,
    bootstrap,
    holm,
    mcnemar,
    mcnemar_test,
    paired_bootstrap,
    paired_difference,
    required_problems,
    sign_flip,
    student_t,
    t_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(1042, 1319, 0.7672, 0.8111), (396, 1319, 0.2761, 0.3255), (0, 100, 0, 0.0370), (30, 100, 0.2189, 0.3958)],
)
def test_wilson_numbers(successes: int, n: int, low: float, high: float) -> None:
    got = wilson(successes, n)
    assert (got.value, got.low, got.high) == pytest.approx((successes / n, low, high), abs=5e-5)


def test_wilson_by_hand_and_symmetric() -> None:
    # 0 of n: (z^2/2n + z^2/2n) / (1 + z^2/n) = z^2 / (n + z^2); z = 1.959964, n = 100: 3.841459/103.841459 = .036994
    assert wilson(0, 100).high == pytest.approx(3.841459 / 103.841459, abs=1e-7)
    assert wilson(30, 100).low == pytest.approx(1 - wilson(70, 100).high)
    # Small evaluation sets: +-2.7 points at n = 1319 and +-6.9 at n = 200 near p = .5.
    for n, half in ((1319, 0.027), (200, 0.069)):
        near = wilson(n // 2, n)
        assert (near.high - near.low) / 2 == pytest.approx(half, abs=5e-4)


def test_wilson_covers() -> None:
    # Exact coverage: the binomial probability of the counts whose interval holds the truth.
    for n, p in ((100, 0.3), (200, 0.79), (1319, 0.38)):
        logs = [math.lgamma(n + 1) - math.lgamma(x + 1) - math.lgamma(n - x + 1) for x in range(n + 1)]
        chance = [math.exp(logs[x] + x * math.log(p) + (n - x) * math.log1p(-p)) for x in range(n + 1)]
        held = sum(chance[x] for x in range(n + 1) if wilson(x, n).low <= p <= wilson(x, n).high)
        assert 0.93 <= held <= 0.97


@pytest.mark.parametrize("ends", Ends)
def test_bootstrap_of_pass_at_k_covers(ends: Ends) -> None:
    # 200 problems with success probabilities p ~ Beta(.74, 1.2), 16 samples each, pass@8 estimated without bias.
    # True pass@8 = 1 - E[(1-p)^8] = 1 - B(.74, 1.2 + 8) / B(.74, 1.2).
    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    truth = 1 - math.exp(log_beta(0.74, 9.2) - log_beta(0.74, 1.2))
    assert truth == pytest.approx(0.792, abs=2e-3)
    rng, held, trials = np.random.default_rng(3), 0, 1000
    for trial in range(trials):
        c = rng.binomial(16, rng.beta(0.74, 1.2, 200))
        got = bootstrap(pass_at_k(16, c, 8), resamples=400, seed=trial, ends=ends, bounds=(0, 1))
        held += got.low <= truth <= got.high
    assert 0.93 <= held / trials <= 0.97  # the simulation itself is good to sqrt(.95 * .05 / 1000) = .007


def test_bootstrap_agrees_with_the_normal_interval_and_repeats() -> None:
    x = np.random.default_rng(1).normal(5, 2, 400)
    got = bootstrap(x, seed=7)
    half = 1.96 * x.std(ddof=1) / 20  # sqrt(400) = 20; about .196
    assert (got.low, got.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.02)
    assert got == bootstrap(x, seed=7)
    assert got != bootstrap(x, seed=8)
    median = bootstrap(x, np.median, seed=7, resamples=1000)
    assert median.low < np.median(x) == median.value < median.high


def test_bca_moves_towards_the_long_tail() -> None:
    x = np.random.default_rng(2).exponential(1, 40)
    plain, corrected = bootstrap(x), bootstrap(x, ends=Ends.BCA)
    assert corrected.low > plain.low
    assert corrected.high > plain.high


def test_bootstrap_does_not_claim_what_it_cannot_know() -> None:
    assert bootstrap([0.5]) == Interval(0.5, -math.inf, math.inf)
    assert bootstrap([0.5]).to_dict() == {"value": 0.5, "low": None, "high": None}
    # 100 problems, none solved: as Wilson's 0 of 100, up to 3.7 %; all solved: from 96.3 %.
    none, every = bootstrap([0.0] * 100, bounds=(0, 1)), bootstrap([1.0] * 100, bounds=(0, 1))
    assert (none.low, none.high) == pytest.approx((0, 0.036994), abs=1e-6)
    assert (every.low, every.high) == pytest.approx((1 - 0.036994, 1), abs=1e-6)
    # One problem: w = wilson(0, 1).high = 3.8415/4.8415 = .7935; from .2065 * .5 to .2065 * .5 + .7935.
    one = bootstrap([0.5], bounds=(0, 1))
    assert (one.low, one.high) == pytest.approx((0.1033, 0.8967), abs=1e-4)


def test_mcnemar_numbers() -> None:
    assert mcnemar(15, 5) == pytest.approx(0.04139, abs=5e-6)
    assert mcnemar(5, 15) == mcnemar(15, 5)
    # 3 against 0: 2 * (1/2)^3 = .25; 0 against 0 and 4 against 4: 1.
    assert [mcnemar(3, 0), mcnemar(0, 0), mcnemar(4, 4)] == [0.25, 1.0, 1.0]
    assert mcnemar(5000, 5300) == pytest.approx(0.0032, abs=2e-4)  # z = 299/sqrt(10300) = 2.946: p = .0032
    assert mcnemar_test([1, 1, 1, 0, 0]) == 0.25


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_sign_flip_enumerates_all_signs(differences: list[int]) -> None:
    patterns = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(sum(sign * d for sign, d in zip(pattern, differences))) for pattern in patterns]
    exact = sum(s >= abs(sum(differences)) for s in sums) / len(sums)
    assert sign_flip(differences) == pytest.approx(exact)
    assert sign_flip([0.1 * d for d in differences]) == pytest.approx(exact)  # whatever the rounding of .1


def test_sign_flip_of_many_matches_mcnemar() -> None:
    # On right/wrong differences both are the same exact test; random signs come within 3 sqrt(.04 * .96 / 10000).
    d = np.array([1] * 15 + [-1] * 5 + [0] * 80)
    assert sign_flip(d) == pytest.approx(mcnemar(15, 5), abs=0.006)
    assert sign_flip(np.zeros(50)) == 1.0
    assert sign_flip(np.ones(200)) == 1 / 10_001  # never 0 from random signs


def test_sign_flip_p_values_are_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(5)
    trials = 500
    p = np.sort([sign_flip(rng.normal(0, 1, 40) * rng.random(40), resamples=400, seed=i) for i in range(trials)])
    distance = np.abs(p - (np.arange(trials) + 0.5) / trials).max()
    assert distance < 1.63 / math.sqrt(trials)  # Kolmogorov-Smirnov at 1 %


def test_paired_intervals_are_narrower_and_cover() -> None:
    rng, paired, apart, held, trials = np.random.default_rng(6), [], [], 0, 600
    for trial in range(trials):
        difficulty = rng.beta(0.74, 1.2, 150)  # shared by both models: positive correlation
        a, b = (rng.binomial(8, np.clip(difficulty + gain, 0, 1)) / 8 for gain in (0.0, 0.0))
        got = paired_bootstrap(a, b, resamples=400, seed=trial)
        paired.append(got.high - got.low)
        held += got.low <= 0 <= got.high
        one, other = bootstrap(a, resamples=400, seed=trial), bootstrap(b, resamples=400, seed=trial + trials)
        apart.append(math.hypot(one.high - one.low, other.high - other.low))
    assert np.mean(paired) < 0.6 * np.mean(apart)
    assert 0.93 <= held / trials <= 0.97


def test_holm_by_hand() -> None:
    # Sorted .01 .03 .04 times 3, 2, 1: .03, .06, .04 -> raised to .06.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_student_table_and_seed_interval() -> None:
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 10: 2.2281, 30: 2.0423, 100: 1.9840}
    assert {df: student_t(0.95, df) for df in table} == pytest.approx(table, abs=5e-5)
    # Seeds .40 .44 .48: mean .44, s = .04, half = 4.3027 * .04 / sqrt(3) = .09937
    got = t_interval([0.40, 0.44, 0.48])
    assert (got.value, got.low, got.high) == pytest.approx((0.44, 0.34063, 0.53937), abs=1e-5)
    assert t_interval([0.4]) == Interval(0.4, -math.inf, math.inf)


def test_required_problems_by_hand() -> None:
    # ((1.959964 + .841621) * .5 / .02)^2 = (2.801585 * 25)^2 = 4905.5
    assert required_problems(0.02, 0.5) == 4906
    assert required_problems(-0.02, 0.5) == 4906
    assert required_problems(0.0, 0.5) is None
    # All differences the same: 2^(1-5) = .0625 is not below .05 but 2^(1-6) = .03125 is.
    assert required_problems(1.0, 0.0) == 6
    assert sign_flip(np.ones(5)) == 0.0625
    assert sign_flip(np.ones(6)) == 0.03125


def test_required_problems_keeps_its_promise() -> None:
    # With as many problems as it says, 80 % of repetitions find the difference (sqrt(.8 * .2 / 400) = .02).
    n = required_problems(0.2, 0.9)
    assert n is not None
    rng = np.random.default_rng(8)
    found = np.mean([sign_flip(rng.normal(0.2, 0.9, n), resamples=400, seed=i) < 0.05 for i in range(400)])
    assert 0.74 <= found <= 0.86


def test_verdicts_in_plain_words() -> None:
    rng = np.random.default_rng(9)
    old = rng.random(500)
    noise = rng.normal(0, 0.1, 500)
    assert paired_difference(old + 0.05 + noise, old, bounds=None).verdict == "better"
    assert paired_difference(old - 0.05 + noise, old, bounds=None).verdict == "worse"
    assert paired_difference(old + 1, old, bounds=None, words=("longer", "shorter")).verdict == "longer"
    # 30 of 500 gained, 24 lost: mean .012, variance (54/500 - .000144) * 500/499 = .108072
    # ((2.801585)^2 * .108072 / .000144) = 5890.5 -> "about 5,900"
    new = np.array([1.0] * 30 + [0.0] * 24 + [1.0] * 446)
    base = np.array([0.0] * 30 + [1.0] * 24 + [1.0] * 446)
    got = paired_difference(new, base, test=mcnemar_test)
    assert got.needed == 5891
    assert got.verdict == "not separable at n = 500; about 5,900 problems would be needed"
    assert got.value == pytest.approx(0.012)
    assert got.low < 0 < got.high
    assert str(got).startswith("+1.2 points (")


def test_verdicts_where_there_is_little_to_say() -> None:
    same = paired_difference([1.0] * 50, [1.0] * 50)
    assert (same.verdict, same.needed, same.p_value) == ("not separable at n = 50; no difference was seen", None, 1.0)
    assert same.low < 0 < same.high
    one = paired_difference([1.0], [0.0])
    assert one.verdict == "not separable at n = 1; one problem cannot say how much problems vary"
    assert one.needed is None
    # Five of five better: p = 2/32 = .0625; six would do.
    five = paired_difference([1.0] * 5, [0.0] * 5)
    assert five.verdict == "not separable at n = 5; about 6 problems would be needed"
    assert paired_difference([1.0] * 20, [0.0] * 20).verdict == "better"
    # Equal gains and losses in another order of summation are no difference either.
    assert paired_difference([0.1, 0.2, 0.3], [0.3, 0.1, 0.2]).needed is None


def test_text_of_an_interval() -> None:
    assert str(wilson(30, 100)) == "30.0 % (21.9 to 39.6)"
    assert Interval(112.42, 108.0, 117.05).plain() == "112.4 (108.0 to 117.0)"
    assert t_interval([0.4]).percent() == "40.0 % (could be anything)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(5, 4), "5 successes of 4"),
        (lambda: wilson(0, 0), "n >= 1"),
        (lambda: wilson(1, 2, confidence=95), "got confidence 95"),
        (lambda: bootstrap([]), "expected one finite number a problem"),
        (lambda: bootstrap([0.1, math.nan]), "finite"),
        (lambda: bootstrap([0.1, 1.2], bounds=(0, 1)), "from 0.1 to 1.2"),
        (lambda: bootstrap([0.1, 0.2], resamples=0), "0 resamples"),
        (lambda: paired_bootstrap([1, 2], [1]), "2 and 1 values"),
        (lambda: mcnemar(-1, 2), "-1 and 2"),
        (lambda: mcnemar_test([0.5]), "use `sign_flip`"),
        (lambda: holm([1.5]), "within 0..1"),
        (lambda: student_t(0.95, 0), "at least 1"),
    ],
)
def test_impossible_requests_say_what_was_got(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
