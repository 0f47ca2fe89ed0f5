"""Prompts that several rows share, kept once: a family is a prompt with the rows that go on from it.

Families of similar length lie on one shelf (lengths within a factor of two of one another), so that one product serves
them all. A family is free again when none of its rows is alive.

    `F` families of a shelf · `M` members of a family at most · `P` columns · letters else as in `bags`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maieutic.backends.local.cache import Admission

Ints = NDArray[np.int64]

FROM = 3
"""Siblings from which on a prompt is kept once for all: for two, reading it twice costs no more than the detour."""

SHORTEST = 32
"""Columns of the lowest shelf."""


@dataclass
class Shelf:
    """Families of up to `columns` tokens: keys `[F, K, D, columns]` and values `[F, K, columns, D]` a layer, `lengths
    [F]` (0: free)."""

    columns: int
    lengths: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def take(self, length: int) -> int:
        """The lowest free place, now of a prompt of that length."""
        free = np.flatnonzero(self.lengths == 0)
        if not len(free):
            before = len(self.lengths)
            self.lengths = np.concatenate([self.lengths, np.zeros(max(4, before), np.int64)])
            free = np.array([before])
        self.lengths[free[0]] = length
        return int(free[0])

    def keep(self, place: int, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store a prompt's keys and values `[K, width, D]`, of which the first `lengths[place]` columns are its."""
        count, length = len(self.lengths), int(self.lengths[place])
        kept = self.layers.get(layer)
        if kept is None or kept[0].shape[0] < count:
            heads, _, size = keys.shape
            grown = (keys.new_zeros(count, heads, size, self.columns), keys.new_zeros(count, heads, self.columns, size))
            for new, old in zip(grown, kept or (), strict=False):
                new[: len(old)] = old
            kept = self.layers[layer] = grown
        kept[0][place, :, :, :length] = keys[:, :length].transpose(1, 2)
        kept[1][place, :, :length] = values[:, :length]

    def pull(self, live: Ints) -> None:
        """Let the families `live` be the first, in that order, and free the others."""
        for layer, pair in self.layers.items():
            for store in pair:
                store[: len(live)] = store[torch.from_numpy(live)]
            self.layers[layer] = pair
        lengths = np.zeros_like(self.lengths)
        lengths[: len(live)] = self.lengths[live]
        self.lengths = lengths


@dataclass(frozen=True)
class Group:
    """The families of a shelf as one product sees them.

    `asking [F · M]`: their rows, filled up with row 0; `members [F · M]`: the same filled up with the number of rows in
    all, a row that is nobody's. `hidden [F, 1, columns]`: -inf in columns beyond a family's prompt, else 0.
    """

    shelf: Shelf
    asking: Tensor
    members: Tensor
    hidden: Tensor

    @property
    def columns(self) -> int:
        """Tokens of the longest prompt."""
        return self.hidden.shape[2]

    def score(self, layer: int, queries: Tensor, scores: Tensor) -> None:
        """Write what scaled queries `[R, K, Q, D]` of the members score to `scores [R + 1, K, Q, ≥ columns]`."""
        heads, share = queries.shape[1:3]
        asked = self._by_head(queries.index_select(0, self.asking))
        hidden = self.hidden.expand(-1, heads, -1).reshape(-1, 1, self.columns)
        found = torch.baddbmm(hidden, asked, self._flat(layer, 0)[:, :, : self.columns])
        scores[self.members, :, :, : self.columns] = self._by_row(found, heads, share)

    def mix(self, layer: int, weights: Tensor, out: Tensor) -> None:
        """Add values weighted by the members' `weights [R + 1, K, Q, ≥ columns]` to `out [R + 1, K, Q, D]`."""
        heads, share = weights.shape[1:3]
        mine = self._by_head(weights[..., : self.columns].index_select(0, self.members))
        found = torch.bmm(mine, self._flat(layer, 1)[:, : self.columns])
        out.index_add_(0, self.members, self._by_row(found, heads, share))

    def _by_head(self, rows: Tensor) -> Tensor:
        """`[F · M, K, Q, n]` → `[F · K, M · Q, n]`."""
        families = self.hidden.shape[0]
        apart = rows.view(families, -1, *rows.shape[1:]).transpose(1, 2)
        return apart.reshape(families * rows.shape[1], -1, rows.shape[3])

    def _by_row(self, found: Tensor, heads: int, share: int) -> Tensor:
        """`[F · K, M · Q, n]` → `[F · M, K, Q, n]`."""
        families = self.hidden.shape[0]
        return (
            found.view(families, heads, -1, share, found.shape[2])
            .transpose(1, 2)
            .reshape(-1, heads, share, found.shape[2])
        )

    def _flat(self, layer: int, which: int) -> Tensor:
        kept = self.shelf.layers[layer][which][: self.hidden.shape[0]]
        return kept.view(-1, *kept.shape[2:])


class Families:
    """Which rows share which prompt.

    `home [S, 2]` is a slot's shelf (its columns; 0 for none) and place on it. `groups` are as of the latest `arrange`,
    for `rows` slots; `alive [S]` is as of then too, with what was placed since.
    """

    def __init__(self) -> None:
        self.shelves: dict[int, Shelf] = {}
        self.home = np.zeros((0, 2), np.int64)
        self.groups: tuple[Group, ...] = ()
        self.alive = np.zeros(0, np.bool_)
        self.rows = 0
        self.changed = True

    def wanted(self, siblings: int) -> bool:
        """Is a prompt of so many rows to be kept once?"""
        return siblings >= FROM

    def place(self, admission: Admission) -> tuple[int, int]:
        """A place for the prompt, to which its slots belong from now on."""
        slots = np.asarray(admission.slots, np.int64)
        self._cover(int(slots.max()) + 1)
        self.leave(admission.slots)
        self._free_unused()
        columns = max(SHORTEST, 1 << (len(admission.prompt) - 1).bit_length())
        shelf = self.shelves.setdefault(columns, Shelf(columns))
        place = (columns, shelf.take(len(admission.prompt)))
        self.home[slots] = place
        self.alive[slots] = True
        return place

    def keep(self, place: tuple[int, int], layer: int, keys: Tensor, values: Tensor) -> None:
        """Store a layer's keys and values of a prompt, `[K, width, D]`."""
        self.shelves[place[0]].keep(place[1], layer, keys, values)

    def kept(self, slot: int, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values `[K, columns, D]` of the prompt to which a slot belongs."""
        columns, place = self.home[slot].tolist()
        keys, values = self.shelves[columns].layers[layer]
        return keys[place].transpose(1, 2), values[place]

    def leave(self, slots: Sequence[int]) -> None:
        """These slots belong to no family."""
        if len(slots):
            self._cover(int(max(slots)) + 1)
            self.home[list(slots)] = 0
            self.changed = True

    def move(self, sources: Ints, targets: Ints) -> None:
        """Rows have moved between slots."""
        self._cover(int(max([-1, *sources.tolist(), *targets.tolist()])) + 1)
        for array in (self.home, self.alive):
            array[targets] = array[sources]
        self.alive[sources] = False
        self.changed = True

    def arrange(self, alive: NDArray[np.bool_]) -> None:
        """Bring `groups` up to date for a decode step of rows of which `alive [R]` tells who lives."""
        rows = len(alive)
        self._cover(rows)
        if not self.changed and rows == self.rows:
            return
        self.alive[:] = False
        self.alive[:rows] = alive
        self._free_unused()
        self.groups = tuple(self._group(shelf, rows) for shelf in self.shelves.values() if shelf.lengths.any())
        self.rows, self.changed = rows, False

    def _group(self, shelf: Shelf, rows: int) -> Group:
        mine = self.alive & (self.home[:, 0] == shelf.columns)
        live = np.unique(self.home[mine, 1])
        if len(live) < live[-1] + 1:  # places between them are free: closed, so that the product passes none
            shelf.pull(live)
            renamed = np.zeros(int(live[-1]) + 1, np.int64)
            renamed[live] = np.arange(len(live))
            self.home[mine, 1] = renamed[self.home[mine, 1]]
        rows_of = [np.flatnonzero(mine & (self.home[:, 1] == place)) for place in range(len(live))]
        table = np.full((len(live), max(map(len, rows_of))), rows, np.int64)
        for place, own in enumerate(rows_of):
            table[place, : len(own)] = own
        lengths = shelf.lengths[: len(live)]
        beyond = np.arange(lengths.max())[None, None, :] >= lengths[:, None, None]
        hidden = torch.from_numpy(np.where(beyond, -np.inf, 0.0).astype(np.float32))
        members = torch.from_numpy(table.reshape(-1))
        return Group(shelf, torch.where(members == rows, 0, members), members, hidden)

    def _free_unused(self) -> None:
        """Free the places to which no live row belongs."""
        for columns, shelf in self.shelves.items():
            used = np.zeros(len(shelf.lengths), np.bool_)
            used[self.home[self.alive & (self.home[:, 0] == columns), 1]] = True
            shelf.lengths[~used] = 0

    def _cover(self, slots: int) -> None:
        more = slots - len(self.home)
        if more > 0:
            self.home = np.concatenate([self.home, np.zeros((more, 2), np.int64)])
            self.alive = np.concatenate([self.alive, np.zeros(more, np.bool_)])
