"""The benchmark of adapters: its arithmetic by hand, and a run of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import lora


def test_the_share_of_an_adapters_products_by_hand() -> None:
    # "tiny": two layers of q [32 → 32], k and v [32 → 16], o [32 → 32], gate and up [32 → 64], down [64 → 32]; head 64
    inner_and_outer = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    added = 2 * sum(3 * (a + b) for a, b in inner_and_outer)
    whole = 2 * sum(a * b for a, b in inner_and_outer) + 32 * 64
    assert lora.share_of_products("tiny", 3) == pytest.approx(added / whole)


def test_adapters_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--sizes", "tiny", "--quick", "--rank", "2", "--repeats", "2", "--json", str(tmp_path / "made.json")]
    assert lora.main(asked) == 0
    (point,) = json.loads((tmp_path / "made.json").read_text())["points"]
    for what in ("sampling", "update"):
        assert set(point[what]) == {"base", "merged", "peft", "adapter"}
        assert point[what]["base"] == 1.0
        assert all(ratio > 0 for ratio in point[what].values())
    assert set(point["switch_microseconds"]) == {"active", "set_adapter"}
    said = capsys.readouterr().out
    assert "| tiny | sampling | 64 | 1.00 |" in said
    assert "| tiny | update | 16 | 1.00 |" in said
