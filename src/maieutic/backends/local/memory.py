"""Memory that is free, given back to the system: what an update leaves behind sampling need not have beside its own."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache

APART = 2.0
"""Seconds between two times that it is given back, at least: to get it anew takes up to a tenth of a second."""

_last = [-APART]


def give_back() -> None:
    """Let the C library return what it keeps for later, where it has a way to (glibc); at most every `APART` seconds.

    It keeps what was freed between blocks that still live, for as long as it may be of use: of an update's blocks,
    hundreds of megabytes.
    """
    now = time.monotonic()
    if now - _last[0] >= APART:
        _trim()(0)
        _last[0] = now


@cache
def _trim() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library
        return lambda _keep: 0
