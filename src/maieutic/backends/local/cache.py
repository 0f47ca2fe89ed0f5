"""The sampler's key-value store for accelerators and coarse numbers: one slot a live row, preallocated, outside the
module. (On a CPU in float32: `bags`.)

It starts as zeros, because attention multiplies a masked column by 0, which would keep a stray NaN.

    `S` slots · `L` columns (a token's column is its position) · `K` key-value heads · `D` size of a head
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maieutic.backends.local.attention import Layout, PackedLayout
from maieutic.protocols import Prefill

Ints = NDArray[np.int64]


class Admission(NamedTuple):
    """Rows that begin: those in `slots` go on from `prompt`, each by at most `room` tokens.

    `siblings` is how many rows were asked of the prompt in all, of which some may come later. With `prefill`, what is
    kept of the prompt's beginning is not run again, and what was is counted there.
    """

    prompt: Sequence[int]
    slots: Sequence[int]
    room: int
    siblings: int = 1
    prefill: Prefill | None = None


class KeyValues(Protocol):
    """What keeps the keys and values of live rows, and lets new tokens attend to them."""

    layers: dict[int, tuple[Tensor, Tensor]]

    def columns_for(self, prompt: int, room: int, siblings: int) -> int:
        """Columns that a row takes which goes on from a prompt so long by `room` tokens, one of so many siblings."""
        ...

    def reserve(self, slots: int, columns: int) -> None:
        """Make room for so many slots and columns, keeping what is stored there.

        What lies beyond is given back when the store grows: many short rows and later few long ones would otherwise
        leave a store of many long ones.
        """
        ...

    def prefill(
        self, packed: PackedLayout, members: Sequence[Sequence[int]], admissions: Sequence[Admission]
    ) -> Layout:
        """The layout of a forward over the prompts of `admissions`, of which block `i` holds `members[i]`."""
        ...

    def place(self, admission: Admission) -> Any:
        """Where the keys and values of a prompt go, for `put`."""
        ...

    def put(self, place: Any, layer: int, key: Tensor, value: Tensor) -> None:
        """Write a whole prompt's keys and values `[t, K, D]` of one layer."""
        ...

    def read(self, slot: int, start: int, stop: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Copies of a slot's keys and values at positions `start:stop`, `[t, K, D]` by layer."""
        ...

    def decode(self, positions: Ints, alive: NDArray[np.bool_]) -> Layout:
        """The layout of a forward over one new token in each of the first `R` slots, at `positions [R]`."""
        ...

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """Copy the first `columns` of slots `sources` to slots `targets`."""
        ...

    def bytes_per_slot(self, columns: int) -> int:
        """What one slot of so many columns takes, over the layers seen so far."""
        ...


class Store:
    """Keys and values `[S, L, K, D]` a layer. Layers are allocated when they are first written to."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.slots = 0
        self.columns = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def columns_for(self, prompt: int, room: int, siblings: int) -> int:  # noqa: ARG002 - every row has its own
        """See `KeyValues`."""
        return prompt + room

    def reserve(self, slots: int, columns: int) -> None:
        """See `KeyValues`."""
        if slots <= self.slots and columns <= self.columns:
            return
        kept_slots, kept_columns = min(slots, self.slots), min(columns, self.columns)
        self.slots, self.columns = slots, columns
        for layer, pair in self.layers.items():
            grown = tuple(t.new_zeros(self.slots, self.columns, *t.shape[2:]) for t in pair)
            for new, old in zip(grown, pair, strict=True):
                new[:kept_slots, :kept_columns] = old[:kept_slots, :kept_columns]
            self.layers[layer] = (grown[0], grown[1])

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The two tensors of a layer, shaped for heads like those of `key` and `value` `[.., K, D]`."""
        if index not in self.layers:
            made = (t.new_zeros(self.slots, self.columns, *t.shape[-2:]) for t in (key, value))
            self.layers[index] = (next(made), next(made))
        return self.layers[index]

    def prefill(
        self, packed: PackedLayout, members: Sequence[Sequence[int]], admissions: Sequence[Admission]
    ) -> PrefillLayout:
        """See `KeyValues`."""
        rows, targets = [], []
        for block in members:
            slots = [np.asarray(admissions[number].slots, np.int64) for number in block]
            rows.append(self._put(np.repeat(np.arange(len(block)), [len(own) for own in slots])))
            targets.append(self._put(np.concatenate(slots)))
        return PrefillLayout(self, packed, tuple(rows), tuple(targets))

    def place(self, admission: Admission) -> Tensor:
        """See `KeyValues`: the slots."""
        return self._put(np.asarray(admission.slots, np.int64))

    def put(self, place: Tensor, layer: int, key: Tensor, value: Tensor) -> None:
        """See `KeyValues`."""
        for store, new in zip(self.layer(layer, key, value), (key, value), strict=True):
            store[place, : len(new)] = new

    def read(self, slot: int, start: int, stop: int) -> dict[int, tuple[Tensor, Tensor]]:
        """See `KeyValues`."""
        return {
            layer: (keys[slot, start:stop].clone(), values[slot, start:stop].clone())
            for layer, (keys, values) in self.layers.items()
        }

    def decode(self, positions: Ints, alive: NDArray[np.bool_]) -> DecodeLayout:
        """See `KeyValues`."""
        live = int(positions[alive].max()) + 1
        at = self._put(np.minimum(positions, live - 1))
        places = torch.arange(len(positions), device=self.device) * self.columns + at
        mask = (torch.arange(live, device=self.device)[None, :] <= at[:, None])[:, None, None, :]
        return DecodeLayout(self, places, mask)

    def _put(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """See `KeyValues`."""
        for pair in self.layers.values():
            for kept in pair:
                kept[targets, :columns] = kept[sources, :columns]

    def bytes_per_slot(self, columns: int) -> int:
        """See `KeyValues`."""
        return sum(t.shape[2] * t.shape[3] * t.element_size() * columns for p in self.layers.values() for t in p)


@dataclass(frozen=True)
class PrefillLayout:
    """Prompts attend to themselves; their keys and values go to the slots of their siblings.

    `slots[i]` are the slots that take the rows `rows[i]` of the block `i`.
    """

    store: Store
    packed: PackedLayout
    rows: tuple[Tensor, ...]
    slots: tuple[Tensor, ...]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See `attention.Layout`."""
        kept = self.store.layer(layer, key, value)
        for block, rows, slots in zip(self.packed.blocks, self.rows, self.slots, strict=True):
            for store, new in zip(kept, (key, value), strict=True):
                store[slots, : block.width] = block.pad(new).transpose(1, 2)[rows]
        return self.packed.attend(layer, query, key, value, scaling)


@dataclass(frozen=True)
class DecodeLayout:
    """One new token in each of the first `R` slots: it is written at its position and attends up to it.

    `places [R]` index the new columns in the store seen as `[S * L]`; `mask [R, 1, 1, l]` covers the live columns.
    """

    store: Store
    places: Tensor
    mask: Tensor = field(repr=False)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See `attention.Layout`."""
        rows, live = self.mask.shape[0], self.mask.shape[3]
        seen = []
        for store, new in zip(self.store.layer(layer, key, value), (key, value), strict=True):
            store.view(-1, *store.shape[2:]).index_copy_(0, self.places, new)
            seen.append(store[:rows, :live].transpose(1, 2))
        # The query heads that share a key-value head are presented as its queries: nothing is repeated.
        shared = query.reshape(rows, key.shape[1], -1, query.shape[2])
        out = torch.nn.functional.scaled_dot_product_attention(
            shared, seen[0], seen[1], attn_mask=self.mask, scale=scaling
        )
        return out.reshape(rows, query.shape[1], -1)
