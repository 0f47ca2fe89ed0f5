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

from maieutic.core.kl import LIMIT, k2, k3, limited
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


def _ratio(now: Tensor, before: Tensor, anchor: str = "old") -> Terms:
    """ρₜ = exp(now − before), with the gradient of `now`, and what is watched of it, all `[B, T]`."""
    difference = now - before
    ratio = torch.exp(difference.clamp(-LIMIT, LIMIT))
    return ratio, {
        "policy/ratio": ratio.detach(),
        f"policy/kl_to_{anchor}": k3(now.detach(), before),
        "policy/ratio_limited": limited(difference),
    }


@loss
def surrogate() -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = −ρₜ Aₜ, with ρₜ = π(aₜ) / π_old(aₜ): the unclipped objective, for updates that bound the step themselves.

    TRPO, arXiv 1502.05477. At ρ = 1 its gradient is that of `policy_gradient`. Watches `policy/ratio`,
    `policy/kl_to_old` and `policy/ratio_limited`, as `clipped_surrogate` does.
    """

    @needs("advantages", "old_logprobs")
    def importance_weighted(outputs: Outputs, batch: Batch) -> Terms:
        ratio, seen = _ratio(outputs.logprobs, batch.old_logprobs)
        return -ratio * batch.advantages, seen

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


#: What a ratio is taken to: the policy that the batch began with, or the reference.
ANCHORS: Mapping[str, str] = {"old": "old_logprobs", "ref": "ref_logprobs"}


@loss
def clipped_surrogate(
    epsilon: float = 0.2, epsilon_high: float | None = None, dual_clip: float | None = None, anchor: str = "old"
) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = −min(ρₜ Aₜ, clip(ρₜ, 1 − ε, 1 + ε_high) Aₜ), with ρₜ = π(aₜ) / π_old(aₜ).

    PPO, arXiv 1707.06347, eq. 7; `epsilon_high` defaults to `epsilon`, a larger one is DAPO's clip-higher
    (arXiv 2503.14476, eq. 10). At the first optimiser step ρ is exactly 1: the loss is −A and its gradient that of
    `policy_gradient`, so a loss near 0 with a gradient that is not is no fault. For A < 0 there is no upper clip, but
    with `dual_clip` = c the loss there is at most −c Aₜ, with gradient 0 beyond (arXiv 1912.09729, with c = 3).

    `anchor="ref"` puts the reference in the place of π_old, as a course on GRPO does: a wall around the reference, and
    no ratio to what sampled. It is there to reproduce that, not to be chosen.

    Watches `clip_ratio/low`, `clip_ratio/high`, `clip_ratio/dual` (shares of tokens whose gradient the clip removed),
    `policy/ratio`, `policy/kl_to_old` (k3) and `policy/ratio_limited`: the share of tokens whose log-ratio was beyond
    ±`LIMIT`, where it is clamped so that `exp` cannot overflow, and has no gradient.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    _check_clip("clipped_surrogate", epsilon, high)
    if dual_clip is not None and dual_clip <= 1.0:
        raise ValueError(f"clipped_surrogate: got dual_clip={dual_clip}; expected a ratio above 1, or None")
    if anchor not in ANCHORS:
        raise ValueError(f"clipped_surrogate: got anchor={anchor!r}; expected one of {', '.join(ANCHORS)}")
    column = ANCHORS[anchor]

    @needs("advantages", column)
    def surrogate(outputs: Outputs, batch: Batch) -> Terms:
        ratio, seen = _ratio(outputs.logprobs, getattr(batch, column), anchor)
        value, clipped = _clipped(ratio, batch.advantages, epsilon, high)
        seen = {**clipped, **seen}
        if dual_clip is not None:
            beyond = (batch.advantages < 0) & (ratio > dual_clip)
            value = torch.where(beyond, -dual_clip * batch.advantages, value)
            seen = {**seen, "clip_ratio/dual": beyond.to(ratio.dtype)}
        return value, seen

    return surrogate


def _sequence_ratio(outputs: Outputs, batch: Batch) -> Tensor:
    """s = exp(meanₜ log(π/π_old)ₜ) over a row's chosen tokens, with gradient, `[B, T]`: the same for all of a row."""
    log_ratio = torch.where(batch.mask, outputs.logprobs - batch.old_logprobs, 0.0)
    mean = log_ratio.sum(1, keepdim=True) / batch.mask.sum(1, keepdim=True).clamp(min=1)
    return torch.exp(mean.clamp(-LIMIT, LIMIT)).expand_as(log_ratio)


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
        ratio = _sequence_ratio(outputs, batch)
        # what stands off the mask would reach every token of the row by way of the shared ratio
        advantages = torch.where(batch.mask, batch.advantages, 0.0)
        value, clipped = _clipped(ratio, advantages, epsilon, epsilon_high)
        return value, {**clipped, "policy/sequence_ratio": ratio.detach()}

    return surrogate


@loss
def clipped_sequence_token_ratio(
    epsilon: float = 3e-4, epsilon_high: float = 4e-4
) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = −min(sₜ Aₜ, clip(sₜ, 1 − ε, 1 + ε_high) Aₜ), with sₜ = stop_gradient(s / π(aₜ)) · π(aₜ) and s as in GSPO.

    GSPO-token, arXiv 2507.18071: the value, and so the clip, is that of `clipped_sequence_ratio`; the gradient goes to
    the token itself, s Aₜ ∇log π(aₜ), so tokens of a row may have advantages of their own. With one advantage a row
    and `sequence_mean` both have the same gradient. Watches what `clipped_sequence_ratio` does.
    """
    _check_clip("clipped_sequence_token_ratio", epsilon, epsilon_high)

    @needs("advantages", "old_logprobs")
    def surrogate(outputs: Outputs, batch: Batch) -> Terms:
        ratio = _sequence_ratio(outputs, batch).detach()
        value, clipped = _clipped(
            ratio * torch.exp(outputs.logprobs - outputs.logprobs.detach()), batch.advantages, epsilon, epsilon_high
        )
        return value, {**clipped, "policy/sequence_ratio": ratio}

    return surrogate


@loss
def soft_gate(tau_positive: float = 1.0, tau_negative: float = 1.05) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = −(4/τ) σ(τ(ρₜ − 1)) Aₜ, with τ = τ_positive where Aₜ > 0 and τ_negative elsewhere.

    SAPO, arXiv 2511.20347: in the place of a clip, a gate that lets less through the further ρ is from 1. The slope in
    ρ is 4 σ(1 − σ) A: A itself at ρ = 1, where the gradient is `policy_gradient`'s, and falling smoothly on both
    sides, a little faster for A < 0. The value at ρ = 1 is −2A/τ, not −A. Watches `policy/gate` (4σ(1 − σ), the share
    of the gradient that is let through), `policy/ratio`, `policy/ratio_limited` and `policy/kl_to_old`.
    """
    if tau_positive <= 0.0 or tau_negative <= 0.0:
        raise ValueError(
            f"soft_gate: got tau_positive={tau_positive}, tau_negative={tau_negative}; expected more than 0"
        )

    @needs("advantages", "old_logprobs")
    def gated(outputs: Outputs, batch: Batch) -> Terms:
        ratio, watched = _ratio(outputs.logprobs, batch.old_logprobs)
        tau = torch.where(batch.advantages > 0, tau_positive, tau_negative).to(ratio.dtype)
        gate = torch.sigmoid(tau * (ratio - 1.0))
        seen = gate.detach()
        return -4.0 / tau * gate * batch.advantages, {**watched, "policy/gate": 4.0 * seen * (1.0 - seen)}

    return gated


@loss
def clipped_weight(cap: float = 5.0) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = −stop_gradient(min(ρₜ, cap)) Aₜ log π(aₜ): the weight is clipped, the gradient never is.

    CISPO, arXiv 2506.13585. Where PPO's clip silences a token whose probability moved much, here it still
    teaches, with weight `cap`. `cap` is absolute (ρ ≤ cap), as in TRL; verl writes it as 1 + ε and clips below too.
    Watches `clip_ratio/high`, `policy/ratio`, `policy/kl_to_old` and `policy/ratio_limited`.
    """
    if cap <= 0.0:
        raise ValueError(f"clipped_weight: got cap={cap}; expected more than 0")

    @needs("advantages", "old_logprobs")
    def weighted_score(outputs: Outputs, batch: Batch) -> Terms:
        ratio, seen = _ratio(outputs.logprobs.detach(), batch.old_logprobs)
        value = -ratio.clamp(max=cap) * batch.advantages * outputs.logprobs
        return value, {**seen, "clip_ratio/high": (ratio > cap).to(ratio.dtype)}

    return weighted_score


@loss
def kl_to_reference(estimator: Callable[..., Tensor] = k2) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = estimator(log π, log ref)ₜ: scale it with a coefficient, `clipped_surrogate() + 0.04 * kl_to_reference(k3)`.

    What the estimator's *gradient* pulls towards is in `maieutic.core.kl`: k2 (the default) the reverse KL, k3 (GRPO's
    paper, arXiv 2402.03300, eq. 4) the forward KL, k1 nothing at all; those that correct for an older policy read
    `old_logprobs` too. Watches `kl/reference` (k3, never negative) and `kl/limited` (share of tokens with a log-ratio
    beyond 20, where k3 is cut and has no gradient).
    """
    if not callable(estimator):
        raise ValueError(f"kl_to_reference: got estimator {estimator!r}; expected k1, k2 or k3 of maieutic.core.kl")
    more: frozenset[str] = getattr(estimator, "needs", frozenset())

    @needs("ref_logprobs", *more)
    def divergence(outputs: Outputs, batch: Batch) -> Terms:
        value = estimator(outputs.logprobs, batch.ref_logprobs, **{name: getattr(batch, name) for name in more})
        return value, {
            "kl/reference": k3(outputs.logprobs.detach(), batch.ref_logprobs),
            "kl/limited": limited(outputs.logprobs - batch.ref_logprobs),
        }

    return divergence
