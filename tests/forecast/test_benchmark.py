"""The benchmark that holds forecasts against what phases take."""

from __future__ import annotations

import json

from benchmarks import forecast
from maieutic.forecast.predict import EFFICIENCY


def test_it_says_for_each_phase_how_near_the_count_is(tmp_path, capsys):
    assert forecast.main(["--quick", "--sizes", "tiny", "--json", str(tmp_path / "found.json")]) == 0
    told = json.loads((tmp_path / "found.json").read_text())
    assert [row["phase"] for row in told["phases"]] == list(EFFICIENCY) == list(told["medians"])
    for row in told["phases"]:
        assert row["counted"] > 0
        assert row["taken"] > 0
        assert row["efficiency"] == row["counted"] / row["taken"]
    (kept,) = told["kept"]
    assert 0.5 < kept["counted"] / kept["predicted"] < 2.0
    said = capsys.readouterr().out
    assert all(phase in said for phase in EFFICIENCY)
