"""Credit that compares the steps of rollouts: process supervision among siblings.

    outcome   r₁ … r_G compared, one advantage a rollout                     `core.credit`
    process   the rewards of all steps of a group compared; a token gets those of its step and of the steps after it
    both      their sum

Credits that give every token of a rollout the same read outcomes alone, and so would throw rewards of steps away;
`spends_steps` says which credits do not. `discounted` and `gae` spend them as they are (`token_rewards`).

Letters: `B` rows, `T` tokens, `K` steps of a row, `F` steps that a row lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from maieutic.core.credit import normalised
from maieutic.core.parts import Credit, compares, credit, needs
from maieutic.types import Batch


@credit
def steps_normalized(added: bool = False, eps: float = 1e-4, ddof: int = 1) -> Callable[[Batch], Batch]:
    """Aᵢₜ = Σ_{k: step k ends at t or after} (rᵢₖ − mean(R)) / (std(R) + eps), R the rewards of all steps of the group.

    GRPO with process supervision, arXiv 2402.03300, §4.1.3, which leaves the outcome out; `added` puts this on top of
    what another credit gave: `group_normalized() | steps_normalized(added=True)`. `eps` and `ddof` as there. A group
    whose step rewards are all equal gets exactly 0, as does a row without steps or without siblings.

    A row with more steps has more terms, each above 0 where its step is better than the group's mean: a policy can earn
    by adding such steps. Rewards that telescope (`maieutic.rewards.stepwise.potential`) and γ = 1 cannot be earned so,
    but they are to be spent as they are, by `discounted` or `gae`.

    A row that ends has no further terms, as if each were the group's mean: an end that was earned costs nothing. Steps
    that a row lacks because its game was left (`forfeits`) are steps of the group like the others, whose terms all
    tokens of the row get; without them, to leave would pay whenever what is to come is below the mean.
    """

    @compares(2)
    @needs("step_rewards", *(("advantages",) if added else ()))
    def give(batch: Batch) -> Batch:
        rewards = batch.step_rewards.to(batch.rewards)
        _, member, rows = torch.unique(batch.groups, return_inverse=True, return_counts=True)
        known = ~rewards.isnan() & (rows[member] > 1)[:, None]
        groups = batch.groups[:, None].expand_as(known)
        scaled, lost = torch.zeros_like(rewards), torch.zeros_like(batch.rewards)
        lacking = batch.forfeits.to(batch.rewards) if batch.has("forfeits") else rewards[:, :0]
        left = ~lacking.isnan() & (rows[member] > 1)[:, None]
        if bool(known.any()):
            owners = torch.cat([groups[known], batch.groups[:, None].expand_as(left)[left]])
            values = normalised(torch.cat([rewards[known], lacking[left]]), owners, eps, ddof)
            scaled[known] = values[: int(known.sum())]
            lost.index_add_(0, left.nonzero()[:, 0], values[int(known.sum()) :])
        to_go = (scaled.flip(1).cumsum(1).flip(1) + lost[:, None]) * batch.mask
        return batch.with_(advantages=batch.advantages + to_go if added else to_go)

    give.spends_steps = True  # type: ignore[attr-defined]
    return give


#: What siblings are compared by: name → the credit made of the one that compares outcomes.
SUPERVISION: Mapping[str, Callable[[Credit], Credit]] = {
    "outcome": lambda outcome: outcome,
    "process": lambda _: steps_normalized(),
    "both": lambda outcome: outcome | steps_normalized(added=True),
}


def spends_steps(given: Credit) -> bool:
    """Whether rewards of steps reach the advantages that a credit gives."""
    return getattr(given.function, "spends_steps", False)
