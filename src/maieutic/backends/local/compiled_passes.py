"""`passes` compiled (`compiled.learning`), where Numba is installed: the same values and first derivatives, each in one
way through memory forth and one back, by all of torch's threads.

Before any model learns through them they are held against `passes.Composed`; where they differ, or Numba is not there,
everything stays as it is. The device and the model's size decide, never how much there is to do.

    `N` rows · `E` width · `H` query heads · `K` key-value heads · `D` size of a head
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from maieutic.backends.local import kernels
from maieutic.backends.local.attention import Layout
from maieutic.backends.local.passes import Composed, Passes, Turns
from maieutic.backends.local.segments import Bundles, Segments, lay_out_segments
from maieutic.backends.local.trunk import Trunk

log = logging.getLogger("maieutic.backends.local")

AGREES = 1e-5
"""Largest accepted difference from torch's operations, relative to the spread of what they give."""

COMPOSED = Composed()


class Compiled:
    """`Passes` by the kernels `made`; what is not float32 on a CPU goes torch's way."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def normed(self, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See `Passes`."""
        if not _fits(states, weight):
            return COMPOSED.normed(states, weight, epsilon)
        return _Normed.apply(self.made, states, weight, epsilon)

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """See `Passes`."""
        if not _fits(gate, up):
            return COMPOSED.gated(gate, up)
        return _Gated.apply(self.made, gate, up)

    def turned(self, query: Tensor, key: Tensor, turns: Turns) -> tuple[Tensor, Tensor]:
        """See `Passes`."""
        if not _fits(query, key, turns.cos, turns.sin):
            return COMPOSED.turned(query, key, turns)
        return _Turned.apply(self.made, query, key, turns.cos, turns.sin)

    def attended(self, layout: Layout, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See `Passes`."""
        alike = key.shape == value.shape and key.shape[-1] % 8 == 0
        if not (isinstance(layout, Segments) and alike and _fits(query, key, value)):
            return COMPOSED.attended(layout, layer, query, key, value, scaling)
        return _Attended.apply(self.made, query, key, value, layout.bundles, scaling)


def _fits(*given: Tensor) -> bool:
    return all(each.dtype == torch.float32 and each.device.type == "cpu" for each in given)


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().contiguous().numpy()


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        flat = states.reshape(-1, states.shape[-1]).contiguous()
        rates, out = flat.new_empty(len(flat)), torch.empty_like(flat)
        own, scale = _array(flat), _array(weight)
        made.norm(kernels.crew(), own, scale, np.float32(epsilon), rates.numpy(), out.numpy())
        ctx.save_for_backward(flat, weight, rates)
        ctx.made = made
        return out.view(states.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, rates = ctx.saved_tensors
        to_states, pieces = torch.empty_like(flat), -(-len(flat) // ctx.made.ROWS)
        to_weight = flat.new_empty(pieces, flat.shape[1])
        above = _array(slope.reshape(flat.shape))
        given = (above, _array(flat), _array(weight), rates.numpy(), to_states.numpy(), to_weight.numpy())
        ctx.made.norm_slope(kernels.crew(), *given)
        whole = to_weight.sum(0) if ctx.needs_input_grad[2] else None
        return None, to_states.view(slope.shape), whole, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made: Any, gate: Tensor, up: Tensor) -> Tensor:
        out = torch.empty(gate.shape)
        made.gate(kernels.crew(), _array(gate), _array(up), out.numpy())
        ctx.save_for_backward(gate, up)
        ctx.made = made
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        to_gate, to_up = torch.empty(gate.shape), torch.empty(up.shape)
        given = (_array(slope), _array(gate), _array(up), to_gate.numpy(), to_up.numpy())
        ctx.made.gate_slope(kernels.crew(), *given)
        return None, to_gate, to_up


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.made = made
        return _rotated(made, query, cos, sin, 1), _rotated(made, key, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_query: Tensor, to_key: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        back = (_rotated(ctx.made, slope, cos, sin, -1) for slope in (to_query, to_key))
        return None, *back, None, None


def _rotated(made: Any, heads: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    out = torch.empty(heads.shape)
    made.turn(kernels.crew(), _array(heads), _array(cos), _array(sin), np.float32(sign), out.numpy())
    return out


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, made: Any, query: Tensor, key: Tensor, value: Tensor, bundles: Bundles, scaling: float
    ) -> Tensor:
        given = [each.detach().contiguous() for each in (query, key, value)]
        out, total = torch.empty(query.shape), torch.empty(query.shape[:2])
        ctx.made, ctx.bundles, ctx.scaling = made, bundles, np.float32(scaling)
        arrays = (each.numpy() for each in given)
        made.attend(kernels.crew(), *arrays, ctx.scaling, *bundles[:-1], out.numpy(), total.numpy())
        ctx.save_for_backward(*given, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        bundles: Bundles = ctx.bundles
        made = [torch.empty(each.shape) for each in kept[:3]]
        prompts = [torch.empty(bundles.rows, *each.shape[1:]) for each in kept[1:3]]
        arrays = [_array(slope), *(each.numpy() for each in kept), ctx.scaling, *bundles]
        ctx.made.attend_slope(kernels.crew(), *arrays, *(each.numpy() for each in (*made, *prompts)))
        for first, count, place in zip(*(each.tolist() for each in bundles[3:]), strict=True):
            for whole, part in zip(made[1:], prompts, strict=True):
                whole[first : first + count] += part[place : place + count]
        return None, *made, None, None


def passes_for(trunk: Trunk, made: Any = None) -> Passes:
    """The ways through memory for this trunk: compiled ones, where they can be had, agree, and its size is worth it.

    `made`: the kernels (None: those of this package, for a model of `kernels.SMALLEST` weights).
    """
    body: Any = trunk.body
    weight = next(body.parameters())
    if not _fits(weight):
        return COMPOSED
    if made is not None:
        return Compiled(made) if _right(made) else COMPOSED
    if sum(each.numel() for each in body.parameters()) < kernels.SMALLEST:
        return COMPOSED
    found = usual()
    return COMPOSED if found is None else Compiled(found)


@cache
def usual() -> Any:
    """The kernels of an update, or None where they are not to be had or give other numbers. Tried once."""
    made = kernels.learning()
    return made if made is not None and _right(made) else None


def _right(made: Any) -> bool:
    return agree(made, "passes", _cases(Compiled(made)))


#: What is tried, what it is held against, and what both are given.
Case = tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]


def agree(made: Any, what: str, cases: Sequence[Case]) -> bool:
    """Whether values and slopes are, in each case, those that they are held against. What differs is said."""
    try:
        differences = [_difference(*case) for case in cases]
    except made.FAILURES as error:
        why = f"cannot be compiled ({error})"
    else:
        if all(each <= AGREES for each in differences):
            return True
        why = f"differ from torch's by {max(differences):.2g} of their spread"
    log.warning("Compiled %s of an update %s: it takes longer instead, with the same numbers as ever.", what, why)
    return False


def _cases(passes: Passes) -> list[Case]:
    """What `passes` do, and torch's operations."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return 2 * torch.randn(shape, generator=draw)

    layout, _, _ = lay_out_segments([7, 3], [5, 36, 4, 1, 2, 12], [0, 0, 0, 0, 0, 1])
    angle = normal(70, 4)
    turns = Turns.of(*(torch.cat([x, x], dim=1) for x in (angle.cos(), angle.sin())))
    return [
        (
            lambda x, w: passes.normed(x, w, 1e-6),
            lambda x, w: COMPOSED.normed(x, w, 1e-6),
            [normal(70, 24), normal(24)],
        ),
        (passes.gated, COMPOSED.gated, [normal(70, 24), normal(70, 24)]),
        (
            lambda q, k: torch.cat(passes.turned(q, k, turns), dim=1),
            lambda q, k: torch.cat(COMPOSED.turned(q, k, turns), dim=1),
            [normal(70, 3, 8), normal(70, 1, 8)],
        ),
        (
            lambda q, k, v: passes.attended(layout, 0, q, k, v, 0.3),
            lambda q, k, v: COMPOSED.attended(layout, 0, q, k, v, 0.3),
            [normal(70, 4, 8), normal(70, 2, 8), normal(70, 2, 8)],
        ),
    ]


def _difference(found: Callable[..., Tensor], expected: Callable[..., Tensor], given: list[Tensor]) -> float:
    """Of values and slopes, relative to the spread of the expected ones; infinite where one is no number."""
    both = []
    for function in (found, expected):
        inputs = [each.clone().requires_grad_() for each in given]
        with torch.enable_grad(), torch.inference_mode(False):
            out = function(*inputs)
            slopes = torch.autograd.grad(out, inputs, torch.sin(torch.arange(out.numel()).float()).view(out.shape))
        both.append([out.detach(), *slopes])
    shares = [float((a - b).abs().max() / b.std()) for a, b in zip(*both, strict=True)]
    return max(share if share == share else float("inf") for share in shares)
