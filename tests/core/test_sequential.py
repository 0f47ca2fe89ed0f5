"""Measures of sequential scaling and of revising, by hand."""

from __future__ import annotations

import random

import pytest

from maieutic.core.sequential import control, performance, scaling
from maieutic.core.transitions import chain, rounds, transitions
from maieutic.errors import DataError


def test_control():
    # 90 ≤ 100 yes, 128 ≤ 128 yes, 140 ≤ 128 no
    assert control([90, 128, 140], 0, [100, 128, 128]) == pytest.approx(2 / 3)
    assert control([90], [91], [100]) == 0.0
    with pytest.raises(DataError, match="0 runs"):
        control([], 0, 1)


def test_scaling():
    # (.4 − .2)/100 = .002, (.5 − .4)/200 = .0005, (.5 − .2)/300 = .001: their mean
    points = [(400, 0.5), (100, 0.2), (200, 0.4)]
    assert scaling(points) == pytest.approx((0.002 + 0.0005 + 0.001) / 3)
    assert performance(points) == 0.5
    assert scaling([(1, 0.5), (3, 0.1)]) == pytest.approx(-0.2)
    for wrong in ([(1, 0.5)], [(1, 0.5), (1, 0.6)]):
        with pytest.raises(DataError, match="different numbers of tokens"):
            scaling(wrong)
    with pytest.raises(DataError):
        performance([])


def test_transitions():
    before = [True] * 5 + [False] * 5
    after = [True] * 4 + [False] + [True] * 2 + [False] * 3
    made = transitions(before, after)
    assert (made.kept, made.broken, made.mended, made.missed) == (4, 1, 2, 3)
    assert made.difference.value == pytest.approx((2 - 1) / 10)
    assert made.difference.p_value == 1.0  # McNemar: 2 against 1
    assert made.mending.value == 2 / 5
    assert made.breaking.value == 1 / 5
    first, second = rounds([before, after, before])
    assert (second.broken, second.mended) == (first.mended, first.broken)
    assert transitions([True], [True]).mending is None
    with pytest.raises(DataError, match="2 problems before and 1 after"):
        transitions([True, False], [True])


def test_the_chain():
    # .5 → .5·.9 + .5·.2 = .55 → .55·.9 + .45·.2 = .585, towards .2/.3
    assert chain(0.5, 0.2, 0.1, 2) == [0.5, 0.55, 0.585]
    assert chain(0.9, 0.2, 0.1, 60)[-1] == pytest.approx(2 / 3, abs=1e-8)
    assert chain(0.4, 0.0, 0.0, 3) == [0.4] * 4
    rng, p = random.Random(0), 0.3
    a, b = rng.random(), rng.random()
    for value in chain(0.3, a, b, 5):
        assert value == pytest.approx(p)
        p = p * (1 - b) + (1 - p) * a
    with pytest.raises(ValueError, match="probability"):
        chain(0.5, 1.2, 0, 1)
