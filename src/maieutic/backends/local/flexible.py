"""Attention of packed rows on a GPU: one kernel over the flat sequence that knows which blocks of it see which.

The flat sequence is that of `segments`: each prompt with its completions behind it. A token sees its prompt, and its
own piece up to itself:

    q sees k   where k ≤ q and (own[k] = own[q] or own[k] = home[q])      own: the piece that a token is of
                                                                          home: the prompt that it follows

FlexAttention compiles a kernel for that rule and passes over blocks of 128 × 128 in which nobody sees anybody; which
those are is counted here from where pieces begin and end, not by asking the rule for every pair. The kernel is taken
where it can be compiled and gives the numbers and gradients of plain attention (`flexible_for`); else packed rows are
laid out in blocks (`attention.PackedLayout`), and that is said once in the log.

    `N` tokens of the flat sequence, a multiple of `SIDE` · `n` = N / SIDE · `H` query heads · `K` key-value heads
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from maieutic.backends.local.attention import _sdpa
from maieutic.backends.local.segments import lay_out_segments

log = logging.getLogger("maieutic.backends.local")

Ints = NDArray[np.int64]

SIDE = 128
"""Tokens of a block. The flat sequence is filled up to whole blocks with tokens that see themselves alone."""

AGREES = 2e-2
"""Largest accepted difference of what is read, and of its gradients, from those of plain attention in float32 (length
of the difference, relative to the length): bfloat16 rounds at 4e-3."""


@dataclass(frozen=True)
class Flexible:
    """A layout, see `attention.Layout`.

    `own, home [N]` as above; `partial, full [n, n]` say which blocks of keys a block of queries sees in part and whole;
    `kernel` attends (None: plain attention with a mask of `[N, N]`); `mask` is what the kernel is told, once it is on
    the device.
    """

    own: Tensor
    home: Tensor
    partial: Tensor
    full: Tensor
    kernel: Callable[..., Any] | None = None
    mask: BlockMask | None = None

    @property
    def length(self) -> int:
        """Tokens of the flat sequence."""
        return len(self.own)

    def to(self, device: torch.device) -> Flexible:
        """The same layout with its tensors on `device`."""
        there = (each.to(device) for each in (self.own, self.home, self.partial, self.full))
        own, home, partial, full = there
        mask = block_mask(own, home, partial, full)
        return replace(self, own=own, home=home, partial=partial, full=full, mask=mask)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:  # noqa: ARG002
        """See `attention.Layout`."""
        given = [each.transpose(0, 1)[None] for each in (query, key, value)]
        with torch.autocast(query.device.type, enabled=False):
            if self.kernel is None:
                places = torch.arange(self.length, device=query.device)
                seen = _rule(self.own, self.home)(None, None, places[:, None], places[None, :])
                read = _sdpa(given[0], given[1], given[2], seen, scaling)
            else:
                read = self.kernel(*given, block_mask=self.mask, scale=scaling, enable_gqa=True)
        return read[0].transpose(0, 1)


def _rule(own: Tensor, home: Tensor) -> Callable[..., Tensor]:
    def sees(_batch: Any, _head: Any, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & ((own[k] == own[q]) | (own[k] == home[q]))

    return sees


def block_mask(own: Tensor, home: Tensor, partial: Tensor, full: Tensor) -> BlockMask:
    """What FlexAttention is told of a layout, with its tensors on one device."""
    counts, places = zip(*(_listed(table) for table in (partial, full)), strict=True)
    length = len(own)
    return BlockMask.from_kv_blocks(
        counts[0], places[0], counts[1], places[1], SIDE, _rule(own, home), seq_lengths=(length, length)
    )


def _listed(table: Tensor) -> tuple[Tensor, Tensor]:
    """`[n, n]` → how many of each row are set, `[1, 1, n]`, and which, those first, `[1, 1, n, n]`."""
    places = torch.argsort(table.to(torch.int32), dim=1, descending=True, stable=True)
    return table.sum(1).to(torch.int32)[None, None], places.to(torch.int32)[None, None].contiguous()


def lay_out_flexibly(
    prompts: Sequence[int], completions: Sequence[int], owners: Sequence[int]
) -> tuple[Flexible, Ints, Ints]:
    """The layout of prompts and completions of so many tokens each, and where each starts in the flat sequence.

    `owners` say which prompt each completion follows; a completion may be empty, a prompt may not.
    """
    _, starts_p, starts_c = lay_out_segments(prompts, completions, owners)
    size = sum(prompts) + sum(completions)
    length = -(-size // SIDE) * SIDE
    begin, end, own = np.arange(length), np.arange(length), np.arange(length)  # its prompt's ends, its piece's begin
    for start, tokens in zip(starts_p, prompts, strict=True):
        begin[start : start + tokens] = end[start : start + tokens] = own[start : start + tokens] = start
    for start, tokens, owner in zip(starts_c, completions, owners, strict=True):
        first = starts_p[owner]
        begin[start : start + tokens], end[start : start + tokens] = first, first + prompts[owner]
        own[start : start + tokens] = start
    partial, full = _blocks(begin, end, own)
    o, h, p, f = (torch.from_numpy(each) for each in (own, begin, partial, full))  # a piece is where it begins
    return Flexible(o, h, p, f, _kernel()), starts_p, starts_c


def _blocks(begin: Ints, end: Ints, own: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which blocks of keys each block of queries sees in part, and which whole, `[n, n]` each.

    Token q sees `begin[q]:end[q]` (nothing, for a prompt's own tokens) and `own[q]:q + 1`.
    """
    after = np.arange(len(own)) + 1
    beside = (end == own) & (end > begin)  # what it sees is one stretch
    stretches = [(np.where(beside, begin, own), after), (begin, np.where(beside, begin, end))]
    touched = np.zeros((len(own) // SIDE, len(own) // SIDE), np.int64)
    whole = touched.copy()
    for start, stop in stretches:
        some = stop > start
        touched += _counted(some, start // SIDE, -(-stop // SIDE))
        first, last = -(-start // SIDE), stop // SIDE
        whole += _counted(some & (last > first), first, last)
    full = whole == SIDE
    return (touched > 0) & ~full, full


def _counted(some: NDArray[np.bool_], first: Ints, last: Ints) -> Ints:
    """Of how many tokens of each block of queries the stretch `first:last` of blocks has a block of keys, `[n, n]`."""
    blocks = len(some) // SIDE
    ends = np.zeros((blocks, blocks + 1), np.int64)
    rows = np.arange(len(some))[some] // SIDE
    np.add.at(ends, (rows, first[some]), 1)
    np.add.at(ends, (rows, last[some]), -1)
    return ends.cumsum(1)[:, :-1]


@cache
def compiled() -> Callable[..., Any]:
    """FlexAttention, compiled at its first call and again where its lengths change, and then for any length."""
    config: Any = torch._dynamo.config
    # Of one model it is compiled four times (a length, any length; with gradients, without). Beyond the limit it would
    # run uncompiled, which takes memory for every pair of tokens.
    config.recompile_limit = max(config.recompile_limit, 64)
    return torch.compile(flex_attention)


_found: dict[tuple[Any, ...], str] = {}


def _kernel() -> Callable[..., Any] | None:
    return compiled() if any(not why for why in _found.values()) else None


def flexible_for(config: Any, device: torch.device, numbers: torch.dtype) -> bool:
    """Is a model of this shape to learn through FlexAttention? Tried once for a shape, on a GPU, in half precision."""
    if device.type != "cuda" or numbers not in (torch.bfloat16, torch.float16):
        return False
    heads = getattr(config, "num_attention_heads", 0)
    shared = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // max(1, heads)
    key = (device, numbers, heads, shared, size)
    if key not in _found:
        _found[key] = _why_not(*key)
        if _found[key]:
            log.warning("packed rows attend in blocks, not through FlexAttention: %s.", _found[key])
    return not _found[key]


def _why_not(device: torch.device, numbers: torch.dtype, heads: int, shared: int, size: int) -> str:
    try:
        apart = difference(compiled(), device, numbers, (heads, shared, size))
    except Exception as error:  # noqa: BLE001 - whatever a compiler trips over, blocks serve as well
        return f"it fails here ({type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]})"
    return "" if apart <= AGREES else f"its numbers differ by {apart:.2g} (accepted: {AGREES:.2g})"


def difference(
    kernel: Callable[..., Any], device: torch.device, numbers: torch.dtype, heads: tuple[int, int, int]
) -> float:
    """How far what a kernel reads, and its gradients where the device has them, are from plain attention in float32.

    `heads`: query heads, key-value heads, size of a head. The length of the difference, relative to the length; the
    worst of all, over several sequences: a kernel for any length is compiled at the second.
    """
    examples = [([100, 30, 200], [60, 90, 5, 140, 150, 129], [0, 0, 0, 2, 2, 2]), ([300], [200, 170], [0, 0])]
    made = [lay_out_flexibly(*example)[0] for example in examples]
    return max(_difference(each, kernel, device, numbers, heads) for each in made)


def _difference(
    layout: Flexible,
    kernel: Callable[..., Any],
    device: torch.device,
    numbers: torch.dtype,
    heads: tuple[int, int, int],
) -> float:
    fast, plain = replace(layout, kernel=kernel).to(device), replace(layout, kernel=None).to(device)
    draw = torch.Generator().manual_seed(0)
    shapes = [(layout.length, each, heads[2]) for each in (heads[0], heads[1], heads[1], heads[0])]
    query, key, value, slope = (torch.randn(shape, generator=draw).to(device, numbers) for shape in shapes)
    found = []
    for each, dtype in ((fast, numbers), (plain, torch.float32)):
        learn = device.type == "cuda"  # FlexAttention has no gradients on a CPU
        given = [x.to(dtype).detach().requires_grad_(learn) for x in (query, key, value)]
        with torch.enable_grad():  # whoever asks may be a scorer, which takes none
            read = each.attend(0, given[0], given[1], given[2], heads[2] ** -0.5)
        if learn:
            read.backward(slope.to(dtype))
        found.append([read.detach().float(), *(x.grad.float() for x in given if x.grad is not None)])
    return max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
