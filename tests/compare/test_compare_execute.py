"""A study is carried out in processes: killed, failed and stopped runs, and what is left of the others."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from maieutic.cli import main
from maieutic.compare.execute import all_jobs, execute
from maieutic.compare.places import Failure, complete, failure_file, run_folder
from maieutic.compare.plan import ComparisonConfig, Plan, comparison
from maieutic.compare.results import read_results
from maieutic.config import parse_table
from maieutic.errors import RunError
from maieutic.report.reading import is_held
from maieutic.run.checkpoints import Checkpoints
from maieutic.run.directory import RunDirectory
from maieutic.run.store import Store

BAD_REWARD = "def never(completion):\n    raise ValueError('it never can say')\n"


def carried_out(plan: Plan, out: Path, jobs: int = 2) -> list[Failure]:
    return execute(plan, out, jobs=jobs, watch=lambda share, words: None, told=lambda failure: None)


def with_validation(tables: dict[str, Any]) -> dict[str, Any]:
    """The tiny comparison with one seed and a validation after each step."""
    valid = {"taskset": "arithmetic", "split": "validation", "difficulty": 1, "size": 4}
    stage = {**tables["stage"], "validation": {"tasks": "valid", "limit": 4}}
    return {**tables, "seeds": [1], "stage": stage, "tasks": {**tables["tasks"], "valid": valid}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, comparison_tables) -> Path:
    """The folder of a complete comparison."""
    out = tmp_path_factory.mktemp("study") / "whole"
    plan = comparison(parse_table(ComparisonConfig, with_validation(comparison_tables), "tiny"))
    assert carried_out(plan, out) == []
    return out


def with_start_of(whole: Path, out: Path) -> Path:
    """A study of which the shared start is complete."""
    shutil.copytree(run_folder(whole, 1, "start"), run_folder(out, 1, "start"))
    return out


@contextmanager
def begun(tables: dict[str, Any], out: Path, jobs: int) -> Iterator[subprocess.Popen[str]]:
    """`maieutic compare` in a process of its own, which ends at the latest with the test."""
    file = out.with_suffix(".toml")
    file.write_text(tomli_w.dumps(tables))
    command = [sys.executable, "-m", "maieutic", "compare", str(file), "--out", str(out), "--jobs", str(jobs), "-q"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests may ignore it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_until(what: Callable[[], object]) -> None:
    until = time.monotonic() + 120
    while not what() and time.monotonic() < until:
        time.sleep(0.02)
    assert what()


def weights(folder: Path) -> bytes:
    newest = Checkpoints(folder / "checkpoints").latest()
    assert newest is not None
    return (newest.path / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_as_one_that_never_was(whole, tables, tmp_path):
    """Killed while the first arm trains, then carried out again: the weights are those of an unbroken study."""
    broken = with_start_of(whole, tmp_path / "broken")
    changed = with_validation(tables)
    plan = comparison(parse_table(ComparisonConfig, changed, "tiny"))
    assert [str(job) for job in all_jobs(plan)] == ["seed 1 start", "seed 1 a", "seed 1 b"]
    first = run_folder(broken, 1, "a")
    with begun(changed, broken, jobs=1):
        wait_until(lambda: list(first.glob("checkpoints/train/step-*")))
    assert not complete(run_folder(broken, 1, "b"))
    assert carried_out(plan, broken) == []
    for name in ("start", "a", "b"):
        assert weights(run_folder(whole, 1, name)) == weights(run_folder(broken, 1, name))
    before = {path: path.stat().st_mtime_ns for path in broken.rglob("run.db")}
    assert carried_out(plan, broken) == []  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in broken.rglob("run.db")} == before


@pytest.mark.slow
def test_ctrl_c_stops_every_process_and_saves(whole, tables, tmp_path):
    out = with_start_of(whole, tmp_path / "out")
    with begun({**with_validation(tables), "budget": {"samples": 100_000}}, out, jobs=2) as process:
        wait_until(lambda: {path.parts[-4] for path in out.glob("seed-1/*/checkpoints/train/step-*")} == {"a", "b"})
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what was done is saved, and the same command goes on" in said
    for name in ("a", "b"):  # nobody writes any more, and the newest checkpoint is of the last step
        folder = run_folder(out, 1, name)
        assert not is_held(RunDirectory.open(folder))
        newest = Checkpoints(folder / "checkpoints").latest("train")
        with Store.open_reader(folder / "run.db") as store:
            assert newest is not None
            assert newest.step == (store.last_step("train") or 0) + 1


def test_what_a_study_cost(whole):
    # two prompts of two rollouts a step, until 8 samples are spent: two steps
    with Store.open_reader(run_folder(whole, 1, "a") / "run.db") as store:
        assert store.metrics("train", "cost/samples") == [(0, 4.0), (1, 4.0)]
        assert store.metrics("train", "budget/spent") == [(0, 0.5), (1, 1.0)]
        generated = [sum(r.rollout.completion_length for r in store.rollouts("train", step)) for step in (0, 1)]
        assert [value for _, value in store.metrics("train", "cost/generated_tokens")] == generated
    with Store.open_reader(run_folder(whole, 1, "start") / "run.db") as store:
        assert store.metrics("sft", "cost/samples") == [(0, 0.0), (1, 0.0)]
        assert all(value > 0 for _, value in store.metrics("sft", "cost/trained_tokens"))


def test_arms_of_a_seed_meet_the_same_tasks(whole):
    ledgers = []
    for name in ("a", "b"):
        with Store.open_reader(run_folder(whole, 1, name) / "run.db") as store:
            ledgers.append(store.ledger("train"))
    assert ledgers[0] == ledgers[1]
    assert len(ledgers[0]) == 4


@pytest.mark.slow
def test_one_that_fails_does_not_lose_the_others(whole, tables, tmp_path):
    """An arm is added to a study that is complete, and fails."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (tmp_path / "bad.py").write_text(BAD_REWARD)
    bad = {"name": "bad", "algorithm": "rloo", "rewards": {f"{tmp_path / 'bad.py'}:never": 1.0}}
    changed = with_validation(tables)
    plan = comparison(parse_table(ComparisonConfig, {**changed, "arms": [*changed["arms"], bad]}, "tiny"))
    told: list[Failure] = []
    failures = execute(plan, out, jobs=1, watch=lambda share, words: None, told=told.append)
    assert [(failure.seed, failure.name, failure.code) for failure in failures] == [(1, "bad", 5)]
    assert told == failures
    assert "it never can say" in failures[0].message
    results = read_results(plan, out)
    assert [results.seeds(arm) for arm in ("a", "b", "bad")] == [[1], [1], []]
    # a run whose numbers went wrong for good is not tried again
    failure_file(run_folder(out, 1, "bad")).write_text(json.dumps({"code": 6, "message": "not finite"}))
    assert carried_out(plan, out) == [Failure(1, "bad", 6, "not finite")]
    assert read_results(plan, out).failures == (Failure(1, "bad", 6, "not finite"),)


def test_other_settings_in_the_same_folder_are_refused(whole, tables):
    changed = with_validation(tables)
    arms = [changed["arms"][0], {**changed["arms"][1], "prompts": 1}]
    with pytest.raises(RunError, match="begun with other settings than the file has now for seed 1 b"):
        carried_out(comparison(parse_table(ComparisonConfig, {**changed, "arms": arms}, "tiny")), whole)


def test_a_comparison_from_the_command_line(whole, tables, tmp_path, capsys):
    file, data = tmp_path / "study.toml", tmp_path / "out.json"
    file.write_text(tomli_w.dumps(with_validation(tables)))
    assert main(["compare", str(file), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "3 runs (seeds 1) would go to" in said.out
    assert "until 8 samples are spent" in said.out
    assert not (tmp_path / "out").exists()
    assert main(["compare", str(file), "--out", str(whole), "--json", str(data)]) == 0
    said = capsys.readouterr()
    assert "1 seed: at least 3 are needed" in said.err
    assert "3 of 3 runs complete" in said.err
    assert "With one seed nothing can be said of b and a as algorithms" in said.out
    found = json.loads(data.read_text())
    assert found["failed"] == []
    assert [trial["costs"]["samples"] for trial in found["trials"]] == [8.0, 8.0]
    assert [[x for x, _ in trial["measured"]] for trial in found["trials"]] == [[4.0, 8.0]] * 2
    assert Path(found["page"]).is_file()
    assert (run_folder(whole, 1, "a") / "report.html").is_file()
