"""Products on a CPU in coarser numbers than the weights', where the processor has units for them: twice as fast in
bfloat16, more than three times in bytes.

    bfloat16   8 bits of every number that goes in; sums are float32, and what comes out is rounded once more
    int8       weights in 255 steps, each output's of its own size; what goes in likewise, all rows together. For
               sampling alone: nothing is learned through it

What goes in and out is float32. A policy that samples in coarser numbers than it learns in is another policy: its own
log-probs are recorded, and a loss has to take them into account.

    `N` rows · `I` inputs · `O` outputs
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from maieutic.backends.local.products import ROWS, LaidOut, arranged, laid_out

_ops: Any = torch.ops

WITHIN = {torch.bfloat16: 0.01, torch.qint8: 0.05}
"""Largest accepted error of such products of random numbers, as a share of what should come out (root of the mean
square); a processor without the units gives the right numbers too, slowly, or with int8 sums that overflow."""


class Rounded(NamedTuple):
    """A linear map in bfloat16; see `products.Product`."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor, then: str = "none") -> Tensor:
        """`rows [N, I]` → `[N, O]`, with `then` ("none", "swish") on each number."""
        return _ops.mkldnn._linear_pointwise(rows.bfloat16(), self.weight, self.bias, then, [], "").float()

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """`self(rows) + other [N, O]`."""
        return self(rows).add_(other)

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """`self(rows) * other [N, O]`."""
        return self(rows).mul_(other)


class Quantised(NamedTuple):
    """A linear map in bytes; see `products.Product`."""

    weight: Any
    narrow: bool

    def __call__(self, rows: Tensor, then: str = "none") -> Tensor:
        """`rows [N, I]` → `[N, O]`, with `then` ("none", "swish") on each number."""
        out = _ops.quantized.linear_dynamic(rows, self.weight, reduce_range=self.narrow)
        return silu(out) if then == "swish" else out

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """`self(rows) + other [N, O]`."""
        return self(rows).add_(other)

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """`self(rows) * other [N, O]`."""
        return self(rows).mul_(other)


@torch.no_grad()
def rounded(weight: Tensor, bias: Tensor | None = None) -> Rounded:
    """The product with `weight [O, I]` and `bias [O]` in bfloat16."""
    narrow = weight.detach().bfloat16().contiguous()
    made = _ops.mkldnn._reorder_linear_weight(narrow, ROWS)
    return Rounded(made, None if bias is None else bias.detach().bfloat16())


@torch.no_grad()
def quantised(weight: Tensor, bias: Tensor | None = None) -> Quantised:
    """The product with `weight [O, I]` in bytes, one scale an output; `bias [O]` stays as it is."""
    given = weight.detach().float()
    scale = (given.abs().amax(1) / 127).clamp_(min=torch.finfo(torch.float32).tiny)
    with warnings.catch_warnings():  # torch is to lose these tensors; `has_units` sees when it has
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*")
        zero = torch.zeros(len(given), dtype=torch.long)
        whole = torch.quantize_per_channel(given, scale.double(), zero, 0, torch.qint8)
    packed = _ops.quantized.linear_prepack(whole, None if bias is None else bias.detach().float())
    return Quantised(packed, narrow=not _has_vnni())


def _has_vnni() -> bool:
    """Whether the processor adds up products of bytes in 32 bits; else they are kept to 7, which cannot overflow."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())


#: Numbers → what lays a weight out for products in them.
LAYING: dict[torch.dtype, Callable[..., LaidOut]] = {
    torch.float32: laid_out,
    torch.bfloat16: rounded,
    torch.qint8: quantised,
}


def learned(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows [N, I]` → `[N, O]` with its products, and those of the first derivative, in bfloat16."""
    return _Learned.apply(rows, weight, bias)


class _Learned(torch.autograd.Function):
    """`y = x Wᵀ + b`: `dx = dy W`, `dW = dyᵀ x`, `db = Σ dy`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = rows.bfloat16()
        ctx.save_for_backward(rows, weight)
        made = arranged(weight, turned=False, laying=rounded)
        return Rounded(made, None if bias is None else bias.detach().bfloat16())(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        given = slope.bfloat16().contiguous()
        to_rows = None
        if ctx.needs_input_grad[0]:
            to_rows = Rounded(arranged(weight, turned=True, laying=rounded), None)(given)
        to_weight = (given.t() @ rows).float() if ctx.needs_input_grad[1] else None
        return to_rows, to_weight, slope.sum(0) if ctx.needs_input_grad[2] else None


@cache
def has_units(numbers: torch.dtype) -> bool:
    """Are products in these numbers worth while on this CPU, and do they give what they should? Tried once."""
    fast = {
        torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        torch.qint8: ("_is_avx2_supported",),
    }
    if not any(getattr(torch.cpu, name, lambda: False)() for name in fast[numbers]):
        return False
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (torch.randn(shape, generator=generator) for shape in ((5, 64), (48, 64), (48,)))
    expected = linear(rows, weight, bias)
    try:
        with torch.no_grad():
            found = LAYING[numbers](weight, bias)(rows)
    except (AttributeError, RuntimeError, TypeError):  # built without it, or with another signature
        return False
    return bool((found - expected).norm() <= WITHIN[numbers] * expected.norm())
