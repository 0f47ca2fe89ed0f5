"""The GPU benchmark, as far as it is seen without one: what it says, what it keeps of what fails, what it counts."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from benchmarks import _gpu_cases as gpu_cases
from benchmarks import _gpu_checks as gpu_checks
from benchmarks import gpu
from benchmarks._shapes import LARGE, SIZES
from maieutic.errors import MaieuticError


def program(text: str, seconds: float = 60.0) -> gpu.Case:
    return gpu.Case("made up", [sys.executable, "-c", text], seconds)


def test_without_a_device_there_is_nothing_to_do(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert gpu.main(["--quick"]) == 0
    assert capsys.readouterr().out == "skipped: no CUDA device\n"


def test_what_was_known_before_a_case_ran_out_of_time_is_kept():
    lines, why = gpu.run(program("import time; print('{\"rows\": 1}', flush=True); time.sleep(60)"), 3.0)
    assert lines == [{"rows": 1}]
    assert why == "not done within 3 s"


def test_a_case_that_fails_says_how_it_ended():
    lines, why = gpu.run(program("print('{\"rows\": 2}'); print('not JSON'); raise SystemExit('it broke')"), 60.0)
    assert lines == [{"rows": 2}]
    assert why == "ended with 1: it broke"


def test_failures_are_in_the_file_and_the_others_run(tmp_path):
    given = gpu.parse(["--seconds", "100", "--json", str(tmp_path / "found.json")])
    session = gpu.Session(given, {"left_out": []})
    assert session.run(program("raise SystemExit(3)")) == []
    assert session.run(program("print('{\"a\": 1}')")) == [{"a": 1}]
    session.start -= 90
    assert session.run(program("print('{\"a\": 1}')")) == []
    kept = json.loads((tmp_path / "found.json").read_text())["left_out"]
    assert [each["why"] for each in kept] == ["ended with 3: ", "no time left of --seconds"]


def test_cases_are_those_asked_for():
    given = gpu.parse(["--sizes", "0.5B", "7B", "--only", "decode", "--rows", "1", "64"])
    made = list(gpu.cases(given, {"bandwidth": 4e12, "peak": 8e14}))
    assert [case.name for case in made] == ["decode, 0.5B", "decode, 7B"]
    asked = gpu_cases.parse(list(made[1].command[3:]))
    assert (asked.kind, asked.size, asked.rows, asked.prompt, asked.completion) == ("decode", "7B", [1, 64], 256, 256)
    assert (asked.bandwidth, asked.peak) == (4e12, 8e14)


def test_shapes_are_those_of_their_names():
    # layers · (q, o: E²; k, v: E · K · D; three of E · mlp) + the embedding, twice where it is not tied
    def weights(name: str) -> float:
        size = LARGE[name]
        shared = size.width // size.heads * size.kv_heads
        layer = 2 * size.width**2 + 2 * size.width * shared + 3 * size.width * size.mlp
        return size.layers * layer + size.vocabulary * size.width * (1 if size.tied else 2)

    assert [round(weights(name) / 1e9, 2) for name in ("0.5B", "1.5B", "7B")] == [0.49, 1.54, 7.62]


@pytest.mark.parametrize(
    ("found", "accepted", "verdict"),
    [(0.1, 0.2, "PASS"), (0.3, 0.2, "FAIL"), (math.nan, 0.2, "FAIL"), (9, None, "TOLD")],
)
def test_a_check_is_judged_by_its_figure(found, accepted, verdict):
    result = gpu_checks.Result("packed", found, accepted, "nats").judged()
    assert result.verdict == verdict
    line = gpu.told({"check": "packed", "found": found, "accepted": accepted, "unit": "nats", "note": "",
                     "verdict": verdict})  # fmt: skip
    assert line.startswith(f"{verdict}  packed: ")
    assert ("accepted" in line) == (accepted is not None)


@pytest.mark.parametrize("check", [gpu_checks.replays, gpu_checks.mismatches, gpu_checks.packing, gpu_checks.resuming])
def test_the_checks_pass_on_a_cpu_too(check):
    found = [result.judged() for result in check(SIZES["tiny"], "cpu")]
    assert found
    assert not [result for result in found if result.verdict == "FAIL"]


def broken(_size, _device):
    """Breaks off."""
    raise MaieuticError("no luck")
    yield


def test_a_check_that_breaks_off_is_a_failure():
    (only,) = gpu_checks.run(SIZES["tiny"], "cpu", (broken,))
    assert (only.verdict, only.note) == ("FAIL", "MaieuticError: no luck")


def test_points_are_measured_with_their_shares(capsys):
    asked = ["--size", "tiny", "--device", "cpu", "--prompt", "4", "--completion", "8", "--repeats", "1"]
    assert gpu_cases.main(["decode", "--rows", "1", "9", *asked, "--bandwidth", "1e9"]) == 0
    assert gpu_cases.main(["update", "--rows", "8", *asked, "--peak", "1e9"]) == 0
    one, nine, step = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (one["rows"], nine["rows"], step["rows"]) == (1, 9, 8)
    # tiny: 2 layers of width 32, 4 heads of 8, 2 for keys; feed-forward 64, 64 tokens; float32
    weights = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 64 * 32
    seen = sum(range(5, 12))  # 7 steps after the prompt's, each seeing one position more
    read = 4 * (7 * weights + 9 * seen * 2 * 2 * 16)
    seconds = nine["milliseconds_a_step"] * 7 / 1e3
    assert nine["share_of_bandwidth"] == pytest.approx(read / 1e9 / seconds)
    assert nine["not_captured"] == "there is no CUDA device"
    assert step["attention"] == "segments"
    assert step["share_of_peak"] == pytest.approx(step["teraflops"] * 1e3)


def test_tables_show_points_and_what_is_missing():
    point = {"kind": "decode", "size": "0.5B", "rows": 64, "tokens_per_second": 5e4, "decode_tokens_per_second": 6e4,
             "milliseconds_a_step": 1.07, "share_of_bandwidth": 0.42, "graphs": 3, "not_captured": ""}  # fmt: skip
    step = {"kind": "update", "size": "0.5B", "trained": "all weights", "attention": "flex", "tokens_per_second": 9e4,
            "teraflops": 300.0, "share_of_peak": 0.38, "peak_device_gib": 30.25}  # fmt: skip
    lost = {"kind": "update", "size": "7B", "failed": "memory ran out"}
    found = {
        "limits": {"machine": "H200", "torch": "2.11", "bandwidth": 4.3e12, "peak": 7.9e14, "peak_float32": 5e13},
        "points": [point, step, lost],
        "step": {"maieutic": {"seconds_per_step": 2.0}, "trl": {"seconds_per_step": 9.0}, "ratio": 4.5},
        "left_out": [{"case": "decode, 7B", "why": "not done within 200 s"}],
    }
    shown = gpu.tables(found)
    assert "memory 4.30 TB/s, products 790 TFLOP/s" in shown
    assert "| 0.5B | 64 | 50,000 | 60,000 | 1.07 | 0.42 | 3 |" in shown
    assert "| 0.5B | all weights | flex | 90,000 | 300 | 0.38 | 30.2 |" in shown
    assert "A step: 2.00 s; TRL 9.00 s, 4.50 times ours" in shown
    assert "failed: update, 7B: memory ran out" in shown
    assert "left out: decode, 7B: not done within 200 s" in shown
