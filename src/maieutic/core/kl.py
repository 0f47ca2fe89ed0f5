"""Estimators of KL(π ‖ ref) from one sampled token, and what each does as a loss.

With δ = log π(a) − log ref(a) for a token a drawn from π (John Schulman, "Approximating KL divergence", 2020):

    estimator   value            E[value]       gradient as a *loss*, on-policy     as a *reward* (no gradient)
    k1          δ                KL(π‖ref)      0: it regularises nothing           ∇KL(π‖ref), exact
    k2          δ²/2             ≈ KL           ∇KL(π‖ref), exact                   wrong
    k3          e^{−δ} + δ − 1   KL(π‖ref)      ∇KL(ref‖π), the *forward* KL        wrong, vanishing near ref

    k3_plus     k3's           KL(π‖ref)      that of k2                          as k3
    corrected_k2, corrected_k3 also where the token was drawn from an older policy: ∇KL(π‖ref), exact

So: k1 in the reward (`kl_in_reward`) or k2 in the loss when the reverse KL is meant; k3 in the loss is what GRPO's
paper has (arXiv 2402.03300, eq. 4), and it pulls towards the forward KL. k3 is never negative, which makes it the
one to look at in a log. Log-ratios are clamped to ±`LIMIT` before `exp` so that one absurd token cannot overflow;
a clamped token has another gradient, so `kl_to_reference` counts them (`kl/limited`).

An estimator is a function of `(logprobs, ref_logprobs)` and, by their names, of the columns that it declares with
`@needs`. Letters: `B` rows, `T` tokens; ρ = π/π_old the probability ratio. Units: nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from maieutic.core.parts import needs

LIMIT = 20.0


def limited(log_ratio: Tensor) -> Tensor:
    """1 = where |log-ratio| is beyond `LIMIT`, else 0, in the shape of `log_ratio`: what the clamp changed."""
    return (log_ratio.detach().abs() > LIMIT).to(log_ratio.dtype)


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


def k3_plus(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k3⁺ₜ = k2ₜ + stop_gradient(k3ₜ − k2ₜ), `[B, T]`: the value of k3, the gradient of k2.

    Straight through: what is logged is never negative and unbiased, what is followed is the reverse KL. Exact for
    tokens that the present policy drew. verl calls it "k3+".
    """
    gradient = k2(logprobs, ref_logprobs)
    return gradient + (k3(logprobs, ref_logprobs) - gradient).detach()


def _ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    return torch.exp((logprobs - old_logprobs).clamp(-LIMIT, LIMIT))


@needs("old_logprobs")
def corrected_k2(logprobs: Tensor, ref_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """ρk2ₜ = stop_gradient(ρₜ) · k2ₜ, `[B, T]`: the gradient of k2 for tokens that π_old drew.

    Its expectation under π_old is ∇KL(π‖ref) exactly; k2 itself is biased there.
    """
    return _ratio(logprobs, old_logprobs).detach() * k2(logprobs, ref_logprobs)


@needs("old_logprobs")
def corrected_k3(logprobs: Tensor, ref_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """ρk3ₜ = ρₜ · k3ₜ with gradient through ρₜ, `[B, T]`: k3 whose gradient is that of the reverse KL.

    Its expectation under π_old is KL(π‖ref) and the gradient of that is ∇KL(π‖ref), exactly, also on-policy, where
    the value is that of k3 (DeepSeek-V3.2, arXiv 2512.02556; TRL's `use_bias_correction_kl`).
    """
    return _ratio(logprobs, old_logprobs) * k3(logprobs, ref_logprobs)


ESTIMATORS: Mapping[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (k1, k2, k3, k3_plus, corrected_k2, corrected_k3)
}
