"""The sampler's key-value store on a CPU, and attention over it at nearly the speed of its memory.

A new token reads all keys and values of its row once and does two operations with each number: the memory is the
limit. A product of matrices for each row (what `scaled_dot_product_attention` does) has too few rows of queries to come
near it. Two things do:

    the prompt   of several siblings is kept once, and all their queries meet it in one product
    the rest     a weighted sum of rows of a table is what an embedding bag computes, one pass over memory:
                 output = sum over columns of probability · value,  scores = sum over dimensions of query · key,
                 for which keys are kept in pages of `WIDTH` columns, dimension by dimension

    `R` rows being decoded · `S` slots · `L` own columns of a slot · `F` families (prompts kept once) · `M` members
    of one · `P` columns of its prompt · `H` query heads · `K` key-value heads, `Q` = H / K · `D` size of a
    head · `W` = WIDTH
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maieutic.backends.local.attention import PackedLayout
from maieutic.backends.local.cache import Admission
from maieutic.backends.local.families import Families, Group
from maieutic.backends.local.memory import untouched

Ints = NDArray[np.int64]

WIDTH = 32
"""Columns of a page of keys: 128 bytes of float32, two cache lines."""

EXACT = 0.8
"""Each row's own columns are read where they are fewer than this share of what the longest row has."""

ENTRIES = 1 << 21
"""Entries of an index at most; rows beyond are read with the same index from where they begin."""


class BagStore:
    """Keys `[S, K, L / W, D, W]` and values `[S, K, L, D]` a layer for what rows wrote; prompts of siblings apart.

    `own [S]` is the position at which a slot's own columns begin: 0 where its prompt is its own.
    """

    def __init__(self) -> None:
        self.slots = 0
        self.columns = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.own = np.zeros(0, np.int64)
        self.families = Families()

    def columns_for(self, prompt: int, room: int, siblings: int) -> int:
        """See `cache.Store`."""
        return room + (-(-prompt // siblings) if self.families.wanted(siblings) else prompt)

    def reserve(self, slots: int, columns: int) -> None:
        """Make room for so many slots and columns, keeping what is stored there; see `cache.Store.reserve`."""
        if slots <= self.slots and columns <= self.columns:
            return
        kept, pages = min(slots, self.slots), min(columns, self.columns) // WIDTH
        self.slots, self.columns = slots, _up(columns)
        for layer, (keys, values) in self.layers.items():
            grown = self._empty(keys.shape[1], keys.shape[3], keys)
            grown[0][:kept, :, :pages] = keys[:kept, :, :pages]
            grown[1][:kept, :, : pages * WIDTH] = values[:kept, :, : pages * WIDTH]
            self.layers[layer] = grown
        self.own = np.concatenate([self.own[:slots], np.zeros(max(0, slots - len(self.own)), np.int64)])

    def _empty(self, heads: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.slots, heads, self.columns)
        keys = untouched((*shape[:2], self.columns // WIDTH, size, WIDTH), like.dtype)
        return keys, untouched((*shape, size), like.dtype)

    def layer(self, index: int, key: Tensor) -> tuple[Tensor, Tensor]:
        """The two tensors of a layer, made for heads like those of `key [.., K, D]` when they are first asked for."""
        if index not in self.layers:
            self.layers[index] = self._empty(key.shape[-2], key.shape[-1], key)
        return self.layers[index]

    def prefill(
        self, packed: PackedLayout, members: Sequence[Sequence[int]], admissions: Sequence[Admission]
    ) -> BagPrefill:
        """The layout of the prompts of `admissions`, of which block `i` of `packed` holds `members[i]`."""
        placed = []
        for numbers in members:
            mine = [admissions[number] for number in numbers]
            alone = [(row, slot) for row, one in enumerate(mine) if not self._shared(one) for slot in one.slots]
            together = [(row, self.families.place(one)) for row, one in enumerate(mine) if self._shared(one)]
            for one in mine:
                self.own[list(one.slots)] = len(one.prompt) if self._shared(one) else 0
            self.families.leave([slot for _, slot in alone])
            placed.append(_Placed(tuple(alone), tuple(together)))
        return BagPrefill(self, packed, tuple(placed))

    def place(self, admission: Admission) -> _Placed:
        """See `cache.KeyValues`."""
        shared = self._shared(admission)
        self.own[list(admission.slots)] = len(admission.prompt) if shared else 0
        if shared:
            return _Placed((), ((0, self.families.place(admission)),))
        self.families.leave(admission.slots)
        return _Placed(tuple((0, slot) for slot in admission.slots), ())

    def put(self, place: _Placed, layer: int, key: Tensor, value: Tensor) -> None:
        """See `cache.KeyValues`."""
        self.write(layer, place, key.transpose(0, 1)[None], value.transpose(0, 1)[None])

    def write(self, layer: int, placed: _Placed, new_keys: Tensor, new_values: Tensor) -> None:
        """Prompts of one block, `[rows, K, width, D]`, to where they go."""
        keys, values = self.layer(layer, new_keys.transpose(1, 2))
        for row, place in placed.together:
            self.families.keep(place, layer, new_keys[row], new_values[row])
        if placed.alone:
            rows, slots = (list(numbers) for numbers in zip(*placed.alone, strict=True))
            width = new_keys.shape[2]
            values[slots, :, :width] = new_values[rows]
            whole = new_keys.new_zeros(len(rows), keys.shape[1], _up(width), keys.shape[3])
            whole[:, :, :width] = new_keys[rows]
            paged = whole.view(len(rows), keys.shape[1], -1, WIDTH, keys.shape[3]).transpose(3, 4)
            keys[slots, :, : paged.shape[2]] = paged

    def read(self, slot: int, start: int, stop: int) -> dict[int, tuple[Tensor, Tensor]]:
        """See `cache.KeyValues`."""
        own, found = int(self.own[slot]), {}
        begin, end = max(0, start - own), max(0, stop - own)
        for layer, (keys, values) in self.layers.items():
            pages = keys[slot, :, : _up(end) // WIDTH].transpose(2, 3)
            mine = (pages.reshape(len(keys[slot]), -1, keys.shape[3])[:, begin:end], values[slot, :, begin:end])
            if start < own:
                shared = self.families.kept(slot, layer)
                mine = (
                    torch.cat([shared[0][:, start : min(stop, own)], mine[0]], dim=1),
                    torch.cat([shared[1][:, start : min(stop, own)], mine[1]], dim=1),
                )
            found[layer] = tuple(each.transpose(0, 1).clone() for each in mine)
        return found  # type: ignore[return-value]

    def _shared(self, admission: Admission) -> bool:
        return self.families.wanted(admission.siblings)

    def decode(self, positions: Ints, alive: NDArray[np.bool_]) -> BagDecode:
        """The layout of one new token at `positions [R]` of the first `R` slots."""
        self.families.arrange(alive)
        rows = len(positions)
        column = np.clip(positions - self.own[:rows], 0, int((positions - self.own[:rows])[alive].max()))
        return BagDecode(self, torch.from_numpy(column), self.families.groups, alive)

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """See `cache.Store.move`."""
        pages = min(self.columns, _up(columns)) // WIDTH
        for keys, values in self.layers.values():
            keys[targets, :, :pages] = keys[sources, :, :pages]
            values[targets, :, : pages * WIDTH] = values[sources, :, : pages * WIDTH]
        self.own[targets.numpy()] = self.own[sources.numpy()]
        self.families.move(sources.numpy(), targets.numpy())

    def bytes_per_slot(self, columns: int) -> int:
        """See `cache.Store.bytes_per_slot`."""
        sizes = (values.element_size() * values.shape[1] * values.shape[3] for _, values in self.layers.values())
        return 2 * _up(columns) * sum(sizes)


def _up(columns: int) -> int:
    return -(-columns // WIDTH) * WIDTH


@dataclass(frozen=True)
class _Placed:
    """Where the rows of a block go: (row, slot) each, and (row, place of its family)."""

    alone: tuple[tuple[int, int], ...]
    together: tuple[tuple[int, tuple[int, int]], ...]


@dataclass(frozen=True)
class BagPrefill:
    """Prompts attend to themselves; their keys and values go to their family, or to their slots."""

    store: BagStore
    packed: PackedLayout
    placed: tuple[_Placed, ...]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See `attention.Layout`."""
        for block, placed in zip(self.packed.blocks, self.placed, strict=True):
            self.store.write(layer, placed, block.pad(key), block.pad(value))
        return self.packed.attend(layer, query, key, value, scaling)


@dataclass
class BagDecode:
    """One new token in each of the first `R` slots: it is written at `column [R]` and attends up to it.

    What those that are not `alive [R]` read means nothing.
    """

    store: BagStore
    column: Tensor
    groups: tuple[Group, ...]
    alive: NDArray[np.bool_]
    indices: dict[tuple[int, int, int], _Indices] = field(default_factory=dict, repr=False)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See `attention.Layout`."""
        keys, values = self.store.layer(layer, key)
        rows, heads, size = key.shape
        share = query.shape[1] // heads
        shape = (heads, share, size)
        if shape not in self.indices:
            self.indices[shape] = _Indices(self.column, keys, share)
        at = self.indices[shape]
        keys.view(-1).index_copy_(0, at.new_keys, key.reshape(-1))
        values.view(-1, size).index_copy_(0, at.new_values, value.reshape(-1, size))
        scaled = (query * scaling).view(rows, heads, share, size)
        prompt = max((group.columns for group in self.groups), default=0)
        scores = at.blank(prompt)
        torch.add(at.scores(keys, scaled), at.hidden, out=scores[:rows, ..., prompt:])
        for group in self.groups:
            group.score(layer, scaled, scores)
        weights = scores[: rows + bool(self.groups)].softmax(-1)
        out = scaled.new_zeros(rows + 1, heads, share, size)
        at.mix(values, weights[..., prompt:], out)
        for group in self.groups:
            group.mix(layer, weights, out)
        return out[:rows].view(rows, heads * share, size)


class _Indices:
    """What a decode step reads and writes, the same for all layers with heads of the same shape.

    new_keys, new_values   where the new columns lie in the flat stores
    live                   own columns that the longest row has, in so many `pages`
    hidden [R, 1, 1, live] -inf in columns that a row does not have, else 0
    some                   rows that are read with one index; further ones with the same from where they begin
    keys, values           what is read of these: of every row as many columns as the longest has, or, where rows
                           differ much in length, of each its own
    """

    def __init__(self, column: Tensor, keys: Tensor, share: int) -> None:
        _, heads, stored, size, width = keys.shape
        rows = len(column)
        self.live = int(column.max()) + 1
        self.pages = -(-self.live // width)
        head = torch.arange(rows)[:, None] * heads + torch.arange(heads)  # [R, K]
        page, inside = column // width, column % width
        first = ((head * stored + page[:, None]) * size * width + inside[:, None])[..., None]
        self.new_keys = (first + torch.arange(size) * width).view(-1)
        self.new_values = (head * stored * width + column[:, None]).view(-1)
        beyond = torch.arange(self.live) > column[:, None]
        self.hidden = torch.zeros(beyond.shape).masked_fill_(beyond, -torch.inf)[:, None, None, :]
        self.some = max(1, min(rows, ENTRIES // (heads * share * max(self.pages * size, self.live))))
        base = torch.arange(self.some * heads, dtype=torch.int32)[:, None, None]
        keys_of = (base[..., None] * stored + torch.arange(self.pages)[:, None]) * size + torch.arange(size)
        values_of = base * (stored * width) + torch.arange(self.live)
        every_key = keys_of.expand(-1, share, -1, -1).to(torch.int32).reshape(-1, size)
        every_value = values_of.expand(-1, share, -1).to(torch.int32).reshape(-1, self.live)
        self.keys, self.values = Bags(every_key), Bags(every_value)
        if self.some == rows and int(column.sum()) + rows < EXACT * rows * self.live:
            own_pages = (torch.arange(self.pages) <= page[:, None]).repeat_interleave(heads * share, 0)
            own_columns = (~beyond).repeat_interleave(heads * share, 0)
            self.keys = Bags(every_key, own_pages.view(-1)[:, None].expand(every_key.shape))
            self.values = Bags(every_value, own_columns)
        self.scored: Tensor | None = None

    def blank(self, prompt: int) -> Tensor:
        """`[R + 1, K, Q, prompt + live]` of -inf, for scores. Every layer writes at the same places of the same one."""
        if self.scored is None:
            rows, heads = len(self.hidden), len(self.new_values) // len(self.hidden)
            share = len(self.values.index) // (self.some * heads)
            self.scored = torch.full((rows + 1, heads, share, prompt + self.live), -torch.inf)
            self.scored[rows] = 0.0  # nobody's
        return self.scored

    def scores(self, keys: Tensor, queries: Tensor) -> Tensor:
        """Scaled queries `[R, K, Q, D]` with the own keys: `[R, K, Q, live]`, hidden columns not yet hidden."""
        rows, heads, share, size = queries.shape
        width = keys.shape[-1]
        weights = queries[..., None, :].expand(-1, -1, -1, self.pages, -1)
        parts = [
            self.keys.sums(keys[start:].view(-1, width), weights[start : start + self.some].reshape(-1, size))
            for start in range(0, rows, self.some)
        ]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found.view(rows, heads, share, self.pages * width)[..., : self.live]

    def mix(self, values: Tensor, weights: Tensor, out: Tensor) -> None:
        """Write own values weighted by `weights [≥ R, K, Q, live]` to the first rows of `out [R + 1, K, Q, D]`."""
        rows, _, _, size = out[:-1].shape
        for start in range(0, rows, self.some):
            each = weights[start : min(rows, start + self.some)].reshape(-1, self.live)
            found = self.values.sums(values[start:].view(-1, size), each)
            out[start : min(rows, start + self.some)] = found.view(-1, *out.shape[1:])


class Bags:
    """Sums of rows of a table: `index [bags, n]` says which; of these only those that `chosen [bags, n]` keeps.

    A bag of which none is kept is 0.
    """

    def __init__(self, index: Tensor, chosen: Tensor | None = None) -> None:
        self.index = index
        self.starts = torch.arange(0, index.numel(), index.shape[1], dtype=torch.int32)
        self.kept: Tensor | None = None
        self.flat = index.view(-1)
        if chosen is not None:
            counts = chosen.sum(1)
            self.starts = (counts.cumsum(0) - counts).to(torch.int32)
            self.kept = chosen.reshape(-1).nonzero()[:, 0]
            self.flat = self.flat[self.kept]

    def sums(self, table: Tensor, weights: Tensor) -> Tensor:
        """`weights [bags, n]` times rows of `table [.., d]`, summed: `[bags, d]`. Fewer weights: the first bags."""
        each = weights.reshape(-1)
        index, starts = self.flat[: len(each)], self.starts[: len(weights)]
        if self.kept is not None:
            each, index = each.index_select(0, self.kept), self.flat
        return torch.embedding_bag(table, index, starts, False, 0, False, each)[0]
