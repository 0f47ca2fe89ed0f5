"""Distillation by text: a teacher writes solutions, those worth learning are kept, and a student imitates them (`sft`).

    task ─► `samples` texts ─► whole ones ─► right ones ─► different ones ─► the first `most` of them

It is what remains for a teacher of another vocabulary, or one that says no log-probs, and is the forward KL of whole
sequences from a teacher known by its samples; with the verifier as a filter, from the teacher given that it is right.
A text that was cut by the token limit has no end and is never kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maieutic.endpoint import Bill, Outcome, Reply, Respondent
from maieutic.errors import ConfigError, ModelError
from maieutic.protocols import Taskset
from maieutic.types import Task


@dataclass(frozen=True)
class Counts:
    """What became of the texts that were asked for: each is in one of these, but for `kept`, which `right` holds."""

    failed: int = 0
    cut: int = 0
    wrong: int = 0
    again: int = 0
    """The same as another one of its task."""
    beyond: int = 0
    """More than a task is to have."""
    kept: int = 0

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Written:
    """What a teacher wrote for one task: the texts that are kept, what became of all, and what asking cost."""

    task: Task
    texts: tuple[str, ...]
    counts: Counts = field(default=Counts())
    bill: Bill = field(default=Bill())

    def rows(self, teacher: str) -> list[dict[str, Any]]:
        """As rows of a file of tasks, each with its solution: what `sft` learns from."""
        prompt = [{"role": message.role, "content": message.content} for message in self.task.prompt]
        answer = {} if self.task.answer is None else {"answer": self.task.answer}
        return [
            {"id": f"{self.task.id}#{n}", "prompt": prompt, **answer, "solution": text, "teacher": teacher}
            for n, text in enumerate(self.texts)
        ]


@dataclass(frozen=True)
class Writer:
    """Asks a teacher for solutions. `right_only`: those that the tasks' verifier accepts.

    Raises ConfigError for numbers below 1, and for several samples at temperature 0, which would all be the same.
    """

    teacher: Respondent
    tasks: Taskset
    samples: int = 4
    most: int | None = None
    right_only: bool = True
    temperature: float = 1.0
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        if min(self.samples, self.max_tokens, 1 if self.most is None else self.most) < 1 or self.temperature < 0:
            raise ConfigError(
                f"got samples={self.samples}, most={self.most}, max_tokens={self.max_tokens}, "
                f"temperature={self.temperature:g}; expected at least 1 of each, and no negative temperature"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"got {self.samples} samples at temperature 0, which are all the same; take 1, or warm up"
            )

    async def __call__(self, task: Task) -> Written:
        """The solutions of one task. Raises ModelError where the teacher refuses to be asked, which no other task
        would change; a passing failure is counted."""
        asked = (
            self.teacher.chat(task.prompt, max_tokens=self.max_tokens, temperature=self.temperature, sample=sample)
            for sample in range(self.samples)
        )
        replies = await asyncio.gather(*asked)
        bill = Bill()
        for reply in replies:
            bill = bill.plus(reply.bill)
            if reply.outcome in (Outcome.REFUSED, Outcome.NOT_UNDERSTOOD, Outcome.UNREACHABLE):
                raise ModelError(f"{self.teacher.name} could not be asked for task {task.id!r}: {reply.why}")
        return self._sorted(task, replies, bill)

    def _sorted(self, task: Task, replies: list[Reply], bill: Bill) -> Written:
        counts: dict[str, int] = {}
        kept: dict[str, str] = {}
        for reply in replies:
            what = self._became(task, reply, kept)
            counts[what] = counts.get(what, 0) + 1
            if what == "kept":
                kept[_plain(reply.text)] = reply.text
        return Written(task, tuple(kept.values()), Counts(**counts), bill)

    def _became(self, task: Task, reply: Reply, kept: Mapping[str, str]) -> str:
        if not reply.answered or not reply.text.strip():
            return "cut" if reply.outcome is Outcome.CUT else "failed"
        if self.right_only and not self.tasks.verifier(task, reply.text).correct:
            return "wrong"
        if _plain(reply.text) in kept:
            return "again"
        return "kept" if self.most is None or len(kept) < self.most else "beyond"


def _plain(text: str) -> str:
    """Equal for texts that differ in white space only."""
    return " ".join(text.split())
