"""One number a problem and seed, from what was evaluated: the tables `[S, N]` that comparisons are made of.

Letters: `S` seeds, `N` problems, `n` samples of one problem.

Beside the metrics of `maieutic.evaluate`:

    rerank@k    the sample of k with the highest mean log-prob is correct: reranking by likelihood, which stands in for
                a reward model where there is none
    unique      different correct solutions among the n samples (their texts, with white space and case made equal)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from maieutic.core.estimators import best_of_k
from maieutic.errors import DataError
from maieutic.evaluate import Evaluation, Problem

Floats = NDArray[np.float64]

#: What metrics mean, as people read it.
TITLES: Mapping[str, str] = {
    "greedy": "greedy answer correct",
    "pass@1": "one sample correct",
    "pass": "at least one of {k} correct",
    "vote": "most frequent answer of {k} correct",
    "strict": "more than half of {k} correct",
    "rerank": "likeliest of {k} correct",
    "unique": "different correct solutions of a problem",
    "length": "tokens written",
    "truncated": "cut by the length limit",
}

#: Not a share.
NUMBERS = frozenset({"unique", "length"})


def title(metric: str) -> str:
    """What a metric says."""
    name, _, k = metric.partition("@")
    return TITLES.get(metric, TITLES.get(name, metric)).format(k=k)


def shown_metrics(evaluations: Sequence[Evaluation], k: int) -> list[str]:
    """The metrics that all these evaluations hold, in the order in which they are shown."""
    names = ["greedy"] if all(p.greedy for e in evaluations for p in e.problems) else []
    if all(e.n for e in evaluations):
        names += dict.fromkeys(["pass@1", f"pass@{k}", f"vote@{k}", f"strict@{k}"])
        scored = all(any(s.logprob is not None for p in e.problems for s in p.samples) for e in evaluations)
        even = all(len({len(p.samples) for p in e.problems}) == 1 for e in evaluations)
        names += [f"rerank@{k}"] if scored and even and k > 1 else []
        names += ["unique"]
    return [*names, "length", "truncated"]


def values(evaluation: Evaluation, metric: str) -> Floats:
    """`[N]` one number a problem; see `Evaluation.values`."""
    name, _, k = metric.partition("@")
    if name in OWN:
        return OWN[name](evaluation.problems, int(k or 0))
    return evaluation.values(metric)


def table(evaluations: Sequence[Evaluation], metric: str, order: Sequence[str]) -> Floats:
    """`[S, N]`: a row an evaluation, a column a problem of `order` (task ids). Raises DataError for other problems."""
    rows = []
    for evaluation in evaluations:
        place = {problem.task_id: i for i, problem in enumerate(evaluation.problems)}
        if place.keys() != set(order):
            raise DataError(
                f"{evaluation.name!r}: got {len(place)} problems where {len(order)} others were expected; the arms of "
                "a study must be evaluated on the same problems"
            )
        rows.append(values(evaluation, metric)[[place[task_id] for task_id in order]])
    return np.array(rows)


def solution(text: str) -> str:
    """What makes two solutions the same one: their words, whatever the spaces and case between them."""
    return " ".join(text.casefold().split())


def _unique(problems: Sequence[Problem], _: int) -> Floats:
    return np.array([len({solution(s.text) for s in p.samples if s.correct}) for p in problems], dtype=float)


def _rerank(problems: Sequence[Problem], k: int) -> Floats:
    # what could not be made has no likelihood: it is never the likeliest
    scores = [[-math.inf if s.logprob is None else s.logprob for s in p.samples] for p in problems]
    return best_of_k(scores, [[float(s.correct) for s in p.samples] for p in problems], k)


#: Metrics that are made here.
OWN: Mapping[str, Callable[[Sequence[Problem], int], Floats]] = {"unique": _unique, "rerank": _rerank}
