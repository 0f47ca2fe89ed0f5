"""Reward models on the local engine: how they are trained, and how they are asked without padding.

learner = LocalLearner(policy, optimiser, critic=JudgeHead(model.head))      trains body and head
model = quick(load_reward_model("models/orm"))                               the same scores, each prompt run once

`R` rows · `T` tokens of the longest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from maieutic.backends.local.budget import Budget, in_parts
from maieutic.backends.local.check import forward_for, why_not
from maieutic.backends.local.critic import JoinedCritic, freeze_language_head
from maieutic.backends.local.evaluate import Forward
from maieutic.models.causal import CausalModel
from maieutic.models.classifiers import TokenScore
from maieutic.models.reward_model import RewardModel
from maieutic.types import Batch, Outputs

Tokens = Sequence[int]


@dataclass(frozen=True)
class JudgeHead:
    """A reward model's head as the critic of a learner (see `critic.Critic`): its values are the scores of prefixes.

    reads           whether log-probs of what was written are wanted too (for a likelihood beside the labels). Without,
                    the language-model head is not run, and not trained where nothing else reads it.
    learning_rate   of the head (None: the body's).
    """

    head: nn.Module
    reads: bool = False
    learning_rate: float | None = None

    def join(self, policy: CausalModel) -> JoinedCritic:
        """See `critic.Critic`."""
        if not self.reads and not isinstance(self.head, TokenScore):
            freeze_language_head(policy.module)
        return _Judge(self.head, self.reads, self.learning_rate)


class _Judge(nn.Module):
    """See `critic.JoinedCritic`."""

    def __init__(self, head: nn.Module, reads: bool, learning_rate: float | None) -> None:
        super().__init__()
        self.head = head
        self.reads = reads
        self.learning_rate = learning_rate

    def recompute(self) -> None:
        """The layers are the policy's."""

    def values(self, forward: Forward, batch: Batch) -> Tensor:
        """The language-model head is not run."""
        return forward.values(batch, self.head)

    def outputs(self, forward: Forward, batch: Batch, entropy: bool) -> Outputs:  # noqa: ARG002 - no loss reads it
        """Values, and log-probs where they are wanted, else 0."""
        if self.reads:
            return forward.outputs(batch, False, self.head)
        values = self.values(forward, batch)
        return Outputs(torch.zeros_like(values.detach()), None, values)


def quick(model: RewardModel, micro_batch_tokens: int = 16384) -> RewardModel:
    """The model on packed rows: nothing is padded, and completions of one prompt share it. The model itself where the
    plug cannot serve its architecture (`check.why_not`)."""
    if model.head is None or why_not(model.module):
        return model
    head, forward, budget = model.head, forward_for(model.module), Budget(micro_batch_tokens)
    device = next(model.module.parameters()).device

    @torch.no_grad()
    def run(rows: Sequence[Tokens], starts: Sequence[int], columns: Sequence[Sequence[int]]) -> list[list[float]]:
        if not any(columns):
            return [[] for _ in rows]
        batch = _asked(rows, starts, columns)
        scores = in_parts(budget, batch, forward.split, lambda part: (forward.values(part.to(device), head),))[0]
        return [scores[i, list(at)].tolist() for i, at in enumerate(columns)]

    return replace(model, engine=run)


def _asked(rows: Sequence[Tokens], starts: Sequence[int], columns: Sequence[Sequence[int]]) -> Batch:
    """A batch that asks for the values at these columns, with a place more than each row has.

    The first token after each prompt is asked too, which is what tells the engine where prompts that are shared end.
    """
    width = 1 + max(len(row) for row in rows)
    tokens, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (row, start, at) in enumerate(zip(rows, starts, columns)):
        tokens[i, : len(row)] = torch.tensor(row)
        if at:
            mask[i, [start, *at]] = True
    zeros = torch.zeros(len(rows), width)
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(tuple(r[:s]) for r, s in zip(rows, starts)))}
    return Batch(
        tokens=tokens,
        mask=mask,
        lengths=torch.tensor([len(row) + 1 for row in rows]),
        sampler_logprobs=zeros,
        rewards=zeros[:, 0],
        token_rewards=zeros,
        terminated=torch.ones(len(rows), dtype=torch.bool),
        groups=torch.tensor([number[tuple(row[:start])] for row, start in zip(rows, starts)]),
        units=torch.arange(len(rows)),
    )
