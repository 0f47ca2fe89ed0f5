"""Preference losses: what a pair of completions, one preferred to the other, teaches.

With `s` the sum and `l` the mean of a completion's log-probs, `c` the chosen side and `r` the rejected one:

    loss        score of a completion      what it asks of Δ = score(c) − score(r)         reads a reference
    ---------------------------------------------------------------------------------------------------------
    dpo         s − s_ref                  −log σ(β Δ)                                     yes
    ipo         s − s_ref                  (Δ − 1 / (2 β))²                                yes
    simpo       l                          −log σ(β Δ − γ)                                 no
    odds_ratio  l − log(1 − eˡ)            −log σ(Δ)                                       no
    chosen_nll  –                          −log π of the chosen completion, a token        no

Sums and means are not interchangeable: a sum in `odds_ratio` makes odds and probability the same and removes its
effect; a mean in `dpo` is another objective. A pair's loss stands on every chosen token of its chosen row, and nothing
on its rejected row: weigh by `pair_mean`, which makes that once a pair. Its gradient reaches both rows.

All but `chosen_nll` watch, a pair: `pairs/accuracy` (share with Δ > 0), `pairs/margin` (Δ), `pairs/chosen_logprob`
and `pairs/rejected_logprob` (s). When both log-probs fall while the margin grows, add `chosen_nll`.

Letters: `B` rows, `T` tokens, `P` pairs. Log-probs are in nats, at the batch's temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from maieutic.core.parts import loss, needs
from maieutic.types import Batch, Outputs

Terms = tuple[Tensor, Mapping[str, Tensor]]


@loss
def dpo(beta: float = 0.1, label_smoothing: float = 0.0) -> Callable[[Outputs, Batch], Terms]:
    """L = −(1 − ε) log σ(β Δ) − ε log σ(−β Δ), with Δ = (s_c − s_ref,c) − (s_r − s_ref,r).

    DPO, arXiv 2305.18290; `label_smoothing` ε is the share of preferences taken to be the wrong way round
    (conservative DPO). Log-probs are summed over the completion, its stop token included. At the beginning Δ = 0: the
    loss is log 2, and ∂L/∂Δ = −β/2. Raises ValueError unless β > 0 and 0 ≤ ε < 1/2.
    """
    _positive("dpo", beta=beta)
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"dpo: got label_smoothing={label_smoothing}; expected a share in [0, 0.5)")

    @needs("pairs", "ref_logprobs")
    def preference(outputs: Outputs, batch: Batch) -> Terms:
        margin = _difference(_sums(outputs.logprobs - batch.ref_logprobs, batch), batch)
        value = -(1.0 - label_smoothing) * logsigmoid(beta * margin)
        if label_smoothing:
            value = value - label_smoothing * logsigmoid(-beta * margin)
        return _on_chosen(value, batch), _watched(margin, outputs, batch)

    return preference


@loss
def ipo(beta: float = 0.1, average: bool = False) -> Callable[[Outputs, Batch], Terms]:
    """L = (Δ − 1/(2β))², with DPO's Δ: preferences that are certain do not push without end.

    IPO, arXiv 2310.12036, whose τ is β. Libraries disagree on Δ: the paper and OpenRLHF sum log-probs over the
    completion, as we do; TRL takes their mean, which `average=True` does. Raises ValueError unless β > 0.
    """
    _positive("ipo", beta=beta)
    over = _means if average else _sums

    @needs("pairs", "ref_logprobs")
    def preference(outputs: Outputs, batch: Batch) -> Terms:
        margin = _difference(over(outputs.logprobs - batch.ref_logprobs, batch), batch)
        return _on_chosen((margin - 1.0 / (2.0 * beta)) ** 2, batch), _watched(margin, outputs, batch)

    return preference


@loss
def simpo(beta: float = 2.5, gamma: float = 1.375) -> Callable[[Outputs, Batch], Terms]:
    """L = −log σ(β Δ − γ), with Δ = l_c − l_r: mean log-probs, no reference, and a margin γ that β Δ has to reach.

    SimPO, arXiv 2405.14734; γ is a margin of β Δ, so that of Δ itself is γ/β. Raises ValueError unless β > 0 and γ is
    finite.
    """
    _positive("simpo", beta=beta)
    if not math.isfinite(gamma):
        raise ValueError(f"simpo: got gamma={gamma}; expected a finite number")

    @needs("pairs")
    def preference(outputs: Outputs, batch: Batch) -> Terms:
        margin = _difference(_means(outputs.logprobs, batch), batch)
        return _on_chosen(-logsigmoid(beta * margin - gamma), batch), _watched(margin, outputs, batch)

    return preference


@loss
def odds_ratio() -> Callable[[Outputs, Batch], Terms]:
    """L = −log σ(Δ), with Δ = log odds_c − log odds_r and log odds = l − log(1 − eˡ).

    ORPO, arXiv 2403.07691, whose loss is `chosen_nll() + beta * odds_ratio()`. `l` is a mean, so eˡ is the geometric
    mean of the completion's token probabilities. 1 − eˡ is computed without cancellation (`log1mexp`); where a
    completion is certain to the last digit the gradient of its odds, 1/(1 − eˡ), is cut off instead of infinite.
    """

    @needs("pairs")
    def preference(outputs: Outputs, batch: Batch) -> Terms:
        mean = _means(outputs.logprobs, batch)
        margin = _difference(mean - log1mexp(mean), batch)
        return _on_chosen(-logsigmoid(margin), batch), _watched(margin, outputs, batch)

    return preference


@loss
def chosen_nll() -> Callable[[Outputs, Batch], Tensor]:
    """Lₜ = −log π(aₜ) on chosen rows, 0 on rejected ones: under `pair_mean` the mean over pairs of NLL(chosen)/|y|.

    The likelihood term of ORPO (arXiv 2403.07691) and of iterative RPO (arXiv 2404.19733). Of the completion only:
    TRL's ORPO counts the prompt's tokens too, unless they are masked.
    """

    @needs("pairs")
    def likelihood(outputs: Outputs, batch: Batch) -> Tensor:
        return -outputs.logprobs * _is_chosen(batch)[:, None]

    return likelihood


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x ≤ 0, exact to rounding at both ends; x is held one rounding step below 0.

    Maechler, "Accurately computing log(1 − exp(−|a|))", 2012: log(−expm1(x)) above −log 2, log1p(−eˣ) below.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -math.log(2.0)
    # each branch sees only numbers that are its own: the gradient of the other one, infinite there, times 0 is NaN
    high = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    low = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, high, low)


def _positive(name: str, beta: float) -> None:
    if not (beta > 0.0 and math.isfinite(beta)):
        raise ValueError(f"{name}: got beta={beta}; expected a finite number above 0")


def _sums(per_token: Tensor, batch: Batch) -> Tensor:
    """`[B]`: over chosen tokens."""
    return torch.where(batch.mask, per_token, 0.0).sum(1)


def _means(per_token: Tensor, batch: Batch) -> Tensor:
    """`[B]`: over chosen tokens."""
    return _sums(per_token, batch) / batch.mask.sum(1).clamp(min=1)


def _difference(of_row: Tensor, batch: Batch) -> Tensor:
    """`[B]` → `[P]`: chosen − rejected."""
    return of_row[batch.pairs[:, 0]] - of_row[batch.pairs[:, 1]]


def _is_chosen(batch: Batch) -> Tensor:
    """`[B]`: 1 for the chosen row of a pair, else 0."""
    rows = torch.zeros(batch.size, dtype=batch.sampler_logprobs.dtype, device=batch.mask.device)
    return rows.index_fill(0, batch.pairs[:, 0], 1.0)


def _on_chosen(of_pair: Tensor, batch: Batch) -> Tensor:
    """`[P]` → `[B, T]`: on every chosen token of the chosen row."""
    rows = torch.zeros(batch.size, dtype=of_pair.dtype, device=of_pair.device)
    return rows.index_add(0, batch.pairs[:, 0], of_pair)[:, None] * batch.mask


def _watched(margin: Tensor, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
    seen, said = margin.detach(), _sums(outputs.logprobs.detach(), batch)
    return {
        "pairs/accuracy": (seen > 0).to(seen.dtype),
        "pairs/margin": seen,
        "pairs/chosen_logprob": said[batch.pairs[:, 0]],
        "pairs/rejected_logprob": said[batch.pairs[:, 1]],
    }
