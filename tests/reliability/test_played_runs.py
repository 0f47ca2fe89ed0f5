"""Runs on tasks that are played: killed and resumed, sampled ahead, stored and shown, they end as one run would."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the installed package

from benchmarks.kill_and_resume import Run, differences
from maieutic.cli import main
from maieutic.config import parse_config, write_toml
from maieutic.environments.episodes import turn_count
from maieutic.errors import ConfigError
from maieutic.run.build import describe
from maieutic.run.runner import Silent, resume_or_begin
from maieutic.run.store import Store
from maieutic.run.tasksets import Tasksets
from maieutic.types import Step

GAME = """
import random, time
class Guess:
    max_turns = 3
    vocabulary = ("higher", "lower", "pardon")
    def __init__(self, task, seed):
        self.secret, self.guess, self.pause = int(task.answer), 0, random.Random()
    def step(self, message):
        time.sleep(self.pause.random() / 500)    # now quick, now slow: nothing may depend on it
        words = [w for w in message.content.split() if w.isdecimal()]
        self.guess = int(words[-1]) if words else 0
        return "pardon" if not self.guess else "higher" if self.guess < self.secret else "lower"
    def score(self):
        return self.guess / 8
"""
STEPS = 4


def config_of(folder: Path, **stage: Any) -> dict[str, Any]:
    (folder / "game.py").write_text(GAME)
    small = {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "context": 64}
    table = {"taskset": "guess", "environment": f"{folder}/game.py:Guess", "max_turn_length": 6}
    return {
        "threads": 1, "keep_checkpoints": 5, "model": {"small": small},
        "tasks": {"train": table, "test": {**table, "size": 8, "seed": 1}},
        "stages": [
            {"name": "form", "algorithm": "sft", "steps": 12, "prompts": 8, "optimiser": {"learning_rate": 1e-2},
             "evaluate": False},
            {"name": "play", "algorithm": "grpo", "steps": STEPS, "prompts": 3, "num_generations": 4,
             "max_completion_length": 40, "checkpoint_every": 2, "optimiser": {"learning_rate": 1e-2}, **stage},
        ],
        "evaluation": {"tasks": "test", "samples": 2, "max_completion_length": 40},
    }  # fmt: skip


class Pulled(Silent):
    """The plug is pulled when a step of the last stage has been stored and is told of."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, stage: str, step: Step, seconds: float) -> None:
        """Raises KeyboardInterrupt at the step."""
        if (stage, step.index) == ("play", self.at):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("unbroken")
    resume_or_begin(parse_config(config_of(folder)), folder / "run", resume=False)
    return Run(folder)


def test_stopped_between_steps_and_resumed_it_ends_the_same(unbroken: Run, tmp_path: Path) -> None:
    """To the bit, though the game answers at another speed every time."""
    config = parse_config(config_of(unbroken.folder))
    run = Run(tmp_path)
    for at in (1, 2):  # before and after a checkpoint
        with pytest.raises(KeyboardInterrupt):
            resume_or_begin(config, run.path, resume=at > 1, watch=Pulled(at))
        assert run.stored()[-1] == ("play", at)
    resume_or_begin(config, run.path, resume=True)
    assert differences(unbroken, run) == []


def test_episodes_were_played_and_stored(unbroken: Run) -> None:
    with Store.open_reader(unbroken.database) as store:
        rows = [row for step in range(STEPS) for row in store.rollouts("play", step)]
        (evaluation,) = store.evaluations()
    assert len(rows) == STEPS * 3 * 4
    turns = [turn_count(row.rollout) for row in rows]
    assert max(turns) == 3
    told = [span.text for row in rows for span in row.rollout.spans if span.role == "environment"]
    assert {"higher", "lower"} & set(told)
    assert len({row.score.reward for row in rows}) > 1
    assert all(0.0 <= row.score.reward <= 1.0 for row in rows)
    assert all(sample["turns"] >= 1 for problem in evaluation.result["problems"] for sample in problem["samples"])


def test_it_is_shown_turn_by_turn(unbroken: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(unbroken.path), "--stage", "play", "--best", "4", "--worst", "0"]) == 0
    shown = capsys.readouterr().out
    assert "environment: " in shown
    assert shown.count("model: ") > 4
    page = (unbroken.path / "report.html").read_text()
    assert "environment: </strong>" in page
    table = ["--set", f"environment={unbroken.folder}/game.py:Guess", "--set", "max_turn_length=6"]
    assert main(["sample", str(unbroken.path), "guess", "--n", "2", *table]) == 0
    assert "model: " in capsys.readouterr().out
    asked = ["eval", str(unbroken.path), "guess", "--limit", "4", "--samples", "1", "--max-completion-length", "30"]
    assert main([*asked, *table]) == 0
    said = capsys.readouterr().out
    assert "won" in said
    assert "turns" in said


def test_another_process_plays_ahead(unbroken: Run, tmp_path: Path) -> None:
    """Batch 0 is that of the run without overlap, to the bit; the others are one update old."""
    config = parse_config(config_of(unbroken.folder, overlap=True, steps=2))
    resume_or_begin(config, tmp_path / "run", resume=False)
    with Store.open_reader(tmp_path / "run" / "run.db") as ahead, Store.open_reader(unbroken.database) as store:
        found, expected = (sorted(each.rollouts("play", 0), key=lambda r: r.id) for each in (ahead, store))
        assert [row.rollout for row in found] == [row.rollout for row in expected]
        assert ahead.metrics("play", "policy/staleness") == [(0, 0.0), (1, 1.0)]
        assert max(turn_count(row.rollout) for row in ahead.rollouts("play", 1)) > 1


def test_what_an_episode_has_not_is_refused_and_plans_do_not_stumble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for algorithm, said in (("star", "a hint in the prompt"), ("rcrl", "labels in front of steps")):
        config = parse_config(config_of(tmp_path, algorithm=algorithm))
        with pytest.raises(ConfigError, match=said):
            describe(config, Tasksets(config))
    path = tmp_path / "config.toml"
    path.write_text(write_toml(parse_config(config_of(tmp_path))))
    with contextlib.chdir(tmp_path):
        assert main(["train", str(path), "--dry-run"]) == 0
        assert "played in 'Guess', at most 3 turns" in capsys.readouterr().out
        assert main(["plan", str(path)]) == 0
