"""Corrections: what to do where the policy that sampled is not the policy that learns.

Three policies: π_s wrote the rows (the sampler's engine, its precision, perhaps weights some versions old), π_old is
the learner before the update, π is what is being trained. A loss's own ratio ρ = π/π_old says how far the update has
gone; a correction is another factor, from π_s to π_old, without gradient:

    corrected(clipped_surrogate(), truncated(2.0))     w · min(ρA, clip(ρ)A),  w = min(exp(log π_old − log π_s), 2)

    correction                    what it gives a token or a row of ratio w
    truncated(high, low)          clip(w, low, high)                         keeps all, and is biased by what it cuts
    masked(low, high)             w where low ≤ w ≤ high, else 0             drops what the two engines disagree about
    filtered(low, high)           1 where low ≤ w ≤ high, else 0             only drops
    off_policy_sequence_mask(δ)   0 where A < 0 and mean(log π_s − log π) > δ, else 1

`level` says whose ratio w is: `token` (each its own: little variance, biased for what a whole row teaches), `sequence`
(the product over a row: unbiased, with a variance that explodes with length, so mask rather than truncate it) or
`geometric_mean` of the row's (neither; a measure of how far a row is off, for `filtered`). Corrections nest.

What is dropped still counts in the denominators of `weigh`: the step shrinks with the share that is dropped. Where
both engines agree every w is 1 and nothing changes. Letters: `B` rows, `T` tokens. Units: nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from maieutic.core.kl import LIMIT, k3
from maieutic.core.parts import Loss, Part, _labelled, needs
from maieutic.types import Batch, Outputs

Level = Callable[[Tensor, Tensor], Tensor]
Terms = tuple[Tensor, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Correction(Part):
    """(outputs, batch) → (weights `[B, T]` without gradient, per-token quantities to watch)."""

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        self.check(batch)
        return self.function(outputs, batch)


def correction(factory: Callable[..., Callable[[Outputs, Batch], Terms]]) -> Callable[..., Correction]:
    """Make a factory of `(outputs, batch) -> (weights, watched)` functions return `Correction` parts."""
    return _labelled(Correction, factory)


def corrected(loss: Loss, weight: Correction | None) -> Loss:
    """Lₜ ← wₜ Lₜ with the weights of a correction; None corrects nothing.

    Wrap the policy's term and add a KL to it: `corrected(clipped_surrogate(), truncated()) + 0.04 * kl_to_reference()`.
    """
    if weight is None:
        return loss

    def product(outputs: Outputs, batch: Batch) -> Terms:
        factor, noted = weight(outputs, batch)
        value, seen = loss.terms(outputs, batch)
        return factor * value, {**seen, **noted}

    return Loss(
        f"corrected({loss.label}, {weight.label})",
        product,
        loss.needs | weight.needs,
        loss.requires | weight.requires,
        loss.memory + weight.memory,
        loss.absent,
        corrected=loss.corrected or "old_logprobs" in weight.needs,
    )


def token(log_ratio: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001  (a level's signature)
    """log wₜ = log-ratioₜ, `[B, T]`: each token its own."""
    return log_ratio


def sequence(log_ratio: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001
    """log wₜ = Σₜ log-ratioₜ over the row, `[B, T]`: the ratio of whole rows."""
    return log_ratio.sum(1, keepdim=True).expand_as(log_ratio)


def geometric_mean(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """log wₜ = meanₜ log-ratioₜ over the row's chosen tokens, `[B, T]`."""
    return (log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).expand_as(log_ratio)


def _checked(name: str, low: float, high: float) -> None:
    if not 0.0 <= low <= 1.0 <= high:
        raise ValueError(
            f"{name}: got low={low}, high={high}; expected 0 ≤ low ≤ 1 ≤ high, as engines that agree have 1"
        )


def _ratios(batch: Batch, level: Level) -> Terms:
    """The raw ratios w `[B, T]` at that level, 1 off the mask, and what is watched of every correction."""
    difference = torch.where(batch.mask, batch.old_logprobs - batch.sampler_logprobs, 0.0)
    raw = torch.exp(level(difference, batch.mask).clamp(-LIMIT, LIMIT))
    return raw, {
        "correction/weight": raw,
        "correction/weight_squared": raw**2,
        "correction/kl_to_sampler": k3(-difference, torch.zeros_like(difference)),
    }


@correction
def truncated(high: float = 2.0, low: float = 0.0, level: Level = token) -> Callable[[Outputs, Batch], Terms]:
    """wₜ ← clip(wₜ, low, high), with w = π_old / π_s at `level`: truncated importance sampling (TIS).

    Ionides, 2008; for two engines of one policy Yao et al., "Your efficient RL framework secretly brings you
    off-policy RL training", 2025, with `high` 2 and no `low`. Watches `correction/weight` (raw), `correction/masked`
    (share that was cut), `correction/kl_to_sampler` (k3 of π_s to π_old) and `correction/weight_squared`, of which an
    update makes `correction/effective_share`.
    """
    _checked("truncated", low, high)

    @needs("old_logprobs")
    def weights(_: Outputs, batch: Batch) -> Terms:
        raw, seen = _ratios(batch, level)
        cut = ((raw < low) | (raw > high)).to(raw.dtype)
        return raw.clamp(low, high), {**seen, "correction/masked": cut}

    return weights


@correction
def masked(low: float = 0.5, high: float = 2.0, level: Level = token) -> Callable[[Outputs, Batch], Terms]:
    """wₜ ← wₜ · 1[low ≤ wₜ ≤ high], with w = π_old / π_s at `level`: masked importance sampling (MIS).

    IcePop (Ring-1T, arXiv 2510.18855) at the level of tokens; TRL's default is that of sequences with `high` 3 and no
    `low`. Watches what `truncated` does.
    """
    _checked("masked", low, high)

    @needs("old_logprobs")
    def weights(_: Outputs, batch: Batch) -> Terms:
        raw, seen = _ratios(batch, level)
        kept = ((raw >= low) & (raw <= high)).to(raw.dtype)
        return raw * kept, {**seen, "correction/masked": 1.0 - kept}

    return weights


@correction
def filtered(low: float = 0.99, high: float = 1.01, level: Level = geometric_mean) -> Callable[[Outputs, Batch], Terms]:
    """wₜ ← 1[low ≤ wₜ ≤ high], with w = π_old / π_s at `level`: rows that are too far off teach nothing.

    With the default level the bounds are those of a mean over tokens, which length does not move: keep them tight.
    Put it around another correction, `corrected(corrected(loss, truncated()), filtered())` (Liu et al., "When speed
    kills stability", 2025). Watches `correction/filtered`.
    """
    _checked("filtered", low, high)

    @needs("old_logprobs")
    def weights(_: Outputs, batch: Batch) -> Terms:
        raw, _seen = _ratios(batch, level)
        kept = ((raw >= low) & (raw <= high)).to(raw.dtype)
        return kept, {"correction/filtered": 1.0 - kept}

    return weights


@correction
def off_policy_sequence_mask(threshold: float = 0.5) -> Callable[[Outputs, Batch], Terms]:
    """wₜ ← 0 where Aₜ < 0 and meanₜ(log π_s − log π)ₜ > threshold over the row, else 1.

    DeepSeek-V3.2, arXiv 2512.02556: a bad row that the policy would hardly write any more teaches it little and upsets
    it much; a good one is kept however old it is. The difference is from the sampler's log-probs to those of the policy
    at this very optimiser step (without gradient), so it holds the engines' mismatch and staleness together. The paper
    gives no threshold. Watches `correction/off_policy`.
    """
    if threshold <= 0.0:
        raise ValueError(f"off_policy_sequence_mask: got threshold={threshold}; expected more than 0 nats a token")

    @needs("advantages")
    def weights(outputs: Outputs, batch: Batch) -> Terms:
        difference = torch.where(batch.mask, batch.sampler_logprobs - outputs.logprobs.detach(), 0.0)
        dropped = (geometric_mean(difference, batch.mask) > threshold) & (batch.advantages < 0)
        off = dropped.to(difference.dtype)
        return 1.0 - off, {"correction/off_policy": off}

    return weights


#: Names of a config → corrections, with the bounds that are usual for them.
CORRECTIONS: Mapping[str, Correction | None] = {
    "none": None,
    "token_truncate": truncated(2.0),
    "token_mask": masked(0.5, 2.0),
    "sequence_truncate": truncated(3.0, level=sequence),
    "sequence_mask": masked(0.0, 3.0, level=sequence),
    "geometric_filter": filtered(),
    "off_policy_mask": off_policy_sequence_mask(),
}
