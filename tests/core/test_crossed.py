"""Intervals over seeds and problems, worked by hand and simulated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from maieutic.core.crossed import crossed, crossed_effect, two_level_bootstrap
from maieutic.core.intervals import student_t

TABLE = np.array([[0.0, 0.2, 0.4], [0.2, 0.4, 0.6]])


def test_an_interval_by_hand():
    # seeds' means .2 and .4, their variance .02, over 2 seeds .01; problems' means .1, .3, .5, variance .04, over 3
    # problems .013333. t(1) = 12.7062, t(2) = 4.3027: half = √(161.448 · .01 + 18.5128 · .013333) = 1.364300
    found = crossed(TABLE)
    assert found.value == pytest.approx(0.3)
    assert found.high - found.value == pytest.approx(1.364300, abs=1e-5)
    assert found.value - found.low == pytest.approx(1.364300, abs=1e-5)


def test_the_p_value_is_where_the_interval_ends_at_zero():
    effect = crossed_effect(TABLE)
    at = crossed(TABLE, 1 - effect.p_value)
    assert at.low == pytest.approx(0.0, abs=1e-6)
    assert not effect.seen
    # with one kind of noise only it is Student's: two equal problems, seeds .1, .2, .3: t = .2 / (.1 / √3) = 3.4641,
    # and P(|T| > 3.4641) for 2 degrees of freedom is 1 − t / √(t² + 2) = 1 − 3.4641 / √14 = .074180
    alone = crossed_effect(np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]))
    assert alone.p_value == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-6)


def test_one_seed_and_one_problem_say_nothing():
    assert crossed([[0.1, 0.9]]).low == -math.inf
    assert crossed_effect([[0.1], [0.3]]).p_value == 1.0
    # every difference is the same: the width is that of what was not seen of 4 problems, Wilson's .4899 of 0 of 4
    same = crossed_effect(np.full((3, 4), 0.5))
    assert (same.interval.low, same.interval.high) == pytest.approx((0.5 - 0.4899 * 1.5, 0.5 + 0.4899 * 0.5), abs=1e-4)
    with pytest.raises(ValueError, match=r"expected finite numbers \[S, N\]"):
        crossed([0.1, 0.2])


@pytest.mark.parametrize(("by_seed", "by_problem", "rest"), [(1, 0, 0.3), (1, 1, 1), (0.1, 1, 1), (0, 0, 1)])
def test_intervals_cover_as_often_as_they_say(by_seed, by_problem, rest):
    """A32: whatever the noise is made of, seeds or problems, at most 5 % of intervals miss the truth (0)."""
    rng = np.random.default_rng(0)
    times, missed = 1000, 0
    t = [student_t(0.95, size - 1) for size in (3, 60)]
    for _ in range(times):
        x = by_seed * rng.standard_normal((3, 1)) + by_problem * rng.standard_normal((1, 60))
        x = x + rest * rng.standard_normal((3, 60))
        half = math.sqrt(t[0] ** 2 * x.mean(1).var(ddof=1) / 3 + t[1] ** 2 * x.mean(0).var(ddof=1) / 60)
        missed += abs(x.mean()) > half
    interval = crossed(x)
    assert interval.high - interval.value == pytest.approx(half)  # what was simulated is what the function returns
    # 5 % of 1000, and three standard errors of that, √(.05 · .95 / 1000) = .0069
    assert missed / times <= 0.05 + 3 * 0.0069


def test_a_bootstrap_of_two_levels_has_the_variance_of_both():
    # drawing S of S seeds varies the mean by v/S, v the variance of the seeds' means with ddof 0; problems likewise.
    # Seeds at −.3, −.1, .1, .3 (v = .05, /4 = .0125), problems at −1 and 1, 50 of each (v = 1, /100 = .01):
    # together .0225, √ .15, half the width of a 68.3 % interval
    x = np.array([[-0.3], [-0.1], [0.1], [0.3]]) + np.array([[-1.0, 1.0] * 50])
    drawn = two_level_bootstrap(x, resamples=40_000, confidence=0.6826895)
    assert drawn.value == pytest.approx(0.0)
    assert (drawn.high - drawn.low) / 2 == pytest.approx(0.15, rel=0.05)
