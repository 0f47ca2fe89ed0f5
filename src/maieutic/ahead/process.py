"""A process that samples, as the one that trains sees it. The other end is `maieutic.ahead.worker`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

from torch import Tensor

from maieutic.ahead.memory import SharedWeights, nameless
from maieutic.ahead.messages import Begin, Drawn, Failed, Order, Practice, Ready
from maieutic.errors import ConfigError, RunError
from maieutic.rewards.serve import PICKLE_ERRORS, read_frame, write_frame

#: Ctrl-C reaches the whole process group; what it means is decided here.
_START = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from maieutic.ahead.worker import serve
serve()
"""


def check_possible(make: Callable[[], Practice]) -> None:
    """Raise ConfigError for a function that another process cannot find by its name, and where there is no POSIX."""
    if os.name != "posix":
        raise ConfigError(
            f"sampling ahead (overlap = true) hands a file descriptor to another process; got the system {os.name!r}, "
            "which cannot do that. Leave it out"
        )
    inner = make
    while hasattr(inner, "func"):  # a partial
        inner = inner.func
    reason = "it is in the script that is being run, which the other process would run again"
    if getattr(inner, "__module__", None) != "__main__":
        try:
            pickle.dumps(make)
        except PICKLE_ERRORS as error:
            reason = str(error)
        else:
            return
    raise ConfigError(
        f"Ahead: got make={make!r}, which cannot be sent to another process ({reason}). Give a function at the top of "
        "a module, or functools.partial of one with arguments that can be pickled"
    )


class Process:
    """Started when it is made; it leaves when this process does.

    `threads`: CPU threads of torch in it. `asked` says whether a batch is to be received.
    """

    def __init__(self, make: Callable[[], Practice], threads: int) -> None:
        self.descriptor = nameless()
        self.shared: SharedWeights | None = None
        self.asked = False
        self.replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.running = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps([str(entry) for entry in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self.descriptor,),
        )
        assert self.running.stdout is not None
        threading.Thread(target=_listen, args=(self.running.stdout, self.replies), daemon=True).start()
        self._send(Begin(make, self.descriptor, threads, logging.getLogger("maieutic").getEffectiveLevel()))

    def ask(self, weights: Mapping[str, Tensor], order: Order) -> None:
        """Have a batch sampled by these weights. What was asked before must have been received.

        The first call waits until the process is ready. Raises what went wrong there.
        """
        if self.shared is None:
            ready = self._receive()
            assert isinstance(ready, Ready)
            self.shared = SharedWeights(self.descriptor, ready.places)
        self.shared.write(weights)
        self._send(order)
        self.asked = True

    def drawn(self) -> Drawn:
        """The batch that was asked for, once it is there. Raises what went wrong there."""
        self.asked = False
        found = self._receive()
        assert isinstance(found, Drawn)
        return found

    def _send(self, message: Any) -> None:
        assert self.running.stdin is not None
        try:
            write_frame(self.running.stdin, pickle.dumps(message))
        except (OSError, ValueError) as error:  # it is gone, or was closed
            raise self._dead() from error

    def _receive(self) -> Any:
        reply = self.replies.get()
        if reply is None:
            raise self._dead()
        for record in reply.records:
            logging.getLogger(record.name).handle(record)
        if isinstance(reply, Failed):
            self.close()
            raise reply.error() or RunError(
                f"sampling ahead failed: {reply.message}\nThis was raised in the process that samples:\n{reply.trace}"
            )
        return reply

    def _dead(self) -> RunError:
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):  # its pipes close a moment before it is gone
            code = self.running.wait(timeout=5.0)
        self.close()
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return RunError(
            f"the process that samples ahead died ({how}); signal 9 mostly says that memory ran out. A run goes on "
            "from its last checkpoint with --resume; with overlap = false it needs one copy of the model less"
        )

    def close(self) -> None:
        """End the process, a batch that it is at with it."""
        self.running.kill()
        self.running.wait()
        for pipe in (self.running.stdin, self.running.stdout):
            with contextlib.suppress(OSError):  # what was still to be flushed has no reader any more
                assert pipe is not None
                pipe.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _listen(pipe: IO[bytes], replies: queue.SimpleQueue[Any]) -> None:
    """Bring replies to the queue as they come, beside an update; None when there will be no more."""
    try:
        while (frame := read_frame(pipe)) is not None:
            replies.put(pickle.loads(frame))
    except PICKLE_ERRORS as error:
        replies.put(Failed(None, f"its groups cannot be read here: {error}", "nothing"))
    except (OSError, ValueError, EOFError):
        pass  # the pipe was closed under a killed process; the None below says so
    finally:
        replies.put(None)
