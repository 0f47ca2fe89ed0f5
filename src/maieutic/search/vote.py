"""Independent samples and a vote among their answers; and the single greedy sample that everything is compared with.

Self-consistency, arXiv 2203.11171: k samples, the most frequent answer. With a score of each sample, the answer with
the largest sum of scores. A sample without an answer has no vote, and is chosen only where none has one; ties go to the
earliest. `core.selection` has the rules, `core.estimators` what a vote of k of n samples is worth in expectation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from maieutic.core.selection import weighted_vote
from maieutic.protocols import Chat, Completion, Sampler
from maieutic.search.found import Candidate, Cost, Found, Question, Read
from maieutic.search.judges import Judge, judged
from maieutic.search.spending import Ask, Purse


@dataclass(frozen=True)
class Greedy:
    """The one completion at temperature 0, cut where the budget ends."""

    sampler: Sampler
    chat: Chat
    read: Read
    name: ClassVar[str] = "greedy"

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`."""
        purse = Purse(self.sampler, budget)
        [made] = await purse.sample([Ask(question.prompt, replace(question.sampling, temperature=0.0), keep=False)])
        return Found(tuple(candidates(self.chat, self.read, made)), 0, purse.cost)


@dataclass(frozen=True)
class Vote:
    """The most frequent answer of `samples` completions (None: as many as the budget pays for).

    `temperature` None: the question's. At 0 all samples would be the same, and one is made.
    """

    sampler: Sampler
    chat: Chat
    read: Read
    samples: int | None = field(default=None, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "vote"

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`."""
        made, cost = await drawn(self, question, budget)
        found = tuple(replace(each, score=1.0) for each in made)
        return Found(found, elected(found, [1.0] * len(found)), cost)


@dataclass(frozen=True)
class WeightedVote:
    """The answer with the largest sum of scores; `score` gives none below 0 (a probability does)."""

    sampler: Sampler
    chat: Chat
    read: Read
    score: Judge = field(kw_only=True)
    samples: int | None = field(default=None, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "weighted_vote"

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`. Raises DataError for a score below 0."""
        made, cost = await drawn(self, question, budget)
        scored, cost = await with_scores(self.score, question, made, cost)
        return Found(scored, elected(scored, [each.score or 0.0 for each in scored]), cost)


class Drawing(Protocol):
    """A search that draws independent samples."""

    @property
    def sampler(self) -> Sampler: ...

    @property
    def chat(self) -> Chat: ...

    @property
    def read(self) -> Read: ...

    @property
    def samples(self) -> int | None: ...

    @property
    def temperature(self) -> float | None: ...


async def drawn(search: Drawing, question: Question, budget: int) -> tuple[list[Candidate], Cost]:
    """Independent samples as `search.samples` and `search.temperature` say, and what they cost."""
    purse = Purse(search.sampler, budget)
    sampling = question.sampling
    if search.temperature is not None:
        sampling = replace(sampling, temperature=search.temperature)
    [made] = await purse.sample([Ask(question.prompt, sampling, search.samples or budget, keep=False)])
    return candidates(search.chat, search.read, made), purse.cost


async def with_scores(
    score: Judge, question: Question, made: Sequence[Candidate], cost: Cost
) -> tuple[tuple[Candidate, ...], Cost]:
    """The candidates with what `score` says of them, and the cost with so many judged."""
    said = await judged(score, question.prompt, [each.completion.tokens for each in made])
    scored = tuple(replace(each, score=value) for each, value in zip(made, said, strict=True))
    return scored, cost + Cost(judged=len(scored))


def elected(found: Sequence[Candidate], weights: Sequence[float]) -> int:
    """The index of the candidate that answers for the winner of a vote: its heaviest, the first of equals."""
    answer = weighted_vote([each.answer for each in found], weights)
    return max((i for i, each in enumerate(found) if each.answer == answer), key=lambda i: weights[i])


def candidates(chat: Chat, read: Read, made: Sequence[Completion]) -> list[Candidate]:
    """Completions with their texts and the answers that these give."""
    written = [(each, chat.decode(each.tokens)) for each in made]
    return [Candidate(each, text, read(text)) for each, text in written]
