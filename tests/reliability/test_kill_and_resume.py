"""A run that is killed or stopped, anywhere, and resumed ends as one that never was: the same to the bit."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the installed package

from benchmarks.kill_and_resume import (
    CONFIG,
    REWARD,
    Child,
    Moment,
    Run,
    Verdict,
    contents,
    differences,
    kill_and_resume,
)
from maieutic.cli import main
from maieutic.run.checkpoints import Checkpoints

#: The reward of `CONFIG`, which takes a minute for each of 16 rollouts: nothing stops in its middle by itself.
SLOW = "import time\ndef even(completion):\n    time.sleep(60)\n"

#: One in each phase. On a busy machine a short phase may pass unseen; then the next one of its kind is hit.
MOMENTS = (
    Moment(after=("sft", 8), phase="evaluation"),
    Moment(after=("dapo", 0), phase="checkpoint"),
    Moment(after=("dapo", 2), phase="sampling"),
    Moment(after=("dapo", 4), phase="update"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Verdict]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, kill_and_resume(CONFIG, folder, MOMENTS, files={"reward.py": REWARD})


@pytest.fixture
def unbroken(made: tuple[Path, Verdict]) -> Run:
    return Run(made[0] / "unbroken")


@pytest.fixture
def copy(unbroken: Run, tmp_path: Path) -> Run:
    """A copy of the unbroken run, to do things to."""
    return Run(Path(shutil.copytree(unbroken.folder, tmp_path / "copy")))


def test_killed_in_each_phase_it_ends_the_same(made: tuple[Path, Verdict]) -> None:
    verdict = made[1]
    assert [kill.phase for kill in verdict.kills] == ["evaluation", "checkpoint", "sampling", "update"]
    assert verdict.differences == ()
    evaluating, writing, sampling, updating = (kill.stored for kill in verdict.kills)
    assert evaluating == ("sft", 9)
    assert writing in [("dapo", step) for step in (1, 3, 5, 7, 9)]  # after every second step, once it is stored
    assert sampling in [("dapo", step) for step in range(2, 9)]
    assert updating in [("dapo", step) for step in range(4, 9)]


def test_the_run_had_something_to_lose(unbroken: Run) -> None:
    found = contents(unbroken)
    assert len(found["steps"]) == 20
    assert len(found["evaluations"]) == 2
    # 10 steps of 8 demonstrations; 10 steps of 4 prompts or more, for uniform groups were drawn again
    visits = [[visit for stage, visit, *_ in found["ledger"] if stage == name] for name in ("sft", "dapo")]
    assert len(visits[0]) == 80
    assert len(visits[1]) > 40
    assert len(found["rollouts"]) == 4 * len(visits[1])
    skipped = [value for stage, name, _, value in found["metrics"] if stage == "dapo" and name == "train/skipped"]
    assert skipped == [0.0] * 10


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("metrics", "UPDATE metrics SET value = value + 1e-9 WHERE stage = 'dapo' AND name = 'loss' AND step = 5"),
        ("ledger", "DELETE FROM ledger WHERE stage = 'dapo' AND visit = 3"),
        ("rollouts", "UPDATE rollouts SET text = text || ' ' WHERE id = 7"),
        ("evaluations", "DELETE FROM evaluations WHERE stage = 'dapo'"),
        ("steps", "DELETE FROM steps WHERE stage = 'dapo' AND step = 9"),
    ],
)
def test_the_comparison_sees_a_change_of_a_table(unbroken: Run, copy: Run, table: str, change: str) -> None:
    assert differences(unbroken, copy) == []
    with contextlib.closing(sqlite3.connect(copy.database, isolation_level=None)) as db:
        db.execute(change)
    assert [line for line in differences(unbroken, copy) if line.startswith(table)]


def test_the_comparison_sees_another_bit_of_the_weights(unbroken: Run, copy: Run) -> None:
    latest = Checkpoints(copy.path / "checkpoints").latest()
    assert latest is not None
    weights = latest.path / "model" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    assert [line for line in differences(unbroken, copy) if "model.safetensors: got SHA-256" in line]


def wait_for(run: Run, child: Child, stage: str, step: int) -> None:
    while (stage, step) not in run.stored():
        assert child.running(), (run.folder / "err.txt").read_text()
        time.sleep(0.005)


def test_ctrl_c_once_twice_and_on_to_the_same_end(unbroken: Run, tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "reward.py").write_text(REWARD)

    # Once: the step is finished and saved.
    child = Child(tmp_path, run.arguments())
    wait_for(run, child, "dapo", 2)
    child.process.send_signal(signal.SIGINT)
    assert child.process.wait(60) == 130
    stage, step = run.stored()[-1]
    assert stage == "dapo"
    assert 2 <= step < 9
    latest = Checkpoints(run.path / "checkpoints").latest()
    assert latest is not None
    assert (latest.stage, latest.step) == ("dapo", step + 1)
    said = (tmp_path / "err.txt").read_text()
    assert f"stopped after step {step + 1}" in said
    assert "maieutic train --run run --resume" in said
    assert "Traceback" not in said

    # Twice: at once, in the middle of a step that takes a quarter of an hour.
    (tmp_path / "reward.py").write_text(SLOW)
    (tmp_path / "err.txt").unlink()
    child = Child(tmp_path, run.arguments())
    while child.phase() != "sampling":
        assert child.running()
        time.sleep(0.02)
    child.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert child.running()  # the step is going on
    child.process.send_signal(signal.SIGINT)
    assert child.process.wait(20) == 130
    said = (tmp_path / "err.txt").read_text()
    assert "maieutic train --run run --resume" in said
    assert "Traceback" not in said
    assert run.stored()[-1] == (stage, step)

    (tmp_path / "reward.py").write_text(REWARD)
    with contextlib.chdir(tmp_path):
        assert main(["--quiet", "train", "--run", "run", "--resume"]) == 0
    assert differences(unbroken, run) == []


def test_resuming_a_complete_run_says_so_and_changes_nothing(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before, marker = contents(copy), (copy.path / "run.complete").read_bytes()
    with contextlib.chdir(copy.folder):
        assert main(["train", "--run", "run", "--resume"]) == 0
    said = capsys.readouterr()
    assert "the run run is complete: nothing is left to do" in said.err
    assert "run/checkpoints/dapo/step-000010/model" in said.out
    assert contents(copy) == before
    assert (copy.path / "run.complete").read_bytes() == marker


def test_resuming_with_another_config_is_refused(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before, config = contents(copy), (copy.path / "config.toml").read_bytes()
    change = ["--set", "stages.1.optimiser.learning_rate=0.5"]
    with contextlib.chdir(copy.folder):
        assert main(["train", "config.toml", *change, "--run", "run", "--resume"]) == 7
        said = capsys.readouterr().err
        assert "- learning_rate = 0.001" in said.replace("-learning", "- learning")
        assert "+ learning_rate = 0.5" in said.replace("+learning", "+ learning")
        assert "Resume it with the config it was begun with" in said
        # and begun anew in the same folder it is refused too
        assert main(["train", "config.toml", "--run", "run"]) == 7
    said = capsys.readouterr().err
    assert "go on with it by --resume" in said
    assert contents(copy) == before
    assert (copy.path / "config.toml").read_bytes() == config
