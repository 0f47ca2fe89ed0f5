"""Aggregates of step scores, by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.errors import DataError, UnknownName
from maieutic.rewards.aggregate import AGGREGATES, aggregate, log_product, normalise

A, B = (0.9, 0.9, 0.3, 0.9), (0.6, 0.6, 0.6, 0.6)
probabilities = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20)


def test_which_of_two_solutions_wins_depends_on_the_aggregate():
    assert (aggregate("min", A), aggregate("min", B)) == (0.3, 0.6)
    assert aggregate("prod", A) == pytest.approx(0.2187)  # .9³ · .3
    assert aggregate("prod", B) == pytest.approx(0.1296)  # .6⁴
    assert (aggregate("last", A), aggregate("last", B)) == (0.9, 0.6)
    assert (aggregate("mean", A), aggregate("mean", B)) == pytest.approx((0.75, 0.6))
    assert aggregate("max", A) == 0.9


@given(probabilities, st.floats(0.0, 1.0))
def test_another_step_never_raises_the_product_and_leaves_the_minimum_where_it_is_no_worse(steps, more):
    assert aggregate("prod", [*steps, more]) <= aggregate("prod", steps) * (1 + 1e-12)
    if more >= min(steps):
        assert aggregate("min", [*steps, more]) == aggregate("min", steps)


def test_many_steps_keep_their_order_in_logarithms():
    worse, better = [0.1] * 400, [0.11] * 400
    assert aggregate("prod", worse) == aggregate("prod", better) == 0.0  # 1e-400 is no float
    assert log_product(worse) < log_product(better)
    assert log_product([0.5, 0.0]) == -math.inf
    assert aggregate("prod", [0.5, 0.0]) == 0.0


def test_what_is_wrong_is_said():
    with pytest.raises(UnknownName, match="prod"):
        aggregate("product", A)
    for how in AGGREGATES:
        with pytest.raises(DataError, match="at least one step"):
            aggregate(how, [])


def test_scores_of_a_group_without_their_zero():
    # mean 2, population deviation √(2/3)
    assert normalise("centre", [1.0, 2.0, 3.0]) == [-1.0, 0.0, 1.0]
    assert normalise("standard", [1.0, 2.0, 3.0]) == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    assert normalise("rank", [1.0, 5.0, 1.0]) == [0.25, 1.0, 0.25]
    assert normalise("standard", [4.0, 4.0]) == [0.0, 0.0]
    assert normalise("none", [1.0]) == [1.0]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(-100, 100))
def test_a_constant_of_the_prompt_is_taken_away(scores, constant):
    moved = [score + constant for score in scores]
    assert normalise("centre", moved) == pytest.approx(normalise("centre", scores), abs=1e-9)


def test_what_could_not_be_scored_is_left_out_of_the_mean():
    assert normalise("centre", [1.0, None, 3.0]) == [-1.0, None, 1.0]
    assert normalise("rank", [None, None]) == [None, None]
