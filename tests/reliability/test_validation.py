"""Validation while a stage goes: when it ends the stage, which model is kept, and that no kill repeats or skips one."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the installed package

from benchmarks.kill_and_resume import Run, differences
from maieutic.cli import main
from maieutic.cli.values import model_source
from maieutic.config import StageConfig, parse_config
from maieutic.errors import ConfigError, UnknownName
from maieutic.models.causal import load_causal
from maieutic.report.reading import read_run
from maieutic.run.checkpoints import Checkpoints
from maieutic.run.runner import Interrupted, Silent, resume_or_begin
from maieutic.run.store import Store
from maieutic.run.validation import Validation, check_metric

WORDS = ["zero", "one", "two", "three", "four", "five"]
STAGE: dict[str, Any] = {
    "name": "ei", "algorithm": "expert_iteration", "steps": 4, "prompts": 6, "num_generations": 8,
    "options": {"epochs": 10, "rows": 8}, "max_completion_length": 4, "temperature": 2.0, "restart_from": "start",
    "demonstrations": "shown", "checkpoint_every": 100, "optimiser": {"learning_rate": 0.01, "schedule": "linear"},
    "validation": {"tasks": "held_out", "patience": 1, "keep_best": True},
}  # fmt: skip


def config_of(folder: Path, **changes: Any):
    """Say the number of a word: two of them taught by demonstrations, all six to be found by practice."""
    lines = [{"question": word, "answer": str(i), "solution": f"{i}"} for i, word in enumerate(WORDS)]
    for name in ("train", "held_out"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    train, held_out = (
        {"taskset": "file", "verifier": "flexible", "path": str(folder / f"{name}.jsonl")}
        for name in ("train", "held_out")
    )
    return parse_config(
        {
            "model": {"small": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "context": 32}},
            "threads": 1,
            "tasks": {"train": train, "held_out": held_out, "shown": {**train, "limit": 2}},
            "stages": [
                {"algorithm": "sft", "tasks": "shown", "steps": 3, "prompts": 2, "optimiser": {"learning_rate": 3e-3}},
                {**STAGE, **changes},
            ],
        }
    )


class Killed(BaseException):
    """The process is gone."""


class Killing(Silent):
    """A watch that kills the run at the n-th call of one of its methods, and counts the evaluations."""

    def __init__(self, method: str = "", at: int = 0) -> None:
        self.method, self.left, self.evaluations = method, at, []

    def _call(self, method: str) -> None:
        if method == self.method:
            self.left -= 1
            if self.left == 0:
                raise Killed

    def step(self, stage, step, seconds) -> None:
        if stage == "ei":
            self._call("step")

    def evaluating(self, stage, name, done, total) -> None:
        self._call("evaluating")

    def evaluated(self, stage, name, evaluation) -> None:
        self.evaluations.append((stage, name))
        self._call("evaluated")


def stored(folder: Path):
    with Store.open_reader(folder / "run.db") as store:
        return store.evaluations("ei"), store.metrics("ei", "validation/greedy"), store.events("ei")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("validated")
    config = config_of(folder, steps=8)
    summary = resume_or_begin(config, folder / "run", resume=False)
    return folder, summary


def test_a_stage_ends_when_its_metric_is_flat_and_keeps_the_best_model(made: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = made
    evaluations, curve, events = stored(folder / "run")
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    assert steps == list(range(len(steps)))
    assert 2 <= len(steps) < 8
    assert [(e.step, e.name) for e in evaluations] == [(step, "held_out") for step in steps]
    assert all(later > earlier for earlier, later in pairwise(values[:-1]))  # it rose until the last one, which did not
    assert values[-1] <= values[-2] > 0
    assert [event.kind for event in events][:1] == ["flat"]
    best = Checkpoints(folder / "run" / "best").latest("ei")
    assert best is not None
    assert best.step == len(steps) - 1
    assert summary["model"] == str(best.path / "model")
    assert model_source(str(folder / "run")) == summary["model"]


def test_readers_draw_it(made: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    view = read_run(made[0] / "run")
    assert len(view.curves["ei"]["validation/greedy"]) == view.stage("ei").done
    assert view.stage("ei").total == view.stage("ei").done  # ended before its last step, and complete
    assert [(each.stage, each.name) for each in view.measured] == [("ei", "held_out")]
    assert main(["show", str(made[0] / "run")]) == 0
    assert "validation/greedy" in (made[0] / "run" / "report.html").read_text()
    assert "held_out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "at"),
    [
        pytest.param("step", 1, id="before the first checkpoint"),
        pytest.param("evaluating", 3, id="in the first evaluation"),
        pytest.param("evaluated", 1, id="after the first evaluation"),
        pytest.param("step", 2, id="between two evaluations"),
        pytest.param("evaluating", 9, id="in the second evaluation"),
        pytest.param("evaluated", 2, id="after the second evaluation"),
    ],
)
def test_killed_anywhere_it_ends_the_same(made: tuple[Path, dict[str, Any]], tmp_path: Path, method: str, at: int):
    config = config_of(made[0], steps=8)
    with pytest.raises(Killed):
        resume_or_begin(config, tmp_path / "run", resume=False, watch=Killing(method, at))
    watch = Killing()
    resume_or_begin(config, tmp_path / "run", resume=True, watch=watch)
    assert differences(Run(made[0]), Run(tmp_path)) == []
    kept = [Checkpoints(folder / "run" / "best").latest("ei") for folder in (made[0], tmp_path)]
    assert kept[0].step == kept[1].step
    assert kept[0].files == kept[1].files


def test_a_polite_stop_between_step_and_evaluation_is_made_up_for(made: tuple[Path, dict[str, Any]], tmp_path: Path):
    """Stopped with a step, a run evaluates when it is resumed; nothing is evaluated twice."""
    from maieutic.run.directory import RunDirectory
    from maieutic.run.runner import Runner, config_text

    config = config_of(made[0], steps=8)

    class Stopping(Killing):
        def step(self, stage, step, seconds) -> None:
            if stage == "ei":
                self.runner.stop.set()

    watch = Stopping()
    with RunDirectory.create(tmp_path / "run", config_text(config, tmp_path, resume=False), resume=False) as directory:
        watch.runner = Runner(config, directory, watch)
        with pytest.raises(Interrupted, match="after step 1"):
            watch.runner.run()
    assert stored(tmp_path / "run")[0] == []
    again = Killing()
    resume_or_begin(config, tmp_path / "run", resume=True, watch=again)
    assert len(again.evaluations) == len(stored(made[0] / "run")[0])
    assert differences(Run(made[0]), Run(tmp_path)) == []


def test_each_round_restarts_from_the_runs_first_model_and_learns_the_demonstrations_too(
    made: tuple[Path, dict[str, Any]],
) -> None:
    """A round at a learning rate of 1e-12 leaves the weights of the base, and not those that fine-tuning began with."""
    folder = made[0]
    config = config_of(folder, steps=1, optimiser={"learning_rate": 1e-12}, validation=None)
    summary = resume_or_begin(config, folder / "still", resume=False)
    first, sft = (load_causal(str(p), device="cpu").module.state_dict() for p in (
        folder / "still" / "start", Checkpoints(folder / "still" / "checkpoints").latest("sft").path / "model",
    ))  # fmt: skip
    last = load_causal(summary["model"], device="cpu").module.state_dict()
    assert all((last[name] - first[name]).abs().max() < 1e-9 for name in first)
    assert any((last[name] - sft[name]).abs().max() > 1e-3 for name in first)
    with Store.open_reader(folder / "still" / "run.db") as store:
        assert store.metrics("ei", "rows/count")[0][1] >= 2  # D_0 has two rows


def test_hints_in_a_run(tmp_path: Path) -> None:
    """STaR by its config: what was hinted is stored with the plain prompt, and no task counts twice."""
    changes = {"algorithm": "star", "options": {"steps": 5}, "hint": "{question} is {answer}", "demonstrations": None}
    config = config_of(tmp_path, steps=2, num_generations=1, **changes)
    resume_or_begin(config, tmp_path / "run", resume=False)
    with Store.open_reader(tmp_path / "run" / "run.db") as store:
        assert [visit for visit, _ in store.ledger("ei")] == list(range(12))
        rows = [r for r in store.rollouts("ei", limit=100) if "hint" in r.rollout.note]
        plain = {r.task.id: r for r in store.rollouts("ei", limit=100) if "hint" not in r.rollout.note}
        assert store.metrics("ei", "hinted/count")[0][1] == len([r for r in rows if r.step == 0]) > 0
    for row in rows:
        other = plain[row.task.id].rollout
        assert row.rollout.tokens[: row.rollout.prompt_length] == other.tokens[: other.prompt_length]
        assert set(row.rollout.logprobs) == {0.0}


def points(store: Store, *values: float) -> None:
    for step, value in enumerate(values):
        store.write_evaluation("ei", step, "held_out", {}, {"validation/greedy": value})


@pytest.mark.parametrize(
    ("values", "patience", "delta", "flat", "best"),
    [
        ([], 1, 0.0, False, None),
        ([0.5], 1, 0.0, False, 0),
        ([0.5, 0.6], 1, 0.0, False, 1),
        ([0.5, 0.5], 1, 0.0, True, 0),  # among equals the first
        ([0.5, 0.4], 2, 0.0, False, 0),
        ([0.5, 0.4, 0.5], 2, 0.0, True, 0),
        ([0.5, 0.4, 0.6], 2, 0.0, False, 2),
        ([0.5, 0.52], 1, 0.05, True, 1),
        ([0.2, 0.1, 0.1], None, 0.0, False, 0),
    ],
)
def test_flat_and_best(tmp_path: Path, values, patience, delta, flat, best) -> None:
    spec = {"tasks": "held_out", "patience": patience, "min_delta": delta}
    stage = StageConfig(name="ei", algorithm="expert_iteration", steps=9, validation=spec)
    with Store(tmp_path / "run.db") as store:
        points(store, *values)
        validation = Validation(stage, store, Checkpoints(tmp_path / "best"), lambda *_: None)
        assert validation.flat() is flat
        assert validation.best_step() == best


def test_it_is_due_every_so_many_steps_and_never_without_a_table(tmp_path: Path) -> None:
    with Store(tmp_path / "run.db") as store:
        due = []
        for spec in ({"tasks": "held_out", "every": 3}, None):
            stage = StageConfig(name="ei", algorithm="grpo", steps=9, validation=spec)
            validation = Validation(stage, store, Checkpoints(tmp_path / "best"), lambda *_: None)
            due.append([done for done in range(10) if validation.due(done)])
    assert due == [[3, 6, 9], []]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validation": {"tasks": "train"}}, "tasks of its own"),
        ({"validation": {"tasks": "heldout"}}, "held_out"),
        ({"validation": {"tasks": "held_out", "samples": 2, "k": 3}}, "at least k samples"),
        ({"demonstrations": "show"}, "shown"),
    ],
)
def test_wrong_settings_are_refused_when_they_are_read(tmp_path: Path, changes, said) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "grpo", "options": {}, "demonstrations": None}, "restart_from"),
        ({"algorithm": "rest_em", "options": {}}, "demonstrations"),
        ({"hint": "{question} {answer}"}, "hint"),
        ({"validation": {"tasks": "held_out", "metric": "length"}}, "more is better"),
        ({"validation": {"tasks": "held_out", "metric": "pass@4", "samples": 2}}, "samples=4"),
    ],
)
def test_keys_that_would_do_nothing_are_refused_before_anything_begins(tmp_path: Path, changes, said) -> None:
    config = config_of(tmp_path, **changes)
    with pytest.raises(ConfigError, match=said):
        resume_or_begin(config, tmp_path / "run", resume=False)


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    stage = StageConfig(algorithm="sft", steps=1, validation={"tasks": "t", "metric": "pass@x", "samples": 2})
    with pytest.raises(UnknownName, match="pass@k"):
        check_metric(stage.validation)
