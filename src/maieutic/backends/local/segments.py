"""Attention of packed rows without a mask, a pad or a gathered key: for learning on a CPU.

The flat sequence holds each prompt with its completions behind it. Every token sees what is before it in its own
segment (a prompt, a completion, or a prompt with its only completion), and completions that share a prompt see that
prompt whole:

    o = (e^a o_own + e^b o_prompt) / (e^a + e^b)        a, b  the logsumexp of its scores over either part's keys

Both parts are slices of the flat sequence, given to PyTorch's kernel where they lie: all queries of a group at once
over their prompt's keys, and each completion causally over itself. The kernel's backward pass takes the result and its
logsumexp; given those of both parts together, the gradients of either part are those of the whole.

The gradient cannot be differentiated again. `attention.PackedLayout` serves where that is asked, on other devices, and
in half precision, where parts that were rounded before they are put together are further off than the whole.

    `N` tokens of the flat sequence · `H` query heads · `K` key-value heads · `D` size of a head
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

Ints = NDArray[np.int64]

TOGETHER = 64
"""Neighbouring segments of so many tokens in all are attended to in one call, with a mask: a call costs as much as the
arithmetic of some ten tokens."""


def serves(weight: Tensor) -> bool:
    """Whether a model with such a weight learns through `Segments`."""
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)


@dataclass(frozen=True)
class Run:
    """Neighbouring segments in one call: `rows` of `width` tokens from `start` on, each causal; with `mask [width,
    width]` (0 or -inf) one row of several segments."""

    start: int
    rows: int
    width: int
    mask: Tensor | None = None

    def by_row(self, own: Tensor) -> Tensor:
        """Its tokens `[1, heads, rows · width, …]` → `[rows, heads, width, …]`: a view."""
        return own if self.rows == 1 else own[0].unflatten(1, (self.rows, self.width)).transpose(0, 1)


@dataclass(frozen=True)
class Shared:
    """Completions `start:stop` of the prompt `first:start`, which all of them see whole."""

    first: int
    start: int
    stop: int

    def keys(self, heads: Tensor) -> Tensor:
        """`[1, heads, N, …]` → the prompt's, `[1, heads, start - first, …]`: a view."""
        return heads[:, :, self.first : self.start]

    def queries(self, heads: Tensor) -> Tensor:
        """`[1, heads, N, …]` → the completions', `[1, heads, stop - start, …]`: a view."""
        return heads[:, :, self.start : self.stop]


class Bundles(NamedTuple):
    """The same for compiled kernels: bundle u is segments `bounds[u] … bounds[u + 1] - 1`, which begin at `starts [S]`
    and have `widths [S]` tokens. All of them see its prompt, `prompts[u]` tokens from `firsts[u]` on (0: there is
    none), whose slope from this bundle has the rows from `places[u]` on of all `rows`."""

    bounds: Ints
    starts: Ints
    widths: Ints
    firsts: Ints
    prompts: Ints
    places: Ints

    @property
    def rows(self) -> int:
        """Tokens of the prompts of all bundles."""
        return int(self.prompts.sum())


PARTS = 4
"""Bundles that the completions of a prompt are put into at most, for as many threads."""


@dataclass(frozen=True)
class Segments:
    """A layout, see `attention.Layout`: `runs` cover the flat sequence, `shared` are prompts of several completions."""

    runs: tuple[Run, ...]
    shared: tuple[Shared, ...]
    bundles: Bundles

    def to(self, device: torch.device) -> Segments:
        """The same layout; what it holds is on the CPU, where alone it is used."""
        assert device.type == "cpu", f"got {device}; packed rows of other devices are laid out in blocks"
        return self

    def split(self, heads: Tensor) -> list[Tensor]:
        """`[1, heads, N, …]` → what each run has of it, `[rows, heads, width, …]`: views."""
        parts = heads.split([run.rows * run.width for run in self.runs], dim=2)
        return [run.by_row(own) for run, own in zip(self.runs, parts, strict=True)]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:  # noqa: ARG002
        """See `attention.Layout`."""
        size, width = query.shape[-1], value.shape[-1]
        if size != width:  # the kernel knows one size; zeros change neither scores nor what is read
            query, key, value = (pad(x, (0, max(size, width) - x.shape[-1])) for x in (query, key, value))
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        return _Attention.apply(query, key, value, self, scaling)[..., :width]


class _Attention(torch.autograd.Function):
    """Queries `[N, H, D]`, keys and values `[N, K, D]` of `Segments` → `[N, H, D]`.

    Some twenty runs a micro-batch of short rows: cut in one call and written in one, as a call takes as long as the
    arithmetic of a few tokens.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Segments, scale: float) -> Tensor:
        out = query.new_empty(query.shape)
        total = query.new_empty(query.shape[:2])
        given = [_heads_first(x) for x in (query, key, value)]
        q, k, v, o, t = (*given, _heads_first(out), _heads_first(total))
        cut = zip(layout.runs, *map(layout.split, given), strict=True)
        found = [_flash(*own, 0.0, run.mask is None, **_options(run, query, scale)) for run, *own in cut]
        torch._foreach_copy_(layout.split(o), [read for read, _ in found])
        torch._foreach_copy_(layout.split(t), [mass for _, mass in found])
        for each in layout.shared:
            read, mass = _flash(each.queries(q), each.keys(k), each.keys(v), 0.0, False, scale=scale)
            of_own = each.queries(t)
            each.queries(o).lerp_(read, (mass - of_own).sigmoid_()[..., None])
            of_own.copy_(torch.logaddexp(of_own, mass))
        ctx.save_for_backward(query, key, value, out, total)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        kept, layout = ctx.saved_tensors, ctx.layout
        slope = slope if slope.stride(-1) == 1 else slope.contiguous()
        g, q, k, v, o, t = given = [_heads_first(x) for x in (slope, *kept)]
        made = [x.new_empty(x.shape) for x in kept[:3]]
        cut = zip(layout.runs, *map(layout.split, given), strict=True)
        found = [_flash_backward(*own, 0.0, run.mask is None, **_options(run, slope, ctx.scale)) for run, *own in cut]
        places = [_heads_first(x) for x in made]
        for place, parts in zip(places, zip(*found, strict=True), strict=True):
            torch._foreach_copy_(layout.split(place), list(parts))
        for each in layout.shared:
            asked, seen = each.queries, each.keys
            more = _flash_backward(
                asked(g), asked(q), seen(k), seen(v), asked(o), asked(t), 0.0, False, scale=ctx.scale
            )
            for place, part in zip((asked(places[0]), seen(places[1]), seen(places[2])), more, strict=True):
                place.add_(part)
        return *made, None, None


def _heads_first(flat: Tensor) -> Tensor:
    """`[N, heads, …]` → `[1, heads, N, …]`: a view."""
    return flat.transpose(0, 1)[None]


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _options(run: Run, query: Tensor, scale: float) -> dict[str, Any]:
    return {"attn_mask": None if run.mask is None else run.mask.to(query.dtype)[None, None], "scale": scale}


def lay_out_segments(
    prompts: Sequence[int], completions: Sequence[int], owners: Sequence[int]
) -> tuple[Segments, Ints, Ints]:
    """The layout of prompts and completions of so many tokens each, and where each starts in the flat sequence.

    `owners` say which prompt each completion follows; a completion may be empty, a prompt may not.
    """
    starts_p, starts_c = np.zeros(len(prompts), np.int64), np.zeros(len(completions), np.int64)
    members: list[list[int]] = [[] for _ in prompts]
    for number, owner in enumerate(owners):
        if completions[number]:
            members[owner].append(number)
    at = 0
    lengths: list[int] = []
    shared: list[Shared] = []
    bundles: list[tuple[int, int, list[tuple[int, int]]]] = []
    for prompt, own in enumerate(members):
        own.sort(key=lambda number: completions[number])  # rows of one length are one call
        starts_p[prompt] = at
        begin = at + prompts[prompt]
        for number in own:
            starts_c[number] = begin
            begin += completions[number]
        if len(own) > 1:
            lengths += [prompts[prompt], *(completions[number] for number in own)]
            shared.append(Shared(at, at + prompts[prompt], begin))
            bundles.append((at, 0, [(at, prompts[prompt])]))
            segments = [(int(starts_c[number]), completions[number]) for number in own]
            some = -(-len(own) // PARTS)
            bundles += [(at, prompts[prompt], segments[i : i + some]) for i in range(0, len(own), some)]
        else:  # causal from its first token to its last
            lengths.append(begin - at)
            bundles.append((at, 0, [(at, begin - at)]))
        at = begin
    return Segments(tuple(_runs(lengths)), tuple(shared), _bundled(bundles)), starts_p, starts_c


def _bundled(bundles: Sequence[tuple[int, int, list[tuple[int, int]]]]) -> Bundles:
    """From where each bundle's prompt begins, its tokens, and its segments: where they begin, and their tokens."""
    firsts, prompts = (np.array([bundle[i] for bundle in bundles], np.int64) for i in (0, 1))
    segments = np.array([segment for _, _, own in bundles for segment in own], np.int64).reshape(-1, 2)
    bounds = np.cumsum([0, *(len(own) for _, _, own in bundles)], dtype=np.int64)
    starts, widths = (np.ascontiguousarray(segments[:, i]) for i in (0, 1))
    return Bundles(bounds, starts, widths, firsts, prompts, np.cumsum(prompts) - prompts)


def _runs(lengths: Iterable[int]) -> Iterable[Run]:
    """The calls that attend to segments of these lengths, which follow one another."""
    at = 0
    waiting: list[int] = []

    def together() -> Iterable[Run]:
        if len(set(waiting)) > 1:
            yield Run(at - sum(waiting), 1, sum(waiting), _mask(waiting))
        elif waiting:
            yield Run(at - sum(waiting), len(waiting), waiting[0])
        waiting.clear()

    for width, same in groupby(lengths):
        rows = len(list(same))
        if sum(waiting) + rows * width > TOGETHER:
            yield from together()
        if rows * width > TOGETHER:
            yield Run(at, rows, width)
        else:
            waiting.extend([width] * rows)
        at += rows * width
    yield from together()


def _mask(widths: Sequence[int]) -> Tensor:
    """`[n, n]`, 0 where a token of segments so wide sees another (before it, in its own segment), -inf elsewhere."""
    own = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths))
    seen = (own[:, None] == own[None, :]).tril()
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
