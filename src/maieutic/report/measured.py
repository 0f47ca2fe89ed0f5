"""What was measured after each stage, and whether a stage changed it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from maieutic.core.intervals import Difference, Interval
from maieutic.errors import DataError
from maieutic.evaluate import UNBOUNDED, Evaluation, difference
from maieutic.run.store import Store

#: What two stages are compared in, where both hold it.
COMPARED = ("greedy", "pass@1", "pass", "vote", "strict", "truncated", "length")

TITLES = {
    "greedy": "greedy answer correct",
    "pass@1": "one sample correct",
    "pass": "at least one of {k} correct",
    "vote": "most frequent answer of {k} correct",
    "strict": "more than half of {k} correct",
    "truncated": "cut by the length limit",
    "unparsed": "no answer found",
    "errors": "could not be made",
    "length": "tokens written",
}


@dataclass(frozen=True)
class Measured:
    """An evaluation and the stage after which it was made ("start": before the first)."""

    stage: str
    name: str
    evaluation: Evaluation

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Every metric with its 95 % interval."""
        return self.evaluation.metrics()


@dataclass(frozen=True, slots=True)
class Change:
    """What changed in a metric between the evaluations after two stages, on the same problems."""

    name: str
    metric: str
    old: str
    new: str
    difference: Difference

    def text(self) -> str:
        """`+12.0 points (+3.1 to +20.9), p = 0.008: better`."""
        return in_words(self.metric, self.difference)


def read_measured(store: Store, k: int | None = None) -> tuple[tuple[Measured, ...], tuple[str, ...]]:
    """The latest evaluation of each name after each stage, in the order in which they were made.

    `k` is that of pass@k and the votes (default: the evaluation's own). Second, one sentence for each stored result
    that is no evaluation.
    """
    latest: dict[tuple[str, str], Measured] = {}
    unread = []
    for found in store.evaluations():
        try:
            made = Evaluation.from_json(json.dumps(found.result))
        except DataError as error:
            unread.append(f"the evaluation {found.name!r} after {found.stage!r} cannot be read: {error}")
            continue
        if k is not None and 1 <= k <= made.n:
            made = replace(made, ks=(k,))
        latest[found.name, found.stage] = Measured(found.stage, found.name, made)
    return tuple(latest.values()), tuple(unread)


def trained_on(store: Store, measured: Sequence[Measured]) -> tuple[str, ...]:
    """One sentence for each evaluation some of whose problems have ids that the training ledger has too."""
    found = []
    for name, made in by_name(measured).items():
        problems = {problem.task_id for each in made for problem in each.evaluation.problems}
        seen = store.drawn(problems)
        if seen:
            found.append(
                f"{len(seen):,} of the {len(problems):,} problems of {name} have the ids of problems that "
                "were trained on: if they are the same ones, the evaluation measures memory too; take another split"
            )
    return tuple(found)


def by_name(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """The evaluations of each name, in order."""
    names = dict.fromkeys(each.name for each in measured)
    return {name: [each for each in measured if each.name == name] for name in names}


def changes(measured: Sequence[Measured]) -> tuple[list[Change], list[str]]:
    """What changed from each evaluation to the next of the same name; from the first to the last where there are more.

    Second, one sentence for each two that cannot be compared.
    """
    found: list[Change] = []
    refused: list[str] = []
    for name, made in by_name(measured).items():
        pairs = [*pairwise(made), *([(made[0], made[-1])] if len(made) > 2 else [])]
        for old, new in pairs:
            try:
                found += [
                    Change(name, metric, old.stage, new.stage, difference(new.evaluation, old.evaluation, metric))
                    for metric in _both(old, new)
                ]
            except DataError as error:
                refused.append(f"{name} after {old.stage!r} and after {new.stage!r} cannot be compared: {error}")
    return found, refused


def shown(metric: str, value: Interval) -> str:
    """A metric with its interval, as people read it."""
    return value.plain() if metric in UNBOUNDED else value.percent()


def in_words(metric: str, value: Difference) -> str:
    """A difference of a metric, as people read it."""
    return value.plain() if metric in UNBOUNDED else value.percent()


def title(metric: str) -> str:
    """What a metric says, in words."""
    name, _, k = metric.partition("@")
    return TITLES.get(metric) or TITLES.get(name, "").format(k=k) or metric


def _both(old: Measured, new: Measured) -> list[str]:
    """The metrics to compare that both evaluations hold."""
    common = [metric for metric in new.intervals if metric in old.intervals]
    return [m for wanted in COMPARED for m in common if m == wanted or (m.startswith(f"{wanted}@") and m != "pass@1")]
