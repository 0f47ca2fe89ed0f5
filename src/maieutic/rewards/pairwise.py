"""A language model as judge of two answers at a time, each pair shown in both orders.

    preference(a, b) = (first(a, b) − first(b, a)) / 2        first: 1 where the one shown first wins, −1 where it loses

Judges favour a place. With both orders averaged, swapping the two negates the preference exactly, and a judge that
always says "A" says nothing. The reward of a rollout is its mean over those that it was compared with, as a share:
(1 + preference) / 2, so 1 for one that always wins, and .5 on average over a group: it tells siblings apart, and
never how good they all are.

Letters: `G` siblings.
"""

from __future__ import annotations

import asyncio
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from maieutic.endpoint import Bill, Reply, Respondent
from maieutic.errors import ConfigError
from maieutic.rewards.inquiry import Inquiry, failure_of, total
from maieutic.rewards.judge import Shown
from maieutic.rewards.judge_prompts import COMPARE, RUBRIC
from maieutic.rewards.lift import FailureBudget, unscorable
from maieutic.types import Finish, Rollout, Score, Task

_WINNER = re.compile(r"<winner>\s*(a|b|tie)\s*</winner>", re.IGNORECASE)
_VALUES = {"a": 1.0, "b": -1.0, "tie": 0.0}


@dataclass(frozen=True)
class Comparison:
    """Two texts compared: `preference` from −1 to 1, above 0 where the first is better, None where it could not be
    told (`failures` say why). `swayed`: the two orders named the same place, not the same text."""

    preference: float | None
    swayed: bool
    failures: tuple[str, ...]
    bill: Bill


@dataclass
class PairwiseJudge:
    """Reward by comparison with siblings. `opponents`: with how many of those that follow it, in a ring, each rollout
    is compared (default: all with all). Two requests a comparison: G · opponents · 2, or G · (G − 1) for all.

    A rollout is unscored (with `zero_on_failure`: 0) where none of its comparisons could be made, or nobody is there
    to be compared with. `asked/<name>/swayed` counts comparisons in which place decided.
    """

    respondent: Respondent
    opponents: int | None = None
    rubric: str = RUBRIC
    template: str = COMPARE
    max_tokens: int = 1024
    zero_on_failure: bool = False
    show_answer: bool = True
    max_characters: int = 50_000
    budget: FailureBudget | None = None
    name: str = "pairwise_judge"
    inquiry: Inquiry = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.opponents is not None and self.opponents < 1:
            raise ConfigError(f"{self.name}: got opponents={self.opponents}; expected at least 1, or none for all")
        self.inquiry = Inquiry(
            self.respondent, self.name,
            max_tokens=self.max_tokens, budget=self.budget, zero_on_failure=self.zero_on_failure,
        )  # fmt: skip
        shorten = partial(self.inquiry.harmless, max_characters=self.max_characters)
        self.shown = Shown(self.template, shorten, self.rubric, self.show_answer, ("candidate_a", "candidate_b"))

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout. Raises RewardError when too many comparisons have failed."""
        there = [i for i, rollout in enumerate(rollouts) if rollout.finish is not Finish.ERROR]
        pairs = ring(len(there), self.opponents)
        compared = await asyncio.gather(
            *(self.compare(task, rollouts[there[a]].text, rollouts[there[b]].text) for a, b in pairs)
        )
        self.inquiry.account([failure for each in compared for failure in each.failures])
        scores = [unscorable(rollout) for rollout in rollouts]
        for place, i in enumerate(there):
            own = [(each, 1 if place == a else -1) for (a, b), each in zip(pairs, compared) if place in (a, b)]
            # a comparison is on the bill of the one that was named first
            first = [each for (a, _), each in zip(pairs, compared) if a == place]
            scores[i] = self._score(own, first)
        return scores

    async def compare(self, task: Task, a: str, b: str) -> Comparison:
        """Which is better, asked in both orders. Equal texts are not asked about: 0."""
        if a == b:
            return Comparison(0.0, False, (), Bill())
        replies = await asyncio.gather(*(self.inquiry.ask(self.shown.prompt(task, *p)) for p in ((a, b), (b, a))))
        read = [_read(reply) for reply in replies]
        (first, _), (second, _) = read
        failures = tuple(failure for _, failure in read)
        if first is None or second is None:  # one order alone would be the place speaking
            return Comparison(None, False, failures, total(replies))
        return Comparison((first - second) / 2, first == second != 0, failures, total(replies))

    def _score(self, own: Sequence[tuple[Comparison, int]], first: Sequence[Comparison]) -> Score:
        bill = Bill()
        for each in first:
            bill = bill.plus(each.bill)
        known = [sign * each.preference for each, sign in own if each.preference is not None]
        if not known:
            why = next((f for each, _ in own for f in each.failures if f), "there is nothing to compare it with")
            return self.inquiry.failed(why, bill)
        won, lost = sum(value > 0 for value in known), sum(value < 0 for value in known)
        costs = self.inquiry.costs(bill)
        if swayed := sum(each.swayed for each in first):
            costs[f"{self.name}/swayed"] = float(swayed)
        note = f"won {won}, lost {lost}, even {len(known) - won - lost}"
        return Score((1 + statistics.fmean(known)) / 2, note=note, asked=costs)


def ring(count: int, opponents: int | None) -> list[tuple[int, int]]:
    """Pairs of places (a, b): each with the `opponents` that follow it in a ring, no pair twice; None for all pairs.

    >>> ring(4, 1)
    [(0, 1), (1, 2), (2, 3), (3, 0)]
    """
    if opponents is None or 2 * opponents >= count - 1:
        return [(a, b) for a in range(count) for b in range(a + 1, count)]
    return [(a, (a + step) % count) for a in range(count) for step in range(1, opponents + 1)]


def _read(reply: Reply) -> tuple[float | None, str]:
    """1 where the text shown first won, −1 where the second did, 0 for a tie; or None and why."""
    failure = failure_of(reply)
    if failure:
        return None, failure
    found = _WINNER.findall(reply.text)
    if found:
        return _VALUES[found[-1].lower()], ""
    return None, f"no <winner>A</winner>, B or tie at its end: {' '.join(reply.text.split())[-200:]!r}"
