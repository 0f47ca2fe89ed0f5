"""Log-probs and entropies of logits, with nothing of their size stored beside them.

    log p(i) = z_i - lse(z)         H = -sum_i p_i log p_i         z = logits / temperature
    ∂ log p(i) / ∂z_j = [i = j] - p_j                              ∂H / ∂z_j = -p_j (log p_j + H)

Written with ordinary tensors, these keep four or five `[M, V]` for the backward pass and go through memory some twenty
times. Here a few rows at a time stay in a processor's cache, one number a row is kept (its logsumexp), and the softmax
is made once more in the backward pass. The gradient cannot be differentiated again: what needs that asks for logits.

    `M` predictions · `V` vocabulary · `K` candidates
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IN_CACHE, AT_ONCE = 1 << 19, 1 << 24
"""Numbers that are worked on together: on a CPU few enough for its cache, elsewhere enough to fill the device."""


class Scores(NamedTuple):
    """What the softmax says: `logprobs [M]`, `entropy [M]`, `candidates [M, K]` (the last two where asked), in nats."""

    logprobs: Tensor
    entropy: Tensor | None
    candidates: Tensor | None


def scores(
    logits: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    *,
    entropy: bool = False,
    candidates: Tensor | None = None,
) -> Scores:
    """Log-probs of `tokens [M]` and of `candidates [M, K]` under `logits [M, V]`, and entropies, in float32 at least.

    As `causal.selected_logprobs_and_entropy` and `causal.candidate_logprobs`, to rounding. Raises ValueError for shapes
    that do not fit, or a temperature that is not positive.
    """
    if logits.dim() != 2 or tokens.shape != logits.shape[:1]:
        raise ValueError(f"got logits {tuple(logits.shape)} for tokens {tuple(tokens.shape)}; expected [M, V] and [M]")
    if not temperature > 0:
        raise ValueError(
            f"got temperature {temperature}; expected a positive one (greedy sampling is scored at temperature 1)"
        )
    ids = tokens[:, None] if candidates is None else torch.cat([tokens[:, None], candidates], dim=1)
    found, spread = _Scores.apply(logits, ids, temperature, entropy)
    return Scores(found[:, 0], spread if entropy else None, None if candidates is None else found[:, 1:])


class _Scores(torch.autograd.Function):
    """`logits [M, V]`, `ids [M, I]` → log-probs of the ids `[M, I]`, entropies `[M]` (zeros where not asked)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        found = torch.empty(ids.shape, dtype=wide, device=logits.device)
        spread, total = found.new_zeros(len(ids)), found.new_empty(len(ids))
        for at in _chunks(logits):
            scaled = _scaled(logits[at], wide, temperature)
            top = scaled.amax(dim=1, keepdim=True)
            below = scaled - top
            chosen = below.gather(1, ids[at])
            powers = below.exp()
            mass = powers.sum(dim=1)
            rest = mass.log()
            found[at] = chosen - rest[:, None]
            total[at] = top[:, 0] + rest
            if entropy:
                spread[at] = rest - powers.mul_(below).sum(dim=1) / mass
        ctx.save_for_backward(logits, ids, total, spread)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return found, spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_found: Tensor | None, to_spread: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        logits, ids, total, spread = ctx.saved_tensors
        if to_found is None and to_spread is None:
            return None, None, None, None
        if to_found is None:
            to_found = total.new_zeros(ids.shape)
        sums = to_found.sum(dim=1)
        gradient = torch.empty_like(logits)
        for at in _chunks(logits):
            own = gradient[at]
            # In place where logits are as wide as what is computed; else narrowed at the end.
            room = own if own.dtype == total.dtype else None
            below = torch.sub(_scaled(logits[at], total.dtype, ctx.temperature), total[at, None], out=room)
            chances = below.exp()
            if to_spread is None:
                torch.mul(chances, -sums[at, None], out=below)
            else:
                below.add_(spread[at, None]).mul_(to_spread[at, None]).add_(sums[at, None]).mul_(chances).neg_()
            below.scatter_add_(1, ids[at], to_found[at])
            if ctx.temperature != 1:
                below.div_(ctx.temperature)
            if room is None:
                own.copy_(below)
        return gradient, None, None, None


def _chunks(logits: Tensor) -> list[slice]:
    """Row ranges that are worked on one after another."""
    rows = max(1, (IN_CACHE if logits.device.type == "cpu" else AT_ONCE) // logits.shape[1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


def _scaled(logits: Tensor, dtype: torch.dtype, temperature: float) -> Tensor:
    wide = logits.to(dtype)
    return wide if temperature == 1 else wide / temperature
