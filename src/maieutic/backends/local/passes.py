"""What lies between a layer's products, in few passes over memory: values and first derivatives written out.

    normed   y = x r w,  r = 1 / √(mean x² + ε)      dx = r (g w) − x r³ mean(g w x),   dw = Σ g x r
    gated    y = silu(a) b                           da = silu'(a) (g b),               db = silu(a) g

Built from ordinary operations, a norm goes through memory some fourteen times forth and back, here nine; it keeps one
number a row beside what goes in, and a gate nothing. Neither can be differentiated again.

    `N` rows · `E` width
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from maieutic.backends.local.attention import Layout


class Turns(NamedTuple):
    """How positions rotate queries and keys: `cos`, `sin [N, D / 2]`, and `both [N, 1, 2, D / 2]`, −sin and sin."""

    cos: Tensor
    sin: Tensor
    both: Tensor

    @staticmethod
    def of(cos: Tensor, sin: Tensor) -> Turns:
        """From those of each position, `[N, D]`, of which the second half repeats the first."""
        low, high = (x[:, : x.shape[1] // 2].contiguous() for x in (cos, sin))
        return Turns(low, high, torch.stack([-high, high], dim=1)[:, None])


class Passes(Protocol):
    """The ways through memory of a layer that is learned from."""

    def normed(self, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """The root-mean-square norm of `states [N, …, E]` over the last axis, times `weight [E]`."""
        ...

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """`silu(gate) · up`, of one shape."""
        ...

    def turned(self, query: Tensor, key: Tensor, turns: Turns) -> tuple[Tensor, Tensor]:
        """`query [N, H, D]` and `key [N, K, D]` rotated."""
        ...

    def attended(self, layout: Layout, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """What queries read where `layout` says who sees whom; see `attention.Layout.attend`."""
        ...


class Composed:
    """`Passes` in torch's operations."""

    def normed(self, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See `Passes`."""
        return normed(states, weight, epsilon)

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """See `Passes`."""
        return gated(gate, up)

    def turned(self, query: Tensor, key: Tensor, turns: Turns) -> tuple[Tensor, Tensor]:
        """See `Passes`."""
        both = turned(torch.cat([query, key], dim=1), turns)
        return both[:, : query.shape[1]], both[:, query.shape[1] :]

    def attended(self, layout: Layout, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See `Passes`."""
        return layout.attend(layer, query, key, value, scaling)


def turned(heads: Tensor, turns: Turns) -> Tensor:
    """`x · cos + (−x₂, x₁) · sin` for `heads [N, h, D]`, with x in two halves x₁, x₂."""
    halves = heads.reshape(*heads.shape[:2], 2, -1)
    return torch.addcmul(halves * turns.cos[:, None, None], halves.flip(2), turns.both).view(heads.shape)


def normed(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The root-mean-square norm of `states [N, …, E]` over the last axis, times `weight [E]`."""
    return _Normed.apply(states, weight, epsilon)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) · up`, of one shape."""
    return _Gated.apply(gate, up)


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        size = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        rate = size.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(states, weight, rate)
        return (states * rate).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor | None, None]:
        states, weight, rate = ctx.saved_tensors
        met = slope * states
        pull = (met @ weight)[..., None].mul_(rate**3).div_(-states.shape[-1])
        to_weight = rate.flatten() @ met.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return torch.mul(slope, weight, out=met).mul_(rate).addcmul_(states, pull), to_weight, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(slope * up, gate), silu(gate).mul_(slope)
