"""A counter-based generator: the uniform number at (key, sibling, position) is a pure function of the three.

A rollout therefore does not depend on which rows it shared a batch with, and replaying it needs no generator state.

Each row has a 64-bit key (BLAKE2b of its key and sibling). Its numbers are the SplitMix64 stream (Steele, Lea and
Flood, OOPSLA 2014) that starts at that key, read at `position`: the finaliser is a bijection of 64 bits, so numbers
within a row are as good as the stream, and rows start 2^64-uniformly far from one another.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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


def uniforms_on(keys: Tensor, positions: Tensor) -> Tensor:
    """As `uniforms`, of tensors `[R]` of int64 on any device: 64-bit products wrap around alike, signed or not."""
    z = _mixed(keys + (positions + 1) * _signed(_GOLDEN), 30) * _signed(_FIRST)
    z = _mixed(_mixed(z, 27) * _signed(_SECOND), 31)
    return _shifted(z, 40).to(torch.float32) * 2.0**-24


def _mixed(z: Tensor, bits: int) -> Tensor:
    return z ^ _shifted(z, bits)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right with zeros from the left, as unsigned numbers are."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: np.uint64) -> int:
    return int(number.astype(np.int64))
