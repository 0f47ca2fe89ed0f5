"""The grid of training and searching, at a size of seconds: its parts, its bound, and that it goes on where it was."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _synergy_parts as parts
from benchmarks import synergy
from benchmarks._rerank_parts import Sizes
from benchmarks._synergy_pictures import heat_map, shade
from maieutic.attempts import Sample
from maieutic.errors import DataError
from maieutic.evaluate import Problem, evaluate_sync
from maieutic.types import Finish

PAGE = Path(__file__).parents[1] / "docs" / "studies"

TINY = replace(
    parts.QUICK,
    judges=Sizes(
        demonstrations=800, events=(1, 1), problems=96, samples=4, labelled=48, solutions=2, continuations=2,
        held_out=6, n=4, most=24, outcome_epochs=12.0, process_epochs=12.0,
    ),
    practice=16, prompts=8, group=4, simulations=4,
)  # fmt: skip


def sampled(*answers: tuple[str | None, bool]) -> Problem:
    return Problem("t", None, tuple(Sample("", answer, right, Finish.STOP, 5) for answer, right in answers))


def test_choices_among_the_same_samples_by_hand() -> None:
    problem = sampled(("3", True), ("3", True), ("4", False), ("4", False), (None, False))
    outcome = [[0.2], [0.3], [0.9], [0.1], [1.0]]
    process = [[0.9, 0.8], [0.5, 0.4], [0.9, 0.9], [0.1, 0.1], [1.0, 1.0]]
    # one vote each of two answers: a half. The best with an answer is the third, which is wrong.
    # By products 0.72 + 0.20 = 0.92 of the right answer, 0.81 + 0.01 = 0.82 of the wrong one.
    assert synergy.same_samples(problem, outcome, process) == {
        "vote@k": 0.5, "strict@k": 0.0, "pass@k": 1.0, "best of k": 0.0, "weighted vote@k": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("column", ["vote@k", "strict@k", "best of k", "weighted vote@k"])
def test_a_choice_that_is_right_where_no_sample_is_cannot_be(column: str) -> None:
    values = dict.fromkeys(synergy.SAME, 0.0)
    synergy.bounded("t", values)
    with pytest.raises(DataError, match=re.escape(f"t: got {column} 1 above pass@k 0")):
        synergy.bounded("t", {**values, column: 1.0})


def test_more_than_half_right_is_a_plurality() -> None:
    with pytest.raises(DataError, match=r"strict@k 1 above vote@k 0\.5"):
        synergy.bounded("t", {**dict.fromkeys(synergy.SAME, 1.0), "vote@k": 0.5})


def test_a_gain_that_shrinks_by_half_a_point_a_point() -> None:
    def row(vote: int) -> dict[str, dict[str, list[float]]]:
        # greedy is right once in four less than the vote is, of what the vote leaves: gain = (8 - vote) / 2 of 8
        values = {name: [1.0] * vote + [0.0] * (8 - vote) for name in synergy.COLUMNS}
        values["beam"] = [1.0] * (vote + (8 - vote) // 2) + [0.0] * (8 - vote - (8 - vote) // 2)
        return {name: {"values": each} for name, each in values.items()}

    found = synergy.shrinking({"a": row(2), "b": row(4), "c": row(6)}, draws=50)
    assert found["beam"]["correlation"] == pytest.approx(-1.0)
    assert found["beam"]["slope"] == pytest.approx(-0.5)
    assert found["vote@k"]["correlation"] is None  # there is no gain that could vary


def test_correlations_are_those_of_numpy() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 3, 8))
    value, slope = synergy.correlation(x, y)
    assert value == pytest.approx([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)])
    assert slope == pytest.approx([np.polyfit(a, b, 1)[0] for a, b in zip(x, y, strict=True)])


def test_two_rows_of_the_grid_and_again(tmp_path: Path) -> None:
    made: list[str] = []
    work = parts.Work(tmp_path, 1, TINY, lambda name, _: made.append(name))
    found = synergy.grid(work, ["base", "grpo"])
    assert {"base: run", "grpo: run", "judges: process", "base: beam", "grpo: wait"} <= set(made)
    for row in ("base", "grpo"):
        cells = found["rows"][row]
        assert list(cells) == list(synergy.COLUMNS)
        assert all(0 <= each["low"] <= each["value"] <= each["high"] <= 1 for each in cells.values())
        assert all(each["tokens"] > 0 for each in cells.values())
        most = parts.budget_of(work, row)
        assert max(cells[column]["tokens"] for column in ("beam", "mcts")) <= most
        any_of_them = found["values"][row]["pass@k"]
        for column in synergy.SAME:
            assert all(a <= b for a, b in zip(found["values"][row][column], any_of_them, strict=True))
    # searches ask the model as its run's examination did
    tasks = work.judged.tasks("test", 0, TINY.judges.held_out)
    sampler, chat = parts.policy(work, "grpo")
    sure = evaluate_sync(sampler, chat, tasks, max_tokens=TINY.judges.most, samples=0)
    examined = [p.greedy and p.greedy.text for p in parts.examination(work, "grpo").problems]
    assert [p.greedy and p.greedy.text for p in sure.problems] == examined
    assert found["costs"]["grpo"]["samples"] == TINY.practice * TINY.group
    said = synergy.table(found)
    assert "| grpo | 64 |" in said
    assert said.count("| base |") == 5
    assert heat_map(found["rows"], synergy.COLUMNS, 4).count("<rect") == 2 * len(synergy.COLUMNS) + 1

    # a kill in the middle of a cell: half of a row's problems are there, and half of a line
    rows = tmp_path / "searches" / "grpo" / "beam" / "found"
    [file] = rows.glob("*.jsonl")
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    model = tmp_path / "runs" / "grpo" / "run.complete"
    before = model.stat().st_mtime_ns
    again = synergy.grid(parts.Work(tmp_path, 1, TINY), ["base", "grpo"])
    assert sorted(file.read_text().splitlines()) == sorted(whole.splitlines())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in found.items() if k != "seconds"}
    assert model.stat().st_mtime_ns == before


def test_the_page_says_what_the_command_found() -> None:
    found = json.loads((PAGE / "data" / "synergy.json").read_text(encoding="utf-8"))
    page = (PAGE / "synergy.md").read_text(encoding="utf-8")
    assert all(part in page for part in synergy.table(found).split("\n\n"))
    drawn = (PAGE / "pictures" / "synergy.svg").read_text(encoding="utf-8")
    assert drawn == heat_map(found["rows"], synergy.COLUMNS, found["k"])
    for values in found["values"].values():
        assert all(max(each) <= any_ for *each, any_ in zip(*(values[c] for c in synergy.SAME), values["pass@k"]))


def test_shades() -> None:
    assert shade(0.0) == ("rgb(255, 255, 255)", False)
    assert shade(1.0) == ("rgb(0, 114, 178)", True)
    assert shade(-1.0) == ("rgb(213, 94, 0)", True)
