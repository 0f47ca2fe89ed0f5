"""Losses: per token, never reduced. `weigh` says how tokens count; the update is on `sum(weights * loss)`.

A loss reads what the policy says now (`outputs.logprobs [B, T]`, with gradient) and columns of the batch (without),
and returns `[B, T]`. Entries off the mask do not matter: their weight is 0. Beside the loss it may return per-token
quantities worth watching; their masked means are logged.

Letters: `B` rows, `T` tokens; `ρ = exp(logprobs − old_logprobs)` the probability ratio; `A` advantages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from maieutic.core.kl import LIMIT, k2, k3
from maieutic.core.parts import loss, needs
from maieutic.types import Batch, Outputs

Terms = tuple[Tensor, Mapping[str, Tensor]]


@loss
def nll() -> Callable[[Outputs, Batch], Tensor]:
    """Lₜ = −log π(aₜ): the negative log-likelihood, maximum likelihood of the chosen tokens."""

    def negative_log_likelihood(outputs: Outputs, _: Batch) -> Tensor:
        return -outputs.logprobs

    return negative_log_likelihood


@loss
def policy_gradient() -> Callable[[Outputs, Batch], Tensor]:
    """Lₜ = −Aₜ log π(aₜ), whose gradient is −A ∇log π (REINFORCE; Williams, 1992).

    For rows sampled by the present policy; nothing corrects for an older one.
    """

    @needs("advantages")
    def score_function(outputs: Outputs, batch: Batch) -> Tensor:
        return -batch.advantages * outputs.logprobs

    return score_function


@loss
def surrogate() -> Callable[[Outputs, Batch], Tensor]:
    """Lₜ = −ρₜ Aₜ, with ρₜ = π(aₜ) / π_old(aₜ): the unclipped objective, for updates that bound the step themselves.

    TRPO, arXiv 1502.05477. At ρ = 1 its gradient is that of `policy_gradient`.
    """

    @needs("advantages", "old_logprobs")
    def importance_weighted(outputs: Outputs, batch: Batch) -> Tensor:
        log_ratio = (outputs.logprobs - batch.old_logprobs).clamp(-LIMIT, LIMIT)
        return -torch.exp(log_ratio) * batch.advantages

    return importance_weighted


def _check_clip(name: str, low: float, high: float) -> None:
    if not 0.0 <= low < 1.0 or high < 0.0:
        raise ValueError(
            f"{name}: got epsilon={low}, epsilon_high={high}; expected 0 ≤ epsilon < 1 and epsilon_high ≥ 0"
        )


def _clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Terms:
    """−min(ρ A, clip(ρ, 1 − low, 1 + high) A), and where the clip removed the gradient, all `[B, T]`."""
    objective = torch.minimum(ratio * advantages, ratio.clamp(1.0 - low, 1.0 + high) * advantages)
    seen = ratio.detach()
    return -objective, {
        "clip_ratio/low": ((seen < 1.0 - low) & (advantages < 0)).to(seen.dtype),
        "clip_ratio/high": ((seen > 1.0 + high) & (advantages > 0)).to(seen.dtype),
    }


@loss
def clipped_surrogate(epsilon: float = 0.2, epsilon_high: float | None = None) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = −min(ρₜ Aₜ, clip(ρₜ, 1 − ε, 1 + ε_high) Aₜ), with ρₜ = π(aₜ) / π_old(aₜ).

    PPO, arXiv 1707.06347, eq. 7; `epsilon_high` defaults to `epsilon`, a larger one is DAPO's clip-higher
    (arXiv 2503.14476, eq. 10). At the first optimiser step ρ is exactly 1: the loss is −A and its gradient that of
    `policy_gradient`, so a loss near 0 with a gradient that is not is no fault. For A < 0 there is no upper clip.

    Watches `clip_ratio/low`, `clip_ratio/high` (shares of tokens whose gradient the clip removed), `policy/ratio`
    and `policy/kl_to_old` (k3).
    """
    high = epsilon if epsilon_high is None else epsilon_high
    _check_clip("clipped_surrogate", epsilon, high)

    @needs("advantages", "old_logprobs")
    def surrogate(outputs: Outputs, batch: Batch) -> Terms:
        log_ratio = (outputs.logprobs - batch.old_logprobs).clamp(-LIMIT, LIMIT)
        ratio = torch.exp(log_ratio)
        value, clipped = _clipped(ratio, batch.advantages, epsilon, high)
        kl_to_old = k3(outputs.logprobs.detach(), batch.old_logprobs)
        return value, {**clipped, "policy/ratio": ratio.detach(), "policy/kl_to_old": kl_to_old}

    return surrogate


@loss
def clipped_sequence_ratio(epsilon: float = 3e-4, epsilon_high: float = 4e-4) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = −min(s Aₜ, clip(s, 1 − ε, 1 + ε_high) Aₜ), with s = exp(meanₜ log(π/π_old)ₜ) over the row's chosen tokens.

    GSPO, arXiv 2507.18071: one ratio for a whole completion, the geometric mean of its tokens', so that
    what is clipped is what was rewarded. Every chosen token bears the row's loss; weigh by `sequence_mean`, which makes
    that once a row. The clip is far tighter than a token's, as s is a mean. Watches `clip_ratio/low`, `clip_ratio/high`
    and `policy/sequence_ratio`.
    """
    _check_clip("clipped_sequence_ratio", epsilon, epsilon_high)

    @needs("advantages", "old_logprobs")
    def surrogate(outputs: Outputs, batch: Batch) -> Terms:
        log_ratio = torch.where(batch.mask, outputs.logprobs - batch.old_logprobs, 0.0)
        mean = log_ratio.sum(1, keepdim=True) / batch.mask.sum(1, keepdim=True).clamp(min=1)
        ratio = torch.exp(mean.clamp(-LIMIT, LIMIT)).expand_as(log_ratio)
        # what stands off the mask would reach every token of the row by way of the shared ratio
        advantages = torch.where(batch.mask, batch.advantages, 0.0)
        value, clipped = _clipped(ratio, advantages, epsilon, epsilon_high)
        return value, {**clipped, "policy/sequence_ratio": ratio.detach()}

    return surrogate


@loss
def clipped_weight(cap: float = 5.0) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = −stop_gradient(min(ρₜ, cap)) Aₜ log π(aₜ): the weight is clipped, the gradient never is.

    CISPO, arXiv 2506.13585. Where PPO's clip silences a token whose probability moved much, here it still
    teaches, with weight `cap`. `cap` is absolute (ρ ≤ cap), as in TRL; verl writes it as 1 + ε and clips below too.
    Watches `clip_ratio/high`.
    """
    if cap <= 0.0:
        raise ValueError(f"clipped_weight: got cap={cap}; expected more than 0")

    @needs("advantages", "old_logprobs")
    def weighted_score(outputs: Outputs, batch: Batch) -> Terms:
        ratio = torch.exp((outputs.logprobs.detach() - batch.old_logprobs).clamp(-LIMIT, LIMIT))
        value = -ratio.clamp(max=cap) * batch.advantages * outputs.logprobs
        return value, {"clip_ratio/high": (ratio > cap).to(ratio.dtype)}

    return weighted_score


@loss
def kl_to_reference(estimator: Callable[[Tensor, Tensor], Tensor] = k2) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = estimator(log π, log ref)ₜ: scale it with a coefficient, `clipped_surrogate() + 0.04 * kl_to_reference(k3)`.

    What the estimator's *gradient* pulls towards is in `maieutic.core.kl`: k2 (the default) the reverse KL, k3 (GRPO's
    paper, arXiv 2402.03300, eq. 4) the forward KL, k1 nothing at all. Watches `kl/reference` (k3, never negative).
    """

    if not callable(estimator):
        raise ValueError(f"kl_to_reference: got estimator {estimator!r}; expected k1, k2 or k3 of maieutic.core.kl")

    @needs("ref_logprobs")
    def divergence(outputs: Outputs, batch: Batch) -> Terms:
        value = estimator(outputs.logprobs, batch.ref_logprobs)
        return value, {"kl/reference": k3(outputs.logprobs.detach(), batch.ref_logprobs)}

    return divergence
