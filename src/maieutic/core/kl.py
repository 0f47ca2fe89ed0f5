"""Estimators of KL(π ‖ ref) from one sampled token, and what each does as a loss.

With δ = log π(a) − log ref(a) for a token a drawn from π (John Schulman, "Approximating KL divergence", 2020):

    estimator   value            E[value]       gradient as a *loss*, on-policy     as a *reward* (no gradient)
    k1          δ                KL(π‖ref)      0: it regularises nothing           ∇KL(π‖ref), exact
    k2          δ²/2             ≈ KL           ∇KL(π‖ref), exact                   wrong
    k3          e^{−δ} + δ − 1   KL(π‖ref)      ∇KL(ref‖π), the *forward* KL        wrong, vanishing near ref

So: k1 in the reward (`kl_in_reward`) or k2 in the loss when the reverse KL is meant; k3 in the loss is what GRPO's
paper has (arXiv 2402.03300, eq. 4), and it pulls towards the forward KL. k3 is never negative, which makes it the
one to look at in a log. Log-ratios are clamped to ±`LIMIT` before `exp` so that one absurd token cannot overflow.

Letters: `B` rows, `T` tokens. Units: nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LIMIT = 20.0


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k1ₜ = δₜ = log π − log ref, `[B, T]`."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k2ₜ = δₜ² / 2, `[B, T]`."""
    return 0.5 * (logprobs - ref_logprobs) ** 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k3ₜ = exp(−δₜ) + δₜ − 1, `[B, T]`, never negative."""
    log_ratio = (ref_logprobs - logprobs).clamp(-LIMIT, LIMIT)
    return torch.exp(log_ratio) - log_ratio - 1.0


ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
