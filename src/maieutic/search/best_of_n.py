"""The best of n independent samples, as a reward model or any other score says.

With a score that is right this is pass@n, with one that says the same of all pass@1; between the two it rises with n,
and falls again where n finds what the score is wrong about (arXiv 2210.10760).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from maieutic.core.selection import best_of
from maieutic.protocols import Chat, Sampler
from maieutic.search.found import Found, Question, Read
from maieutic.search.judges import Judge
from maieutic.search.vote import drawn, with_scores


@dataclass(frozen=True)
class BestOfN:
    """The completion with the highest score of `samples` (None: as many as the budget pays for).

    A completion without an answer is chosen only where none has one; of equals the earliest is.
    """

    sampler: Sampler
    chat: Chat
    read: Read
    score: Judge = field(kw_only=True)
    samples: int | None = field(default=None, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "best_of_n"

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`."""
        made, cost = await drawn(self, question, budget)
        scored, cost = await with_scores(self.score, question, made, cost)
        chosen = best_of([each.score or 0.0 for each in scored], [each.answer for each in scored])
        return Found(scored, chosen, cost)
