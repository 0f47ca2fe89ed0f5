"""The benchmark of overlap: a run of it, and what it makes of its measurements."""

from __future__ import annotations

import json

import pytest

from benchmarks import overlap


def test_it_measures_three_ways_and_prints_them(tmp_path, capsys):
    numbers = {"threads": 1, "prompts": 2, "siblings": 2, "length": 4, "block": 1, "repeats": 2}
    small = ["--sizes", "tiny", *(f"--{name}={number}" for name, number in numbers.items())]
    assert overlap.main([*small, "--json", str(tmp_path / "made.json")]) == 0
    (point,) = json.loads((tmp_path / "made.json").read_text())["points"]
    assert list(point["seconds"]) == ["alone, 1 thread", "alone, 1 threads", "overlap, 1 each"]
    assert all(len(values) == 2 and min(values) > 0 for values in point["seconds"].values())
    alone, beside = point["processor_seconds"]["alone"], point["processor_seconds"]["overlap"]
    assert alone["here"] >= alone["sampling"] + alone["update"] > 0 == alone["there"]
    assert point["at_best"] == pytest.approx(alone["here"] / max(beside["here"], beside["there"]))
    assert "| tiny | 4 × 4 |" in capsys.readouterr().out
