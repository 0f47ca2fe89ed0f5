"""A process of its own for functions that may never return.

Threads cannot be killed and signals reach only the main thread, so a call that must end in time is made in another
process, which is killed when it does not. The process is started once and reused: starting takes a fraction of a
second, a call a fraction of a millisecond. The other end is `maieutic.rewards.serve`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import pickle
import queue
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import IO, Any

from maieutic.rewards.serve import PICKLE_ERRORS, Target, read_frame, write_frame

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from maieutic.rewards.serve import serve; serve()"

_living: weakref.WeakSet[Worker] = weakref.WeakSet()


class Ended(Enum):
    """How a call ended."""

    RETURNED = "returned"
    RAISED = "raised"
    TIMEOUT = "timeout"
    DIED = "died"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended: `value` where it returned, `detail` (a traceback or a sentence) where it did not."""

    ended: Ended
    value: Any = None
    detail: str = ""


_CLOSED = Outcome(Ended.DIED, detail="it was closed before the call ended")


class Worker:
    """Calls one function in a process that is killed when a call takes longer than `timeout_seconds`.

    Calls are made one after the other, from whatever thread; the process is started by the first call and again
    after a kill. `start_seconds` bounds its start, which imports the function. `memory_bytes` (Unix) limits its
    address space.
    """

    def __init__(
        self, target: Target, *, timeout_seconds: float, start_seconds: float = 60.0, memory_bytes: int | None = None
    ) -> None:
        self.target = target
        self.timeout_seconds = timeout_seconds
        self.start_seconds = start_seconds
        self.memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = False
        _living.add(self)

    @property
    def pid(self) -> int | None:
        """The process that serves now, if one runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def call(self, *args: Any, timeout_seconds: float | None = None) -> Outcome:
        """`function(*args)`."""
        return self.call_each([(args, {})], timeout_seconds=timeout_seconds)[0]

    def call_each(
        self, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], *, timeout_seconds: float | None = None
    ) -> list[Outcome]:
        """`[function(*args, **kwargs) for args, kwargs in calls]`, each with a time limit of its own; never raises.

        All calls travel in one message. When one of them hangs or kills the process, those after it are made in a
        fresh one.
        """
        limit = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        outcomes: list[Outcome] = []
        with self._lock:
            self._closed = False
            while len(outcomes) < len(calls):
                rest = calls[len(outcomes) :]
                outcomes += [_CLOSED] * len(rest) if self._closed else self._attempt(rest, limit)
        return outcomes

    def _attempt(self, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], limit: float) -> list[Outcome]:
        try:
            message = pickle.dumps((limit, list(calls)))
        except PICKLE_ERRORS as error:
            if len(calls) > 1:  # find out which one it is
                return [outcome for call in calls for outcome in self._attempt([call], limit)]
            return [Outcome(Ended.RAISED, detail=f"its arguments cannot be sent to another process: {error}")]
        refused = self._start()
        if refused is not None:
            return [refused] * len(calls)
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            write_frame(process.stdin, message)
        except OSError:
            return [self._dead("before the call")]
        outcomes: list[Outcome] = []
        while len(outcomes) < len(calls):
            outcome = self._reply(limit)
            outcomes.append(outcome)
            if outcome.ended in (Ended.TIMEOUT, Ended.DIED):
                break
        return outcomes

    def _reply(self, limit: float) -> Outcome:
        try:
            reply = self._replies.get(timeout=limit)
        except queue.Empty:
            self._kill()
            return Outcome(Ended.TIMEOUT, detail=f"no result within {limit:g} s; the worker process was killed")
        if reply is None:
            return self._dead("during the call")
        returned, value = reply
        return Outcome(Ended.RETURNED, value) if returned else Outcome(Ended.RAISED, detail=value)

    def _start(self) -> Outcome | None:
        """See that the process runs and has its function; what went wrong, if that failed."""
        if self.pid is not None:
            return None
        self._kill()
        self._replies = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps([str(entry) for entry in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        threading.Thread(target=_listen, args=(process.stdout, self._replies), daemon=True).start()
        try:
            write_frame(process.stdin, pickle.dumps((self.target, self.memory_bytes)))
        except OSError:
            return self._dead("while it started")
        outcome = self._reply(self.start_seconds)
        if outcome.ended is Ended.RETURNED:
            return None
        self._kill()
        return outcome

    def _dead(self, when: str) -> Outcome:
        process = self._process
        code = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its pipes close a moment before it is gone
                code = process.wait(timeout=1.0)
        self._kill()
        return Outcome(Ended.DIED, detail=f"the worker process died {when} (exit code {code})")

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            _close(pipe)

    def close(self) -> None:
        """End the process, and calls in flight with it. A later call starts another."""
        self._closed = True
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()  # without the lock: a call in flight ends at once, as DIED
        with self._lock:
            self._kill()


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except OSError:
        return  # what was still to be flushed has no reader any more


class ThreadCaller:
    """Calls a function in a daemon thread, with a deadline: for closures, which no other process can import.

    A thread cannot be killed. One that misses its deadline is abandoned: it goes on using its core until its call
    returns, and then stops.
    """

    def __init__(self, function: Callable[..., Any], *, timeout_seconds: float) -> None:
        self.function = function
        self.timeout_seconds = timeout_seconds
        self._closed = False

    def close(self) -> None:
        """Make no further calls than the one in flight. A later `call_each` works again."""
        self._closed = True

    def call_each(self, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Outcome]:
        """`[function(*args, **kwargs) for args, kwargs in calls]`, each with a time limit of its own; never raises."""
        self._closed = False
        outcomes: list[Outcome] = []
        while len(outcomes) < len(calls):
            rest = calls[len(outcomes) :]
            outcomes += [_CLOSED] * len(rest) if self._closed else self._attempt(rest)
        return outcomes

    def _attempt(self, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Outcome]:
        replies: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        abandoned = threading.Event()

        def work() -> None:
            for args, kwargs in calls:
                if abandoned.is_set():
                    return
                replies.put(self._call(args, kwargs))

        threading.Thread(target=work, daemon=True, name="maieutic-reward").start()
        outcomes: list[Outcome] = []
        while len(outcomes) < len(calls) and not self._closed:
            try:
                outcomes.append(replies.get(timeout=self.timeout_seconds))
            except queue.Empty:
                detail = f"no result within {self.timeout_seconds:g} s; its thread was abandoned"
                outcomes.append(Outcome(Ended.TIMEOUT, detail=detail))
                break
        abandoned.set()
        return outcomes

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        try:
            return Outcome(Ended.RETURNED, self.function(*args, **kwargs))
        # The function is the user's: whatever it raises is a result to report.
        except BaseException:  # noqa: BLE001
            return Outcome(Ended.RAISED, detail=traceback.format_exc())


def _listen(pipe: IO[bytes], replies: queue.SimpleQueue[Any]) -> None:
    """Bring replies to the queue, where a wait can have a deadline; None when there will be no more."""
    try:
        while (frame := read_frame(pipe)) is not None:
            replies.put(pickle.loads(frame))
    except (OSError, ValueError, EOFError, *PICKLE_ERRORS):
        pass  # the pipe was closed under a killed process; the None below says so
    finally:
        replies.put(None)


@atexit.register
def _close_all() -> None:
    for worker in list(_living):
        worker.close()
