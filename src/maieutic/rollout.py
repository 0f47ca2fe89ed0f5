"""Rollouts: from a task to a group of scored attempts.

    Task ─► Chat.prompt ─► Sampler (with the task's tool) ─► Rollout ─► Reward ─► Score   =►   Group

This is the boundary at which failures become data: a prompt that does not fit the model makes rollouts that finish
with ERROR, have no reward, and are counted. Letters: `G` siblings of a group.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from maieutic.clock import beside
from maieutic.environments.inline import interjection
from maieutic.errors import PromptTooLong
from maieutic.protocols import Chat, Completion, Reward, Sampler, Sampling, Tool
from maieutic.rewards.compose import judge_group
from maieutic.types import Finish, Group, Rollout, Score, Span, Task


class Rolls(Protocol):
    """What turns a task into a group: a `Roller`, or a `maieutic.play.Player` where there are several turns."""

    @property
    def sampler(self) -> Sampler: ...

    @property
    def chat(self) -> Chat: ...

    async def group(self, task: Task, n: int, visit: int) -> Group:
        """`n` rollouts of one task and their scores; the group's id is `visit`."""
        ...


@dataclass(frozen=True)
class Roller:
    """Everything that turns a task into a group, apart from the task.

    `seed` and a visit's number seed the sampling, so the same visit of the same run gives the same group, whatever
    else is sampled beside it.

    With `first`, so many rollouts of a task are written and judged before the others, and where `decided` says of them
    that the task's outcome is known, it stays at these: the group has fewer.
    """

    sampler: Sampler
    chat: Chat
    reward: Reward
    max_completion_length: int
    temperature: float = 1.0
    tool: Tool | None = None
    seed: int | str = 0
    first: int | None = None
    decided: Callable[[Group], bool] | None = None

    async def group(self, task: Task, n: int, visit: int) -> Group:
        """`n` rollouts of one task and their scores; the group's id is `visit`."""
        return await in_two_parts(self._written, task, n, visit, self.first, self.decided)

    async def _written(self, task: Task, siblings: range, visit: int) -> Group:
        key = f"{self.seed}/{visit}/{task.id}" + ("/more" if siblings.start else "")
        prompt = self.chat.prompt(task.prompt)
        interject, ids = interjection(self.chat, self.tool)
        sampling = Sampling(
            max_tokens=self.max_completion_length,
            temperature=self.temperature,
            stop_ids=self.chat.stop_ids,
            key=key,
            interject=interject,
            interject_ids=ids,
        )
        try:
            completions = await self.sampler.sample(prompt, sampling, len(siblings))
        except PromptTooLong as error:
            at = self.temperature or 1.0
            rollouts = tuple(_failed(task, prompt, at, sibling, str(error)) for sibling in siblings)
            return Group(task, rollouts, tuple(Score(None, note=str(error)) for _ in rollouts), id=visit)
        rollouts = tuple(
            self._rollout(task, prompt, completion, sibling)
            for sibling, completion in zip(siblings, completions, strict=True)
        )
        with beside("reward"):
            scores = await judge_group(self.reward, task, rollouts)
        return Group(task, rollouts, tuple(scores), id=visit)

    def _rollout(self, task: Task, prompt: tuple[int, ...], completion: Completion, sibling: int) -> Rollout:
        zeros = (0.0,) * len(prompt)
        return Rollout(
            task_id=task.id,
            tokens=prompt + completion.tokens,
            mask=(False,) * len(prompt) + completion.mask,
            logprobs=zeros + completion.logprobs,
            finish=completion.finish,
            text=self.chat.decode(completion.tokens),
            spans=spans_of(len(prompt), completion.mask),
            sibling=sibling,
            version=completion.version,
            temperature=self.temperature or 1.0,
        )


async def in_two_parts(
    written: Callable[[Task, range, int], Awaitable[Group]],
    task: Task,
    n: int,
    visit: int,
    first: int | None,
    decided: Callable[[Group], bool] | None,
) -> Group:
    """`n` rollouts by `written(task, siblings, visit)`: `first` so many, and the others unless these decide."""
    if first is None or decided is None or first >= n:
        return await written(task, range(n), visit)
    some = await written(task, range(first), visit)
    if decided(some):
        return some
    more = await written(task, range(first, n), visit)
    return Group(task, some.rollouts + more.rollouts, some.scores + more.scores, id=visit)


def spans_of(prompt_length: int, mask: Sequence[bool]) -> tuple[Span, ...]:
    """The prompt's span, then alternating spans of what the model ("assistant") and a tool wrote.

    >>> spans_of(2, (True, True, False))
    (Span(role='prompt', start=0, stop=2), Span(role='assistant', start=2, stop=4), Span(role='tool', start=4, stop=5))
    """
    spans = [Span("prompt", 0, prompt_length)]
    start = 0
    for i in range(1, len(mask) + 1):
        if i == len(mask) or mask[i] != mask[start]:
            role = "assistant" if mask[start] else "tool"
            spans.append(Span(role, prompt_length + start, prompt_length + i))
            start = i
    return tuple(spans)


def _failed(task: Task, prompt: tuple[int, ...], temperature: float, sibling: int, note: str) -> Rollout:
    blank = (False,) * len(prompt)
    return Rollout(
        task.id, prompt, blank, (0.0,) * len(prompt), Finish.ERROR, sibling=sibling, temperature=temperature, note=note
    )
