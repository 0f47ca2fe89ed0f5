"""From the scores of steps to one score of the whole, and from scores to rewards that can be compared.

    min      min p_k        a chain is as good as its worst step (arXiv 2312.08935)
    prod     Π p_k          P(every step is right), were they independent (arXiv 2305.20050)
    last     p_K            the whole as it stands at its end
    mean     Σ p_k / K      one bad step among many hides
    max      max p_k        for comparison: it says what the best step hides

"prod" falls with every step whose p is below 1, so it prefers short solutions; "min" and "last" do not count steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from maieutic.errors import DataError, UnknownName

Aggregate = Callable[[Sequence[float]], float]


def product(probabilities: Sequence[float]) -> float:
    """exp Σ log p: exact where a plain product of hundreds of steps would round to 0 on the way; 0 where a p is 0."""
    return math.exp(log_product(probabilities))


def log_product(probabilities: Sequence[float]) -> float:
    """Σ log p, −∞ where a p is 0: to rank by, where the product itself would be 0 for all."""
    return math.fsum(math.log(p) if p > 0 else -math.inf for p in probabilities)


#: Name → how scores of steps, at least one, become one.
AGGREGATES: Mapping[str, Aggregate] = {
    "min": min,
    "prod": product,
    "last": lambda scores: scores[-1],
    "mean": statistics.fmean,
    "max": max,
}


def aggregate(how: str, scores: Sequence[float]) -> float:
    """The score of a whole whose steps have these. Raises UnknownName, and DataError where there is no step.

    >>> aggregate("min", [0.9, 0.9, 0.3, 0.9]), aggregate("last", [0.9, 0.9, 0.3, 0.9])
    (0.3, 0.9)
    """
    if how not in AGGREGATES:
        raise UnknownName("aggregate of step scores", how, AGGREGATES)
    if not scores:
        raise DataError("got no step scores to aggregate; expected at least one step")
    return float(AGGREGATES[how](scores))


def _centred(scores: Sequence[float]) -> list[float]:
    mean = statistics.fmean(scores)
    return [score - mean for score in scores]


def _standardised(scores: Sequence[float]) -> list[float]:
    deviation = statistics.pstdev(scores)
    return [value / deviation if deviation > 0 else 0.0 for value in _centred(scores)]


def _ranked(scores: Sequence[float]) -> list[float]:
    """(siblings below + ½ · others alike) / (G − 1): 0 for the worst, 1 for the best, ½ where all are alike."""
    others = max(1, len(scores) - 1)
    below = [sum(other < score for other in scores) for score in scores]
    alike = [sum(other == score for other in scores) - 1 for score in scores]
    return [(b + a / 2) / others if len(scores) > 1 else 0.5 for b, a in zip(below, alike)]


#: Name → how the scores of one prompt's completions become rewards. Scores of a model of pairs have no zero of their
#: own: any constant a prompt may have been added, and all but "none" take it away.
NORMALISE: Mapping[str, Callable[[Sequence[float]], list[float]]] = {
    "none": list,
    "centre": _centred,
    "standard": _standardised,
    "rank": _ranked,
}


def normalise(how: str, scores: Sequence[float | None]) -> list[float | None]:
    """Scores of a group's rollouts, those that have none left out of means and left as they are. Raises UnknownName."""
    if how not in NORMALISE:
        raise UnknownName("way to normalise scores", how, NORMALISE)
    known = [score for score in scores if score is not None]
    if not known:
        return list(scores)
    made = iter(NORMALISE[how](known))
    return [None if score is None else next(made) for score in scores]
