"""What a checkpoint promises: whole and checked, or passed over; never lost to a crash or to a full disk."""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from maieutic.errors import RunError
from maieutic.run.checkpoints import DESCRIPTION, Checkpoints


def filler(content: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "weights.bin").write_text(content)
        (folder / "optimiser.bin").write_text(content[::-1])

    return fill


def names(checkpoints: Checkpoints) -> list[str]:
    return [f"{each.stage}/{each.path.name}" for each in checkpoints.all()]


def test_round_trip(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    state = {"source": {"cursor": 17, "order": [3, 1]}, "text": "ä \u2028", "rate": 1e-6, "none": None}
    path = checkpoints.write("rl", 40, filler("abc"), state)
    assert path == tmp_path / "rl" / "step-000040"
    assert (path / "model" / "weights.bin").read_text() == "abc"
    for found in (checkpoints.latest(), Checkpoints(tmp_path).latest(), checkpoints.latest("rl")):
        assert found is not None
        assert (found.path, found.stage, found.step, found.state) == (path, "rl", 40, state)
        assert sorted(found.files) == ["model/weights.bin", "optimiser.bin"]
    assert checkpoints.latest("sft") is None
    assert [each.name for each in tmp_path.iterdir()] == ["rl"]  # nothing temporary is left


def test_the_newest_stay_and_the_last_of_every_stage(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for stage, step in [("sft", 1), ("sft", 2), ("sft", 3), ("rl", 1), ("rl", 2), ("rl", 3), ("rl", 4)]:
        checkpoints.write(stage, step, filler(f"{stage}{step}"), {})
    assert names(checkpoints) == ["rl/step-000004", "rl/step-000003", "sft/step-000003"]
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest.stage, latest.step) == ("rl", 4)


def test_the_newest_is_the_one_written_last_not_the_highest_step(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write("sft", 900, filler("a"), {})
    checkpoints.write("rl", 5, filler("b"), {})
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest.stage, latest.step) == ("rl", 5)
    first = checkpoints.latest("sft")
    checkpoints.rewind(first)
    assert names(checkpoints) == ["sft/step-000900"]
    checkpoints.rewind(None)
    assert checkpoints.latest() is None


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for content in ("old", "new"):
        checkpoints.write("rl", 1, filler(content), {"content": content})
    [only] = checkpoints.all()
    assert only.state == {"content": "new"}
    assert only.damage() is None
    assert (only.path / "model" / "weights.bin").read_text() == "new"


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit of the weights": lambda folder: flip(folder / "model" / "weights.bin"),
    "a cut file": lambda folder: (folder / "optimiser.bin").write_text("x"),
    "a lost file": lambda folder: (folder / "optimiser.bin").unlink(),
    "a lost folder": lambda folder: shutil.rmtree(folder / "model"),
    "no description": lambda folder: (folder / DESCRIPTION).unlink(),
    "half a description": lambda folder: (folder / DESCRIPTION).write_text((folder / DESCRIPTION).read_text()[:50]),
    "an empty description": lambda folder: (folder / DESCRIPTION).write_text("[]"),
    "a changed state": lambda folder: (folder / DESCRIPTION).write_text(
        (folder / DESCRIPTION).read_text().replace('"cursor": 2', '"cursor": 3')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_one_is_told_and_passed_over(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write("rl", 1, filler("one"), {"cursor": 1})
    newest = checkpoints.write("rl", 2, filler("two"), {"cursor": 2})
    damage(newest)
    with caplog.at_level(logging.WARNING):
        latest = checkpoints.latest()
    assert latest is not None
    assert (latest.step, latest.state) == (1, {"cursor": 1})
    assert str(newest) in caplog.text
    assert "passed over" in caplog.text
    checkpoints.write("rl", 2, filler("two"), {"cursor": 2})  # the run comes to step 2 again
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.step == 2


def test_a_filling_that_fails_leaves_the_previous_one_and_no_rest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write("rl", 1, filler("one"), {})

    def fails(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        checkpoints.write("rl", 2, fails, {})
    with pytest.raises(RunError, match="any other name"):
        checkpoints.write("rl", 2, lambda folder: (folder / DESCRIPTION).touch(), {})
    assert names(checkpoints) == ["rl/step-000001"]
    assert [each.name for each in tmp_path.iterdir()] == ["rl"]


@pytest.mark.parametrize("stage", ["a/b", "..", ".hidden", ""])
def test_a_stage_that_cannot_name_a_folder_is_refused(tmp_path: Path, stage: str) -> None:
    with pytest.raises(ValueError, match="must do for a folder"):
        Checkpoints(tmp_path).write(stage, 1, filler("x"), {})


#: Writes checkpoints of eight files, each of which holds the step, one after the other until it is killed.
WRITER = """
import sys
from maieutic.run.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
latest = checkpoints.latest()
step = 0 if latest is None else latest.step
def fill(folder):
    for name in range(8):
        (folder / f"{name}.bin").write_bytes(step.to_bytes(4, "little") * 20_000)
while True:
    step += 1
    checkpoints.write("rl", step, fill, {"step": step})
    print("written", flush=True)
"""


def test_killed_while_writing_what_is_accepted_is_whole(tmp_path: Path) -> None:
    moments = random.Random(11)
    before = 0
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"written\n"
            time.sleep(moments.uniform(0.0, 0.05))
            writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        latest = Checkpoints(tmp_path).latest()
        assert latest is not None
        assert latest.step > before  # the one that it said was written is there, or a later one
        assert latest.state == {"step": latest.step}
        for name in range(8):
            assert (latest.path / f"{name}.bin").read_bytes() == latest.step.to_bytes(4, "little") * 20_000
        before = latest.step
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.write("rl", before + 1, filler("x"), {})
    assert [each.name for each in tmp_path.iterdir()] == ["rl"]  # what the killed ones left is removed
    assert len(checkpoints.all()) == 2


FULL_DISK = """
import resource, signal, sys
import numpy
from maieutic.errors import RunError
from maieutic.run.checkpoints import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints(sys.argv[1])
{fill}
size = 1_000
checkpoints.write("rl", 1, fill, {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
size = 1_000_000
try:
    checkpoints.write("rl", 2, fill, {{}})
except RunError as error:
    print(error)
assert checkpoints.latest().step == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoints.write("rl", 2, fill, {{}})
"""
FILLS = {
    "python": """
def fill(folder):
    (folder / "weights.bin").write_bytes(bytes(4 * size))
""",
    "safetensors": """
from safetensors.numpy import save_file
def fill(folder):
    save_file({"w": numpy.zeros(size, dtype=numpy.float32)}, folder / "weights.safetensors")
""",
    "torch": """
import torch
def fill(folder):
    torch.save(torch.zeros(size), folder / "weights.pt")
""",
}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS.keys())
def test_a_full_disk_is_told_and_leaves_the_previous_one(tmp_path: Path, fill: str) -> None:
    # No file may grow beyond 1 MB (4 MB are to be written): the system refuses as on a full disk. Room is made again.
    script = FULL_DISK.format(fill=fill)
    ran = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "no room to write" in ran.stdout
    assert "MiB are needed" in ran.stdout
    assert "--resume" in ran.stdout
    latest = Checkpoints(tmp_path).latest()
    assert latest is not None
    assert latest.step == 2
    assert [each.name for each in tmp_path.iterdir()] == ["rl"]


def test_the_description_is_plain_json(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).write("rl", 3, filler("abc"), {"cursor": 1})
    described = json.loads((path / DESCRIPTION).read_text())
    assert (described["stage"], described["step"], described["state"]) == ("rl", 3, {"cursor": 1})
    # printf abc | sha256sum
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert described["files"]["model/weights.bin"] == expected
