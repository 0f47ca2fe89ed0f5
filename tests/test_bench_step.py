"""The benchmark of whole steps: limits counted by hand, reports of made-up measurements, refusals, a tiny run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import _step_side as side
from benchmarks import step
from benchmarks._operations import Lengths, Operations, Product, Shape
from benchmarks._shapes import Size
from benchmarks._step_models import RECIPES, Recipe, prepare, quick, tasks, write_problems
from maieutic.errors import ConfigError
from maieutic.types import Task

SHAPE = Shape((Product(8, 4, 3), Product(4, 8, 1)), Product(8, 10), layers=1, heads=2, kv_heads=1, head_width=4)
TINY = Recipe(Size("qwen2", 1, 32, 4, 2, 64, 512), steps=2, rows=2, learning_rate=1e-3, events=(1, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("step")
    prepare("tiny", TINY, made)
    write_problems(8, made / "tiny.jsonl", TINY.events)
    return made


def test_the_limit_by_hand():
    # 96 weights of 8 x 4 and 32 of 4 x 8: 1280 operations are 960 and 320, at 10 and 20 a second; the head's 300 at 100
    # a second; attention's 500 at the fastest of the three.
    rates = {(8, 4): 10.0, (4, 8): 20.0, (8, 10): 100.0}
    found = side.limit_seconds(SHAPE, Operations(1280.0, 300.0, 500.0), lambda inner, outer: rates[inner, outer])
    assert found == pytest.approx(960 / 10 + 320 / 20 + 300 / 100 + 500 / 100)


def test_rollouts_are_held_against_products_of_their_rows_and_updates_of_their_tokens():
    asked = set()

    def rate(rows: int, inner: int, outer: int) -> float:
        asked.add((rows, inner, outer))
        return 1000.0

    found = side.limit_of(SHAPE, [Lengths(3, (2,)), Lengths(1, (1, 1))], rate)
    # 3 rows; 3 + 2 and 1 + 2 tokens are 8
    assert asked == {(rows, *product) for rows in (3, 8) for product in ((8, 4), (4, 8), (8, 10))}
    # 4 and 1 tokens are fed, which see 1 + 2 + 3 + 4 and 1; 4 are predicted, of which 2 share a distribution
    products, attention = 2 * 5 * 128, 4 * 2 * 4 * 11
    written, learned = products + 2 * 3 * 80 + attention, 3 * (products + 2 * 4 * 80 + attention)
    assert found["operations"] == written + learned
    assert found["rollout_seconds"] == pytest.approx(written / 1000)
    assert found["update_seconds"] == pytest.approx(learned / 1000)


def test_an_update_is_not_asked_for_more_rows_than_make_it_faster():
    asked = set()
    side.limit_of(SHAPE, [Lengths(5000, (1,))], lambda rows, inner, outer: asked.add(rows) or 1.0)
    assert asked == {1, side.MOST_ROWS}


@pytest.mark.parametrize(
    ("text", "right"),
    [("2 + 3 = 5 ; # 5", True), ("5 or 6", False), ("1,005", False), ("no number", False), ("5.0", True)],
)
def test_the_reward_reads_the_last_number(text, right):
    assert side.last_number(Task("t", (), "5"), text).correct is right


def test_programs_are_run_in_turn():
    order = []

    def program(name: str):
        return lambda repeat: order.append(f"{name}{repeat}") or {"number": len(order)}

    found = step.alternate({"a": program("a"), "b": program("b")}, 3)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert found == {"a": [{"number": n} for n in (1, 3, 5)], "b": [{"number": n} for n in (2, 4, 6)]}


def measured(wall: float, cpu: float, memory: float, limit: float | None = None, tokens: float = 50.0) -> step.Measured:
    """What a process says, made up."""
    said = {
        "seconds_per_step": wall,
        "cpu_seconds_per_step": cpu,
        "mean_completion_tokens": tokens,
        "peak_rss_mib": memory,
    }
    return said if limit is None else {**said, "limit": {"rollout_seconds": limit, "update_seconds": 2 * limit}}


def test_a_case_is_medians_and_their_ratio():
    runs = {
        step.OURS: [measured(2.0, 1.0, 100.0, 0.1), measured(4.0, 1.5, 100.0, 0.2), measured(3.0, 1.2, 130.0, 0.3)],
        step.THEIRS: [measured(9.0, 7.0, 400.0), measured(8.0, 5.0, 200.0), measured(12.0, 6.0, 250.0)],
    }
    found = step.summary(step.CASES["4M-16x8-full"], runs, threads=2)
    assert found["seconds"] == {"maieutic": 3.0, "trl": 9.0}
    assert found["ratio"] == 3.0
    assert found["ratio_range"] == [2.0, 4.5]  # 9 / 2, 8 / 4, 12 / 3
    assert found["range"] == {"maieutic": [2.0, 4.0], "trl": [8.0, 12.0]}
    assert found["share_of_limit"] == pytest.approx(0.6 / 3.0)  # the median limit is 0.2 + 0.4
    assert found["peak_rss_ratio"] == 100.0 / 250.0
    assert found["clock"] == "wall"
    alone = step.summary(step.CASES["4M-16x8-full"], {step.OURS: runs[step.OURS]}, threads=1)
    assert alone["seconds"] == {"maieutic": 1.2, "trl": None}  # with one thread, the processor's
    assert alone["ratio"] is None
    assert alone["peak_rss_ratio"] is None


def test_where_completions_end_by_themselves_tokens_are_compared():
    """A program that happens to write less is not the faster one: 40 tokens in 2 s are the pace of 80 in 4 s."""
    runs = {
        step.OURS: [measured(2.0, 1.0, 100.0, 0.1, tokens=40.0)] * 3,
        step.THEIRS: [
            measured(4.0, 5.0, 400.0, tokens=80.0),
            measured(8.0, 5.0, 1.0, tokens=40.0),
            measured(8.0, 5.0, 1.0),
        ],
    }
    natural, full = (step.summary(step.CASES[f"4M-16x8-{mode}"], runs, threads=2) for mode in ("natural", "full"))
    assert natural["ratio"] == pytest.approx(20 / 6.25)  # the middle one of 20, 5 and 6.25 tokens a second
    assert natural["ratio_range"] == [1.0, 4.0]
    assert natural["ratio_of_steps"] == full["ratio"] == 4.0


def test_the_file_has_the_first_batch_on_top():
    def case(name: str, ours: float, theirs: float) -> step.Measured:
        runs = {step.OURS: [measured(ours, ours, 100.0, 0.1)], step.THEIRS: [measured(theirs, theirs, 200.0)]}
        return step.summary(step.CASES[name], runs, threads=2)

    cases = [case("4M-16x8-natural", 1.0, 4.0), case("4M-16x8-full", 2.0, 6.0), case("4M-64x8-full", 1.0, 9.0)]
    made = step.report(cases, {"cores": 2}, {"maieutic": {}, "trl": {}})
    assert set(made) == {
        "ratio", "seconds", "share_of_limit", "peak_rss_ratio", "cases", "machine", "versions"
    }  # fmt: skip
    assert made["ratio"] == {"natural": 4.0, "full": 3.0}
    assert made["seconds"] == {"maieutic": 2.0, "trl": 6.0}
    assert made["share_of_limit"] == pytest.approx(0.3 / 2.0)
    assert made["peak_rss_ratio"] == 0.5
    assert json.loads(json.dumps(made)) == made
    assert [line.split(" | ")[0] for line in step.table(made).splitlines()[2:]] == [
        "| 4M-16x8-natural", "| 4M-16x8-full", "| 4M-64x8-full"
    ]  # fmt: skip
    one = step.report(cases[:1], {}, {})
    assert one["ratio"] == {"natural": 4.0, "full": None}
    assert one["seconds"] == {"maieutic": 1.0, "trl": 4.0}


def test_the_table_without_a_peer():
    case = step.summary(step.QUICK[0], {step.OURS: [measured(2.0, 1.0, 100.0, 0.1)]}, threads=2)
    row = step.table(step.report([case], {}, {})).splitlines()[2]
    assert row == "| 4M-4x4-natural | wall | 2.00 (2.00–2.00) | – | – | 50.0 · – | 0.15 | 100 · – |"


def test_a_peer_that_is_missing_is_refused_with_what_is_needed(tmp_path):
    with pytest.raises(ConfigError, match=r"no peer program at .*nowhere\.py.*--peer FILE.*--alone"):
        step.find_peer(tmp_path / "nowhere.py", Path(sys.executable))
    with pytest.raises(ConfigError, match="does not exist; expected the Python of an environment with trl"):
        step.find_peer(Path(__file__), tmp_path / "python")
    peer = step.find_peer(Path(__file__), Path(sys.executable))
    assert peer == step.Peer(Path(__file__).resolve(), Path(sys.executable))
    assert step.find_peer(Path(__file__), Path(sys.executable), alone=True) is None
    with pytest.raises(ConfigError, match="expected at least 1 each"):
        step.main(["--repeats", "0"])


def test_a_program_that_fails_is_told_with_what_it_said():
    assert step.run_program([sys.executable, "-c", "print('noise'); print('{\"a\": 1}')"], 1) == {"a": 1}
    with pytest.raises(ConfigError, match="broken pipe organ"):
        step.run_program([sys.executable, "-c", "raise SystemExit('broken pipe organ')"], 1)
    with pytest.raises(ConfigError, match="failed"):
        step.run_program([sys.executable, "-c", "pass"], 1)


def test_cases_are_named_and_the_large_model_is_left_to_who_asks():
    assert "110M-64x8-full" in step.CASES
    assert "110M-64x8-full" not in step.USUAL
    assert step.USUAL[:2] == ("4M-16x8-natural", "4M-16x8-full")
    assert {case.size for case in step.CASES.values()} == set(RECIPES)
    assert all(case.prompts * case.generations <= 512 for case in step.CASES.values())


def test_problems_are_none_of_those_learned_from(folder):
    rows = [json.loads(line) for line in (folder / "tiny.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert all(set(row) == {"prompt", "answer"} and row["prompt"].endswith("?\n") for row in rows)
    shown = {task.prompt[0].content for task in tasks(100, TINY.events)}
    assert not shown & {row["prompt"] for row in rows}


def test_a_model_is_made_once_and_anew_for_another_recipe(folder, tmp_path):
    made = prepare("tiny", TINY, tmp_path)
    weights = made / "model.safetensors"
    first = weights.stat().st_mtime_ns
    assert prepare("tiny", TINY, tmp_path) == made
    assert weights.stat().st_mtime_ns == first
    assert weights.read_bytes() == (folder / "tiny" / "model.safetensors").read_bytes()  # the same wherever made
    prepare("tiny", replace(TINY, steps=1), tmp_path)
    assert weights.stat().st_mtime_ns != first
    assert json.loads((made / "config.json").read_text())["vocab_size"] == 512
    assert quick(RECIPES["4M"]).size == RECIPES["4M"].size


@pytest.mark.parametrize("full", [True, False])
def test_our_side_makes_whole_steps(folder, full):
    case = step.Case("tiny", prompts=2, generations=2, full=full, length=6, steps=2)
    told = step.settings(case, folder / "tiny", folder / "tiny.jsonl", torch.get_num_threads(), 0)
    found = side.run(side.parse(told))
    assert len(found["all_seconds"]) == 2
    assert found["completions_per_step"] == 4
    assert found["mean_completion_tokens"] == 6 if full else found["mean_completion_tokens"] <= 6
    assert len(found["rewards"]) == 3
    assert found["sampler_mismatch_max"] < 1e-4
    assert {"sampling/decode", "update/forward", "update/backward"} <= set(found["phases"])
    assert found["config"]["full_length"] is full
    assert json.loads(json.dumps(found)) == found
    case = step.summary(case, {step.OURS: [found]}, threads=1)
    assert case["limit_seconds"] > 0
