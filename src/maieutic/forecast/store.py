"""The sampler's key-value store at the rows and columns that a stage will have: how many rows, how many bytes.

Asked of the very store that the sampler uses, over tensors without memory (torch's device "meta"), so that what it
keeps apart, rounds up and holds in reserve is counted as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from maieutic.backends.local.bags import BagStore
from maieutic.backends.local.cache import Admission, Store
from maieutic.backends.local.decoder import COLUMN_STEP, SPARE_SLOTS
from maieutic.forecast.sizes import Sizes


@dataclass(frozen=True, slots=True)
class Request:
    """What the sampler is asked for at once: `groups` prompts of `prompt` tokens, each with `siblings` completions of
    at most `room` tokens."""

    groups: int
    siblings: int
    prompt: int
    room: int

    @property
    def rows(self) -> int:
        """Completions in all."""
        return self.groups * self.siblings


def rows_at_once(sizes: Sizes, device: str, max_rows: int, cache_bytes: int, requests: list[Request]) -> int:
    """Rows that are written together: all siblings of a prompt or none, unless a prompt has more than there is room
    for; as many as `max_rows` and `cache_bytes` allow."""
    if not sizes.plugged:
        room = max_rows
    else:
        store = _store(sizes, device)
        taken = store.bytes_per_slot(_columns(store, requests))
        room = min(max_rows, max(1, cache_bytes // taken * SPARE_SLOTS // (SPARE_SLOTS + 1)))
    total = sum(request.rows for request in requests)
    each = max(request.siblings for request in requests)
    return min(total, room) if each > room or total <= room else max(1, room // each) * each


def store_bytes(sizes: Sizes, device: str, rows: int, requests: list[Request]) -> int:
    """What the store takes once so many rows were written in it."""
    if not sizes.plugged:  # the module's own cache, as long as each row
        longest = max(request.prompt + request.room for request in requests)
        return rows * longest * 2 * sizes.layers * sizes.keys * sizes.item
    store = _store(sizes, device)
    store.reserve(rows + rows // SPARE_SLOTS, _columns(store, requests))
    kept = [tensor for pair in store.layers.values() for tensor in pair]
    if isinstance(store, BagStore):
        kept += _prompts(store, sizes, rows, requests)
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def _store(sizes: Sizes, device: str) -> BagStore | Store:
    """As `SlotDecoder` chooses it, with every layer made and no room yet."""
    key = torch.empty(1, sizes.kv_heads, sizes.head_width, device="meta", dtype=_number(sizes.item))
    if torch.device(device).type == "cpu" and key.dtype == torch.float32:
        bags = BagStore()
        for layer in range(sizes.layers):
            bags.layer(layer, key)
        return bags
    store = Store(torch.device("meta"))
    for layer in range(sizes.layers):
        store.layer(layer, key, key)
    return store


def _number(item: int) -> torch.dtype:
    return {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[item]


def _columns(store: BagStore | Store, requests: list[Request]) -> int:
    columns = max(store.columns_for(each.prompt, each.room, each.siblings) for each in requests)
    return -(-columns // COLUMN_STEP) * COLUMN_STEP


def _prompts(store: BagStore, sizes: Sizes, rows: int, requests: list[Request]) -> list[torch.Tensor]:
    """The tensors of prompts that are kept once for their siblings."""
    families, first, last = store.families, 0, {}
    for request in requests:
        shared = families.wanted(request.siblings)
        for _ in range(request.groups if shared else 0):
            if first >= rows:
                break
            slots = list(range(first, min(rows, first + request.siblings)))
            place = families.place(Admission([0] * request.prompt, slots, request.room, request.siblings))
            last[place[0]], first = place, first + request.siblings
    for place in last.values():
        whole = torch.empty(sizes.kv_heads, place[0], sizes.head_width, device="meta", dtype=_number(sizes.item))
        for layer in range(sizes.layers):
            families.keep(place, layer, whole, whole)
    return [tensor for shelf in families.shelves.values() for pair in shelf.layers.values() for tensor in pair]
