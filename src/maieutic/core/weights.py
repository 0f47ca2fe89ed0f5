"""Weights: how much each token counts, computed once over a whole optimiser batch.

The optimiser steps on `sum(weights * loss)`, so a weight holds the normaliser too, and micro-batches or ranks only
add. Four choices that libraries mix up, and what each favours (Dr. GRPO, arXiv 2503.20783, §3):

    token_mean        1 / tokens of the batch          long rows count more in total; DAPO's, the default elsewhere
    sequence_mean     1 / (rows · tokens of the row)   every row the same: long wrong answers are blamed less a token
    sequence_sum      1 / rows                         every token the same, rows by length; RLOO's
    constant_length   1 / (rows · L)                   as sequence_sum, with a constant in its place; Dr. GRPO's

and one for losses of pairs, `pair_mean`.

Rows without a chosen token weigh nothing and are not counted. Letters: `B` rows, `T` tokens, `P` pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maieutic.core.parts import needs, weigh
from maieutic.types import Batch


def _counts(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The mask as numbers `[B, T]`, chosen tokens of each row `[B, 1]`, and the rows that have any (scalar)."""
    mask = batch.mask.to(batch.sampler_logprobs.dtype)
    lengths = mask.sum(1, keepdim=True)
    return mask, lengths, (lengths > 0).sum()


@weigh
def token_mean() -> Callable[[Batch], Tensor]:
    """wᵢₜ = mᵢₜ / Σ m: the mean over all chosen tokens (DAPO, arXiv 2503.14476, eq. 8)."""

    def weights(batch: Batch) -> Tensor:
        mask, _, _ = _counts(batch)
        return mask / mask.sum().clamp(min=1)

    return weights


@weigh
def sequence_mean() -> Callable[[Batch], Tensor]:
    """wᵢₜ = mᵢₜ / (B · |oᵢ|): the mean over rows of the mean over a row's tokens (GRPO, arXiv 2402.03300, eq. 3)."""

    def weights(batch: Batch) -> Tensor:
        mask, lengths, rows = _counts(batch)
        return mask / lengths.clamp(min=1) / rows.clamp(min=1)

    return weights


@weigh
def sequence_sum() -> Callable[[Batch], Tensor]:
    """wᵢₜ = mᵢₜ / B: the mean over rows of the sum over a row's tokens (RLOO, arXiv 2402.14740)."""

    def weights(batch: Batch) -> Tensor:
        mask, _, rows = _counts(batch)
        return mask / rows.clamp(min=1)

    return weights


@weigh
def constant_length(length: int) -> Callable[[Batch], Tensor]:
    """wᵢₜ = mᵢₜ / (B · length): a sum over tokens with a constant scale (Dr. GRPO, arXiv 2503.20783, App. A).

    `length` is a constant of the run, usually `max_completion_length`; never the padded width of a batch, which
    would make the step depend on the longest row beside it.
    """
    if length < 1:
        raise ValueError(f"constant_length: got length={length}; expected at least 1")

    def weights(batch: Batch) -> Tensor:
        mask, _, rows = _counts(batch)
        return mask / (rows.clamp(min=1) * length)

    return weights


@weigh
def pair_mean() -> Callable[[Batch], Tensor]:
    """wᵢₜ = mᵢₜ / (P · |oᵢ|) on chosen rows, 0 on rejected ones: the mean over pairs (DPO, arXiv 2305.18290, and kin).

    A pair's loss stands on every chosen token of its chosen row (see `maieutic.core.preference`), so their weights
    add up to 1/P; a term that differs from token to token, such as `chosen_nll`, is averaged over the completion.
    """

    @needs("pairs")
    def weights(batch: Batch) -> Tensor:
        mask, lengths, _ = _counts(batch)
        chosen = torch.zeros_like(lengths).index_fill(0, batch.pairs[:, 0], 1.0)
        return mask * chosen / lengths.clamp(min=1) / max(1, len(batch.pairs))

    return weights
