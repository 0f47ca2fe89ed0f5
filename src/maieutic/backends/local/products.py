"""Products with a weight that is laid out for them once and used often: oneDNN's, which torch's own compiler uses too.

The library behind `torch.nn.functional.linear` on a CPU arranges the weight anew at each call, which for the few rows
of a decode step takes as long as the product. Here it is arranged beforehand, and additions to the result and
multiplications of it come with the product. For many rows these products are the faster ones too (`trained`).

    `N` rows · `I` inputs · `O` outputs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ops: Any = torch.ops.mkldnn

KEPT = 1 << 30
"""Bytes of weights that stay laid out within `unchanged`, at most; as much as a sampler keeps while it decodes."""

ROWS = 64
"""Rows for which a weight is laid out; it serves any number of them."""


class LaidOut(Protocol):
    """A linear map whose weight has been laid out. It is a copy: what the weight becomes later it does not see."""

    @property
    def weight(self) -> Any: ...

    def __call__(self, rows: Tensor, then: str = "none") -> Tensor:
        """`rows [N, I]` → `[N, O]`, with `then` ("none", "swish") on each number."""
        ...

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """`self(rows) + other [N, O]`."""
        ...

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """`self(rows) * other [N, O]`."""
        ...


class Product(NamedTuple):
    """A linear map in float32; see `LaidOut`."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor, then: str = "none") -> Tensor:
        """`rows [N, I]` → `[N, O]`, with `then` ("none", "swish") on each number."""
        return _ops._linear_pointwise(rows, self.weight, self.bias, then, [], "")

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """`self(rows) + other [N, O]`."""
        return _ops._linear_pointwise(rows, other, self.weight, self.bias, "add")

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """`self(rows) * other [N, O]`."""
        return _ops._linear_pointwise(rows, other, self.weight, self.bias, "mul")


def laid_out(weight: Tensor, bias: Tensor | None = None) -> Product:
    """The product with `weight [O, I]` (float32, on the CPU) and `bias [O]`. Only where `available()`."""
    with torch.no_grad():
        return Product(_ops._reorder_linear_weight(weight.detach().contiguous(), ROWS), bias)


_kept: ContextVar[dict[tuple[object, ...], Tensor] | None] = ContextVar("maieutic_kept_weights", default=None)


@contextmanager
def unchanged() -> Iterator[None]:
    """Within, no weight changes: those that `trained` lays out stay so for the products that follow, up to `KEPT`."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


_summing: ContextVar[bool] = ContextVar("maieutic_summing_slopes", default=False)


@contextmanager
def summing() -> Iterator[None]:
    """Within, a backward pass leaves a weight's slope in its `grad` and tells autograd of none: a product adds to what
    is there as it goes, where autograd would have it written to memory first, and added up in a pass over both."""
    token = _summing.set(True)
    try:
        yield
    finally:
        _summing.reset(token)


def adds_up(weight: Tensor) -> bool:
    """Whether a slope is to be added to this weight's `grad` here and now: within `summing`, of a trained weight to
    whose gradient nobody listens."""
    listened: Any = weight
    heard = listened._backward_hooks or listened._post_accumulate_grad_hooks
    return _summing.get() and weight.is_leaf and weight.requires_grad and not heard


def weight_slope(weight: Tensor, slope: Tensor, rows: Tensor) -> Tensor | None:
    """`slope [N, O]`, `rows [N, I]` → `slopeᵀ rows`, or None where it has been added to the weight's `grad`."""
    if not adds_up(weight):
        return slope.t() @ rows
    if weight.grad is None:
        weight.grad = slope.t() @ rows
    else:
        weight.grad.addmm_(slope.t(), rows)
    return None


def keeping() -> bool:
    """Whether what is laid out now is kept for the next product."""
    return _kept.get() is not None


def arranged(weight: Tensor, turned: bool, laying: Callable[[Tensor], LaidOut] = laid_out) -> Tensor:
    """The weight `[O, I]`, or where `turned` its transpose, as `laying` lays it out; kept within `unchanged`."""
    kept, key = _kept.get(), (weight.data_ptr(), *weight.shape, turned, laying)
    if kept is not None and key in kept:
        return kept[key]
    made: Tensor = laying(weight.t() if turned else weight).weight
    if kept is not None and weight.nbytes + sum(x.nbytes for x in kept.values()) <= KEPT:
        kept[key] = made
    return made


def trained(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows [N, I]` → `[N, O]` with a first derivative, of which the part to `rows` is such a product too."""
    return _Trained.apply(rows, weight, bias)


class _Trained(torch.autograd.Function):
    """`y = x Wᵀ + b`: `dx = dy W`, `dW = dyᵀ x`, `db = Σ dy`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.owner = weight  # what is saved may come back as another tensor, whose `grad` nobody reads
        return Product(arranged(weight, turned=False), None if bias is None else bias.detach())(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        slope = slope.contiguous()
        to_rows = Product(arranged(weight, turned=True), None)(slope) if ctx.needs_input_grad[0] else None
        to_weight = weight_slope(ctx.owner, slope, rows) if ctx.needs_input_grad[1] else None
        return to_rows, to_weight, slope.sum(0) if ctx.needs_input_grad[2] else None


@cache
def available() -> bool:
    """Does this build of torch have these products, and do they give what they should? Tried once."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias, other = (torch.randn(shape, generator=generator) for shape in ((3, 8), (5, 8), (5,), (3, 5)))
    expected = torch.nn.functional.linear(rows, weight, bias)
    try:
        made = laid_out(weight, bias)
        with torch.no_grad():
            pairs = [
                (made(rows), expected),
                (made(rows, "swish"), torch.nn.functional.silu(expected)),
                (made.plus(rows, other), expected + other),
                (made.times(rows, other), expected * other),
            ]
    except (AttributeError, RuntimeError, TypeError):  # built without it, or with another signature
        return False
    return all(torch.allclose(found, wanted, atol=1e-5) for found, wanted in pairs)
