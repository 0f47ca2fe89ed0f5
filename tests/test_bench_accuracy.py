"""The benchmark of seconds to a pass@1: arrivals and ratios by hand, what both programs share, a tiny study."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import _accuracy_both as both
from benchmarks import _accuracy_side as side
from benchmarks import _accuracy_start as start
from benchmarks import accuracy
from benchmarks.step import OURS, THEIRS
from maieutic.errors import ConfigError, NumericalError
from maieutic.types import Message, Task

TINY = replace(
    accuracy.QUICK,
    steps=3,
    every=2,
    held_out=4,
    start={"layers": 1, "width": 32, "heads": 4, "mlp": 64, "events": (1, 1), "demonstrations": 16, "rows": 8},
)


def points(*shares: float, pace: float = 1.0) -> list[dict[str, float]]:
    """A curve examined every 10 steps of 8 samples and `pace` seconds of the processor, twice as many of the wall."""
    return [
        {"step": 10 * i, "samples": 80 * i, "seconds": 20 * i * pace, "cpu_seconds": 10 * i * pace, "pass@1": share}
        for i, share in enumerate(shares)
    ]


def made_up(program: str, rate: float, seed: int, curve: list[dict[str, float]]) -> accuracy.Run:
    """What a run says."""
    return {"program": program, "learning_rate": rate, "seed": seed, "curve": curve}


def test_the_target_is_reached_at_the_first_of_two_examinations_on_a_straight_line():
    curve = points(0.3, 0.5, 0.4, 0.6, 0.7)
    # at 0.45 the second point is alone above; from 0.4 to 0.6 a quarter of the way is 20 + 2.5
    assert accuracy.reached(curve, 0.45, "cpu_seconds") == pytest.approx(22.5)
    assert accuracy.reached(curve, 0.45, "samples") == pytest.approx(180)
    assert accuracy.reached(curve, 0.45, "seconds") == pytest.approx(45)
    assert accuracy.reached(curve, 0.65, "samples") is None  # the last one has no successor
    assert accuracy.reached(curve, 0.9, "samples") is None
    assert accuracy.reached(curve, 0.2, "samples") == pytest.approx(0)  # so good was the start


def runs() -> list[accuracy.Run]:
    """Two rates, three seeds. Rate 1 gets both to 0.5 after 10 steps, rate 2 after 20; TRL takes 3, 4 and 5 times as
    long at rate 1, and at rate 2 as long as we do."""
    fast, slow = (0.3, 0.5, 0.6, 0.6), (0.3, 0.4, 0.5, 0.5)
    found = []
    for seed, times in ((1, 3.0), (2, 4.0), (3, 5.0)):
        found += [made_up(OURS, 1.0, seed, points(*fast)), made_up(THEIRS, 1.0, seed, points(*fast, pace=times))]
        found += [made_up(OURS, 2.0, seed, points(*slow)), made_up(THEIRS, 2.0, seed, points(*slow))]
    return found


def test_each_program_is_taken_at_its_own_best_rate():
    found = accuracy.compared(runs(), 0.5, "cpu_seconds")
    # ours 10 at rate 1 and 20 at rate 2; TRL 30, 40, 50 at rate 1 and 20 at rate 2
    assert found["best_rate"] == {OURS: 1.0, THEIRS: 2.0}
    assert set(found["ratios"]) == {"seconds", "samples", "wall_seconds"}
    assert all(each == [pytest.approx(2.0)] * 3 for each in found["ratios"].values())
    alike = accuracy.compared([run for run in runs() if run["learning_rate"] == 1.0], 0.5, "cpu_seconds")
    assert alike["ratio"]["seconds"] == pytest.approx(4.0)
    assert alike["ratios"]["seconds"] == [pytest.approx(ratio) for ratio in (3.0, 4.0, 5.0)]
    assert alike["ratio"]["samples"] == pytest.approx(1.0)


def test_runs_that_do_not_get_there_are_endless():
    some = [made_up(OURS, 1.0, seed, points(0.3, 0.6, 0.6)) for seed in (1, 2, 3)]
    some += [made_up(THEIRS, 1.0, seed, points(0.3, *(share,) * 2)) for seed, share in ((1, 0.6), (2, 0.6), (3, 0.4))]
    found = accuracy.compared(some, 0.6, "cpu_seconds")
    assert found["ratios"]["seconds"] == [pytest.approx(1.0), pytest.approx(1.0), None]
    assert found["ratio"]["seconds"] == pytest.approx(1.0)
    none = accuracy.compared(some, 0.7, "cpu_seconds")
    assert none["best_rate"] == {OURS: None, THEIRS: None}
    assert none["ratio"] == {"seconds": None, "samples": None, "wall_seconds": None}
    assert accuracy.over(30.0, None) == 0.0
    assert accuracy.over(None, 10.0) == accuracy.over(None, None) == accuracy.over(1.0, 0.0) == float("inf")


def test_the_file_and_the_table():
    made = accuracy.report(runs(), 0.5, threads=1)
    assert json.loads(json.dumps(made)) == json.loads(json.dumps(made, allow_nan=False))
    assert made["clock"] == "processor"
    assert accuracy.report(runs(), 0.5, threads=2)["clock"] == "wall"
    assert made["agreement"] == {"mean": 0.0, "pairs": {f"{rate}/{seed}": 0.0 for seed in (1, 2, 3) for rate in (1, 2)}}
    assert made["seconds_per_step"] == {OURS: 1.0, THEIRS: 2.0}  # 1, 1, 1, 1, 1, 1 and 3, 1, 4, 1, 5, 1
    assert [other["target"] for other in made["other_targets"]][:2] == [0.4, 0.45]
    said = accuracy.table(made)
    assert "| maieutic | 1 | 10.0 · 10.0 · 10.0 | 80 · 80 · 80 | yes |" in said
    assert "| trl | 1 | 30.0 · 40.0 · 50.0 | 80 · 80 · 80 |  |" in said
    assert "| seconds | 2.00 | 2.00 · 2.00 · 2.00 |" in said


def test_ours_alone_has_no_ratio():
    made = accuracy.report([run for run in runs() if run["program"] == OURS], 0.5, threads=1)
    assert made["ratio"]["seconds"] is None
    assert made["agreement"] is None
    assert "| seconds | – |  |" in accuracy.table(made)


@pytest.mark.parametrize(
    ("text", "correct"),
    [("2 + 3 = 5 ; # 5", True), ("# 5 ", True), ("# 4 # 5", True), ("5", False), ("# 5 ;", False), ("# 15", False)],
)
def test_the_reward_reads_what_stands_after_the_last_mark(text, correct):
    assert both.right(text, "5") is correct
    assert side.judge(Task("t", (), "5"), text).correct is correct


def test_what_is_paused_does_not_count():
    clock = both.Clock()
    with clock.paused():
        before = clock.read()["cpu_seconds"]
        while clock.read()["cpu_seconds"] < before + 0.2:
            pass
    assert clock.read()["cpu_seconds"] < 0.1


def test_weights_are_kept_at_every_so_many_steps_and_at_the_end(tmp_path):
    kept = []
    record = both.Record(SimpleNamespace(every=2, steps=5, out=tmp_path), lambda path: kept.append(path.name))
    for reward in (0.1, 0.2, 0.3, 0.4, 0.5):
        record.step(reward, 7.0)
    assert kept == ["2.safetensors", "4.safetensors", "5.safetensors"]
    told = json.loads(record.told())
    assert [step["step"] for step in told["steps"]] == [1, 2, 3, 4, 5]
    assert [step["reward"] for step in told["steps"]] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert set(told["startup"]) == {"seconds", "cpu_seconds"}


def test_a_source_meets_the_tasks_in_the_order_of_the_file():
    tasks = [Task(str(i), (Message("user", str(i)),)) for i in range(7)]
    laid = side.in_order(tasks, seed=3)
    order = side.Order(7, 3)
    assert [laid[order[visit]] for visit in range(7)] == tasks
    assert laid != tasks


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which the tiny study was carried out by maieutic alone."""
    made = tmp_path_factory.mktemp("accuracy")
    accuracy.do(TINY, made, None, torch.get_num_threads())
    return made


def test_our_side_makes_a_run_that_is_not_made_again(work):
    file = work / "runs" / "maieutic-0.0005-1.json"
    run = json.loads(file.read_text())
    assert [point["step"] for point in run["curve"]] == [0, 2, 3]
    assert [point["samples"] for point in run["curve"]] == [0, 16, 24]
    assert all(0 <= point["pass@1"] <= 1 for point in run["curve"])
    assert len(run["steps"]) == 3
    assert not list((work / "weights").iterdir())
    written = file.stat().st_mtime_ns
    assert accuracy.do(TINY, work, None, torch.get_num_threads()) == [run]
    assert file.stat().st_mtime_ns == written


def test_runs_of_another_study_are_not_mixed_in(work):
    with pytest.raises(ConfigError, match=r"holds runs with other settings.*another --work"):
        accuracy.do(replace(TINY, steps=4), work, None, torch.get_num_threads())


def test_nobody_practises_on_what_is_examined_or_was_demonstrated(tmp_path):
    recipe = replace(start.Recipe(), demonstrations=200)
    start.write_problems(tmp_path, recipe, (1, 2), practice=50, held_out=40)
    files = {name: both.read_problems(tmp_path / f"{name}.jsonl") for name in ("practice-1", "practice-2", "held-out")}
    asked = {name: {row["prompt"] for row in rows} for name, rows in files.items()}
    assert [len(rows) for rows in files.values()] == [50, 50, 40]
    shown = {task.prompt[0].content for task in start.tasks("train", recipe.events, range(200))}
    for name, others in {"practice-1": [asked["practice-2"], shown], "held-out": [*asked.values()][:2]}.items():
        assert all(not asked[name] & other for other in others)
    assert all(row["prompt"].endswith("?\n") for rows in files.values() for row in rows)


def test_the_examiner_reads_the_weights_that_it_is_given(work, tmp_path):
    model = side.load_causal(work / "start", template="plain", dtype="float32", device="cpu")
    examine = start.Examiner(work / "start", work / "held-out.jsonl", 2, 8, torch.get_num_threads())
    side.save_weights(model.module, tmp_path / "same.safetensors")
    assert examine(tmp_path / "same.safetensors") == examine()
    with torch.no_grad():
        next(model.module.parameters()).fill_(float("nan"))
    side.save_weights(model.module, tmp_path / "broken.safetensors")
    with pytest.raises(NumericalError, match="not finite"):
        examine(tmp_path / "broken.safetensors")


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="at least 1 thread, 1 job, and a target of 0 to 1"):
        accuracy.main(["--target", "60"])
    with pytest.raises(ConfigError, match="does not exist; expected the Python of an environment with trl"):
        accuracy.main(["--trl-python", f"{sys.executable}-that-is-not"])


def test_the_programs_read_the_command_line_that_is_written():
    settings = {"model": "m", "data": "d", "out": "o", "max_completion": 9, "learning_rate": 1e-4, "seed": 3}
    given = both.parse("what it is", both.arguments_of(settings))
    assert (given.max_completion, given.learning_rate, given.seed, str(given.out)) == (9, 1e-4, 3, "o")
