"""The measured limits: rates of the machine that are plausible, and refused where nothing can be measured."""

from __future__ import annotations

import pytest
import torch

from maieutic.backends.local.peak import bandwidth, matrix_rate, peak


def test_many_rows_reach_a_higher_rate_than_one() -> None:
    # One row reads the whole matrix for 2 operations a weight; 256 rows do 512 with each weight that was read.
    assert matrix_rate(256, 512, 512, seconds=0.05) > 2 * matrix_rate(1, 512, 512, seconds=0.05)


def test_a_rate_is_operations_in_the_time_that_a_product_takes() -> None:
    rate = matrix_rate(128, 256, 256, seconds=0.05)
    assert 1e8 < rate < 1e15  # from a slow core to an accelerator
    assert peak(seconds=0.05) > 1e8


def test_memory_is_slower_than_arithmetic() -> None:
    # A product reads each number and uses it many times: with the memory alone it could do one operation a number read.
    assert 1e8 < bandwidth(seconds=0.05) / 4 < peak(seconds=0.05)


def test_other_types_are_measured_as_themselves() -> None:
    assert peak(dtype=torch.float64, seconds=0.05) < 1.2 * peak(seconds=0.05)  # half as many fit in a register


@pytest.mark.parametrize("sizes", [(0, 8, 8), (8, 0, 8), (8, 8, 0)])
def test_an_empty_product_has_no_rate(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        matrix_rate(*sizes)


@pytest.mark.parametrize("measure", [peak, bandwidth])
def test_no_time_is_no_measurement(measure) -> None:
    with pytest.raises(ValueError, match="0"):
        measure(seconds=0)


def test_of_two_ways_of_a_product_the_faster_one_is_the_rate() -> None:
    both = matrix_rate(64, 512, 512, seconds=0.1, laid_out=True)
    assert both > 0.7 * matrix_rate(64, 512, 512, seconds=0.1)  # the machine may do other work meanwhile
