"""Actor and critic: advantages from a critic's values, and the losses that train it.

    δₜ = rₜ + γ V(sₜ₊₁) − V(sₜ)          Aₜ = δₜ + γ λ Aₜ₊₁          Rₜ = Aₜ + V(sₜ)

A state is the tokens so far, sₜ the one in which the model chose token `t`; what an environment wrote lies between two
states and is neither a choice nor a delay. V is 0 after the end of an episode; a row that the length limit cut has not
ended, and the critic is asked what it would still have got (`final_values`).

Letters: `B` rows, `T` tokens. Rewards, values, returns and advantages share one unit, that of the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maieutic.core.parts import Algorithm, Loss, Update, credit, loss, needs, requires
from maieutic.errors import ConfigError
from maieutic.protocols import Learner
from maieutic.types import Batch, Outputs

Terms = tuple[Tensor, Mapping[str, Tensor]]


@credit
def gae(
    gamma: float = 1.0,
    lam: float = 0.95,
    value_lam: float | None = None,
    length_alpha: float | None = None,
    bootstrap: bool = True,
) -> Callable[[Batch], Batch]:
    """Aₜ = Σ_{k ≥ 0} (γλ)ᵏ δₜ₊ₖ over the chosen tokens; fills `advantages` and `returns`, both `[B, T]`.

    Generalised advantage estimation, arXiv 1506.02438. λ = 1: Aₜ = Gₜ − V(sₜ), no bias from the critic; λ = 0: one step
    of the critic. With λ = .95 and 1000 tokens the outcome reaches the first one with weight .95¹⁰⁰⁰ ≈ 5e-23.

    value_lam     another λ for the returns, the critic's targets Rₜ = A′ₜ + V(sₜ): 1 makes them what was really got,
                  as VC-PPO (arXiv 2503.01491) and VAPO (arXiv 2504.05118) have it. None: `lam`.
    length_alpha  λ = 1 − 1 / (alpha · tokens chosen in the row), at least 0, instead of `lam` (VAPO, with 0.05).
    bootstrap     a row that the length limit cut goes on with V of its last state. False: nothing more is got, as in
                  verl and TRL; being cut is then a failure that the policy is blamed for.

    Tokens that the model did not choose carry the next one's value and advantage back unchanged; a reward that falls
    on one of them goes to the choice before it, as in `discounted`.
    """
    wrong = [x for x in (gamma, lam, value_lam) if x is not None and not 0.0 <= x <= 1.0]
    if wrong or (length_alpha is not None and length_alpha <= 0):
        raise ValueError(
            f"gae: got gamma={gamma}, lam={lam}, value_lam={value_lam}, length_alpha={length_alpha}; "
            "expected 0 ≤ gamma, lam, value_lam ≤ 1 and length_alpha > 0"
        )

    @needs("old_values", *(("final_values",) if bootstrap else ()))
    def give(batch: Batch) -> Batch:
        end = torch.where(batch.terminated, 0.0, batch.final_values) if bootstrap else torch.zeros_like(batch.rewards)
        rate = torch.full_like(batch.rewards, lam)
        if length_alpha is not None:
            rate = (1.0 - 1.0 / (length_alpha * batch.mask.sum(1).clamp(min=1))).clamp(min=0.0).to(rate.dtype)
        advantages = _accumulated(batch, gamma, rate, end)
        targets = advantages
        if value_lam is not None:
            targets = _accumulated(batch, gamma, torch.full_like(batch.rewards, value_lam), end)
        return batch.with_(advantages=advantages, returns=torch.where(batch.mask, targets + batch.old_values, 0.0))

    give.spends_steps = True  # type: ignore[attr-defined]
    return give


def _accumulated(batch: Batch, gamma: float, lam: Tensor, end: Tensor) -> Tensor:
    """Aₜ `[B, T]` from the last token to the first, with each row's `lam [B]` and value `end [B]` after its last."""
    out = torch.zeros_like(batch.old_values)
    following, advantage = end.to(out.dtype), torch.zeros_like(out[:, 0])
    for t in reversed(range(out.shape[1])):
        chosen, value, reward = batch.mask[:, t], batch.old_values[:, t], batch.token_rewards[:, t].to(out.dtype)
        surprise = reward + gamma * following - value
        advantage = torch.where(chosen, surprise + gamma * lam * advantage, advantage)
        following = torch.where(chosen, value, following + reward)
        out[:, t] = torch.where(chosen, advantage, 0.0)
    return out


@loss
def value_loss(clip: float | None = 0.2) -> Callable[[Outputs, Batch], Terms]:
    """Lₜ = ½ max((V − R)², (V_clip − R)²), with V_clip = V_old + clamp(V − V_old, −clip, clip). None: ½ (V − R)².

    `clip` is in the reward's unit, not a share: .2 suits rewards between 0 and 1. The larger of the two errors counts,
    so a value that came nearer to R by more than the clip gets no further gradient, and one that moved away all of it.
    PPO's paper has no such clip; it came with its code (arXiv 2005.12729 measures that), and None is a sound choice.

    Watches `critic/value`, `critic/return`, `critic/error` (squared) and `critic/clip_fraction`. How much of the
    returns the critic explains is measured on the whole batch, `critic/explained_variance`.
    """
    if clip is not None and clip <= 0:
        raise ValueError(f"value_loss: got clip={clip}; expected more than 0, or None for no clip")

    @requires("values")
    @needs("returns", *(("old_values",) if clip is not None else ()))
    def squared_error(outputs: Outputs, batch: Batch) -> Terms:
        values = outputs.values
        if values is None:
            raise ConfigError("value_loss: got outputs without values; give the policy a critic")
        error = (values - batch.returns) ** 2
        seen = {"critic/value": values.detach(), "critic/return": batch.returns, "critic/error": error.detach()}
        if clip is None:
            return 0.5 * error, seen
        held = batch.old_values + (values - batch.old_values).clamp(-clip, clip)
        clipped = (held - batch.returns) ** 2
        silent = (clipped > error).to(error.dtype)
        return 0.5 * torch.maximum(error, clipped), {**seen, "critic/clip_fraction": silent.detach()}

    return squared_error


@loss
def entropy_bonus() -> Callable[[Outputs, Batch], Tensor]:
    """Lₜ = −H(π(· | sₜ)), nats: adding `0.01 * entropy_bonus()` to a loss rewards entropy (Williams & Peng, 1991).

    Of the whole distribution over the vocabulary, with its exact gradient, at the temperature of sampling: the entropy
    of what was drawn from, not of the model at temperature 1. Raises ConfigError where a backend computes no entropy.
    """

    def negative_entropy(outputs: Outputs, _: Batch) -> Tensor:
        if outputs.entropy is None:
            raise ConfigError("entropy_bonus: got outputs without entropy; this backend computes none, leave it out")
        return -outputs.entropy

    return negative_entropy


@credit
def whitened_rewards(shift_mean: bool = False, eps: float = 1e-8) -> Callable[[Batch], Batch]:
    """rₜ ← (rₜ − mean(r)) / sqrt(var(r) + eps) + mean(r) over the chosen tokens of the batch, population variance.

    `shift_mean` leaves the last term out. Keeping the mean is what TRL and the code before it do (Ziegler et al.,
    2019, arXiv 1909.08593), because without it the sign of a reward would be lost. For scores without a scale of their
    own (a reward model's); a reward of 0 and 1 has one. Chain it before `gae`, `kl_in_reward(β) | whitened_rewards() |
    gae()`: it changes the unit of values and returns, from batch to batch. Tokens that were not chosen but carry a
    reward count as chosen ones. Rewards that are all equal stay as they are.
    """

    def give(batch: Batch) -> Batch:
        rewards = batch.token_rewards
        counted = batch.mask | (rewards != 0)
        some = rewards[counted]
        if some.numel() == 0 or some.min() == some.max():
            return batch
        mean, variance = some.mean(), some.var(correction=0)
        white = (rewards - mean) / (variance + eps).sqrt() + (0.0 if shift_mean else mean)
        white = torch.where(counted, white, rewards)
        return batch.with_(token_rewards=white, rewards=batch.rewards + (white - rewards).sum(1))

    return give


class Begun:
    """How many batches a critic has been warmed up with: the memory of `warmed_up`."""

    def __init__(self) -> None:
        self.batches = 0

    def state(self) -> dict[str, Any]:
        """The count."""
        return {"batches": self.batches}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after that many."""
        self.batches = int(state["batches"])


def warmed_up(update: Update, loss: Loss, batches: int) -> Update:
    """`update`, but on `loss` alone for the first so many batches: a critic learns before the policy moves.

    Value pre-training (VC-PPO, arXiv 2503.01491): with a critic that knows nothing yet, long completions get advantages
    that are noise. Batches are sampled, credited and counted as ever; the count is remembered with the run. A
    `SeparateCritic` leaves the policy exactly where it is; a `ValueHead` moves the weights that it shares with it.
    """
    if batches < 0:
        raise ValueError(f"warmed_up: got batches={batches}; expected 0 (no warm-up) or more")
    if batches == 0 or loss.absent:
        return update
    begun = Begun()

    def run(learner: Learner, batch: Batch, algorithm: Algorithm) -> dict[str, float]:
        if begun.batches == batches:
            return update(learner, batch, algorithm)
        begun.batches += 1
        return update(learner, batch, replace(algorithm, loss=loss))

    label = f"warmed_up({update.label}, {loss.label}, batches={batches})"
    return replace(update, label=label, function=run, memory=(*update.memory, begun))
