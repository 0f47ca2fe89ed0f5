"""Measures of a reward model, counted by hand."""

import math

import pytest

from maieutic.core.intervals import wilson
from maieutic.core.judging import (
    auc,
    bce,
    brier,
    calibration,
    error_rates,
    expected_calibration_error,
    first_error,
    first_error_accuracy,
    pair_accuracy,
)
from maieutic.errors import DataError


def test_auc_counts_pairs_and_half_of_ties():
    # right: .8 .5; wrong: .5 .1.  pairs: .8>.5, .8>.1, .5=.5, .5>.1 → (1 + 1 + ½ + 1) / 4
    assert auc([0.8, 0.5, 0.5, 0.1], [1, 1, 0, 0]) == 0.875
    assert auc([0.1, 0.9], [1, 0]) == 0.0
    assert math.isnan(auc([0.1, 0.9], [1, 1]))


def test_pair_accuracy_compares_within_prompts_only():
    # prompt 1: both pairs wrong way round → 0;  prompt 2: right → 1;  prompt 3 has one class only
    scores, labels, prompts = [1.0, 2.0, 9.0, 8.0, 5.0], [1, 0, 1, 0, 1], [1, 1, 2, 2, 3]
    assert pair_accuracy(scores, labels, prompts) == 0.5


def test_cross_entropy_brier_and_calibration_by_hand():
    assert bce([0.5, 0.25], [1, 0]) == pytest.approx((math.log(2) - math.log(0.75)) / 2)
    assert brier([0.5, 0.25], [1, 0]) == pytest.approx((0.25 + 0.0625) / 2)
    # bin [.8, .9): p = .85, .85, one right of two: |1.7 − 1| = .7;  bin [.1, .2): |.1 − 0| = .1;  / 3
    assert expected_calibration_error([0.85, 0.85, 0.1], [1, 0, 0]) == pytest.approx(0.8 / 3)


def test_the_table_of_calibration_is_what_its_error_sums():
    said, labels = [0.85, 0.85, 0.1, 1.0], [1, 0, 0, 1]
    low, high, top = calibration(said, labels)
    assert (low.low, low.high, low.count, low.said, low.seen.value) == (0.1, 0.2, 1, 0.1, 0.0)
    assert (high.count, high.said, high.seen) == (2, 0.85, wilson(1, 2))
    assert (top.low, top.high, top.count) == (0.9, 1.0, 1)  # 1 belongs to the last bin
    error = sum(each.count * abs(each.said - each.seen.value) for each in (low, high, top)) / 4
    assert error == pytest.approx(expected_calibration_error(said, labels))
    with pytest.raises(DataError, match=r"probability 1\.2"):
        calibration([1.2], [1])


def test_a_checkers_errors_are_shares_of_what_is_wrong_and_of_what_is_right():
    """Accepted: 3 of 4 right ones, 1 of 2 wrong ones."""
    found = error_rates([True, True, True, False, True, False], [True, True, True, True, False, False])
    assert found == {"false_positive": wilson(1, 2), "false_negative": wilson(1, 4)}
    assert error_rates([True], [True])["false_positive"] is None


def test_the_first_error_is_found_or_not():
    assert first_error([0.9, 0.4, 0.1]) == 1
    assert first_error([0.9]) is None
    said = [[0.9, 0.2], [0.9, 0.9], [0.3, 0.9], [0.9, 0.9]]
    labels = [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, None]]
    # wrong ones: the first is found, the second is not → ½;  right ones: the third is blamed, the fourth not → ½
    assert first_error_accuracy(said, labels) == {"wrong": 0.5, "right": 0.5, "f1": 0.5}


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="expected one each"):
        auc([0.1], [1, 0])
