"""What the folder of a run promises: never two writers, never another run overwritten, remedies in every refusal."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from maieutic.errors import RunError
from maieutic.run.directory import RunDirectory
from maieutic.run.durable import write_text
from maieutic.run.lock import RunLock, alive, started

CONFIG = "[train]\nlearning_rate = 1e-6\nsteps = 100\n"


def test_begin_finish_and_look(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "runs" / "one", CONFIG, resume=False) as run:
        assert run.config.read_text() == CONFIG
        assert run.checkpoints.is_dir()
        assert run.summary() is None
        run.finish({"reward": 0.5})
    seen = RunDirectory.open(tmp_path / "runs" / "one")
    assert seen.summary() == {"reward": 0.5}
    assert (seen.database.name, seen.report.name) == ("run.db", "report.html")
    inside = sorted(each.name for each in seen.path.iterdir())
    assert inside == ["checkpoints", "config.toml", "run.complete", "run.lock"]  # nothing temporary is left


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "one", CONFIG, resume=False).close()
    with pytest.raises(RunError, match="exists: go on with it by --resume, or choose another --run"):
        RunDirectory.create(tmp_path / "one", CONFIG, resume=False)
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").touch()
    with pytest.raises(RunError, match=r"not empty \(it holds photo.jpg\)"):
        RunDirectory.create(tmp_path / "holiday", CONFIG, resume=False)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        RunDirectory.create(tmp_path / "file", CONFIG, resume=False)


def test_a_run_killed_before_it_began_can_begin(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.lock").touch()
    (tmp_path / "one" / ".tmp-77-config.toml").write_text("[tr")
    with RunDirectory.create(tmp_path / "one", CONFIG, resume=False) as run:
        assert run.config.read_text() == CONFIG


def test_a_missing_run_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"runs in .*: none"):
        RunDirectory.create(tmp_path / "runs" / "grpo-small", CONFIG, resume=True)
    assert not (tmp_path / "runs").exists()
    RunDirectory.create(tmp_path / "runs" / "grpo-small", CONFIG, resume=False).close()
    with pytest.raises(RunError, match="did you mean 'grpo-small'"):
        RunDirectory.create(tmp_path / "runs" / "gpro-small", CONFIG, resume=True)
    with pytest.raises(RunError, match=r"runs in .*: grpo-small"):
        RunDirectory.open(tmp_path / "runs" / "zzz")


def test_another_config_is_told_line_by_line(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "one", CONFIG, resume=False).close()
    RunDirectory.create(tmp_path / "one", CONFIG, resume=True).close()
    changed = CONFIG.replace("1e-6", "2e-6").replace("steps = 100", "steps = 200")
    with pytest.raises(RunError) as refused:
        RunDirectory.create(tmp_path / "one", changed, resume=True)
    lines = str(refused.value).splitlines()
    assert [line.strip() for line in lines[1:5]] == [
        "-learning_rate = 1e-6", "-steps = 100", "+learning_rate = 2e-6", "+steps = 200",
    ]  # fmt: skip
    assert "[train]" not in str(refused.value)
    with RunDirectory.create(tmp_path / "one", CONFIG, resume=True) as run:  # the refusal holds no lock
        run.finish({})
    with RunDirectory.create(tmp_path / "one", changed, resume=True, allow_config_change=True) as run:
        assert run.config.read_text() == changed
        assert (run.path / "config.1.toml").read_text() == CONFIG
        assert run.summary() is None  # asked for more, it is not complete any more


# ---- one writer

HOLDER = """
import sys
from pathlib import Path
from maieutic.run.lock import RunLock
lock = RunLock(Path(sys.argv[1]), by_pid=sys.argv[2] == "True")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("by_pid", [False, True])
def test_a_second_writer_is_refused_and_a_killed_one_is_succeeded(tmp_path: Path, by_pid: bool) -> None:
    path = tmp_path / "run.lock"
    command = [sys.executable, "-c", HOLDER, path, str(by_pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=f"process {holder.pid} on {socket.gethostname()}.*choose another --run"):
            RunLock(path, by_pid=by_pid)
        holder.send_signal(signal.SIGKILL)
    assert f'"pid": {holder.pid}' in path.read_text()  # it did not come to release it
    with RunLock(path, by_pid=by_pid), pytest.raises(RunError, match=f"process {os.getpid()} "):
        RunLock(path, by_pid=by_pid)
    RunLock(path, by_pid=by_pid).release()


def test_two_writers_of_a_run(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "one", CONFIG, resume=False):
        with pytest.raises(RunError, match="is being written by process"):
            RunDirectory.create(tmp_path / "one", CONFIG, resume=True)
        RunDirectory.open(tmp_path / "one")  # looking is free
    RunDirectory.create(tmp_path / "one", CONFIG, resume=True).close()


def wait(ready, end) -> None:
    ready.set()
    end.wait(20)


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    # A pool's worker may outlive the run for a moment. It has the run's open files, but must not hold its lock.
    context = multiprocessing.get_context("fork")
    lock = RunLock(tmp_path / "run.lock")
    ready, end = context.Event(), context.Event()
    worker = context.Process(target=wait, args=(ready, end))
    worker.start()
    try:
        assert ready.wait(10)
        with pytest.raises(RunError):
            RunLock(tmp_path / "run.lock")  # the fork took nothing from its parent
        lock.release()
        RunLock(tmp_path / "run.lock").release()
    finally:
        end.set()
        worker.join()


def test_who_is_alive() -> None:
    me = {"pid": os.getpid(), "started": started(os.getpid()), "host": socket.gethostname()}
    assert alive(me)
    assert alive({**me, "host": "another-machine", "started": "x"})  # cannot be known from here
    if Path("/proc/self/stat").exists():
        assert not alive({**me, "started": "boot/1"})  # the number was given to another process since
        assert started(os.getpid()) != started(1)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not alive({**me, "pid": ended.pid})


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "one\r\ntwo ä")
    write_text(path, "three\n")
    assert path.read_bytes() == b"three\n"
    script = (
        "import resource, signal, sys; from pathlib import Path; from maieutic.run.durable import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text(Path(sys.argv[1]), 'x' * 5000)"
    )
    ran = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert "RunError: no room to write" in ran.stderr
    assert path.read_bytes() == b"three\n"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]
