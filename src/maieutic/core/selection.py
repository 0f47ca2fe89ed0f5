"""Which of n completions to answer with, given their answers a_i and scores w_i; and how often that is right.

    best of n        a_i with i = argmax w_i
    plurality        argmax over a of Σ 1[a_i = a]
    weighted vote    argmax over a of Σ w_i 1[a_i = a]

A completion without an answer (None) never wins unless none has one. Where something must be answered, ties go to the
earliest; where rules are compared, `…_value` is the expected correctness with ties broken at random, which no order of
the samples can flatter. From n samples, of any k of them: `estimators.best_of_k`, `estimators.vote_at_k` (plurality),
and `weighted_vote_at_k` here.

With scores that are right best of n is pass@n; with equal ones it is pass@1, and the weighted vote is the plurality.

Letters: `n` samples of one problem, `k <= n`.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Hashable, Sequence

from maieutic.errors import DataError

Answers = Sequence[Hashable | None]

#: Subsets that are all looked at; where there are more, so many are drawn.
SUBSETS = 2_000


def best_of(scores: Sequence[float], answers: Answers | None = None) -> int:
    """The index of the highest score among those with an answer (None: all have one).

    >>> best_of([0.2, 0.3, 0.1, 0.9, 0.4])
    3
    """
    able = _able(scores, answers if answers is not None else [True] * len(scores))
    return max(able, key=lambda i: scores[i])  # the first of those that are equal


def plurality(answers: Answers) -> Hashable | None:
    """The most frequent answer; None where there is none.

    >>> plurality(["A", "A", "A", "B", "B"])
    'A'
    """
    return weighted_vote(answers, [1.0] * len(answers))


def weighted_vote(answers: Answers, weights: Sequence[float]) -> Hashable | None:
    """The answer with the largest sum of weights; None where there is none. Raises DataError for a negative weight.

    >>> weighted_vote(["A", "A", "A", "B", "B"], [0.2, 0.3, 0.1, 0.9, 0.4])
    'B'
    """
    totals = _totals(answers, weights)
    return max(totals, key=lambda answer: totals[answer]) if totals else None


def best_of_value(scores: Sequence[float], correct: Sequence[bool], answers: Answers | None = None) -> float:
    """P(the one with the highest score is correct), ties at random: 0 to 1."""
    able = _able(scores, answers if answers is not None else [True] * len(scores), correct)
    top = max(scores[i] for i in able)
    won = [correct[i] for i in able if scores[i] == top]
    return sum(won) / len(won)


def vote_value(answers: Answers, correct: Sequence[bool], weights: Sequence[float] | None = None) -> float:
    """P(the vote is correct), ties at random: 0 to 1. `weights` None: each has one vote.

    Completions that are correct share an answer, however it is spelt.
    """
    return _vote(*_voters(answers, correct, weights))


def weighted_vote_at_k(
    answers: Answers, correct: Sequence[bool], weights: Sequence[float], k: int, *, seed: int | str = 0
) -> float:
    """The mean of `vote_value` over the subsets of k of the n samples: all of them where those are no more than
    `SUBSETS`, else as many drawn at random by the seed.

    Raises DataError for lengths that differ, a negative weight, and k outside 1..n.
    """
    names, given = _voters(answers, correct, weights)
    n = len(names)
    if not 1 <= k <= n:
        raise DataError(f"weighted vote: got k = {k} with {n} samples; expected 1 <= k <= {n}")
    draw = random.Random(f"{seed}")
    chosen = (
        itertools.combinations(range(n), k)
        if math.comb(n, k) <= SUBSETS
        else (draw.sample(range(n), k) for _ in range(SUBSETS))
    )
    values = [_vote([names[i] for i in at], [given[i] for i in at]) for at in chosen]
    return math.fsum(values) / len(values)


#: The name of the cluster of correct answers: equal to no answer.
_RIGHT = object()


def _voters(
    answers: Answers, correct: Sequence[bool], weights: Sequence[float] | None
) -> tuple[list[Hashable | None], Sequence[float]]:
    given = [1.0] * len(answers) if weights is None else weights
    _able(given, answers, correct)
    return [_RIGHT if right else answer for answer, right in zip(answers, correct)], given


def _vote(names: Answers, weights: Sequence[float]) -> float:
    totals = _totals(names, weights)
    if not totals:
        return 0.0
    top = max(totals.values())
    won = [answer is _RIGHT for answer, total in totals.items() if total == top]
    return sum(won) / len(won)


def _totals(answers: Answers, weights: Sequence[float]) -> dict[Hashable, float]:
    """Answer → its weight, in the order in which answers came. Exact sums: equal votes are equal in any order."""
    _able(weights, answers)
    if any(not 0 <= weight < math.inf for weight in weights):
        raise DataError(
            f"got weights from {min(weights):g} to {max(weights):g}; expected finite ones of at least 0. Scores of a "
            "model of pairs have no zero: take best of n, or their sigmoid after centring"
        )
    by_answer: dict[Hashable, list[float]] = {}
    for answer, weight in zip(answers, weights):
        if answer is not None:
            by_answer.setdefault(answer, []).append(weight)
    return {answer: math.fsum(each) for answer, each in by_answer.items()}


def _able(scores: Sequence[float], answers: Answers, *others: Sequence[object]) -> list[int]:
    """Indices of the samples that may win. Raises DataError for no samples, other lengths, and what is no number."""
    if not scores or any(len(each) != len(scores) for each in (answers, *others)):
        sizes = ", ".join(str(len(each)) for each in (answers, *others))
        raise DataError(f"got {len(scores)} scores for {sizes} samples; expected one a sample, and at least one")
    if any(math.isnan(score) for score in scores):
        raise DataError("got a score that is not a number; score every sample or leave it out")
    return [i for i, answer in enumerate(answers) if answer is not None] or list(range(len(scores)))
