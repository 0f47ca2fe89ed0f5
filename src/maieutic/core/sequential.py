"""What thinking longer is worth: the three measures of sequential scaling, from (tokens, accuracy) of several budgets.

    control      share of the budgets within which the tokens stayed          1: the method does as it is told
    scaling      mean slope of accuracy over tokens, between all pairs        > 0: more thinking is better
    performance  the best accuracy of any budget

From s1 (arXiv 2501.19393, §3.2, eqs. 1 to 3). Letters: `A` the budgets that were tried, a point each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from maieutic.errors import DataError

#: (tokens of thinking, accuracy 0 to 1) of one budget.
Point = tuple[float, float]


def control(spent: Sequence[float], low: Sequence[float] | float, high: Sequence[float] | float) -> float:
    """(1/|A|) Σ 1[low ≤ a ≤ high]: the share of the runs whose tokens lie within what was asked for, 0 to 1.

    `low` and `high` are the same for all runs, or one a run. Raises DataError for no runs, or other lengths.

    >>> control([90, 128, 140], 0, [100, 128, 128])
    0.6666666666666666
    """
    ends = [list(each) if isinstance(each, Sequence) else [each] * len(spent) for each in (low, high)]
    if not spent or any(len(each) != len(spent) for each in ends):
        raise DataError(
            f"control: got {len(spent)} runs, {len(ends[0])} lower and {len(ends[1])} upper ends; expected at least "
            "one run, and both ends for each"
        )
    return sum(a <= x <= b for x, a, b in zip(spent, *ends, strict=True)) / len(spent)


def scaling(points: Sequence[Point]) -> float:
    """(2 / |A|(|A|−1)) Σ_{a<b} (f(b) − f(a)) / (b − a): the mean slope, in accuracy a token.

    Every pair counts alike, as in the paper, however near its tokens are. Raises DataError for fewer than two points,
    and for two of the same number of tokens, between which there is no slope.

    >>> scaling([(100, 0.2), (200, 0.4), (400, 0.5)])  # slopes .002, .0005, .001
    0.0011666666666666668
    """
    tokens = [x for x, _ in points]
    if len(points) < 2 or len(set(tokens)) < len(tokens):
        raise DataError(
            f"scaling: got points at {tokens} tokens; expected two or more, all at different numbers of tokens. Try "
            "budgets that are further apart"
        )
    slopes = [(g - f) / (b - a) for (a, f), (b, g) in itertools.combinations(sorted(points), 2)]
    return sum(slopes) / len(slopes)


def performance(points: Sequence[Point]) -> float:
    """max f(a): the best accuracy. Raises DataError for no points.

    It is the best of several, chosen on what it is measured on: report it beside the whole curve.
    """
    if not points:
        raise DataError("performance: got no points; expected at least one")
    return max(accuracy for _, accuracy in points)
