"""Distillation: losses and credits that pull a student towards a teacher, token by token.

    losses over the teacher's candidates       forward_kl · reverse_kl · jensen_shannon       need `Teacher.top`
    over the chosen tokens alone               kl_to_teacher (loss) · reverse_kl_advantage, teacher_in_reward (credits)

A teacher keeps its `K` likeliest candidates for each token, with their log-probs under its whole distribution. What is
compared is two distributions over K + 1 outcomes: the candidates, and all else as one (the *tail*). Merging outcomes
only loses information, so a divergence of these is a lower bound on the whole one, and equal to it when the teacher
keeps its whole vocabulary. `renormalise` compares the distributions given that a candidate is chosen instead, which is
blind to mass that the student has elsewhere.

`temperature` divides the logits of both by τ and multiplies the loss by τ², which keeps the scale of its gradient
(arXiv 1503.02531). It comes on top of the batch's own temperature, at which all log-probs are. The tail's mass at
another temperature is not known, so τ ≠ 1 needs `renormalise` (exact when the teacher keeps its whole vocabulary).

Gradients flow to the student only. Every loss here watches `distil/kl`, an estimate of KL(student ‖ teacher) in nats.

Text-level distillation needs nothing of this: let the teacher write (a sampler of it, filtered by a verifier if there
is one), keep what it wrote as demonstrations, and fine-tune on them with `sft`. That is the forward KL of whole
sequences from a teacher known by its samples, and what remains when teacher and student have different vocabularies.

Letters: `B` rows, `T` tokens, `K` candidates; p teacher, q student.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from maieutic.core.credit import none
from maieutic.core.kl import k1, k2, k3
from maieutic.core.parts import Loss, credit, loss, needs
from maieutic.errors import MissingColumn
from maieutic.types import Batch, Outputs

Terms = tuple[Tensor, Mapping[str, Tensor]]
#: (log p, log q) over the last dimension, `[B, T, K]` each → `[B, T]`.
Divergence = Callable[[Tensor, Tensor], Tensor]


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a ‖ b) = Σ a (log a − log b), `[B, T, K]` → `[B, T]`."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _turned(log_p: Tensor, log_q: Tensor) -> Tensor:
    return _kl(log_q, log_p)


def _with_tail(logprobs: Tensor) -> Tensor:
    """`[B, T, K]` → `[B, T, K + 1]`: the last is log(1 − Σ p), the mass outside. Mass below rounding counts as that."""
    total = torch.logsumexp(logprobs, dim=-1, keepdim=True)
    outside = (-torch.expm1(total)).clamp(min=torch.finfo(logprobs.dtype).eps)
    return torch.cat([logprobs, outside.log()], dim=-1)


def _compared(divergence: Divergence, temperature: float, renormalise: bool) -> Callable[[Outputs, Batch], Terms]:
    """The loss τ² · divergence(p, q), and what all of them watch."""
    if temperature <= 0.0:
        raise ValueError(f"got temperature={temperature}; expected more than 0")
    if temperature != 1.0 and not renormalise:
        raise ValueError(
            f"got temperature={temperature} with a tail, whose mass is known at temperature 1 only; set "
            "renormalise=True (exact when the teacher keeps its whole vocabulary), or leave the temperature at 1 and "
            "sample at the one you want"
        )

    def outcomes(logprobs: Tensor) -> Tensor:
        return torch.log_softmax(logprobs / temperature, dim=-1) if renormalise else _with_tail(logprobs)

    @needs("teacher_top_ids", "teacher_top_logprobs")
    def compare(outputs: Outputs, batch: Batch) -> Terms:
        found, ids = outputs.top_logprobs, batch.teacher_top_ids
        if found is None or found.shape != ids.shape:
            got = "no top_logprobs" if found is None else f"top_logprobs {tuple(found.shape)}"
            raise MissingColumn(
                f"got {got} of the student for the teacher's candidates {tuple(ids.shape)}; expected them from a "
                "learner that fills `Outputs.top_logprobs` where the batch has `teacher_top_ids`"
            )
        teacher, student = batch.teacher_top_logprobs.detach().to(found.dtype), found
        log_p, log_q = outcomes(teacher), outcomes(student)
        seen, choice = log_q.detach(), found.detach().argmax(-1)
        return temperature**2 * divergence(log_p, log_q), {
            "distil/kl": _kl(seen, log_p),
            "distil/top1_agreement": (choice == 0).to(found.dtype),
            "distil/kept_mass": teacher.exp().sum(-1),
        }

    return compare


@loss
def forward_kl(temperature: float = 1.0, renormalise: bool = False) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = KL(p ‖ q) = Σ p (log p − log q) over the outcomes of token t: the student covers all that the teacher does.

    Distillation as in arXiv 1503.02531, at every position of a sequence. Nats, `[B, T]`, at least 0. Watches
    `distil/kl` (KL(q ‖ p), whichever is minimised), `distil/top1_agreement` (the share of tokens whose likeliest
    *candidate* is the same for both; what lies outside the candidates is not known one by one) and
    `distil/kept_mass` (Σ p over the candidates: how much of the teacher is compared in detail).

    Raises ValueError for a temperature that is not positive, or is not 1 without `renormalise`.
    """
    return _compared(_kl, temperature, renormalise)


@loss
def reverse_kl(temperature: float = 1.0, renormalise: bool = False) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = KL(q ‖ p) = Σ q (log q − log p): the student keeps to what the teacher finds likely (arXiv 2306.08543).

    As `forward_kl` otherwise. On the student's own samples this is the whole reverse KL of token t, without the
    noise of `kl_to_teacher`; neither has a gradient through how the tokens before t were sampled.
    """
    return _compared(_turned, temperature, renormalise)


@loss
def jensen_shannon(
    beta: float = 0.5, scaled: bool = False, temperature: float = 1.0, renormalise: bool = False
) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q; β = 0 is `forward_kl`, β = 1 `reverse_kl`.

    The generalised Jensen–Shannon divergence of GKD (arXiv 2306.13649) in TRL's orientation, its ends included. They
    are a jump: the formula itself goes to 0 at both ends, KL(p ‖ q) is the limit of Lₜ/β and KL(q ‖ p) that of
    Lₜ/(1 − β), so that β = 0.001 has about a thousandth of the gradient of β = 0. `scaled` divides by β(1 − β), which
    is continuous with both ends (β = ½: 4 times the usual). As `forward_kl` otherwise.

    Raises ValueError for β outside [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"jensen_shannon: got beta={beta}; expected 0 ≤ beta ≤ 1")
    ends: Mapping[float, Divergence] = {0.0: _kl, 1.0: _turned}
    divergence = ends.get(beta) or _between(beta, 1.0 / (beta * (1.0 - beta)) if scaled else 1.0)
    return _compared(divergence, temperature, renormalise)


def _between(beta: float, scale: float) -> Divergence:
    def generalised(log_p: Tensor, log_q: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        return scale * (beta * _kl(log_p, log_m) + (1.0 - beta) * _kl(log_q, log_m))

    return generalised


#: Names of the divergences that need no number, for a config.
DIVERGENCES: Mapping[str, Callable[..., Loss]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
}


@loss
def kl_to_teacher(estimator: Callable[[Tensor, Tensor], Tensor] = k2) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = estimator(log q, log p) of the chosen token alone: one log-prob of the teacher a token.

    `kl_to_reference` with the teacher in the reference's place: k2, on the student's own samples, has in expectation
    the gradient of KL(q ‖ p), and in each sample that of `reverse_kl_advantage` with discount 0 under
    `policy_gradient`; what the other estimators pull towards is in `maieutic.core.kl` (John Schulman, "Approximating
    KL divergence", 2020). Watches `distil/kl` (k3).
    """
    if not callable(estimator):
        raise ValueError(f"kl_to_teacher: got estimator {estimator!r}; expected k1, k2 or k3 of maieutic.core.kl")

    @needs("teacher_logprobs")
    def divergence(outputs: Outputs, batch: Batch) -> Terms:
        return estimator(outputs.logprobs, batch.teacher_logprobs), _sampled_kl(outputs, batch)

    return divergence


@loss
def watch_teacher() -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = 0: adds nothing to a loss but a look at the teacher, `distil/kl` (k3; Schulman, 2020, as above)."""

    @needs("teacher_logprobs")
    def nothing(outputs: Outputs, batch: Batch) -> Terms:
        return torch.zeros_like(outputs.logprobs), _sampled_kl(outputs, batch)

    return nothing


def _sampled_kl(outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
    return {"distil/kl": k3(outputs.logprobs.detach(), batch.teacher_logprobs)}


@credit
def reverse_kl_advantage(coef: float = 1.0, discount: float = 0.0, added: bool = False) -> Callable[[Batch], Batch]:
    """Aₜ = −c Σ_{u ≥ t} γ^{k(u) − k(t)} (log q_old − log p)_u over the chosen tokens; γ = 0: the token's own alone.

    On-policy distillation by policy gradient (Thinking Machines Lab, "On-Policy Distillation", 2025; GKD's on-policy
    case, arXiv 2306.13649, with one sample in the place of the sum over the vocabulary): the teacher says only how
    likely it finds each token that the student chose. With γ = 0 the expected gradient is −c ∇KL(q ‖ p) token by token;
    with γ = 1 it is that of whole completions, as `kl_in_reward` has it, at the price of more noise.

    Where the teacher's tokens are others (`teacher_spans`), a span takes the token's place: its tokens have the whole
    span's difference each, since every one of them had a part in it, and γ counts spans.

    `added` adds it to the advantages that the credit before it in the chain gave:
    `group_centered() | reverse_kl_advantage(0.5, added=True)`. `k(t)` counts chosen tokens. c = 0 asks for no teacher.
    Raises ValueError for γ outside [0, 1].
    """
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"reverse_kl_advantage: got discount={discount}; expected 0 ≤ discount ≤ 1")
    if coef == 0:
        return none().function

    @needs("old_logprobs", "teacher_logprobs", *(("advantages",) if added else ()))
    def give(batch: Batch) -> Batch:
        own, paid = torch.where(batch.mask, -coef * k1(batch.old_logprobs, batch.teacher_logprobs), 0.0), batch.mask
        if batch.has("teacher_spans"):
            own, paid = _by_span(own, batch.teacher_spans)
        given = _to_go(own, paid, batch.mask, discount)
        return batch.with_(advantages=batch.advantages + given if added else given)

    return give


def _to_go(values: Tensor, paid: Tensor, mask: Tensor, discount: float) -> Tensor:
    """Discounted sums from each chosen token on, `[B, T]`, of the values where something is `paid`; other tokens do not
    discount, and those that were not chosen get nothing."""
    sums = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        running = torch.where(paid[:, t], values[:, t] + discount * running, running)
        sums[:, t] = running
    return sums * mask


def _by_span(values: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of each span's values at its last token, 0 elsewhere, and where these tokens are; spans `[B, T]` are
    numbers from 1, 0 for what belongs to none."""
    last = torch.zeros_like(spans, dtype=torch.bool)
    sums = torch.zeros_like(values)
    for row in range(spans.shape[0]):
        total = values.new_zeros(int(spans[row].max()) + 1).index_add(0, spans[row], values[row])
        ends = {number: t for t, number in enumerate(spans[row].tolist()) if number}
        places = torch.tensor(list(ends.values()), dtype=torch.long, device=spans.device)
        last[row, places] = True
        sums[row, places] = total[spans[row, places]]
    return sums, last


@credit
def teacher_in_reward(coef: float = 1.0) -> Callable[[Batch], Batch]:
    """rₜ ← rₜ − c (log q_old − log p)ₜ on chosen tokens, and r ← r − c Σₜ(…)ₜ: the teacher's judgement as a reward.

    `kl_in_reward` with the teacher in the reference's place (k1; Schulman, 2020). Chain it before the credit that
    spends the rewards: `teacher_in_reward(0.1) | leave_one_out()`. c = 0 asks for no teacher.
    """
    if coef == 0:
        return none().function

    @needs("old_logprobs", "teacher_logprobs")
    def give(batch: Batch) -> Batch:
        penalty = torch.where(batch.mask, coef * k1(batch.old_logprobs, batch.teacher_logprobs), 0.0)
        return batch.with_(token_rewards=batch.token_rewards - penalty, rewards=batch.rewards - penalty.sum(1))

    return give
