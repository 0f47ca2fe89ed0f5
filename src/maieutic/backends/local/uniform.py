"""A counter-based generator: the uniform number at (key, sibling, position) is a pure function of the three.

A rollout therefore does not depend on which rows it shared a batch with, and replaying it needs no generator state.

Each row has a 64-bit key (BLAKE2b of its key and sibling). Its numbers are the SplitMix64 stream (Steele, Lea and
Flood, OOPSLA 2014) that starts at that key, read at `position`: the finaliser is a bijection of 64 bits, so numbers
within a row are as good as the stream, and rows start 2^64-uniformly far from one another.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def row_key(key: str, sibling: int) -> int:
    """The 64-bit key of one sibling. `sibling` is the last component, so no two (key, sibling) pairs share a text."""
    return int.from_bytes(hashlib.blake2b(f"{key}/{sibling}".encode(), digest_size=8).digest(), "little")


def uniforms(keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Uniform numbers `[R]` for row keys `[R]` at positions `[R]`.

    Multiples of 2^-24 in [0, 1): 24 bits are what float32 holds exactly, so nothing is ever rounded up to 1.
    """
    z = keys + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
