"""Guards in a run: alarms are stored and shown, a pause waits to be acknowledged, no kill or pause changes a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maieutic.cli import main
from maieutic.config import parse_config, read_config, write_toml
from maieutic.errors import UnknownName
from maieutic.report.reading import read_run
from maieutic.run.guarding import ACKNOWLEDGED, ALARM, rules_of
from maieutic.run.runner import Silent, resume_or_begin
from maieutic.run.store import Store

#: Every other rollout is left without a reward, by its length: the guard `unscorable` speaks after the third step.
REWARD = "def odd(completion):\n    return None if len(completion) % 2 else float('1' in completion)\n"
STEPS, ALARMED = 7, 2


def written(folder: Path, **changes: Any) -> Path:
    """The config, in a file beside its reward."""
    (folder / "reward.py").write_text(REWARD)
    stage = {
        "name": "rl", "algorithm": "rloo", "steps": STEPS, "prompts": 3, "num_generations": 4, "checkpoint_every": 100,
        "max_completion_length": 6, "rewards": {str(folder / "reward.py:odd"): 1.0}, "max_reward_failures": 1.0,
        "optimiser": {"learning_rate": 1e-3},
    }  # fmt: skip
    config = {
        "name": "guarded", "threads": 1,
        "model": {"small": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "context": 64}},
        "tasks": {"train": {"taskset": "arithmetic", "difficulty": 1, "size": 64}},
        "stages": [stage], **changes,
    }  # fmt: skip
    (folder / "config.toml").write_text(write_toml(parse_config(config)))
    return folder / "config.toml"


def events(folder: Path, kind: str = ALARM):
    with Store.open_reader(folder / "run.db") as store:
        return [event for event in reversed(store.events("rl")) if event.kind == kind]


def steps(folder: Path) -> int:
    with Store.open_reader(folder / "run.db") as store:
        return len(store.steps("rl"))


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose guards only take note, as they do unless told otherwise."""
    folder = tmp_path_factory.mktemp("noted")
    resume_or_begin(read_config(written(folder)), folder / "run", resume=False)
    return folder / "run"


def test_a_note_is_stored_with_its_rollouts_and_changes_nothing(noted: Path, tmp_path: Path) -> None:
    assert steps(noted) == STEPS
    (event,) = (event for event in events(noted) if event.data["guard"] == "unscorable")
    assert event.step == event.data["step"] == ALARMED
    assert event.data["onset"] == 0
    assert "of the rollouts have no reward" in event.message
    with Store.open_reader(noted / "run.db") as store:
        shown = {(r.group, r.rollout.sibling): r for r in store.rollouts("rl", ALARMED)}
        unscored = [shown[tuple(each)].score.reward for each in event.data["rollouts"]]
        assert unscored == [None] * 3
        assert store.metrics("rl", "guards/unscorable")[0][1] > 0.05
    off = dict.fromkeys(("unscorable", *(e.data["guard"] for e in events(noted))), "off")
    resume_or_begin(read_config(written(tmp_path, guards=off)), tmp_path / "run", resume=False)
    assert events(tmp_path / "run") == []
    same_rollouts(tmp_path / "run", noted)


def test_an_alarm_is_shown(noted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(noted), "--json", str(noted / "shown.json")]) == 0
    said = capsys.readouterr().out
    assert f"unscorable at step {ALARMED} of stage rl (note)" in said
    assert "Remedy: the reward fails" in " ".join(said.split())
    (alarm,) = (a for a in json.loads((noted / "shown.json").read_text())["alarms"] if a["guard"] == "unscorable")
    assert (alarm["step"], alarm["action"], alarm["acknowledged"], len(alarm["rollouts"])) == (
        ALARMED,
        "note",
        False,
        3,
    )
    page = (noted / "report.html").read_text()
    assert '<section id="alarms">' in page
    assert f"unscorable at step {ALARMED} of stage rl (note)" in page


def test_a_pause_waits_to_be_acknowledged(
    noted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config, run = written(tmp_path, guards={"unscorable": "pause"}), tmp_path / "run"
    assert main(["train", str(config), "--run", str(run)]) == 8
    assert "--resume --acknowledge unscorable" in " ".join(capsys.readouterr().err.split())
    assert "guard unscorable, step 2 of stage 'rl'" in caplog.text
    assert steps(run) == ALARMED + 1
    assert main(["train", "--run", str(run), "--resume"]) == 8  # nobody has said go on
    assert steps(run) == ALARMED + 1
    assert main(["train", "--run", str(run), "--resume", "--acknowledge", "unscoreable"]) == 2
    assert "did you mean 'unscorable'" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--run", str(run), "--resume", "--acknowledge", "unscorable"]) == 0
    assert [event.data["guard"] for event in events(run, ACKNOWLEDGED)] == ["unscorable"]
    assert [event.step for event in events(run) if event.data["guard"] == "unscorable"] == [ALARMED]
    assert [a.acknowledged for a in read_run(run).alarms if a.alarm.guard == "unscorable"] == [True]
    same_rollouts(run, noted)


def test_a_pause_is_passed_by_another_threshold(noted: Path, tmp_path: Path) -> None:
    config, run = written(tmp_path, guards={"unscorable": "pause"}), tmp_path / "run"
    assert main(["train", str(config), "--run", str(run), "-q"]) == 8
    assert main(["train", "--run", str(run), "--resume", "--set", "seed=1", "-q"]) == 7  # anything else must stay
    assert main(["train", "--run", str(run), "--resume", "--set", "guards.unscorable.threshold=1.5", "-q"]) == 0
    assert steps(run) == STEPS
    assert (run / "config.1.toml").exists()  # what it was told before
    same_rollouts(run, noted)


def test_a_stop_ends_the_stage_and_a_resumed_run_knows(tmp_path: Path) -> None:
    config, run = written(tmp_path, guards={"unscorable": "stop"}), tmp_path / "run"
    assert main(["train", str(config), "--run", str(run), "-q"]) == 0
    assert steps(run) == ALARMED + 1
    (run / "run.complete").unlink()  # killed just before its end
    assert main(["train", "--run", str(run), "--resume", "-q"]) == 0
    assert steps(run) == ALARMED + 1


class Killed(BaseException):
    """The process is gone."""


class Killing(Silent):
    """A watch that kills the run when a step is told."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, stage: str, step: Any, seconds: float) -> None:
        if step.index == self.at:
            raise Killed


@pytest.mark.parametrize("at", [ALARMED, ALARMED + 2])
def test_a_killed_run_sees_the_same_alarms(noted: Path, tmp_path: Path, at: int) -> None:
    config = read_config(written(tmp_path))
    config = config.model_copy(update={"stages": [config.stages[0].model_copy(update={"checkpoint_every": 2})]})
    with pytest.raises(Killed):
        resume_or_begin(config, tmp_path / "run", resume=False, watch=Killing(at))
    resume_or_begin(config, tmp_path / "run", resume=True)
    assert [event.data for event in events(tmp_path / "run")] == [event.data for event in events(noted)]
    same_rollouts(tmp_path / "run", noted)


def test_lower_thresholds_find_in_a_resumed_run_what_went_before(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tight = read_config(written(tmp_path, guards={"unscorable": {"threshold": 0.05}}))
    first = read_config(written(tmp_path, guards={"unscorable": {"threshold": 1.5}}))
    two = [first.stages[0].model_copy(update={"checkpoint_every": 2})]
    with pytest.raises(Killed):
        resume_or_begin(first.model_copy(update={"stages": two}), run, resume=False, watch=Killing(5))
    assert "unscorable" not in [event.data["guard"] for event in events(run)]
    resume_or_begin(tight.model_copy(update={"stages": two}), run, resume=True)
    (event,) = (event for event in events(run) if event.data["guard"] == "unscorable")
    assert (event.step, len(event.data["rollouts"])) == (ALARMED, 3)


def test_a_stage_has_its_own_word(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, guards={"copied": "pause", "kl": "off"}))
    stage = config.stages[0].model_validate({**config.stages[0].model_dump(), "guards": {"copied": {"threshold": 0.5}}})
    rules = {rule.guard: rule for rule in rules_of(config, stage)}
    assert (rules["copied"].action, rules["copied"].threshold) == ("pause", 0.5)
    assert "kl" not in rules
    with pytest.raises(UnknownName, match="did you mean 'copied'"):
        rules_of(config.model_copy(update={"guards": {"copyed": stage.guards["copied"]}}), stage)


def test_an_unknown_guard_is_refused_before_anything_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(written(tmp_path, guards={"unscoreable": "pause"})), "--dry-run"]) == 2
    assert "did you mean 'unscorable'" in " ".join(capsys.readouterr().err.split())
    assert main(["train", str(written(tmp_path)), "--acknowledge", "kl"]) == 2


def same_rollouts(run: Path, other: Path) -> None:
    """Both wrote the same, and have the same weights."""
    with Store.open_reader(run / "run.db") as one, Store.open_reader(other / "run.db") as two:
        texts = [[(r.step, r.rollout.text, r.score.reward) for r in store.rollouts(limit=1000)] for store in (one, two)]
    assert texts[0] == texts[1]
    weights = [f / "checkpoints" / "rl" / f"step-{STEPS:06d}" / "model" / "model.safetensors" for f in (run, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
