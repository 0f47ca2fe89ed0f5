"""Sandboxes to run programs in, several at a time; and `run`, for one program.

>>> from maieutic.sandbox import run
>>> run("print(sum(range(10)))").stdout
'45\\n'
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

from maieutic.errors import ConfigError, RewardError
from maieutic.sandbox.host import Boundary, Host, SandboxLost
from maieutic.sandbox.limits import Ended, Limits, Outcome
from maieutic.sandbox.session import Session

#: A program that is lost with its sandbox is tried so often, each time in a new one.
_ATTEMPTS = 3
#: Longer than anything that a model writes.
LONGEST_PROGRAM = 1 << 20


class Sandbox:
    """A place where one program runs at a time, and beside it a second one for tests that need a process of their own.

    A program's place is replaced when it hangs or is gone. `without` and `python` as for `Host`.
    """

    def __init__(self, without: frozenset[str] = frozenset(), python: str | None = None) -> None:
        self.host = Host(without, python)

    @cached_property
    def judge(self) -> Host:
        """Where tests run that are more than a call and a value. No program ever runs there."""
        return Host(self.host.without, self.host.python)

    def open(self, limits: Limits, stdin: bytes = b"", *, judge: bool = False) -> Session:
        """A process that waits for a program, or for tests. Close it before the next one is opened.

        Raises ConfigError where there is no boundary, RewardError where no sandbox answers.
        """
        host = self.judge if judge else self.host
        if host.boundary is not None and host.boundary.single_use:
            host.close()
        for _ in range(_ATTEMPTS):
            try:
                return Session(host, limits, stdin)
            except SandboxLost:
                host.close()
        raise RewardError(
            f"the sandbox did not answer {_ATTEMPTS} times, each time in a new process. Remedy: `maieutic sandbox "
            "check` says what works; the machine may be out of memory or processes"
        )

    def run(self, program: str, *, stdin: str = "", limits: Limits = Limits()) -> Outcome:  # noqa: B008  (frozen)
        """Run a program as `python program.py` would; see `maieutic.sandbox.run`."""
        return self.run_parts([program], stdin=stdin, limits=limits)

    def run_parts(self, parts: Sequence[str], *, stdin: str, limits: Limits) -> Outcome:
        """The same, of a program in several sources."""
        if sum(map(len, parts)) > LONGEST_PROGRAM:
            return Outcome(Ended.OUTPUT, why=f"a program longer than {LONGEST_PROGRAM} characters")
        for _ in range(_ATTEMPTS):
            session = self.open(limits, stdin.encode(errors="surrogatepass"))
            try:
                session.run_out({"parts": list(parts), "main": True})
            finally:
                session.close()
            if session.ended is not Ended.LOST:
                break
        stdout, stderr = session.output
        status = os.waitstatus_to_exitcode(session.last["ended"]) if "ended" in session.last else -1
        ended = session.ended or Ended.LOST
        return Outcome(
            ended,
            exit_code=status if ended is Ended.FINISHED else None,
            stdout=stdout,
            stderr=stderr,
            seconds=float(session.last.get("cpu", 0.0)),
            memory_bytes=int(session.last.get("memory", 0)),
            why="" if ended is Ended.FINISHED else session.why,
        )

    def close(self) -> None:
        """End its processes. It starts new ones when it is used again."""
        self.host.close()
        self.judge.close()


class Sandboxes:
    """`count` sandboxes (default: one for each processor), started as they are needed, lent to one thread each."""

    def __init__(
        self, count: int | None = None, *, without: frozenset[str] = frozenset(), python: str | None = None
    ) -> None:
        if count is None:
            count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if count < 1:
            raise ConfigError(f"Sandboxes: got count = {count}; expected at least one")
        self._free = [Sandbox(without, python) for _ in range(count)]
        self._all = tuple(self._free)
        self._changed = threading.Condition()
        self._owner = os.getpid()

    @contextmanager
    def lend(self) -> Iterator[Sandbox]:
        """A sandbox, for as long as the context lasts; waits until one is free."""
        with self._changed:
            while not self._free:
                self._changed.wait()
            sandbox = self._free.pop()  # the one used last: it is warm, and others need not start
        try:
            yield sandbox
        finally:
            with self._changed:
                self._free.append(sandbox)
                self._changed.notify()

    def run(self, program: str, *, stdin: str = "", limits: Limits = Limits()) -> Outcome:  # noqa: B008  (frozen)
        """Run a program in one of them."""
        with self.lend() as sandbox:
            return sandbox.run(program, stdin=stdin, limits=limits)

    def ready(self) -> Boundary:
        """What is in force. Raises ConfigError, with the remedy, where there is no boundary."""
        with self.lend() as sandbox:
            return sandbox.host.ready()

    def close(self) -> None:
        """End all processes. They are started again when they are needed."""
        for sandbox in self._all if self._owner == os.getpid() else ():
            sandbox.close()


_shared: dict[tuple[int, int | None], Sandboxes] = {}
_making = threading.Lock()


def shared(count: int | None = None) -> Sandboxes:
    """The process's own sandboxes, made when they are first asked for and ended with it."""
    with _making:
        key = (os.getpid(), count)  # a forked process cannot talk to its parent's
        if key not in _shared:
            _shared[key] = Sandboxes(count)
        return _shared[key]


@atexit.register
def _close_shared() -> None:
    for sandboxes in _shared.values():
        sandboxes.close()


def run(program: str, *, stdin: str = "", limits: Limits = Limits()) -> Outcome:  # noqa: B008  (frozen)
    """Run a Python program that nobody has looked at, inside a boundary, as `python program.py` would.

    >>> outcome = run("print(input()[::-1])", stdin="stressed")
    >>> outcome.ok, outcome.stdout
    (True, 'desserts\\n')
    >>> run("open('/etc/passwd')").stderr.splitlines()[-1]
    "FileNotFoundError: [Errno 2] No such file or directory: '/etc/passwd'"

    The program has the standard library, `stdin`, and nothing else: no files (but for a folder of its own where
    `limits.scratch_bytes` grants one), no network, no other process, no environment. Whatever it does is an `Outcome`;
    nothing is raised on its account. Calls from several threads run side by side.

    Raises ConfigError, with the remedy, where this machine offers no boundary: nothing is ever run without one.
    """
    return shared().run(program, stdin=stdin, limits=limits)
