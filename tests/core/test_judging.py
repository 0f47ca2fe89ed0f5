"""Measures of a reward model, counted by hand."""

import math

import pytest

from maieutic.core.judging import (
    auc,
    bce,
    brier,
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
