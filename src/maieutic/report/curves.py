"""The curves of a run: which are shown, in which order, and how a long one becomes few points.

A curve is a list of (step, value) in order; a value is NaN where the run wrote one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

from maieutic.errors import UnknownName
from maieutic.run.store import Store

Points = list[tuple[int, float]]

#: What is looked at first, in this order, where it exists.
LEADING = (
    "reward/mean", "reward/correct", "completions/mean_length", "policy/entropy", "policy/sampler_mismatch_nats",
    "optim/grad_norm", "loss",
)  # fmt: skip

#: Headings and the names (or, with a slash at the end, the beginnings of names) below them, in order.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "Reward": ("reward/mean", "reward/correct", "reward/std", "reward/frac_zero_std", "reward/"),
    "Completions": ("completions/mean_length", "completions/clipped_ratio", "completions/"),
    "Policy": ("policy/entropy", "policy/sampler_mismatch_nats", "policy/", "clip_ratio/", "kl"),
    "Guards": ("guards/",),
    "Optimisation": ("loss", "optim/grad_norm", "optim/learning_rate", "optim/"),
}

#: The heading of what belongs nowhere else.
OTHER = "Other"

#: Parts of the reward are drawn together, not each on its own.
PARTS = "reward/parts/"

#: Beginnings of the names of what speaks of rollouts: of demonstrations, which nobody sampled, it says nothing.
OF_ROLLOUTS = ("reward/", "guards/", "rollouts/", "completions/", "policy/sampler_mismatch")

#: Beginnings of the names of what says where a step's seconds went.
OF_TIMES = ("time/", "beside/")


def read_curves(store: Store, stage: str) -> dict[str, Points]:
    """Every curve of a stage by the metric's name."""
    return {name: store.metrics(stage, name) for name in store.metric_names(stage)}


def telling(curves: Mapping[str, Points], sampled: bool) -> dict[str, Points]:
    """The curves that say something: all of a stage that sampled, without `OF_ROLLOUTS` for one on demonstrations.

    Seconds are told by the `waterfall`.
    """
    silent = OF_TIMES if sampled else OF_TIMES + OF_ROLLOUTS
    return {name: points for name, points in curves.items() if not name.startswith(silent)}


def chosen(curves: Mapping[str, Mapping[str, Points]], asked: Sequence[str] = ()) -> dict[str, list[str]]:
    """By stage, the metrics asked for, else the leading ones, as far as the stage has them.

    Raises UnknownName for a metric that no stage has.
    """
    known = {name for each in curves.values() for name in each}
    for name in asked:
        if name not in known:
            raise UnknownName("metric", name, known)
    wanted = list(dict.fromkeys(asked)) or LEADING
    return {stage: [name for name in wanted if name in each] for stage, each in curves.items()}


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """Metrics under their headings, each once; what belongs nowhere comes under `OTHER`."""
    left = [name for name in sorted(names) if not name.startswith(PARTS)]
    found: dict[str, list[str]] = {}
    for heading, beginnings in FAMILIES.items():
        for beginning in beginnings:
            taken = [n for n in left if n == beginning or (beginning.endswith(("/", "kl")) and n.startswith(beginning))]
            found.setdefault(heading, []).extend(taken)
            left = [name for name in left if name not in taken]
    found[OTHER] = left
    return {heading: names for heading, names in found.items() if names}


def finite(points: Points) -> Points:
    """The points that are numbers: of a curve that has no others, the curve itself."""
    if all(map(math.isfinite, [value for _, value in points])):
        return points
    return [(step, value) for step, value in points if math.isfinite(value)]


def thinned(points: Points, most: int) -> Points:
    """At most `most` points: means over stretches of as equal a length as can be.

    >>> thinned([(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)], 2)
    [(1, 2.0), (3, 6.0)]
    """
    if len(points) <= most:
        return list(points)
    cuts = [round(i * len(points) / most) for i in range(most + 1)]
    values = [value for _, value in points]
    return [(points[b - 1][0], sum(values[a:b]) / (b - a)) for a, b in pairwise(cuts)]


def smoothed(points: Points, width: int) -> Points:
    """A centred running mean over `width` points (an odd number), of those that are there at both ends."""
    half, last = width // 2, len(points)
    sums = [0.0, *accumulate(value for _, value in points)]
    ranges = ((max(0, i - half), min(last, i + half + 1)) for i in range(last))
    return [(step, (sums[b] - sums[a]) / (b - a)) for (step, _), (a, b) in zip(points, ranges, strict=True)]


def moves(points: Points) -> bool:
    """Whether a curve has two different numbers; NaN is none."""
    found = (value for _, value in points if math.isfinite(value))
    first = next(found, None)
    return any(value != first for value in found)


def ends(points: Points) -> tuple[float, float] | None:
    """The means of the first and of the last tenth of a curve (at least 1 point, at most 10); None below 2 points.

    >>> ends([(0, 1.0), (1, 2.0), (2, 4.0)])
    (1.0, 4.0)
    """
    values = [value for _, value in finite(points)]
    if len(values) < 2:
        return None
    count = max(1, min(10, len(values) // 10))
    return statistics.fmean(values[:count]), statistics.fmean(values[-count:])


def number(value: float) -> str:
    """Three significant digits: `0.0123`, `1,230`, `1.2e-07`."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(share: float) -> str:
    """`14.4 %`."""
    return f"{100 * share:.1f} %"
