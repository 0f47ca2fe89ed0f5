"""Completions to try a reward on: those that were given, those of which it is known how right they are, a model's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maieutic.errors import DataError

if TYPE_CHECKING:
    from maieutic.protocols import Taskset
    from maieutic.rewards.adapt_trial import Probe
    from maieutic.types import Rollout, Score, Task


def read_completions(file: Path) -> list[str]:
    """The completions in a file. Raises DataError for one that cannot be read so."""
    from maieutic.tasks.files import existing, read_rows, read_text

    if existing(file).suffix != ".jsonl":
        return [read_text(file)]
    found = []
    for where, row in read_rows(file):
        text = row.get("completion", row.get("text"))
        if not isinstance(text, str):
            raise DataError(f"{where}: no completion; expected text in 'completion'. The row has {', '.join(row)}")
        found.append(text)
    return found


def pasted(task: Task, texts: Sequence[str]) -> list[Probe]:
    """Completions that were given, as one group."""
    from maieutic.rewards.adapt_trial import Probe

    return [Probe(task, tuple(_rollout(task, text, i) for i, text in enumerate(texts)), ("given",) * len(texts))]


def invented(tasks: Taskset, n: int) -> list[Probe]:
    """Completions of which it is known how right they are, for each of a few tasks."""
    from maieutic.rewards.adapt_trial import Probe

    probes = []
    for i in range(min(n, len(tasks))):
        task = tasks[i]
        solution, answer = task.meta.get("solution"), task.answer
        kinds: dict[str, str] = {}
        if isinstance(solution, str):
            kinds["gold solution"] = solution
        if answer is not None:
            kinds |= {"gold answer": answer, "wrong answer": _wrong(tasks, i)}
        said = kinds.get("gold solution") or answer or (task.prompt[-1].content if task.prompt else "word")
        kinds |= {"empty": "", "repeated": " ".join([said] * 8)}
        rollouts = tuple(_rollout(task, text, k) for k, text in enumerate(kinds.values()))
        probes.append(Probe(task, rollouts, tuple(kinds)))
    return probes


def _wrong(tasks: Taskset, index: int) -> str:
    """An answer that is not this task's: a number more where it is one, else another task's."""
    from maieutic.calculator import number, show

    gold = tasks[index].answer or ""
    value = number(gold)
    if value is not None:
        return show(value + 1)
    others = (tasks[k].answer for k in range(min(len(tasks), 50)))
    return next((answer for answer in others if answer and answer != gold), "I do not know.")


def _rollout(task: Task, text: str, sibling: int) -> Rollout:
    """A rollout with that text. Nobody sampled it: a token stands for each word."""
    from maieutic.types import Finish, Rollout

    n = max(1, len(text.split()))
    tokens, mask = (0,) * (n + 1), (False,) + (True,) * n
    return Rollout(task.id, tokens, mask, (0.0,) * (n + 1), Finish.STOP, text, sibling=sibling)


async def sampled(
    speaker: Any, tasks: Taskset, n: int, samples: int, temperature: float, length: int, seed: str = "try"
) -> list[Probe]:
    """What a model writes, a group a task."""
    from maieutic.rewards.adapt_trial import Probe
    from maieutic.rollout import Roller
    from maieutic.types import Score

    async def nothing(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(None, note=task.id) for _ in rollouts]

    roller = Roller(speaker.sampler, speaker.chat, nothing, length, temperature, tasks.tool, seed=seed)
    groups = await asyncio.gather(*(roller.group(tasks[i], samples, i) for i in range(min(n, len(tasks)))))
    return [Probe(group.task, group.rollouts, ("sampled",) * samples) for group in groups]
