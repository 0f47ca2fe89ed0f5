"""From last hidden states to log-probs and entropies in one differentiable step: the head's product, the softmax, and
back, where compiled kernels are to be had (`compiled_passes.usual`).

    z = h Wᵀ        g = ∂/∂z, see `maieutic.models.softmax`        ∂/∂h = g W        ∂/∂W = gᵀ h

The gradient is made in the place of the logits, once, and both products are made of it whole: no logits are copied, and
`W` is read once for all predictions. Where the logits of a micro-batch are too many to be held, pieces of them are made
again in the backward pass.

    `M` predictions · `E` width of a hidden state · `V` vocabulary · `I` ids that are scored of each
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

from maieutic.backends.local import kernels
from maieutic.backends.local.compiled_passes import agree, usual
from maieutic.backends.local.lean import MANY
from maieutic.backends.local.packing import filling_of
from maieutic.backends.local.products import Product, arranged, available, keeping, weight_slope
from maieutic.backends.local.trunk import Trunk
from maieutic.models.lora import plain
from maieutic.models.softmax import scores

PIECE = 1 << 22
"""Logits of a piece, where they are made again."""

#: (states [M, E], ids [M, I], temperature, logits that may be held) → log-probs [M, I] and entropies [M], in nats.
Scoring = Callable[[Tensor, Tensor, float, int], tuple[Tensor, Tensor]]


def scoring_for(trunk: Trunk, made: Any = None) -> Scoring | None:
    """How this trunk's head is scored in one step; None where that cannot be, or is not worth it.

    `made`: the kernels (None: those of this package, for a model of `kernels.SMALLEST` weights).
    """
    found = plain(trunk.head)
    if found is None or type(trunk.head) is not nn.Linear or not available():
        return None  # an adapter of the head may be switched on later
    if found.weight.device.type != "cpu" or found.weight.dtype != torch.float32:
        return None
    if made is None and sum(each.numel() for each in trunk.body.parameters()) >= kernels.SMALLEST:
        made = _usual()
    return None if made is None else partial(scored, made, trunk.head)


@cache
def _usual() -> Any:
    """The kernels of an update, or None where they are not to be had or score otherwise. Tried once."""
    made = usual()
    return made if made is not None and right(made) else None


def right(made: Any) -> bool:
    """Whether the kernels `made` give the log-probs, entropies and slopes of `maieutic.models.softmax`."""
    draw = torch.Generator().manual_seed(0)
    states, weight = torch.randn(40, 8, generator=draw), torch.randn(50, 8, generator=draw)
    ids = torch.randint(0, 50, (40, 1), generator=draw)

    def found(states: Tensor, weight: Tensor) -> Tensor:
        return torch.cat(
            [x.flatten() for x in _Scored.apply(made, states, weight, None, ids, 0.7, weight.numel() * 40)]
        )

    def expected(states: Tensor, weight: Tensor) -> Tensor:
        said = scores(linear(states, weight), ids[:, 0], 0.7, entropy=True)
        return torch.cat([x for x in said if x is not None])

    return agree(made, "scores", [(found, expected, [states, weight])])


def scored(
    made: Any, head: nn.Module, states: Tensor, ids: Tensor, temperature: float, held: int
) -> tuple[Tensor, Tensor]:
    """Log-probs `[M, I]` of `ids` and entropies `[M]`, of states `[M, E]` by the kernels `made`."""
    found = plain(head)
    assert found is not None, "seen by scoring_for"
    held = held if torch.is_grad_enabled() else 0
    return _Scored.apply(made, states, found.weight, found.bias, ids, temperature, held)


class _Scored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, made: Any, states: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, temperature: float,
        held: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        count = len(states)
        found, spread, total = states.new_empty(ids.shape), states.new_empty(count), states.new_empty(count)
        whole = count * len(weight) <= held
        for at in [slice(0, count)] if whole else _pieces(count, len(weight)):
            logits = _logits(states[at], weight, bias)
            given = (logits[: at.stop - at.start].numpy(), ids[at].numpy(), np.float32(1 / temperature))
            made.score(kernels.crew(), *given, found[at].numpy(), spread[at].numpy(), total[at].numpy())
            if whole:
                ctx.logits = logits
        ctx.save_for_backward(states, weight, bias, ids, spread, total)
        ctx.owner = weight  # what is saved may come back as another tensor, whose `grad` nobody reads
        ctx.made, ctx.warmth, ctx.whole = made, np.float32(1 / temperature), whole
        ctx.set_materialize_grads(False)
        return found, spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_found: Tensor | None, to_spread: Tensor | None) -> tuple[Tensor | None, ...]:
        states, weight, bias, ids, spread, total = ctx.saved_tensors
        if to_found is None and to_spread is None:
            return (None,) * 7
        to_found = states.new_zeros(ids.shape) if to_found is None else to_found.contiguous()
        to_spread = states.new_zeros(len(states)) if to_spread is None else to_spread.contiguous()
        to_states = torch.empty_like(states) if ctx.needs_input_grad[1] else None
        sums: list[Tensor | None] = [None, None]
        for at in [slice(0, len(states))] if ctx.whole else _pieces(len(states), len(weight)):
            logits = _taken(ctx) if ctx.whole else _logits(states[at], weight, bias)
            rows = logits[: at.stop - at.start]
            kept = (ids[at].numpy(), ctx.warmth, spread[at].numpy(), total[at].numpy())
            ctx.made.score_slope(kernels.crew(), rows.numpy(), *kept, to_found[at].numpy(), to_spread[at].numpy())
            if to_states is not None:
                logits[len(rows) :] = 0
                to_states[at] = _product(logits, weight, turned=True, bias=None)[: len(rows)]
            parts = [
                weight_slope(ctx.owner, rows, states[at]) if ctx.needs_input_grad[2] else None,
                rows.sum(0) if ctx.needs_input_grad[3] else None,
            ]
            sums = [b if a is None else a if b is None else a.add_(b) for a, b in zip(sums, parts, strict=True)]
        return None, to_states, *sums, None, None, None


def _taken(ctx: Any) -> Tensor:
    """The logits that were held, once: their gradient is made in their place."""
    if ctx.logits is None:
        raise RuntimeError("the scores of this batch were differentiated before; compute them anew")
    logits, ctx.logits = ctx.logits, None
    return logits


def _pieces(count: int, vocabulary: int) -> list[slice]:
    size = max(MANY, PIECE // vocabulary)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[M, V]`, and some rows of no meaning behind them: how many products there are to be compiled counts too."""
    given = pad(states.detach(), (0, 0, 0, filling_of(len(states))))
    return _product(given, weight, turned=False, bias=None if bias is None else bias.detach())


def _product(rows: Tensor, weight: Tensor, turned: bool, bias: Tensor | None) -> Tensor:
    if len(rows) < MANY or not keeping():
        own = weight.detach()
        return linear(rows, own.t() if turned else own, bias)
    return Product(arranged(weight, turned), bias)(rows)
