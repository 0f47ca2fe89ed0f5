"""Ctrl-C while something is going on that is worth ending in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupted(stop: threading.Event | None = None) -> Iterator[threading.Event]:
    """The first Ctrl-C asks for a stop at the next step's end; the second one stops at once.

    `stop`: the event that asks (None: a new one). Signals reach the main thread only; in others nothing is changed.
    """
    stop = stop or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def unkept(work: str) -> Iterator[None]:
    """Ctrl-C inside the block raises Interrupted, which says that of this work ("an evaluation") nothing is kept."""
    try:
        yield
    except KeyboardInterrupt as stop:
        from maieutic.run.runner import Interrupted  # imports this module

        raise Interrupted(f"interrupted; {work} is whole or not at all: the same command begins it anew") from stop
