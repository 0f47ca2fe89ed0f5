"""What this machine can do and has left."""

from __future__ import annotations

import sys

import pytest
import torch

from maieutic.forecast import measure
from maieutic.forecast.measure import Measured, forget_peak, free_memory, resident
from maieutic.run.memory import peak_resident


def test_rates_are_measured_once_and_rows_taken_as_the_power_of_two_below():
    machine = Measured()
    first = machine.rate(100, 32, 32)
    assert first > 0
    assert machine.rate(64, 32, 32) == machine.rate(127, 32, 32) == first
    assert list(machine.rates) == [(64, 32, 32, torch.float32)]
    machine.rate(10**6, 10**6, 8)  # as measured at the largest sizes
    assert (1024, 4096, 8, torch.float32) in machine.rates
    machine.coarse_rate(8, 8, 8)
    assert (8, 8, 8, torch.bfloat16) in machine.rates


def test_calls_and_bandwidth_are_kept():
    machine = Measured()
    assert machine.call() == machine.call() > 0
    assert machine.bandwidth() == machine.bandwidth() > 0
    assert set(machine.found) == {"call", "bandwidth"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is told in other ways")
def test_memory_of_this_process_and_of_the_machine():
    before, free = resident(), free_memory()
    assert 0 < before <= peak_resident()
    held = torch.ones(1 << 26)  # 256 MiB
    assert resident() >= before + (1 << 27)
    assert free_memory() < free + (1 << 30)
    high = peak_resident()
    del held
    forget_peak()
    assert peak_resident() < high


def test_a_container_has_what_its_limit_leaves(tmp_path):
    assert measure._granted(tmp_path) == []
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert measure._granted(tmp_path) == []
    (tmp_path / "memory.max").write_text("1000\n")
    assert measure._granted(tmp_path) == [300]
    (tmp_path / "memory.max").write_text("600\n")
    assert measure._granted(tmp_path) == [0]
