"""Explanations of a teacher as demonstrations for a student: candidates of each task, one of which is kept.

    lesson ─► teacher writes N candidates ─► those that fit ─► ranked ─► a row in the student's layout
                                                                     └─► pairs of candidates, for the teacher itself

No candidate is filtered by whether it is right, and none is rewritten (arXiv 2506.08388, §4): the solution that follows
it in the row is the known one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from maieutic.core.exams import preferred
from maieutic.core.teaching import choose_explanation
from maieutic.protocols import Chat
from maieutic.rollout import Roller
from maieutic.tasks.teaching import Lesson, lesson_of
from maieutic.teaching.exams import Examiner, example_of, preference_row
from maieutic.types import Finish, Rollout, Score, Task


@dataclass(frozen=True)
class Candidate:
    """What a teacher wrote for a task: the explanation, whether it closed it, the student's whole turn made of it, and
    the tokens that it had chosen."""

    explanation: str
    closed: bool
    learned: str
    tokens: int
    reward: float | None = None

    def taught(self, lesson: Lesson) -> str:
        """What the teacher wrote; a tag that is missing is not added, for that is a reason to prefer another."""
        return lesson.tags.taught(self.explanation) if self.closed else self.explanation


#: (the teacher's task, its lesson, candidates) → a number each, by which the best is chosen; None: not to be judged.
Rank = Callable[[Task, Lesson, Sequence[Candidate]], Awaitable[list[float | None]]]


async def unjudged(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:  # noqa: ARG001  (a reward's signature)
    """The reward of what is not ranked: none."""
    return [Score(None) for _ in rollouts]


async def in_order(task: Task, lesson: Lesson, candidates: Sequence[Candidate]) -> list[float | None]:  # noqa: ARG001
    """The first one is the best one."""
    return [-float(i) for i in range(len(candidates))]


async def by_reward(task: Task, lesson: Lesson, candidates: Sequence[Candidate]) -> list[float | None]:  # noqa: ARG001
    """By the reward with which the teacher's group was judged."""
    return [candidate.reward for candidate in candidates]


def by_exam(examiner: Examiner) -> Rank:
    """By how well students do that are shown them."""

    async def rank(task: Task, lesson: Lesson, candidates: Sequence[Candidate]) -> list[float | None]:
        shown = [example_of(lesson.question, candidate.learned) for candidate in candidates]
        return [float(score) for score in await examiner.scores(task, shown)]

    return rank


class Lessons(Protocol):
    """Lessons by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Task: ...


@dataclass(frozen=True)
class Collected:
    """Of one lesson: the demonstration (None where no candidate is fit to be shown), and what was preferred to what."""

    row: dict[str, Any] | None
    preferences: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Collector:
    """Collects the demonstration of one lesson at a time.

    roller      of the teacher; its reward judges candidates (`unjudged` where nothing does).
    candidates  written of each lesson.
    rank        what the best one is chosen by.
    reserved    whether the lesson's recorded explanation is taken where the best one was not closed.
    reader, max_tokens   the student's chat, and the most tokens that a demonstration may have of it.
    margin      how far apart the ranks of the best and the worst candidate are to be for a preference (None: for none).
    """

    lessons: Lessons
    roller: Roller
    reader: Chat
    candidates: int = 1
    rank: Rank = in_order
    reserved: bool = False
    max_tokens: int | None = None
    margin: float | None = None

    async def __call__(self, index: int) -> Collected:
        """What is collected of the lesson at `index`."""
        task = self.lessons[index]
        lesson = lesson_of(task)
        group = await self.roller.group(task, self.candidates, index)
        written = [self._candidate(lesson, r, s) for r, s in zip(group.rollouts, group.scores) if _wrote(r)]
        fit = [candidate for candidate in written if candidate.explanation and self._fits(lesson, candidate.learned)]
        spare = self._reserved(task, lesson)
        ranked = await self.rank(task, lesson, fit) if fit else []
        best = choose_explanation(ranked, [candidate.closed for candidate in fit], spare is not None)
        chosen = spare if best is None else fit[best]
        preferences = self._preferences(task, lesson, fit, ranked)
        if chosen is None:
            return Collected(None, preferences)
        found = {"value": None if best is None else ranked[best], "candidate": best}
        about = {**found, "fit": len(fit), "asked": len(group.rollouts)}
        return Collected(row_of(task, lesson, chosen, about), preferences)

    def _preferences(
        self, task: Task, lesson: Lesson, fit: Sequence[Candidate], ranked: Sequence[float | None]
    ) -> tuple[dict[str, Any], ...]:
        if self.margin is None:
            return ()
        known = [(candidate, value) for candidate, value in zip(fit, ranked, strict=True) if value is not None]
        pairs = preferred([value for _, value in known], self.margin)
        return tuple(preference_row(task, *(known[i][0].taught(lesson) for i in pair)) for pair in pairs)

    def _candidate(self, lesson: Lesson, rollout: Rollout, score: Score) -> Candidate:
        text, tag, _ = rollout.text.partition(lesson.tags.closing)
        learned = lesson.tags.learned(text, lesson.solution)
        return Candidate(text.strip(), bool(tag), learned, rollout.completion_length, score.reward)

    def _reserved(self, task: Task, lesson: Lesson) -> Candidate | None:
        shown = task.meta.get("solution")
        if not self.reserved or not isinstance(shown, str):
            return None
        text = shown.partition(lesson.tags.closing)[0].strip()
        made = Candidate(text, True, lesson.tags.learned(text, lesson.solution), 0)
        return made if self._fits(lesson, made.learned) else None

    def _fits(self, lesson: Lesson, learned: str) -> bool:
        if self.max_tokens is None:
            return True
        asked, said = self.reader.prompt(lesson.question), self.reader.completion(learned)
        return len(asked) + len(said) <= self.max_tokens


def _wrote(rollout: Rollout) -> bool:
    return rollout.finish is not Finish.ERROR


def row_of(task: Task, lesson: Lesson, chosen: Candidate, about: Mapping[str, Any]) -> dict[str, Any]:
    """A demonstration as a row that the taskset `file` reads; what it was made of stands beside it."""
    return {
        "id": task.id,
        "prompt": [{"role": message.role, "content": message.content} for message in lesson.question],
        "answer": task.answer if task.answer is not None else lesson.solution,
        "solution": chosen.learned,
        "explanation": chosen.explanation,
        "closed": chosen.closed,
        "reward": chosen.reward,
        "tokens": chosen.tokens,
        **about,
    }
