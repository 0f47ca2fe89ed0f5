"""How sure a mean over seeds *and* problems is, when every seed was measured on the same problems.

Letters: `S` seeds, `N` problems; `x [S, N]` one number for each, or the differences of two arms, paired.

Other seeds would have given other models, other problems other scores: two kinds of noise, both to be reckoned with.
An interval over problems alone says what *these* models are worth, one over seeds alone what the algorithm is worth on
*these* problems; `crossed` says what the algorithm is worth.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maieutic.core.intervals import Interval, bootstrap, sign_flip, student_t

Floats = NDArray[np.float64]

#: A variance below this is rounding.
_NOTHING = 1e-24

#: Bisections ask for the same confidences again and again.
_student_t = functools.lru_cache(maxsize=4096)(student_t)


@dataclass(frozen=True, slots=True)
class Effect:
    """A mean difference with its interval and the p value that it is 0: `Effect(Interval(.03, .01, .05), .004)`."""

    interval: Interval
    p_value: float

    @property
    def seen(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval.low > 0 or self.interval.high < 0


def crossed(values: ArrayLike, confidence: float = 0.95, bounds: tuple[float, float] | None = None) -> Interval:
    """Interval of the mean over seeds and problems, both random.

    `mean ± √( t(S−1)² · s²/S + t(N−1)² · p²/N )` with `s²` the variance of the S seeds' means, `p²` that of the N
    problems' means, and t Student's for each kind of noise by itself: Banerjee's interval for a sum of two means
    (Sankhyā 22, 1960), which covers at least as often as it says, however the noise is shared between the two. Both
    variances hold a share of what is left of the table, so it errs to the wide side.

    One seed, or one problem, cannot say how much it varies: the interval is infinite. Values that are all equal give
    the interval of `bootstrap` with these `bounds`. Raises ValueError for what is no table of finite numbers.
    """
    x = _table(values)
    mean = float(x.mean())
    if min(x.shape) < 2:
        return Interval(mean, -math.inf, math.inf)
    seeds, problems = _variances(x)
    if seeds + problems <= _NOTHING:
        return bootstrap(x.mean(0), confidence=confidence, bounds=bounds)
    half = _half(x, seeds, problems, confidence)
    return Interval(mean, mean - half, mean + half)


def crossed_effect(differences: ArrayLike, confidence: float = 0.95) -> Effect:
    """`crossed` of differences `[S, N]`, with the smallest p (to 1e-6) at which the interval leaves 0 out."""
    x = _table(differences)
    interval = crossed(x, confidence, bounds=(-1.0, 1.0) if np.abs(x).max() <= 1 else None)
    if min(x.shape) < 2:
        return Effect(interval, 1.0)
    seeds, problems = _variances(x)
    if seeds + problems <= _NOTHING:
        return Effect(interval, sign_flip(x.mean(0)))
    low, high = 0.0, 1.0  # of the confidence: the interval is as wide as the mean is far from 0
    for _ in range(20):
        middle = (low + high) / 2
        narrow = _half(x, seeds, problems, middle) < abs(interval.value) if 0 < middle < 1 else False
        low, high = (middle, high) if narrow else (low, middle)
    return Effect(interval, 1.0 - low)


def two_level_bootstrap(
    values: ArrayLike, *, resamples: int = 2_000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Bootstrap interval of the mean over seeds and problems: S seeds and N problems are drawn, both with replacement.

    With few seeds it is too narrow, for S drawn of S vary less than S new ones, by (S − 1)/S in variance: it is shown
    beside `crossed`, and no claim is made of it. One seed is drawn again and again: the interval is over problems only.
    """
    x = _table(values)
    rng = np.random.default_rng(seed)
    seeds, problems = x.shape
    # drawing with replacement is weighing each by how often it is drawn; means of a table are then matrix products
    over_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    found = np.empty(resamples)
    rows = max(1, 2_000_000 // problems)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.multinomial(problems, np.full(problems, 1 / problems), size=count) / problems
        found[start : start + count] = np.einsum("rs,rs->r", over_seeds[start : start + count], drawn @ x.T)
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(x.mean()), float(low), float(high))


def _variances(x: Floats) -> tuple[float, float]:
    """Of the mean, by seeds and by problems."""
    return float(x.mean(1).var(ddof=1)) / x.shape[0], float(x.mean(0).var(ddof=1)) / x.shape[1]


def _half(x: Floats, seeds: float, problems: float, confidence: float) -> float:
    """Half the width of the interval."""
    by_seeds, by_problems = (_student_t(confidence, size - 1) ** 2 for size in x.shape)
    return math.sqrt(by_seeds * seeds + by_problems * problems)


def _table(values: ArrayLike) -> Floats:
    x = np.asarray(values, dtype=float)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"got values of shape {x.shape}; expected finite numbers [S, N], a row a seed")
    return x
