"""In which numbers a module computes: those of its weights, or bfloat16 products on float32 weights.

    computed_in("auto", weight)      float32 on a CPU; bfloat16 on a GPU that has it, where the weights are float32

With bfloat16 the weights stay float32, so that an update of 1e-6 is not lost, and so do the states between layers,
norms, rotations and softmaxes; what goes into a product, or into attention, is rounded to bfloat16. Weights that are
kept in another precision (a frozen model loaded in bfloat16) are computed with as they are.

    `N` rows · `E` width · `V` vocabulary
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from maieutic.errors import ConfigError, UnknownName
from maieutic.models.lora import plain

log = logging.getLogger("maieutic.models")

#: name → what products of float32 weights are computed in; None: what suits the device.
PRECISIONS: dict[str, torch.dtype | None] = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}

#: name → what a policy samples in, where that is not what it learns in (None: it is).
SAMPLED_IN: dict[str, torch.dtype | None] = {"same": None, "bfloat16": torch.bfloat16, "int8": torch.qint8}


def numbers_of(precision: str, device: torch.device) -> torch.dtype:
    """What the products of float32 weights are computed in on that device.

    Raises `UnknownName` for another name, `ConfigError` for bfloat16 on a GPU that has no units for it.
    """
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    asked = PRECISIONS[precision]
    if device.type != "cuda":
        return asked or torch.float32
    able = _has_bfloat16(device.index or 0)
    if asked is torch.bfloat16 and not able:
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"got precision 'bfloat16' on {name}, which has no units for it (they came with compute capability 8.0, "
            "the A100); expected 'float32' there, or 'auto'. float16 is not offered: it needs its losses scaled"
        )
    return asked or (torch.bfloat16 if able else torch.float32)


def computed_in(precision: str, weight: Tensor) -> torch.dtype:
    """What products of a module with such weights are computed in. Raises as `numbers_of`."""
    return numbers_of(precision, weight.device) if weight.dtype == torch.float32 else weight.dtype


@cache
def _has_bfloat16(index: int) -> bool:
    able = torch.cuda.get_device_capability(index) >= (8, 0)
    if not able:
        log.warning(
            "%s has no units for bfloat16, so everything is computed in float32 there.",
            torch.cuda.get_device_name(index),
        )
    return able


def computing(weight: Tensor, numbers: torch.dtype) -> AbstractContextManager[Any]:
    """Within, modules with weights such as `weight` compute their products in `numbers`."""
    if weight.dtype == numbers:
        return nullcontext()
    # Without the cache a weight that is used twice (tied to the head) is rounded twice: copies do not outlive a call.
    return torch.autocast(weight.device.type, numbers, cache_enabled=False)


def wide_head(head: nn.Module, numbers: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """The language-model head with its products in `numbers` and its logits in float32: `[N, E]` → `[N, V]`.

    bfloat16 has 8 bits: logits of 20 would be rounded by 0.06 nats, more than anything before them. None for a head
    that is more than a linear one without bias or adapter. What is rounded is rounded now: make it anew after the
    weights have moved.
    """
    found = plain(head)
    if found is None or found.bias is not None or found.down is not None:
        return None
    weight = found.weight
    narrow = weight.detach().to(numbers)
    return lambda states: _Wide.apply(states, weight, narrow)


def wide(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` of coarse numbers, summed up and returned in float32."""
    if left.device.type == "cuda" and _widens(left.device.index or 0, left.dtype):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


@cache
def _widens(index: int, dtype: torch.dtype) -> bool:
    """Has this build of torch a product that returns wider numbers than it takes? Tried once."""
    ones = torch.ones(16, 16, dtype=dtype, device=torch.device("cuda", index))
    try:
        return bool((torch.mm(ones, ones, out_dtype=torch.float32) == 16).all())
    except (RuntimeError, TypeError) as error:
        log.warning("products of %s are widened in float32, slowly: %s", dtype, str(error).splitlines()[0])
        return False


class _Wide(torch.autograd.Function):
    """`states [N, E]`, `weight [V, E]` and the same narrow → float32 logits `[N, V]`."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, narrow: Tensor) -> Tensor:
        given = states.to(narrow.dtype)
        ctx.save_for_backward(given, narrow)
        ctx.dtypes = states.dtype, weight.dtype
        return wide(given, narrow.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        given, narrow = ctx.saved_tensors
        slope = slope.to(narrow.dtype)
        to_states = wide(slope, narrow).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        to_weight = wide(slope.t(), given).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        return to_states, to_weight, None
