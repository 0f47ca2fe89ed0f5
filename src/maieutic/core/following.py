"""A reference that follows the policy: when it moves, and how far.

    θ_ref ← α θ + (1 − α) θ_ref        every `every` optimiser steps; α (`mix`) multiplies the *policy*

As in TRL, whose defaults are α = 0.6 every 512 steps; RLT (arXiv 2506.08388) has α = 0.9 every 32.

A reference is asked for log-probs once a step of the loop, before the weights move, so it moves then: by the number of
multiples of `every` that the count of optimiser steps has passed since it moved last. A step of the loop that makes
several optimiser steps and passes m multiples at once moves it m times towards the same weights. Asked again without
an update in between, it stays. Counting optimiser steps makes this the same after a resume as without one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Following:
    """How a reference follows: `every` optimiser steps, by `mix` of the policy's weights.

    `version` is the count of optimiser steps where it begins. `moves` counts the multiples of `every` that it has
    followed, and is all that a checkpoint must keep beside the weights. Raises ValueError for an `every` below 1 or a
    `mix` outside (0, 1].
    """

    def __init__(self, every: int, mix: float, version: int = 0) -> None:
        if every < 1 or not 0.0 < mix <= 1.0:
            raise ValueError(
                f"a reference that follows: got every={every}, mix={mix}; expected at least 1 optimiser step and "
                "0 < mix ≤ 1 (1: it becomes the policy; leave the table out for a reference that stays)"
            )
        self.every, self.mix = every, mix
        self.moves = version // every

    def move(self, version: int, reference: Mapping[str, Tensor], policy: Mapping[str, Tensor]) -> None:
        """Bring the `reference` weights up to optimiser step `version`, in place; both mappings have the same names.

        m moves at once: θ_ref ← (1 − (1 − α)ᵐ) θ + (1 − α)ᵐ θ_ref.
        """
        due = version // self.every - self.moves
        if due > 0:
            blend(reference, policy, 1.0 - (1.0 - self.mix) ** due)
            self.moves += due


@torch.no_grad()
def blend(reference: Mapping[str, Tensor], policy: Mapping[str, Tensor], share: float) -> None:
    """θ_ref ← share · θ + (1 − share) · θ_ref for the weights of each name, in place. Exactly θ where share is 1."""
    for name, weight in reference.items():
        weight.mul_(1.0 - share).add_(policy[name], alpha=share)
