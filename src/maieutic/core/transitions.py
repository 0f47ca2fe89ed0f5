"""What revising does to answers: the four transitions from one round to the next, and where they lead.

                     right after      wrong after
    right before     kept             broken
    wrong before     mended           missed            Δ = (mended − broken) / N, with a paired interval

Revising without a word from outside breaks about as much as it mends, and often more (arXiv 2310.01798): Δ alone hides
that, since nothing broken and nothing mended is 0 too.

With constant chances a = P(mended | wrong) and b = P(broken | right) the accuracy is a Markov chain of two states,

    p(t) = p∞ + (p(0) − p∞)(1 − a − b)ᵗ          p∞ = a / (a + b)

so that revising for ever helps only a model that begins below a / (a + b).

Letters: `N` problems, `R` rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from maieutic.core.intervals import Difference, Interval, mcnemar_test, paired_difference, wilson
from maieutic.errors import DataError


@dataclass(frozen=True, slots=True)
class Transitions:
    """One round's table, in numbers of problems, and the difference Δ that it makes (McNemar's exact test).

    >>> t = transitions([True, True, False, False], [True, False, True, False])
    >>> t.kept, t.broken, t.mended, t.missed, t.difference.value
    (1, 1, 1, 1, 0.0)
    """

    kept: int
    broken: int
    mended: int
    missed: int
    difference: Difference

    @property
    def mending(self) -> Interval | None:
        """P(right after | wrong before), Wilson's interval; None where nothing was wrong."""
        return wilson(self.mended, self.mended + self.missed) if self.mended + self.missed else None

    @property
    def breaking(self) -> Interval | None:
        """P(wrong after | right before), Wilson's interval; None where nothing was right."""
        return wilson(self.broken, self.broken + self.kept) if self.broken + self.kept else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        rates = {"mending": self.mending, "breaking": self.breaking}
        return {
            **{name: getattr(self, name) for name in ("kept", "broken", "mended", "missed")},
            "difference": self.difference.to_dict(),
            **{name: None if rate is None else rate.to_dict() for name, rate in rates.items()},
        }


def transitions(before: Sequence[bool], after: Sequence[bool]) -> Transitions:
    """The table of one round, from what was right before and after it, `[N]` each, on the same problems.

    Raises DataError for no problems, or for other lengths.
    """
    if not before or len(before) != len(after):
        raise DataError(
            f"transitions: got {len(before)} problems before and {len(after)} after; expected the same ones, at least 1"
        )
    counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
    for a, b in zip(before, after, strict=True):
        counts[bool(a), bool(b)] += 1
    found = paired_difference(np.array(after, dtype=float), np.array(before, dtype=float), test=mcnemar_test)
    return Transitions(counts[True, True], counts[True, False], counts[False, True], counts[False, False], found)


def rounds(correct: Sequence[Sequence[bool]]) -> list[Transitions]:
    """The tables of R − 1 rounds, from what was right after each, `[R][N]`."""
    return [transitions(before, after) for before, after in pairwise(correct)]


def chain(start: float, mend: float, breaks: float, rounds: int) -> list[float]:
    """p(0) … p(rounds), the accuracies of the chain. Raises ValueError for what is no probability.

    >>> chain(0.5, mend=0.2, breaks=0.1, rounds=2)  # towards 2/3
    [0.5, 0.55, 0.585]
    """
    for name, value in (("start", start), ("mend", mend), ("breaks", breaks)):
        if not 0 <= value <= 1:
            raise ValueError(f"chain: got {name}={value}; expected a probability, 0 to 1")
    limit = mend / (mend + breaks) if mend + breaks else start
    return [round(limit + (start - limit) * (1 - mend - breaks) ** t, 15) for t in range(rounds + 1)]
