"""What an explanation is worth, judged by a frozen student: the reward "teaching" of a teacher's group.

    teacher's rollout   … question · solution · <explanation> EXPLANATION </explanation>       lpT: as it was sampled
    student's row       … question · <think> EXPLANATION </think> <solution> SOLUTION          lpS: the student's

The student is another model than the teacher, and need not be the one that is fine-tuned in the end. It is given the
right solution and asked how likely that is: no verifier is asked, nothing is sampled. Log-probs of both are at the
temperature at which the teacher wrote (0.7 in the paper), unless `temperature` says otherwise for the student.

Tokens. Where both have the same tokens, the student reads the very tokens that the teacher chose, and klⱼ is that of
token j. Where they differ, the text is tokenised anew, and j goes over the smallest pieces of text at whose ends both
tokenisations have a boundary, each with the sum of the log-probs of its tokens (on equal tokenisations: the tokens).
Tokens that the teacher did not choose itself (a calculator's) are left out on both sides.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maieutic.core.teaching import Terms, Worth
from maieutic.errors import ConfigError, UnknownName
from maieutic.pack import pack
from maieutic.protocols import Chat, Scorer
from maieutic.rewards.lift import unscorable
from maieutic.steps import prompt_end
from maieutic.tasks.teaching import Lesson, lesson_of
from maieutic.teaching.spans import Explanation, aligned, ends, find_span, letters, read_explanation
from maieutic.types import Example, Finish, Rollout, Score, Task


@dataclass(frozen=True)
class Student:
    """A frozen model that reads explanations: how likely it finds tokens, how it writes them, how many it can read."""

    scorer: Scorer
    chat: Chat
    limit: int | None = None


#: The teacher's tokens of a piece of an explanation, and the student's.
Piece = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Row:
    """A rollout as the student reads it: `tokens`, of which those from `solution[0]` to `solution[1]` are the solution,
    and pairs of (the teacher's tokens, the student's tokens) for each piece of the explanation."""

    tokens: tuple[int, ...]
    solution: tuple[int, int]
    pieces: tuple[Piece, ...]
    closed: bool


@dataclass(frozen=True)
class Unread:
    """Why a student cannot read a rollout."""

    note: str


def same_tokens(one: Chat, other: Chat) -> bool:
    """Whether both write the same tokens with the same ids."""
    vocabularies = [getattr(getattr(chat, "tokenizer", None), "get_vocab", lambda: None)() for chat in (one, other)]
    return one is other or (vocabularies[0] is not None and vocabularies[0] == vocabularies[1])


class TeachingReward:
    """The reward of a group of explanations: `TeachingReward(Student(scorer, chat), policy.chat)`.

    student      a `Student`, or a function that makes one when it is asked for the first time.
    teacher      the chat of the policy that writes.
    terms        how the parts are weighed (`core.teaching.Terms`).
    temperature  of the student's log-probs; None: the teacher's.
    spans        "pieces": the parts of a row are tokenised apart, and where they are is known. "text": a row is
             tokenised as a whole and its parts are looked for, as in the code released with the paper.
    reader       None: lpT as the policy sampled. A scorer of another model with the teacher's tokens, such as a
                 reference: its log-probs in their place.

    Scores have the parts solution/mean, solution/min, kl/mean, kl/max, match and tokens. A rollout that failed, or is
    too long for the student, is unscorable. Rewards do not depend on which rollouts are judged together.
    """

    gives_steps = False

    def __init__(
        self, student: Student | Callable[[], Student], teacher: Chat, *, terms: Terms | None = None,
        temperature: float | None = None, spans: str = "pieces", reader: Scorer | None = None,
    ) -> None:  # fmt: skip
        if spans not in ROUTES:
            raise UnknownName("way to find spans", spans, ROUTES)
        if temperature is not None and not temperature > 0:
            raise ConfigError(f"teaching: got temperature={temperature}; expected more than 0, or None (the teacher's)")
        self._student = student
        self.teacher, self.terms, self.temperature = teacher, terms or Terms(), temperature
        self.spans, self.reader = spans, reader
        self._lock = threading.Lock()

    @property
    def student(self) -> Student:
        """The student, made now if it was not before."""
        if not isinstance(self._student, Student):
            self._student = self._student()
        return self._student

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        """The scores `[G]`."""
        # In a thread: samplers go on meanwhile. One group at a time, so that a score never depends on its neighbours.
        return await asyncio.to_thread(self._judge, task, rollouts)

    def worth(self, task: Task, rollouts: Sequence[Rollout]) -> list[Worth | Unread | None]:
        """What each rollout's explanation is worth; None for one that failed."""
        with self._lock:
            lesson, route = lesson_of(task), ROUTES[self.spans]
            same = same_tokens(self.student.chat, self.teacher)
            rows = [None if r.finish is Finish.ERROR else self._row(lesson, r, route, same) for r in rollouts]
            whole = [(i, row) for i, row in enumerate(rows) if isinstance(row, Row)]
            if not whole:
                return [row if isinstance(row, Unread) else None for row in rows]
            said = self._said([row for _, row in whole], [rollouts[i] for i, _ in whole])
            taught = self._taught([rollouts[i] for i, _ in whole])
        found: list[Worth | Unread | None] = [row if isinstance(row, Unread) else None for row in rows]
        for (i, row), student, teacher in zip(whole, said, taught, strict=True):
            found[i] = self._worth(row, student, teacher)
        return found

    def _judge(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = []
        for rollout, worth in zip(rollouts, self.worth(task, rollouts), strict=True):
            if isinstance(worth, Worth):
                scores.append(Score(worth.reward, parts=worth.parts))
            else:
                scores.append(unscorable(rollout) if worth is None else Score(None, note=worth.note))
        return scores

    def _row(self, lesson: Lesson, rollout: Rollout, route: Route, same: bool) -> Row | Unread:
        start = prompt_end(rollout)
        completion, chosen = rollout.tokens[start:], rollout.mask[start:]
        written = read_explanation(self.teacher, completion, lesson.tags.closing)
        row = route(self, lesson, completion, written, same)
        if isinstance(row, Unread):
            return row
        row = replace(row, pieces=_chosen(row.pieces, chosen, start))
        limit = self.student.limit
        if limit is not None and len(row.tokens) > limit:
            return Unread(f"{len(row.tokens)} tokens; the student reads {limit}")
        return row

    def _said(self, rows: Sequence[Row], rollouts: Sequence[Rollout]) -> list[Tensor]:
        """The student's log-probs of each row `[T]`."""
        return _scored(self.student.scorer, [
            _Read(row.tokens, [j for _, ours in row.pieces for j in ours] + list(range(*row.solution)),
                  self.temperature or rollout.temperature)
            for row, rollout in zip(rows, rollouts, strict=True)
        ])  # fmt: skip

    def _taught(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """The teacher's log-probs of each rollout `[T]`."""
        if self.reader is None:
            return [torch.tensor(rollout.logprobs, dtype=torch.float32) for rollout in rollouts]
        return _scored(self.reader, [
            _Read(r.tokens, [i for i, chosen in enumerate(r.mask) if chosen], r.temperature) for r in rollouts
        ])  # fmt: skip

    def _worth(self, row: Row, student: Tensor, teacher: Tensor) -> Worth:
        def sums(of: Tensor, side: int) -> Tensor:
            return torch.stack([of[list(piece[side])].sum() for piece in row.pieces]) if row.pieces else of[:0]

        return self.terms(student[slice(*row.solution)], sums(student, 1), sums(teacher, 0), closed=row.closed)


def _chosen(pieces: Sequence[Piece], chosen: Sequence[bool], start: int) -> tuple[Piece, ...]:
    """The pieces all of whose tokens the teacher chose, numbered as in its rollout."""
    return tuple(([start + i for i in theirs], ours) for theirs, ours in pieces if all(chosen[i] for i in theirs))


@dataclass(frozen=True)
class _Read:
    """Tokens of which the log-probs at `wanted` are asked, at a temperature."""

    tokens: tuple[int, ...]
    wanted: Sequence[int]
    temperature: float


def _scored(scorer: Scorer, rows: Sequence[_Read]) -> list[Tensor]:
    """`[T]` of each row, 0 where nothing was asked."""
    examples = []
    for i, row in enumerate(rows):
        mask = [False] * len(row.tokens)
        for j in row.wanted:
            mask[j] = True
        rollout = Rollout("read", row.tokens, tuple(mask), (0.0,) * len(mask), Finish.STOP, temperature=row.temperature)
        examples.append(Example(rollout, 0.0, group=0, unit=i))
    found = scorer.logprobs(pack(examples)).float().cpu()
    return [found[i, : len(row.tokens)] for i, row in enumerate(rows)]


#: (reward, lesson, completion, explanation, whether both have the same tokens) → the row, whose pieces number the
#: teacher's tokens from the completion's first.
Route = Callable[["TeachingReward", Lesson, Sequence[int], Explanation, bool], Row | Unread]


def by_pieces(
    reward: TeachingReward, lesson: Lesson, completion: Sequence[int], written: Explanation, same: bool
) -> Row | Unread:
    """A row of pieces that were tokenised apart: where they are is known."""
    chat, tags = reward.student.chat, lesson.tags
    head = (*chat.prompt(lesson.question), *chat.encode(tags.thought[0]))
    if same:
        kept = tuple(completion[: written.tokens])
        middle = (*kept, *(chat.encode(written.rest) if written.rest else ()))
        pieces: list[Piece] = [((i,), (len(head) + i,)) for i in range(len(kept))]
    else:
        middle = tuple(chat.encode(written.text.strip()))
        cut = _aligned(reward, completion, written, middle, len(head))
        if isinstance(cut, Unread):
            return cut
        pieces = cut
    tail = (*chat.encode(f"{tags.thought[1]}{tags.between}{tags.solution[0]}"),)
    solution = tuple(chat.encode(lesson.solution))
    tokens = (*head, *middle, *tail, *solution)
    return Row(tokens, (len(tokens) - len(solution), len(tokens)), tuple(pieces), written.closed)


def by_text(
    reward: TeachingReward, lesson: Lesson, completion: Sequence[int], written: Explanation, same: bool
) -> Row | Unread:
    """A row that was tokenised as a whole, whose parts are looked for: the explanation from the left, the solution from
    the right. One that is not found counts as empty."""
    del same  # the whole is tokenised anew whoever wrote it
    chat, tags = reward.student.chat, lesson.tags
    prompt, inner = tuple(chat.prompt(lesson.question)), chat.encode(written.text.strip())
    said = chat.encode(tags.learned(written.text, lesson.solution))
    before, after = tags.learned(written.text, "\0").split("\0")
    behind = chat.encode(f"{tags.thought[1]}{tags.between}{tags.solution[0]}{lesson.solution}{after}")
    place = find_span(said, inner, chat.encode(tags.thought[0]), behind)
    cut: list[Piece] | Unread = []
    if place is not None:
        cut = _aligned(reward, completion, written, inner, len(prompt) + place.start - place.left)
    if isinstance(cut, Unread):
        return cut
    inside = range(0) if place is None else range(len(prompt) + place.start, len(prompt) + place.stop)
    pieces = tuple((theirs, ours) for theirs, ours in cut if all(j in inside for j in ours))
    found = find_span(said, chat.encode(lesson.solution), chat.encode(before), chat.encode(after), last=True)
    start, stop = (len(said), len(said)) if found is None else (found.start, found.stop)
    return Row((*prompt, *said), (len(prompt) + start, len(prompt) + stop), pieces, written.closed)


def _aligned(
    reward: TeachingReward, completion: Sequence[int], written: Explanation, ours: Sequence[int], start: int
) -> list[Piece] | Unread:
    """Pieces of an explanation in two tokenisations; the student's are numbered from `start` on."""
    one, other = ends(reward.teacher, completion[: written.tokens]), ends(reward.student.chat, ours)
    if max(one, default=0) + letters(written.rest) != max(other, default=0):
        return Unread("the student's tokens cannot write what the teacher wrote")
    cut = aligned(one, other)
    return [(range(a.start, a.stop), range(start + b.start, start + b.stop)) for a, b in cut]


#: Name → how the student's row is made.
ROUTES: dict[str, Route] = {"pieces": by_pieces, "text": by_text}
