"""Losses of one turn: a term that counts in the model's first turn only.

    tokens   prompt   6 + 5 = 12 . <end>   \n user: check \n assistant:   6 + 5 = 11 . <end>
    mask     0        1 …               1  0                             1 …               1
    counts            1 …               1  0                             0 …               0

Training a model to correct itself may teach it to begin badly, so that there is something to correct, or to answer the
same twice. SCoRe's first stage (arXiv 2409.12917, §5.1) therefore keeps the first turn near the base model with a KL of
its own, `clipped_surrogate() + 0.1 * in_first_turn(kl_to_reference())`, while the second one learns.

Letters: `B` rows, `T` tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maieutic.core.losses import kl_to_reference
from maieutic.core.parts import Loss
from maieutic.types import Batch, Outputs


def first_turn(mask: Tensor) -> Tensor:
    """`[B, T]`: True on a row's chosen tokens before anybody else wrote.

    What a tool writes within a turn ends it here: a mask does not say who wrote.
    """
    entered = mask.cumsum(1) > 0
    left = (entered & ~mask).cumsum(1) > 0
    return mask & ~left


def in_first_turn(loss: Loss) -> Loss:
    """Lₜ · 1[t in the first turn], `[B, T]`; a loss of 0 stays none. What the loss watches is watched everywhere."""
    if loss.absent:
        return loss

    def masked(outputs: Outputs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        value, seen = loss.terms(outputs, batch)
        return torch.where(first_turn(batch.mask), value, torch.zeros_like(value)), dict(seen)

    return Loss(
        f"in_first_turn({loss.label})", masked, loss.needs, loss.requires, loss.memory, corrected=loss.corrected
    )


def kl_by_turn(estimator: Callable[..., Tensor], everywhere: float, first: float) -> Loss:
    """Lₜ = (β + β₁ · 1[t in the first turn]) · KLₜ, with β `everywhere` and β₁ more in the `first` turn."""
    divergence = kl_to_reference(estimator)
    return everywhere * divergence + first * in_first_turn(divergence)
