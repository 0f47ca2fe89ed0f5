"""One decode step as a plain function over buffers that stay where they are: what a CUDA graph can be captured of.

A token goes in, the next one comes out, with its log-prob, and both stay on the device; nothing is asked of the host,
no shape depends on a number. How many rows and columns a step covers is therefore rounded up (`rows_bucket`,
`columns_bucket`). Rows beyond those in use, and rows that have ended, run along: what they write is read by nobody.

    `S` slots · `R` rows of a step · `l` columns that it reads · `V` vocabulary · `n` steps between two looks
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maieutic.backends.local.attention import Layout
from maieutic.backends.local.cache import DecodeLayout, Store
from maieutic.backends.local.uniform import uniforms_on

STEPS = 8
"""Steps between two looks of the host: each look takes about as long as a step of a small model."""

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
FEWEST_COLUMNS = 128

FIELDS = ("token", "position", "count", "key")
"""Of a slot, as `Rows` keeps them: whole numbers of 64 bits."""


class Body(Protocol):
    """What runs a model over flat tokens; see `narrow.Narrow`."""

    def hidden(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """`[N]`, `[N]` → `[N, E]`."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """`[N, E]` → `[N, V]`."""
        ...


@dataclass(frozen=True)
class LiveRows:
    """The rows as the device knows them.

    `numbers [4, S]`: latest token, where it will be fed, how many the row has written, key of its uniform numbers.
    `temperatures [S]`. What the latest steps wrote: `tokens`, `logprobs [n, S]`, step `cursor [1]` next.
    """

    numbers: Tensor
    temperatures: Tensor
    tokens: Tensor
    logprobs: Tensor
    cursor: Tensor

    @classmethod
    def of(cls, slots: int, device: torch.device) -> LiveRows:
        """Room for so many rows."""
        whole = {"dtype": torch.int64, "device": device}
        return cls(
            torch.zeros(len(FIELDS), slots, **whole),  # type: ignore[call-overload]
            torch.ones(slots, device=device),
            torch.zeros(STEPS, slots, **whole),  # type: ignore[call-overload]
            torch.zeros(STEPS, slots, device=device),
            torch.zeros(1, **whole),  # type: ignore[call-overload]
        )

    @property
    def slots(self) -> int:
        """Rows that there is room for."""
        return self.numbers.shape[1]

    def load(self, rows: NDArray[np.void]) -> None:
        """Take over rows `[R]` as the host knows them (records of `Rows`)."""
        whole = np.stack([rows[name].astype(np.int64) for name in FIELDS])
        self.numbers[:, : len(rows)].copy_(torch.from_numpy(whole))
        self.temperatures[: len(rows)].copy_(torch.from_numpy(np.ascontiguousarray(rows["temperature"])))

    def state(self) -> list[Tensor]:
        """What a step changes, apart from keys and values."""
        return [self.numbers, self.tokens, self.logprobs, self.cursor]


def decode_step(body: Body, store: Store, live: LiveRows, rows: int, columns: int) -> Tensor:
    """Feed the latest token of the first `rows` slots, draw their next ones; returns the logits `[R, V]`.

    `columns`: of the store, more than the position of any row that is alive; positions beyond are of rows that ended.
    """
    numbers = live.numbers[:, :rows]
    tokens, positions, counts, keys = numbers.unbind(0)
    at = positions.clamp(max=columns - 1)
    places = torch.arange(rows, device=at.device) * store.columns + at
    hidden_columns = torch.arange(columns, device=at.device)[None, :] > at[:, None]
    some = next(iter(store.layers.values()))[0]
    mask = torch.zeros(rows, columns, dtype=some.dtype, device=at.device)
    mask = mask.masked_fill_(hidden_columns, -torch.inf)[:, None, None, :]
    logits = body.logits(body.hidden(tokens, at, DecodeLayout(store, places, mask)))
    drawn, logprobs = draw_static(logits, live.temperatures[:rows], uniforms_on(keys, counts))
    live.tokens[:, :rows].index_copy_(0, live.cursor, drawn[None])
    live.logprobs[:, :rows].index_copy_(0, live.cursor, logprobs[None])
    tokens.copy_(drawn)
    numbers[1:3].add_(1)
    live.cursor.add_(1)
    return logits


def draw_static(logits: Tensor, temperatures: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """As `rows.draw`, without asking the host anything, and in two stages: first the block of tokens into which the
    uniform number falls, then the token within it. A whole vocabulary need not be cumulated, nor read back."""
    scaled = logits.float() / torch.where(temperatures > 0, temperatures, 1.0)[:, None]
    top, best = scaled.max(dim=-1, keepdim=True)
    below = scaled - top
    blocks = below.exp().unflatten(1, (-1, block_size(logits.shape[1])))
    masses = blocks.sum(dim=2).cumsum(1)
    total = masses[:, -1:]
    wanted = _short_of(uniform[:, None] * total, total)
    block = torch.searchsorted(masses, wanted, right=True).clamp_(max=masses.shape[1] - 1)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, blocks.shape[2]))[:, 0].cumsum(1)
    before = torch.where(block > 0, masses.gather(1, (block - 1).clamp_(min=0)), 0.0)
    place = torch.searchsorted(within, _short_of(wanted - before, within[:, -1:]), right=True)
    drawn = block * blocks.shape[2] + place.clamp_(max=blocks.shape[2] - 1)
    drawn = torch.where(temperatures[:, None] == 0, best, drawn)
    return drawn[:, 0], (below.gather(1, drawn) - total.log())[:, 0]


def _short_of(wanted: Tensor, total: Tensor) -> Tensor:
    """At most the number just below `total`, which still falls to a token that has a chance, and not below 0."""
    return torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total))).clamp_(min=0)


@cache
def block_size(vocabulary: int) -> int:
    """Tokens of a block: a divisor of the vocabulary, as near to its root as there is; all of it where there is none
    between 16 and as many blocks."""
    fitting = [size for size in range(16, vocabulary // 16 + 1) if vocabulary % size == 0]
    return min(fitting, key=lambda size: abs(size * size - vocabulary), default=vocabulary)


def rows_bucket(rows: int) -> int:
    """Rows that a step covers where so many are in use: at most a half more."""
    return next((size for size in ROWS if size >= rows), -(-rows // 128) * 128)


def rows_fitting(rows: int) -> int:
    """The largest number of rows of which a step covers at most `rows`; at least one."""
    whole = rows // 128 * 128
    return whole if whole >= ROWS[-1] else max([size for size in ROWS if size <= rows], default=1)


def columns_bucket(columns: int) -> int:
    """Columns that a step reads where the longest row has so many: at most a quarter more."""
    step = max(FEWEST_COLUMNS, 1 << max(0, (columns - 1).bit_length() - 3))
    return -(-columns // step) * step
