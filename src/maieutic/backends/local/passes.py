"""What lies between a layer's products, in few passes over memory: values and first derivatives written out.

    normed   y = x r w,  r = 1 / √(mean x² + ε)      dx = r (g w) − x r³ mean(g w x),   dw = Σ g x r
    gated    y = silu(a) b                           da = silu'(a) (g b),               db = silu(a) g

Built from ordinary operations, a norm goes through memory some fourteen times forth and back, here nine; it keeps one
number a row beside what goes in, and a gate nothing. Neither can be differentiated again.

    `N` rows · `E` width
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu


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
