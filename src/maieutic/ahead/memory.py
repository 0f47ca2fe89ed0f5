"""Memory that two processes share, with a model's weights in it.

It is a file without a name, of which the other process inherits the descriptor: it is gone when both are, however they
ended. Who writes and who reads take turns; the messages between them say whose turn it is.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maieutic.errors import ConfigError

#: Where a weight may begin, in bytes: at multiples of this.
ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight lies: `Place("model.norm.weight", (64,), torch.float32, 0)`; `offset` is in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def end(self) -> int:
        """The byte after its last one."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def places(weights: Mapping[str, Tensor]) -> tuple[Place, ...]:
    """These weights one after the other."""
    found: list[Place] = []
    for name, weight in weights.items():
        end = found[-1].end if found else 0
        found.append(Place(name, tuple(weight.shape), weight.dtype, -(-end // ALIGNED) * ALIGNED))
    return tuple(found)


def nameless() -> int:
    """The descriptor of an empty file without a name, in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("maieutic-weights")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class SharedWeights:
    """The weights that lie in shared memory."""

    def __init__(self, descriptor: int, where: Sequence[Place]) -> None:
        size = max((place.end for place in where), default=0) or 1
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        whole = torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)
        self.views = {p.name: whole[p.offset : p.end].view(p.dtype).view(p.shape) for p in where}

    @torch.no_grad()
    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Copy a model's weights into the memory. Raises ConfigError unless they are those that lie there."""
        for name, view in self.views.items():
            weight = weights.get(name)
            if weight is None or (weight.shape, weight.dtype) != (view.shape, view.dtype):
                got = "none" if weight is None else f"{tuple(weight.shape)} in {weight.dtype}"
                raise ConfigError(
                    f"the process that samples ahead has a weight {name!r}, {tuple(view.shape)} in {view.dtype}, and "
                    f"the learner {got}; expected the same model in both: `make` must load what is trained"
                )
            view.copy_(weight)

    @torch.no_grad()
    def read(self, weights: Mapping[str, Tensor]) -> None:
        """Copy what lies in the memory into a model's weights."""
        for name, view in self.views.items():
            weights[name].copy_(view)
