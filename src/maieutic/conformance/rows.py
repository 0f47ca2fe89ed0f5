"""The rows that checks use. Letters as in `maieutic.conformance.subject`."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from maieutic.conformance.subject import Rows, TableModel

VOCABULARY = 4


def rows_of(
    model: TableModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    rewards: Sequence[float],
    groups: Sequence[int],
    *,
    tools: Sequence[Sequence[int]] = (),
    temperature: float = 1.0,
) -> Rows:
    """Rows on-policy for `model`, reference included. `tools[i]` are places in row i's completion not chosen by it."""
    full = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
    width = max(map(len, full))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in full])
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        chosen = [place not in (tools[i] if tools else ()) for place in range(len(completion))]
        mask[i, len(prompt) : len(prompt) + len(completion)] = torch.tensor(chosen)
    with torch.no_grad():
        now = torch.where(mask, model.logprobs(tokens, temperature), 0.0)
    sides = [[i for i in range(len(full)) if groups[i] == group] for group in dict.fromkeys(groups)]
    pairs = [pair for side in sides if (pair := _best_and_worst(side, rewards))]
    return Rows(
        tokens=tokens,
        mask=mask,
        lengths=torch.tensor([len(row) for row in full]),
        rewards=torch.tensor(rewards, dtype=torch.float64),
        groups=torch.tensor(groups),
        old_logprobs=now,
        sampler_logprobs=now,
        ref_logprobs=now,
        terminated=torch.ones(len(full), dtype=torch.bool),
        pairs=torch.tensor(pairs) if pairs else torch.zeros(0, 2, dtype=torch.long),
        temperature=temperature,
    )


def _best_and_worst(side: Sequence[int], rewards: Sequence[float]) -> list[int] | None:
    best, worst = max(side, key=lambda i: rewards[i]), min(side, key=lambda i: rewards[i])
    return [best, worst] if rewards[best] > rewards[worst] else None


def ragged(model: TableModel, seed: int = 0) -> Rows:
    """Twelve rows of four groups: prompts of 1 to 4 tokens, completions of 1 to 8, tool tokens in some, an older policy
    and a reference that differ from the present one. What every invariance is tried on."""
    draw = random.Random(seed)
    prompts, completions, rewards, groups, tools = [], [], [], [], []
    for group, count in enumerate((4, 2, 3, 3)):
        prompt = [draw.randrange(VOCABULARY) for _ in range(group + 1)]
        for sibling in range(count):
            length = draw.randint(1, 8)
            prompts.append(prompt)
            completions.append([draw.randrange(VOCABULARY) for _ in range(length)])
            rewards.append(float(sibling % 2) + 0.25 * group)
            groups.append(group)
            tools.append([draw.randrange(length)] if length > 3 else [])
    rows = rows_of(model, prompts, completions, rewards, groups, tools=tools, temperature=0.9)
    return off_policy(rows, seed)


def off_policy(rows: Rows, seed: int, spread: float = 0.3) -> Rows:
    """The rows as an older policy, another engine and a reference saw them."""

    def moved(column: Tensor, number: int) -> Tensor:
        noise = torch.randn(column.shape, generator=torch.Generator().manual_seed(10 * seed + number))
        return torch.where(rows.mask, column + spread * noise, 0.0)

    return rows.with_(
        old_logprobs=moved(rows.old_logprobs, 1),
        sampler_logprobs=moved(rows.sampler_logprobs, 2),
        ref_logprobs=moved(rows.ref_logprobs, 3),
    )
