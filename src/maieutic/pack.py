"""Pack: from training rows to tensors.

Rows are right-padded and token-aligned. Padding is told by `lengths`, never by a pad id. Letters: `B` rows, `T` the
longest row's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maieutic.clock import phase
from maieutic.types import CHOSEN, REJECTED, Batch, Example, Finish


def _padded(rows: Sequence[Sequence[float]], width: int, dtype: torch.dtype) -> Tensor:
    out = torch.zeros(len(rows), width, dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=dtype)
    return out


def _token_rewards(example: Example, width: int) -> list[float]:
    """The outcome on the last chosen token, and what was forfeited; step rewards where their steps end."""
    rewards = [0.0] * width
    mask = example.rollout.mask
    rewards[len(mask) - 1 - mask[::-1].index(True)] += example.reward + sum(example.forfeits)
    for index, reward in example.step_rewards:
        rewards[index] += reward
    return rewards


def _pairs(examples: Sequence[Example]) -> Tensor | None:
    """`[P, 2]`: the rows (chosen, rejected) of each unit that is a pair; None where no row has a side.

    Raises ValueError for a unit with one side only, or with a side twice.
    """
    sides: dict[int, dict[str, int]] = {}
    for row, example in enumerate(examples):
        if example.role in (CHOSEN, REJECTED):
            pair = sides.setdefault(example.unit, {})
            if example.role in pair:
                raise ValueError(f"pack: unit {example.unit} has two {example.role} rows; expected one of each side")
            pair[example.role] = row
    for unit, pair in sides.items():
        if len(pair) != 2:
            raise ValueError(f"pack: unit {unit} has no row but the {next(iter(pair))} one; expected a pair")
    return torch.tensor([[pair[CHOSEN], pair[REJECTED]] for pair in sides.values()]) if sides else None


def _reward_parts(examples: Sequence[Example], names: Sequence[str]) -> Tensor | None:
    """`[B, R]`: the parts of each reward, in the order of `names`, NaN where a row lacks one; None without any."""
    if not names:
        return None
    return torch.tensor([[example.parts.get(name, math.nan) for name in names] for example in examples])


def _step_rewards(examples: Sequence[Example], width: int) -> Tensor | None:
    """`[B, T]`: the reward of the step that ends at a token, NaN where none does; None where no row has steps."""
    if not any(example.step_rewards for example in examples):
        return None
    rewards = torch.full((len(examples), width), math.nan)
    for i, example in enumerate(examples):
        for index, reward in example.step_rewards:
            rewards[i, index] = reward + rewards[i, index].nan_to_num()
    return rewards


def _forfeits(examples: Sequence[Example]) -> Tensor | None:
    """`[B, F]`: rewards of the steps that rows lack, NaN where there are fewer; None where no row lacks any."""
    most = max(len(example.forfeits) for example in examples)
    rows = [[*example.forfeits, *[math.nan] * (most - len(example.forfeits))] for example in examples]
    return torch.tensor(rows, dtype=torch.float32) if most else None


def pack(examples: Sequence[Example]) -> Batch:
    """One batch of all the rows, in order: row `i` is `examples[i]`.

    Raises ValueError when there are none, or when rows were sampled at different temperatures (their log-probs could
    not be compared with the learner's).
    """
    if not examples:
        raise ValueError("pack: got no examples; a step without rows is skipped before packing")
    temperatures = {e.rollout.temperature for e in examples}
    if len(temperatures) != 1:
        raise ValueError(
            f"pack: got rows sampled at temperatures {sorted(temperatures)}; expected one, because the learner "
            "computes log-probs at the temperature of the batch"
        )
    with phase("pack"):
        rollouts = [e.rollout for e in examples]
        names = tuple(sorted({name for example in examples for name in example.parts}))
        width = max(len(r.tokens) for r in rollouts)
        columns = {
            "pairs": _pairs(examples),
            "reward_parts": _reward_parts(examples, names),
            "step_rewards": _step_rewards(examples, width),
            "forfeits": _forfeits(examples),
        }
        return Batch(
            tokens=_padded([r.tokens for r in rollouts], width, torch.long),
            mask=_padded([r.mask for r in rollouts], width, torch.bool),
            lengths=torch.tensor([len(r.tokens) for r in rollouts]),
            sampler_logprobs=_padded([r.logprobs for r in rollouts], width, torch.float32),
            rewards=torch.tensor([e.reward for e in examples], dtype=torch.float32),
            token_rewards=_padded([_token_rewards(e, width) for e in examples], width, torch.float32),
            # of a game that was left all that was to come is counted: nothing is to be expected after it
            terminated=torch.tensor([e.rollout.finish is not Finish.LENGTH or bool(e.forfeits) for e in examples]),
            groups=torch.tensor([e.group for e in examples]),
            units=torch.tensor([e.unit for e in examples]),
            temperature=temperatures.pop(),
            columns={name: column for name, column in columns.items() if column is not None},
            part_names=names,
            task_ids=tuple(r.task_id for r in rollouts),
        )
