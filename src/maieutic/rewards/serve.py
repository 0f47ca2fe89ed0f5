"""The worker process: load one function, then call it whenever asked. The other end is `maieutic.rewards.worker`.

Frames (length, then a pickle) arrive on what was standard input and leave on what was standard output; whatever the
function prints goes to standard error, and it reads nothing. The process leaves by itself when its parent is gone, even
if a call never returns.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import importlib.util
import os
import pickle
import signal
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from maieutic.own_code import load_file

#: What pickling raises for a value that cannot be pickled.
PICKLE_ERRORS = (pickle.PicklingError, pickle.UnpicklingError, TypeError, AttributeError, ImportError, RecursionError)

#: Seconds after which a call that its parent should have killed is taken for an orphan.
_GRACE = 2.0

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Target:
    """A function by name: in an importable module, or else in the file `path`.

    `adapt`, "module:function", is applied to the function once when it is loaded.
    """

    name: str
    module: str = ""
    path: str = ""
    adapt: str = ""

    def load(self) -> Callable[..., Any]:
        """Import the function. Raises what the import raises, AttributeError if the name is not there."""
        module = load_file(Path(self.path)) if not self.module else self._module()
        found: Any = module
        for part in self.name.split("."):
            found = getattr(found, part)
        if self.adapt:
            where, _, name = self.adapt.partition(":")
            found = getattr(importlib.import_module(where), name)(found)
        return found

    def _module(self) -> ModuleType:
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            # Its parent process may have loaded the module from a file that is not on the path (tests, notebooks).
            if not self.path or error.name is None or not (self.module + ".").startswith(error.name + "."):
                raise
            return load_file(Path(self.path), self.module)


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """The next frame, or None at the end of the stream."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    size = _LENGTH.unpack(head)[0]
    body = pipe.read(size)
    return body if len(body) == size else None


def write_frame(pipe: IO[bytes], body: bytes) -> None:
    """Send a frame. Raises OSError when nobody reads."""
    pipe.write(_LENGTH.pack(len(body)) + body)
    pipe.flush()


def _limit_memory(limit: int | None) -> None:
    if limit is None:
        return
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits, and root may have set lower
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _answer(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps((True, function(*args, **kwargs)))
    # The function is the user's: whatever it raises is a result to report (SystemExit too, or it would end the worker).
    except BaseException:  # noqa: BLE001
        return pickle.dumps((False, traceback.format_exc(limit=-12)))


def serve() -> None:
    """Answer calls until standard input ends."""
    # Ctrl-C reaches the whole process group; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What the function reads or prints must not get between the frames.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    first = read_frame(requests)
    if first is None:
        return
    target, memory_bytes = pickle.loads(first)
    _limit_memory(memory_bytes)
    loaded: list[Callable[..., Any]] = []
    # Loading runs the user's file, so its errors are reported like those of a call.
    write_frame(replies, _answer(lambda: loaded.append(target.load()), (), {}))
    while loaded and (frame := read_frame(requests)) is not None:
        limit, calls = pickle.loads(frame)
        for args, kwargs in calls:
            # A C thread that needs no interpreter lock: it ends even a loop that never lets go of it.
            faulthandler.dump_traceback_later(limit + _GRACE, exit=True)
            answer = _answer(loaded[0], args, kwargs)
            faulthandler.cancel_dump_traceback_later()
            try:
                write_frame(replies, answer)
            except OSError:
                return
