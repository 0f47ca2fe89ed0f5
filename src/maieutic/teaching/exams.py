"""Examinations: a solved example is as good as what students answer who were shown it (Learning by Teaching).

    example     question, explanation and solution of one task, as turns before …
    exam        … each of a few similar problems, answered `repeats` times by each student
    score       how many of these answers the verifier accepts (0 to exams · repeats for one student)

Students are samplers, so they may be any models, or servers (M1 of arXiv 2406.14629: 3 similar problems, 3 answers to
each, at temperature 0.7). Beside the reward of a teacher this is sparse, dear, and asks of a student nothing but text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from maieutic.errors import ConfigError, DataError
from maieutic.protocols import Chat, Sampler, Sampling, Taskset
from maieutic.types import Finish, Message, Task

#: Problems among which similar ones are looked for: making a problem costs time, and examinations are many.
LOOKED_AT = 256


@dataclass(frozen=True)
class Examinee:
    """A student that answers: its sampler and how it is spoken to."""

    sampler: Sampler
    chat: Chat


@dataclass(frozen=True)
class Examiner:
    """Scores solved examples by what students answer to problems of `tasks` after reading them.

    tasks       what exam problems are drawn from; its verifier judges.
    similar     a meta column: problems that agree with the example's task in it come first, of the first `LOOKED_AT` of
                a shuffled list; others fill up. None: any other problem.
    exams, repeats   problems of an examination, answers of each student to each.

    Which problems a task's examination has depends on `seed` and the task's id only, so that all candidates of a task
    sit the same one, with the same random numbers. Raises ConfigError for a number below 1 or nobody to examine.
    """

    students: Sequence[Examinee]
    tasks: Taskset
    exams: int = 3
    repeats: int = 3
    similar: str | None = None
    max_completion_length: int = 256
    temperature: float = 0.7
    seed: int | str = 0

    def __post_init__(self) -> None:
        if not self.students or self.exams < 1 or self.repeats < 1:
            raise ConfigError(
                f"examiner: got {len(self.students)} students, exams={self.exams}, repeats={self.repeats}; expected at "
                "least 1 of each"
            )

    @property
    def highest(self) -> int:
        """The score of an example after which everything is right."""
        return len(self.students) * self.exams * self.repeats

    def problems(self, task: Task) -> list[Task]:
        """The exam problems of a task. Raises DataError where there are fewer others than `exams`."""
        order = Random(f"{self.seed}/exams/{task.id}").sample(range(len(self.tasks)), min(LOOKED_AT, len(self.tasks)))
        own = _said(task)
        near: list[Task] = []
        far: list[Task] = []
        for other in (self.tasks[index] for index in order):
            if len(near) == self.exams:
                break
            if _said(other) != own:
                alike = self.similar is None or other.meta.get(self.similar) == task.meta.get(self.similar)
                (near if alike else far).append(other)
        found = [*near, *far][: self.exams]
        if len(found) < self.exams:
            raise DataError(
                f"task {task.id!r}: got {len(found)} other problems for an examination of {self.exams}; give more "
                "tasks, or fewer exams"
            )
        return found

    async def scores(self, task: Task, examples: Sequence[tuple[Message, ...]]) -> list[int]:
        """The score of each solved example `[N]`, turns that end with the assistant's; 0 to `highest`."""
        exams = self.problems(task)
        return list(await asyncio.gather(*(self._score(task, exams, example) for example in examples)))

    async def _score(self, task: Task, exams: Sequence[Task], example: Sequence[Message]) -> int:
        asked = [
            self._right(student, exam, example, f"{self.seed}/exam/{task.id}/{i}")
            for student in self.students
            for i, exam in enumerate(exams)
        ]
        return sum(await asyncio.gather(*asked))

    async def _right(self, student: Examinee, exam: Task, example: Sequence[Message], key: str) -> int:
        """How many of a student's answers to one problem are right."""
        said = exam.prompt if not example or example[0].role != "system" else _without_system(exam.prompt)
        # rendered as one conversation: the example's turns are closed, the last one is the student's
        prompt = student.chat.prompt([*example, *said])
        sampling = Sampling(self.max_completion_length, self.temperature, stop_ids=student.chat.stop_ids, key=key)
        completions = await student.sampler.sample(prompt, sampling, self.repeats)
        finished = [each for each in completions if each.finish is not Finish.ERROR]
        return sum(self.tasks.verifier(exam, student.chat.decode(each.tokens)).correct for each in finished)


def _said(task: Task) -> tuple[Message, ...]:
    """What a user says in a task's prompt: the question, whatever system message it has."""
    return tuple(message for message in task.prompt if message.role == "user")


def _without_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return messages[1:] if messages and messages[0].role == "system" else messages


def example_of(question: Sequence[Message], answer: str) -> tuple[Message, ...]:
    """A solved example: the question and the whole answer to it."""
    return (*question, Message("assistant", answer))


def preference_row(task: Task, chosen: str, rejected: str) -> dict[str, object]:
    """Two completions of a task's prompt, as a row that the taskset `file` reads for `dpo` (M2)."""
    said = [{"role": m.role, "content": m.content} for m in task.prompt]
    return {"prompt": said, "chosen": chosen, "rejected": rejected}
