"""A KL penalty that finds its own strength: the coefficient follows a target instead of being chosen.

    β ← β · (1 + clamp(KL / target − 1, −.2, .2) · n / horizon)            after each batch of n rows

Letters: `B` rows, `T` tokens. Units: nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maieutic.core.credit import kl_in_reward
from maieutic.core.kl import k1
from maieutic.core.parts import credit, needs, remembers
from maieutic.types import Batch

#: How far from the target, as a share of it, a KL still strengthens the correction.
SURPRISE = 0.2


@dataclass
class KLController:
    """The coefficient β, which rises while the KL is above `target` and falls while it is below.

    >>> KLController(beta=0.2, target=6.0, horizon=10_000)
    """

    beta: float
    target: float
    horizon: float

    def __post_init__(self) -> None:
        if not (self.beta > 0 and self.target > 0 and self.horizon > 0):
            raise ValueError(
                f"got beta={self.beta}, target={self.target}, horizon={self.horizon}; expected all of them above 0 "
                "(a β of 0 would stay 0; for no penalty take kl_in_reward(0))"
            )

    @property
    def watched(self) -> dict[str, float]:
        """For the log."""
        return {"kl/beta": self.beta}

    def follow(self, kl: float, rows: int) -> None:
        """Adapt β to the KL that was measured on so many rows."""
        surprise = min(max(kl / self.target - 1.0, -SURPRISE), SURPRISE)
        self.beta *= 1.0 + surprise * rows / self.horizon

    def state(self) -> dict[str, Any]:
        """β."""
        return {"beta": self.beta}

    def restore(self, state: Mapping[str, Any]) -> None:
        """β as it was."""
        self.beta = float(state["beta"])


@credit
def adaptive_kl_in_reward(beta: float = 0.2, target: float = 6.0, horizon: float = 10_000) -> Callable[[Batch], Batch]:
    """`kl_in_reward(β)` whose β = `beta` at first and then follows `target` (arXiv 1909.08593, §2.2).

    KL is that of a completion, estimated as Σₜ k1ₜ over a row's chosen tokens, its mean taken over the batch's rows:
    the target is in nats a completion, not a token, and depends on how long completions are. A batch is charged the β
    that was there before it; then β follows, `horizon` counting rows: with 10 000 and 256 rows a batch it moves by half
    a per cent a batch at most. The defaults are those of TRL's former PPO trainer.

    β is logged as `kl/beta`, and remembered: it is saved with a run's checkpoints and restored. An algorithm that is
    used for two runs at once would share it; make one for each.
    """
    controller = KLController(beta, target, horizon)

    @remembers(controller)
    @needs("old_logprobs", "ref_logprobs")
    def give(batch: Batch) -> Batch:
        charged = kl_in_reward(controller.beta)(batch)
        divergence = (k1(batch.old_logprobs, batch.ref_logprobs) * batch.mask).sum(1)
        controller.follow(float(divergence.mean()), batch.size)
        return charged

    return give
