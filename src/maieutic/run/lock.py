"""One writer a run: a lock that dies with the process that holds it.

The kernel holds the lock (`flock`), so a killed process never leaves a stale one behind, whatever became of its
number. The file tells people who the holder is. Where the file system has no such locks (some cluster file systems)
the recorded process is looked up instead: it holds the lock while a process with its number and its start time lives.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from maieutic.errors import RunError

_UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def started(pid: int) -> str | None:
    """When a process started (the boot's id and clock ticks since then); None where it is dead or that is unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before may hold spaces; then state is field 3 of proc(5)
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def alive(holder: dict[str, Any]) -> bool:
    """Whether the recorded process may still live. One on another machine may, for all that is known here."""
    if holder["host"] != socket.gethostname():
        return True
    if Path("/proc/self/stat").exists():
        return holder["started"] is not None and started(holder["pid"]) == holder["started"]
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class RunLock:
    """Hold the lock at `path` until `release`. Raises RunError, naming the holder, when another process has it.

    `by_pid` looks the recorded process up instead of asking the kernel, as file systems without locks need.
    """

    def __init__(self, path: Path, *, by_pid: bool = False) -> None:
        self.path = path
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if by_pid or not self._taken_from_kernel():
                self._refuse_if_alive()
            self._record()
        except BaseException:
            os.close(self._file)
            raise
        _held.add(self)

    def _taken_from_kernel(self) -> bool:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(self._refusal(self._holder())) from error
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
        return True

    def _refuse_if_alive(self) -> None:
        holder = self._holder()
        if holder is not None and alive(holder):
            raise RunError(self._refusal(holder))

    def _holder(self) -> dict[str, Any] | None:
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            return None  # released, or killed while it wrote its name
        return holder if isinstance(holder, dict) else None

    def _refusal(self, holder: dict[str, Any] | None) -> str:
        who = "another process"
        if holder is not None:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
            who = f"process {holder['pid']} on {holder['host']} (since {since})"
        return (
            f"the run {self.path.parent} is being written by {who}; expected it to be free. Stop that process, or "
            f"choose another --run. If it is gone for certain, delete {self.path}."
        )

    def _record(self) -> None:
        assert self._file is not None
        pid = os.getpid()
        holder = {"pid": pid, "started": started(pid), "host": socket.gethostname(), "since": time.time()}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(holder).encode(), 0)

    def forget(self) -> None:
        """Close the file without giving the lock up: for a forked child, which does not share its parent's lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def release(self) -> None:
        """Give the lock up; releasing twice is harmless."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            self.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


# a forked worker that outlives a killed run would otherwise keep the kernel's lock
os.register_at_fork(after_in_child=_forget_all)
