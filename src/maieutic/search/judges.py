"""Who says how good a completion is, or how good a beginning of one: what searches choose by.

    Judge        (prompt tokens, completions or beginnings, as tokens) → one number each, awaited if need be
    texts        a judge of a function of texts, such as a rule
    of_model     a reward model's word: P(correct), of a process model P(the last step is right)
    of_critic    a learner's critic: the value of the state after the last token

A judge that looks at whole completions is a `score`, one that looks at beginnings gives `values`; many serve as both.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from maieutic.errors import RewardError
from maieutic.protocols import Chat, Learner

if TYPE_CHECKING:
    from maieutic.models.reward_model import RewardModel

Tokens = tuple[int, ...]
#: See the top of the file.
Judge = Callable[[Tokens, Sequence[Tokens]], Sequence[float] | Awaitable[Sequence[float]]]


async def judged(judge: Judge, prompt: Tokens, rows: Sequence[Tokens]) -> list[float]:
    """What the judge says, one number a row, without asking it of nothing.

    Raises RewardError for another number of numbers, and for what is none: a search that chose by those would be wrong.
    """
    if not rows:
        return []
    said = judge(prompt, rows)
    found = [float(value) for value in (await said if inspect.isawaitable(said) else said)]
    if len(found) != len(rows) or any(math.isnan(value) for value in found):
        raise RewardError(f"a judge of completions said {found} of {len(rows)}; expected one number each, no NaN")
    return found


def texts(chat: Chat, judge: Callable[[str], float]) -> Judge:
    """A judge of the decoded text."""
    return lambda _prompt, rows: [judge(chat.decode(row)) for row in rows]


def signed(judge: Judge) -> Judge:
    """Probabilities 0 to 1 as values −1 to 1, as tree searches after AlphaMath have them: 2p − 1."""

    async def give(prompt: Tokens, rows: Sequence[Tokens]) -> list[float]:
        return [2 * value - 1 for value in await judged(judge, prompt, rows)]

    return give


def of_model(model: RewardModel) -> Judge:
    """A reward model that reads the policy's tokens (`maieutic.models.reward_model`): of each row P(correct), of a
    process model P(its last step is right). It is asked in a thread, so that samplers go on meanwhile.

    Raises DataError, when asked, for a row longer than the model reads.
    """

    async def give(prompt: Tokens, rows: Sequence[Tokens]) -> list[float]:
        return await asyncio.to_thread(model.outcome, [prompt] * len(rows), rows)

    return give


def of_critic(learner: Learner, stop_ids: frozenset[int]) -> Judge:
    """The critic of a learner: the value of the state after each beginning. A finished completion has no state after
    its stop token; it has the value of the state in which that token was chosen."""
    import torch

    from maieutic.types import Batch

    def give(prompt: Tokens, rows: Sequence[Tokens]) -> list[float]:
        ends = [len(prompt) + len(row) - bool(row and row[-1] in stop_ids) for row in rows]
        shape = (len(rows), max(ends) + 1)
        tokens, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
        for i, (row, end) in enumerate(zip(rows, ends, strict=True)):
            tokens[i, :end] = torch.tensor([*prompt, *row][:end])
            mask[i, [len(prompt), end]] = True  # the first says where the prompt ends
        zeros, numbers = torch.zeros(shape), torch.arange(len(rows))
        batch = Batch(
            tokens=tokens,
            mask=mask,
            lengths=torch.tensor(ends) + 1,
            sampler_logprobs=zeros,
            rewards=zeros[:, 0],
            token_rewards=zeros,
            terminated=torch.ones(len(rows), dtype=torch.bool),
            groups=torch.zeros(len(rows), dtype=torch.long),
            units=numbers,
        )
        return learner.values(batch)[numbers, torch.tensor(ends)].tolist()

    return give
