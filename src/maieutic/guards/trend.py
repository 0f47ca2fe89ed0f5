"""Has a series of noisy numbers changed, since when, and by how much?

The mean of the last `w` steps is compared with that of every earlier stretch of `w` steps (and of the first w/2, for
what begins at once). The noise of a step is taken from neighbours, σ² = E[(xₜ₊₁ − xₜ)²] / 2, so that a slow drift does
not pass for noise and a single odd step cannot pass for a drift; a difference of two means has the standard error
σ √(1/w + 1/w'). Looking back at many stretches is a scan for a change point; what makes up for the many looks is that
a change must also be large in its own units.

Where a change began is where a cumulative sum (CUSUM, Page, Biometrika 1954) of what exceeds a quarter of it was last
at zero.

Letters: `N` steps, `K` earlier stretches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Steps that are remembered, and the last of them that tell the noise.
KEPT, NOISY = 2048, 128

#: Earlier stretches that are looked back at.
STRETCHES = 64


@dataclass(frozen=True, slots=True)
class Finding:
    """A change that a guard was looking for.

    value      in the units of its threshold.
    before     mean of the stretch it is compared with, steps `reference` (first, last), and `after` of `recent`.
    onset      the step at which it began, an estimate.
    truth      share of right answers then and now, where it is known.
    """

    value: float
    before: float
    after: float
    reference: tuple[int, int]
    recent: tuple[int, int]
    onset: int
    truth: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """The last stretch of a series against every earlier one: means `before [K]` and `after`, standard errors
    `error [K]` of their differences, and where the earlier ones lie, `start:stop` `[K]`."""

    before: Floats
    after: float
    error: Floats
    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]

    def change(self, rises: bool) -> Floats:
        """`[K]` how far the last stretch lies above (or below) the earlier ones."""
        return (self.after - self.before) if rises else (self.before - self.after)


def stretches(count: int, window: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the earlier stretches of `count` steps start and stop, `[K]`: the first half of one, then whole ones."""
    starts = np.arange(0, count - 2 * window + 1, window)[-STRETCHES:]
    return np.concatenate(([0], starts)), np.concatenate(([max(2, window // 2)], starts + window))


def noise(values: Floats) -> float:
    """The standard deviation of a step, from the differences of neighbours; 0 below three numbers."""
    known = values[np.isfinite(values)][-NOISY:]
    return float(np.sqrt(np.mean(np.diff(known) ** 2) / 2)) if len(known) > 2 else 0.0


def scan(values: Floats, window: int) -> Scan | None:
    """The last `window` steps of a series `[N]` against every earlier stretch; None while there are too few.

    A stretch of which less than half is known is not compared with (its mean is NaN).
    """
    count, half = len(values), max(2, window // 2)
    if count < window + half or np.isfinite(values[-window:]).sum() < half:
        return None
    start, stop = stretches(count, window)
    known = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(known, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(known)))
    sizes = counts[stop] - counts[start]
    with np.errstate(divide="ignore", invalid="ignore"):
        before = np.where(2 * sizes >= stop - start, (sums[stop] - sums[start]) / sizes, math.nan)
        error = noise(values) * np.sqrt(1 / (counts[-1] - counts[-window - 1]) + 1 / sizes)
    return Scan(before, float(np.nanmean(values[-window:])), error, start, stop)


def onset(values: Floats, since: int, before: float, after: float) -> int:
    """The index at which a change from `before` to `after` began, not before index `since`."""
    sign = 1.0 if after >= before else -1.0
    least, total, began = before + 0.25 * (after - before), 0.0, since
    for i in range(since, len(values)):
        if math.isfinite(values[i]):
            total = max(0.0, total + sign * (values[i] - least))
            began = i + 1 if total == 0.0 else began
    return min(began, len(values) - 1)


class History:
    """The numbers of the steps so far, by name; NaN where a step says nothing."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._values: dict[str, list[float]] = {}
        self._asked: dict[tuple[str, int], Any] = {}

    def add(self, step: int, measures: Mapping[str, float]) -> None:
        """What a step says. Steps come in order."""
        self._asked.clear()
        for name in measures.keys() - self._values.keys():
            self._values[name] = [math.nan] * len(self.steps)
        self.steps.append(step)
        for name, values in self._values.items():
            values.append(float(measures.get(name, math.nan)))
        if len(self.steps) > KEPT + STRETCHES:  # forgotten now and then, not at each step
            del self.steps[:STRETCHES]
            for values in self._values.values():
                del values[:STRETCHES]

    def note(self, step: int, name: str, value: float) -> None:
        """Something that is known of a step only later."""
        self._asked.clear()
        if step in self.steps[-KEPT:]:
            self._values.setdefault(name, [math.nan] * len(self.steps))[self.steps.index(step)] = value

    def series(self, name: str) -> Floats:
        """`[N]`, NaN where there is nothing."""
        if (name, 0) not in self._asked:
            values = self._values.get(name) or [math.nan] * len(self.steps)
            self._asked[name, 0] = np.array(values, dtype=np.float64)
        return self._asked[name, 0]

    def scan(self, name: str, window: int) -> Scan | None:
        """`scan` of a series; several guards ask the same of a step."""
        if (name, window) not in self._asked:
            self._asked[name, window] = scan(self.series(name), window)
        return self._asked[name, window]
