"""How well a reward model judges, on completions that it has not learned from.

    auc            P(a right one scores above a wrong one), over all completions (ties count ½)
    pair_accuracy  the same within a prompt, mean over prompts that have both: what choosing among n asks for
    bce, brier     of probabilities against labels: −z log p − (1 − z) log(1 − p); (p − z)²
    ece            Σ over bins of the share in the bin · |mean p − mean z|: are probabilities what they say?
    calibration    the same as a table: of each bin how many, mean p, and the share that is right with its interval
    error_rates    of a checker against people: false positives among what is wrong, false negatives among what is right
    first_error    the first step with p < ½ is the first one that is labelled wrong (arXiv 2412.06559, ProcessBench)

Pure Python over lists: these are counts of a few thousand numbers.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from maieutic.core.intervals import Interval, wilson
from maieutic.errors import DataError

#: Probabilities are held this far from 0 and 1, where the logarithm of a wrong certainty would be infinite.
EDGE = 1e-7


def auc(scores: Sequence[float], labels: Sequence[float]) -> float:
    """The Mann–Whitney statistic U / (n₁ n₀); a label above ½ is right. NaN where one class is missing.

    A tie counts ½: with mean ranks R₁ of the right ones, U = R₁ − n₁ (n₁ + 1) / 2.
    """
    _aligned(scores, labels)
    right = sum(label > 0.5 for label in labels)
    wrong = len(labels) - right
    if not right or not wrong:
        return math.nan
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    total, start = 0.0, 0
    while start < len(order):
        stop = start
        while stop < len(order) and scores[order[stop]] == scores[order[start]]:
            stop += 1
        rank = (start + 1 + stop) / 2  # the mean of ranks start + 1 … stop
        total += rank * sum(labels[i] > 0.5 for i in order[start:stop])
        start = stop
    return (total - right * (right + 1) / 2) / (right * wrong)


def pair_accuracy(scores: Sequence[float], labels: Sequence[float], prompts: Sequence[Hashable]) -> float:
    """The mean over prompts of `auc` within them; NaN where no prompt has both a right and a wrong completion."""
    _aligned(scores, labels, prompts)
    by_prompt: dict[Hashable, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(i)
    each = [auc([scores[i] for i in at], [labels[i] for i in at]) for at in by_prompt.values()]
    return _mean([value for value in each if not math.isnan(value)])


def bce(probabilities: Sequence[float], labels: Sequence[float]) -> float:
    """Mean cross-entropy, nats; soft labels allowed."""
    _aligned(probabilities, labels)
    held = [min(1 - EDGE, max(EDGE, p)) for p in probabilities]
    return _mean([-z * math.log(p) - (1 - z) * math.log(1 - p) for p, z in zip(held, labels)])


def brier(probabilities: Sequence[float], labels: Sequence[float]) -> float:
    """Mean squared error."""
    _aligned(probabilities, labels)
    return _mean([(p - z) ** 2 for p, z in zip(probabilities, labels)])


def expected_calibration_error(probabilities: Sequence[float], labels: Sequence[float], bins: int = 10) -> float:
    """Σ_b n_b / n · |mean p − mean z| over `bins` intervals of equal width (arXiv 1706.04599, eq. 3)."""
    _aligned(probabilities, labels)
    found: dict[int, list[int]] = {}
    for i, p in enumerate(probabilities):
        found.setdefault(min(bins - 1, int(p * bins)), []).append(i)
    apart = [abs(sum(probabilities[i] - labels[i] for i in at)) for at in found.values()]
    return sum(apart) / len(labels) if labels else math.nan


@dataclass(frozen=True, slots=True)
class Bin:
    """Probabilities from `low` to `high`: how many, their mean, and the mean of their labels with Wilson's interval."""

    low: float
    high: float
    count: int
    said: float
    seen: Interval


def calibration(probabilities: Sequence[float], labels: Sequence[float], bins: int = 10) -> list[Bin]:
    """The table behind `expected_calibration_error`: bins of equal width, empty ones left out."""
    _aligned(probabilities, labels)
    found: dict[int, list[int]] = {}
    for i, p in enumerate(probabilities):
        if not 0 <= p <= 1:
            raise DataError(f"got the probability {p:g}; expected 0 to 1")
        found.setdefault(min(bins - 1, int(p * bins)), []).append(i)
    return [
        Bin(b / bins, (b + 1) / bins, len(at), sum(probabilities[i] for i in at) / len(at),
            wilson(sum(labels[i] for i in at), len(at)))
        for b, at in sorted(found.items())
    ]  # fmt: skip


def error_rates(said: Sequence[bool], truth: Sequence[bool]) -> dict[str, Interval | None]:
    """`false_positive`: share of what is wrong that is accepted; `false_negative`: share of what is right that is not;
    each with Wilson's interval, None where there is nothing to be wrong about."""
    _aligned(said, truth)
    found: dict[str, Interval | None] = {}
    for name, side in (("false_positive", False), ("false_negative", True)):
        asked = [answer is not side for answer, true in zip(said, truth) if true is side]
        found[name] = wilson(sum(asked), len(asked)) if asked else None
    return found


def first_error(probabilities: Sequence[float], threshold: float = 0.5) -> int | None:
    """The number of the first step (from 0) with a probability below the threshold; None where there is none."""
    return next((k for k, p in enumerate(probabilities) if p < threshold), None)


def first_error_accuracy(
    said: Sequence[Sequence[float]], labels: Sequence[Sequence[float | None]], threshold: float = 0.5
) -> dict[str, float]:
    """`wrong`: share of solutions with a wrong step of which the first is found; `right`: share of those without one in
    which none is found; `f1`: their harmonic mean (arXiv 2412.06559). NaN for a side that no solution is on.

    Steps without a label are not asked; a solution without any label is left out.
    """
    found: dict[bool, list[bool]] = {True: [], False: []}
    for probabilities, of_solution in zip(said, labels, strict=True):
        known = [(p, z) for p, z in zip(probabilities, of_solution, strict=True) if z is not None]
        if known:
            truth = first_error([float(z) for _, z in known])
            found[truth is None].append(first_error([p for p, _ in known], threshold) == truth)
    wrong, right = _mean([float(x) for x in found[False]]), _mean([float(x) for x in found[True]])
    f1 = 2 * wrong * right / (wrong + right) if wrong + right > 0 else 0.0 if wrong + right == 0 else math.nan
    return {"wrong": wrong, "right": right, "f1": f1}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _aligned(first: Sequence[object], *others: Sequence[object]) -> None:
    if any(len(other) != len(first) for other in others):
        raise DataError(f"got {len(first)} scores for {', '.join(str(len(o)) for o in others)}; expected one each")
