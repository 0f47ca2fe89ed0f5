"""Credit: from rewards to the advantage of every token.

A credit reads a batch and returns it with `advantages [B, T]`, 0 off the mask and without gradient. The credits of
this page compare a rollout with its siblings or with nothing, and give every token of a rollout the same advantage;
`discounted` and `whitened` act on tokens. What gives all tokens of a row the same reads the outcome alone (`rewards`):
step rewards are on tokens; `discounted` and `gae` spend them, and `core.stepwise` compares them.

Letters: `B` rows, `T` tokens, `G` siblings of a group, `r` rewards `[B]`, `m` mask `[B, T]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from maieutic.core.kl import k1
from maieutic.core.parts import compares, credit, needs
from maieutic.errors import UnknownName
from maieutic.types import Batch


def _spread(batch: Batch, advantage: Tensor) -> Batch:
    """`advantage [B]` → `advantages [B, T]`: the same for every chosen token of a row."""
    return batch.with_(advantages=advantage[:, None] * batch.mask)


def _group_sums(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each row: its group's number `[B]`, the groups' sizes and sums of rewards `[groups]`."""
    _, member = torch.unique(groups, return_inverse=True)
    count = torch.zeros(int(member.max()) + 1, dtype=rewards.dtype, device=rewards.device)
    size = count.index_add(0, member, torch.ones_like(rewards))
    total = count.index_add(0, member, rewards)
    return member, size, total


def _centred(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """r − mean of its group `[B]`, and the group number and size of each row `[B]`.

    A group whose rewards are all equal gets exactly 0: rounding in the mean must not leave noise that a division by
    a tiny deviation would blow up.
    """
    member, size, total = _group_sums(rewards, groups)
    low = torch.full_like(total, float("inf")).scatter_reduce(0, member, rewards, "amin")
    high = torch.full_like(total, -float("inf")).scatter_reduce(0, member, rewards, "amax")
    difference = rewards - (total / size)[member]
    return torch.where((low == high)[member], torch.zeros_like(difference), difference), member, size[member]


@credit
def uniform() -> Callable[[Batch], Batch]:
    """Aᵢₜ = rᵢ: the reward itself, no baseline.

    Unbiased and noisy; with rewards 0 and 1 it imitates the rollouts that were right (Williams, 1992).
    """

    def give(batch: Batch) -> Batch:
        return _spread(batch, batch.rewards)

    return give


@credit
def group_centered() -> Callable[[Batch], Batch]:
    """Aᵢₜ = rᵢ − mean(r₁ … r_G), over the scorable siblings.

    The mean includes the rollout itself, which scales the expected gradient by (G−1)/G and does not turn it
    (Dr. GRPO, arXiv 2503.20783, §3). A group of one has nothing to compare with: its advantage is 0.
    """

    @compares(2)
    def give(batch: Batch) -> Batch:
        return _spread(batch, _centred(batch.rewards, batch.groups)[0])

    return give


@credit
def group_normalized(eps: float = 1e-4, ddof: int = 1) -> Callable[[Batch], Batch]:
    """Aᵢₜ = (rᵢ − mean(r)) / (std(r) + eps), std with `ddof` 1 (unbiased) or 0 (population).

    GRPO, arXiv 2402.03300, §4.1.2, which leaves ddof and eps open: 1 and 1e-4 are those of TRL and RLT, verl has
    1e-6. Dividing by the deviation weighs very easy and very hard prompts up. A group whose rewards are all equal,
    or a group of one, gets exactly 0.
    """
    if ddof not in (0, 1):
        raise ValueError(f"group_normalized: got ddof={ddof}; expected 0 (population) or 1 (unbiased)")

    @compares(2)
    def give(batch: Batch) -> Batch:
        return _spread(batch, normalised(batch.rewards, batch.groups, eps, ddof))

    return give


def normalised(rewards: Tensor, groups: Tensor, eps: float, ddof: int) -> Tensor:
    """(r − mean) / (std + eps) of each row's group, `[B]` (DeepSeekMath, arXiv 2402.03300, §4.1.2); 0 where a group's
    rewards are all equal."""
    difference, member, size = _centred(rewards, groups)
    squares = torch.zeros(int(member.max()) + 1, dtype=size.dtype, device=size.device)
    squares = squares.index_add(0, member, difference**2)[member]
    deviation = (squares / (size - ddof).clamp(min=1)).sqrt()
    return difference / (deviation + eps).clamp(min=torch.finfo(deviation.dtype).tiny)  # eps may be 0, and so may this


@credit
def batch_scaled(eps: float = 1e-4, ddof: int = 1) -> Callable[[Batch], Batch]:
    """Aᵢₜ ← Aᵢₜ / (std(r₁ … r_B) + eps), the deviation of the batch's rewards: `group_centered() | batch_scaled()`.

    Lite PPO, arXiv 2508.08221: a deviation of a few siblings is noise and weighs easy and hard prompts up, that of a
    batch does neither. As in TRL it is that of the rewards, not of what is divided. Rewards that are all equal give 0.
    """

    @needs("advantages")
    def give(batch: Batch) -> Batch:
        deviation = _deviation(batch.rewards, ddof)
        scaled = batch.advantages / (deviation + eps)
        return batch.with_(advantages=torch.where(deviation > 0, scaled, torch.zeros_like(scaled)))

    return give


@credit
def batch_normalized(eps: float = 1e-4, ddof: int = 1) -> Callable[[Batch], Batch]:
    """Aᵢₜ ← (Aᵢₜ − mean(a)) / (std(a) + eps), with aᵢ the mean of a row's advantages: every row counts once.

    The second step of GDPO, arXiv 2601.05242. `whitened` counts every token once instead. Equal rows give 0.
    """

    @needs("advantages")
    def give(batch: Batch) -> Batch:
        mask = batch.mask.to(batch.advantages.dtype)
        rows = (batch.advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
        deviation = _deviation(rows, ddof)
        normal = (batch.advantages - rows.mean()) / (deviation + eps) * mask
        return batch.with_(advantages=torch.where(deviation > 0, normal, torch.zeros_like(normal)))

    return give


def _deviation(values: Tensor, ddof: int) -> Tensor:
    """The deviation of values `[B]`, a number; exactly 0 where they are all equal."""
    if values.numel() <= ddof or values.min() == values.max():
        return torch.zeros_like(values.mean())
    return values.std(correction=ddof)


@credit
def parts_normalized(
    reward_weights: Mapping[str, float] | None = None, eps: float = 1e-4, ddof: int = 1
) -> Callable[[Batch], Batch]:
    """Aᵢₜ = Σₖ wₖ (rᵢₖ − mean_g(rₖ)) / (std_g(rₖ) + eps) over the named parts k of the reward: each on its own scale.

    The first step of GDPO, arXiv 2601.05242: rewards that are added and then normalised cannot be told apart again,
    (1, 0) from (0, 1) least of all. A part that a row lacks (NaN) is left out of its group's mean and deviation and
    adds nothing; one that is equal in a whole group adds 0.

    `reward_weights`: the parts that count and by how much, as in `weighted`. None: all of them, 1 each, and the parts
    of a part (`answer/format` beside `answer`) once more; then say which. Raises UnknownName for a part that no row of
    the batch has.
    """
    if reward_weights is not None and not reward_weights:
        raise ValueError("parts_normalized: got no reward_weights; expected at least one part, or None for all")

    @compares(2)
    @needs("reward_parts")
    def give(batch: Batch) -> Batch:
        parts = dict(zip(batch.part_names, batch.reward_parts.to(batch.rewards).unbind(1), strict=True))
        weights = dict.fromkeys(parts, 1.0) if reward_weights is None else reward_weights
        advantage = torch.zeros_like(batch.rewards)
        for name, weight in weights.items():
            if name not in parts:
                raise UnknownName("reward part", name, parts)
            known = ~parts[name].isnan()
            if bool(known.any()):
                advantage[known] += weight * normalised(parts[name][known], batch.groups[known], eps, ddof)
        return _spread(batch, advantage)

    return give


@credit
def leave_one_out() -> Callable[[Batch], Batch]:
    """Aᵢₜ = rᵢ − mean of the *other* siblings = G/(G−1) · (rᵢ − mean(r)).

    An unbiased baseline (RLOO, arXiv 2402.14740; Kool et al., 2019). A group of one gets 0.
    """

    @compares(2)
    def give(batch: Batch) -> Batch:
        difference, _, size = _centred(batch.rewards, batch.groups)
        return _spread(batch, difference * size / (size - 1).clamp(min=1))

    return give


@credit
def discounted(gamma: float = 1.0) -> Callable[[Batch], Batch]:
    """Aₜ = Rₜ = Σ_{u ≥ t} γ^{k(u) − k(t)} r_u over the chosen tokens: the reward to go.

    `k(t)` counts chosen tokens, so tokens that an environment inserted neither discount nor receive credit. Fills
    `returns` too. γ = 1 and an outcome reward make it `uniform` (REINFORCE; Williams, 1992).
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"discounted: got gamma={gamma}; expected 0 ≤ gamma ≤ 1")

    def give(batch: Batch) -> Batch:
        mask = batch.mask.to(batch.token_rewards.dtype)
        returns = torch.zeros_like(batch.token_rewards)
        running = torch.zeros_like(batch.rewards)
        for t in reversed(range(returns.shape[1])):
            decay = gamma * mask[:, t] + (1.0 - mask[:, t])
            running = batch.token_rewards[:, t] + decay * running
            returns[:, t] = running
        returns = returns * mask
        return batch.with_(advantages=returns, returns=returns)

    give.spends_steps = True  # type: ignore[attr-defined]
    return give


@credit
def whitened(eps: float = 1e-8) -> Callable[[Batch], Batch]:
    """Aₜ ← (Aₜ − mean(A)) / sqrt(var(A) + eps) over the chosen tokens of the whole batch.

    Chain it after another credit: `discounted() | whitened()`. Population variance. It comes after returns are
    computed, and it changes what a token is compared with: the batch, not its siblings. Where all advantages are
    equal the result is exactly 0.
    """

    @needs("advantages")
    def give(batch: Batch) -> Batch:
        mask = batch.mask.to(batch.advantages.dtype)
        count = mask.sum().clamp(min=1)
        centred = (batch.advantages - (batch.advantages * mask).sum() / count) * mask
        variance = (centred**2).sum() / count
        chosen = batch.advantages[batch.mask]
        if chosen.numel() == 0 or chosen.min() == chosen.max():
            return batch.with_(advantages=torch.zeros_like(centred))
        return batch.with_(advantages=centred / (variance + eps).sqrt())

    return give


@credit
def kl_in_reward(beta: float) -> Callable[[Batch], Batch]:
    """rₜ ← rₜ − β (log π_old − log ref)ₜ on chosen tokens, and r ← r − β Σₜ(…)ₜ: the penalty as a reward.

    Reverse KL with the exact gradient (k1 in the reward, no gradient through it; see `maieutic.core.kl`). Chain it
    before the credit that spends the rewards: `kl_in_reward(0.05) | leave_one_out()`. β = 0 is no penalty, and asks for
    no reference.
    """
    if beta == 0:
        return none().function

    @needs("old_logprobs", "ref_logprobs")
    def give(batch: Batch) -> Batch:
        penalty = beta * k1(batch.old_logprobs, batch.ref_logprobs) * batch.mask
        return batch.with_(token_rewards=batch.token_rewards - penalty, rewards=batch.rewards - penalty.sum(1))

    return give


@credit
def none() -> Callable[[Batch], Batch]:
    """No credit: the loss does not ask how good a token was (imitation, preferences)."""

    def give(batch: Batch) -> Batch:
        return batch

    give.absent = True  # type: ignore[attr-defined]
    return give
