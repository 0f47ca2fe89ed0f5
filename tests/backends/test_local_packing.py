"""How rows are dealt to micro-batches: whole groups side by side up to where it is fast, one group up to the budget."""

from __future__ import annotations

import torch

from maieutic.backends.local.packing import split
from maieutic.types import Batch


def groups_of(sizes: list[tuple[int, int]], prompt: int = 10) -> Batch:
    """A batch of groups of (rows, completion tokens) each, every row a unit."""
    lengths = [prompt + tokens for rows, tokens in sizes for _ in range(rows)]
    groups = [number for number, (rows, _) in enumerate(sizes) for _ in range(rows)]
    size, width = len(lengths), max(lengths)
    places = torch.arange(width)[None]
    mask = (places >= prompt) & (places < torch.tensor(lengths)[:, None])
    zeros, rows = torch.zeros(size, width), torch.arange(size)
    tokens = torch.ones(size, width, dtype=torch.long)
    return Batch(
        tokens, mask, torch.tensor(lengths), zeros, zeros[:, 0], zeros, rows >= 0, torch.tensor(groups), units=rows
    )


def test_groups_stand_together_as_long_as_that_is_fast() -> None:
    batch = groups_of([(4, 10), (4, 10), (4, 10), (4, 10)])  # 10 + 4 * 10 = 50 tokens each
    assert [len(part) for part in split(batch, 1000)] == [16]
    assert [len(part) for part in split(batch, 1000, 100)] == [8, 8]
    assert [len(part) for part in split(batch, 1000, 149)] == [8, 8]
    assert [len(part) for part in split(batch, 1000, 1)] == [4, 4, 4, 4]
    assert [len(part) for part in split(batch, 60, 100)] == [4, 4, 4, 4]  # never more than the budget


def test_a_group_is_not_split_below_the_budget() -> None:
    batch = groups_of([(2, 10), (8, 10), (2, 10)])  # 30, 90 and 30 tokens
    assert [len(part) for part in split(batch, 1000, 50)] == [2, 8, 2]
    assert [len(part) for part in split(batch, 50, 50)] == [2, 4, 4, 2]  # 10 + 4 * 10
