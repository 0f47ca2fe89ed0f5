"""The store by embedding bags: the same attention as the dense one, prompts kept once, through moves and refills."""

from __future__ import annotations

import numpy as np
import torch

from maieutic.backends.local import bags, families
from maieutic.backends.local.bags import WIDTH, BagStore
from maieutic.backends.local.cache import Admission, KeyValues, Store
from maieutic.backends.local.packing import Piece, lay_out

HEADS, KEYS, SIZE, LAYERS = 6, 2, 8, 2  # each key-value head serves 3 query heads


class Rows:
    """Random queries, keys and values, the same whatever store attends: a function of row, position and layer."""

    def __init__(self, store: KeyValues) -> None:
        self.store = store

    def numbers(self, row: int, position: int, layer: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 * row + 10 * position + layer)
        return [torch.randn(n, SIZE, generator=generator) for n in (HEADS, KEYS, KEYS)]

    def admit(self, prompts: list[int], slots: list[list[int]], siblings: list[int], used: int) -> torch.Tensor:
        """Prompts `[length]`, numbered by their first slot's row; what each reads, flat, in their order."""
        room = 80
        admissions = [Admission([7] * n, s, room, k) for n, s, k in zip(prompts, slots, siblings, strict=True)]
        columns = max(self.store.columns_for(n, room, k) for n, k in zip(prompts, siblings, strict=True))
        self.store.reserve(used, max(columns, getattr(self.store, "columns", 0)))
        packed, starts, _ = lay_out([Piece(np.full(n, 7), 0, i) for i, n in enumerate(prompts)], [])
        order = iter(np.argsort(starts).tolist())
        members = [[next(order) for _ in range(block.rows)] for block in packed.blocks]
        layout = self.store.prefill(packed, members, admissions)
        flat = [(i, t) for i in np.argsort(starts).tolist() for t in range(prompts[i])]
        out = []
        for layer in range(LAYERS):
            each = [self.numbers(100 + prompts[i], t, layer) for i, t in flat]
            query, key, value = (torch.stack(parts) for parts in zip(*each, strict=True))
            out.append(layout.attend(layer, query, key, value, SIZE**-0.5))
        return torch.stack(out)

    def decode(self, rows: list[int], positions: list[int], alive: list[bool]) -> torch.Tensor:
        """`[layers, live rows, H, D]`: what the live rows read."""
        layout = self.store.decode(np.array(positions), np.array(alive))
        out = []
        for layer in range(LAYERS):
            each = [self.numbers(row, at, layer) for row, at in zip(rows, positions, strict=True)]
            query, key, value = (torch.stack(parts) for parts in zip(*each, strict=True))
            out.append(layout.attend(layer, query, key, value, SIZE**-0.5))
        return torch.stack(out)[:, torch.tensor(alive)]


def both() -> list[Rows]:
    return [Rows(BagStore()), Rows(Store(torch.device("cpu")))]


def same(found: list[torch.Tensor]) -> None:
    assert (found[0] - found[1]).abs().max() < 2e-6


def test_a_life_of_rows_reads_the_same_as_from_a_dense_store() -> None:
    """Three prompts, two of them shared by 4 and 3 rows; rows end, move together, new ones are admitted."""
    pair = both()
    # Slots 0-3 share a prompt of 40 tokens, 4-6 one of 33 (the same shelf), 7 is alone with 5.
    same([r.admit([40, 33, 5], [[0, 1, 2, 3], [4, 5, 6], [7]], [4, 3, 1], 8) for r in pair])
    rows, at = list(range(8)), [40] * 4 + [33] * 3 + [5]
    for step in range(WIDTH + 3):  # over the end of a page
        now = [p + step for p in at]
        same([r.decode(rows, now, [True] * 8) for r in pair])
    at = [p + WIDTH + 3 for p in at]
    # The whole first family but row 3, and row 5, have ended; 7, 6 move to the first holes (0, 1) and 4 to 2.
    alive = [False, False, False, True, True, False, True, True]
    same([r.decode(rows, at, alive) for r in pair])
    at = [p + 1 for p in at]
    for r in pair:
        r.store.move(torch.tensor([4, 6, 7]), torch.tensor([2, 1, 0]), 80)
    rows, at = [7, 6, 4, 3], [at[7], at[6], at[4], at[3]]
    same([r.decode(rows, at, [True] * 4) for r in pair])
    at = [p + 1 for p in at]
    # A family of 3 with a short prompt (another shelf), and two siblings that have a prompt each.
    same([r.admit([20, 70], [[4, 5, 6], [7, 8]], [3, 2], 9) for r in pair])
    rows, at = [*rows, 14, 15, 16, 17, 18], [*at, 20, 20, 20, 70, 70]
    for step in range(3):
        same([r.decode(rows, [p + step for p in at], [True] * 9) for r in pair])


def test_a_prompt_of_siblings_is_kept_once() -> None:
    store = BagStore()
    Rows(store).admit([40], [[0, 1, 2, 3]], [4], 4)
    shelf = store.families.shelves[64]
    assert shelf.lengths.tolist() == [40, 0, 0, 0]  # one of four places
    keys, values = shelf.layers[0]
    assert keys.shape == (4, KEYS, SIZE, 64)
    assert values.shape == (4, KEYS, 64, SIZE)
    assert store.layers[0][1].count_nonzero() == 0  # no slot has a copy
    assert store.columns_for(40, 80, 4) == 80 + 40 // 4  # each sibling pays its share
    assert store.columns_for(40, 80, families.FROM - 1) == 80 + 40


def test_a_place_is_free_again_when_its_last_row_has_gone() -> None:
    rows = Rows(BagStore())
    rows.admit([40, 41], [[0, 1, 2], [3, 4, 5]], [3, 3], 6)
    rows.decode(list(range(6)), [40] * 3 + [41] * 3, [True] * 6)
    rows.store.move(torch.tensor([4, 5]), torch.tensor([0, 1]), 41)  # 0, 1, 2, 3 have ended
    rows.decode([4, 5], [42, 42], [True, True])
    shelf = rows.store.families.shelves[64]
    assert shelf.lengths.tolist() == [41, 0, 0, 0]  # moved to the first place
    rows.admit([50], [[2, 3, 4]], [3], 5)
    assert shelf.lengths.tolist() == [41, 50, 0, 0]


def test_many_rows_are_read_piece_by_piece() -> None:
    whole = Rows(BagStore())
    whole.admit([3], [list(range(30))], [30], 30)
    rows, at = list(range(30)), [3] * 30
    layout = whole.store.decode(np.array(at), np.ones(30, np.bool_))
    assert isinstance(layout, bags.BagDecode)
    each = [whole.numbers(row, 3, 0) for row in rows]
    query, key, value = (torch.stack(parts) for parts in zip(*each, strict=True))
    first = layout.attend(0, query, key, value, 1.0)
    indices = layout.indices[(KEYS, HEADS // KEYS, SIZE)]
    assert indices.some == 30
    indices.some = 7  # pieces of 7, 7, 7, 7 and 2 rows
    assert torch.equal(layout.attend(0, query, key, value, 1.0), first)


def test_of_short_rows_beside_a_long_one_only_their_own_columns_are_read() -> None:
    pair = both()
    same([r.admit([60, 4, 4, 9], [[0], [1], [2], [3]], [1, 1, 1, 1], 4) for r in pair])
    rows, at = [0, 1, 2, 3], [60, 4, 4, 9]
    same([r.decode(rows, at, [True] * 4) for r in pair])
    layout = pair[0].store.decode(np.array([61, 5, 5, 10]), np.ones(4, np.bool_))
    each = [pair[0].numbers(row, position, 0) for row, position in zip(rows, [61, 5, 5, 10], strict=True)]
    layout.attend(0, *(torch.stack(parts) for parts in zip(*each, strict=True)), 1.0)
    indices = layout.indices[(KEYS, HEADS // KEYS, SIZE)]
    assert len(indices.values.flat) == HEADS * (62 + 6 + 6 + 11)
    assert len(indices.keys.flat) == HEADS * SIZE * (2 + 1 + 1 + 1)  # pages


def test_bags_without_a_kept_entry_are_zero() -> None:
    table = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    index = torch.tensor([[0, 1], [1, 2], [2, 0]], dtype=torch.int32)
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert bags.Bags(index).sums(table, weights).tolist() == [[5.0, 50.0], [18.0, 180.0], [21.0, 210.0]]
    kept = torch.tensor([[True, False], [False, False], [True, True]])
    assert bags.Bags(index, kept).sums(table, weights).tolist() == [[1.0, 10.0], [0.0, 0.0], [21.0, 210.0]]
    assert bags.Bags(index).sums(table, weights[:2]).tolist() == [[5.0, 50.0], [18.0, 180.0]]
