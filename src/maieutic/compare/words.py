"""Numbers of a study as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from maieutic.compare.measures import NUMBERS
from maieutic.core.intervals import Interval
from maieutic.report.words import duration


def shown(metric: str, value: Interval) -> str:
    """`41.2 % (38.0 to 44.4)`, or `112.4 (108.0 to 117.1)` for what is not a share."""
    inside = clamped(metric, value)
    return inside.plain() if metric in NUMBERS else inside.percent()


def single(metric: str, value: float) -> str:
    """One number without an interval: `41.2 %`."""
    return f"{value:.1f}" if metric in NUMBERS else f"{100 * value:.1f} %"


def cell(metric: str, value: Interval) -> str:
    """The value, with its interval on a line of its own."""
    if not math.isfinite(value.low):
        return f"{single(metric, value.value)}\n?"
    inside, scale = clamped(metric, value), 1 if metric in NUMBERS else 100
    return f"{single(metric, value.value)}\n{scale * inside.low:.1f} to {scale * inside.high:.1f}"


def clamped(metric: str, value: Interval) -> Interval:
    """The interval cut to what the metric can be: Student's t of a few seeds knows of no bounds."""
    if not math.isfinite(value.low):
        return value
    most = math.inf if metric in NUMBERS else 1.0
    return Interval(value.value, max(0.0, value.low), min(most, value.high))


def cost_titles() -> Mapping[str, str]:
    """Heading → cost, in the order in which they are shown."""
    return {
        "samples": "samples",
        "generated tokens": "generated_tokens",
        "trained tokens": "trained_tokens",
        "FLOPs (estimate)": "flops",
        "time": "seconds",
        "entropy": "entropy",
    }


def amount(name: str, value: float | None) -> str:
    """A cost: `12,800`, `3.1e+12`, `4 min 3 s`, `0.31 nats`."""
    if value is None:
        return "–"
    if name == "seconds":
        return duration(value)
    if name == "entropy":
        return f"{value:.3g} nats"
    return f"{value:.2e}" if value >= 1e9 else f"{value:,.0f}"
