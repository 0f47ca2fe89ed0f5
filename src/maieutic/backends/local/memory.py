"""Memory that is taken when it is written to, and given back when it is free: what an update leaves behind sampling
need not have beside its own, and a row that ends early takes none of what it had room for.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

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


def untouched(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros, on the CPU, that take no memory yet: the system gives each page when it is first written to.

    `torch.zeros` writes them all.
    """
    size = math.prod(shape) * dtype.itemsize
    try:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (AttributeError, OSError, TypeError, ValueError):  # another system, or nothing to hold
        return torch.zeros(*shape, dtype=dtype)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux may be set to give 2 MB at a time, which would be all of it
        with suppress(OSError):  # a kernel that knows no such pages
            block.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(block, dtype=dtype).view(*shape)
