"""Numbers of a study as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from maieutic.compare.measures import NUMBERS
from maieutic.core.intervals import Interval
from maieutic.report.words import duration


def shown(metric: str, value: Interval) -> str:
    """`41.2 % (38.0 to 44.4)`, or `112.4 (108.0 to 117.1)` for what is not a share."""
    return value.plain() if metric in NUMBERS else value.percent()


def cell(metric: str, value: Interval) -> str:
    """The value, with its interval on a line of its own."""
    scale, unit = (1, "") if metric in NUMBERS else (100, " %")
    if not math.isfinite(value.low):
        return f"{scale * value.value:.1f}{unit}\n?"
    # a share is never outside 0 and 1, whatever Student's t says of few seeds
    low, high = (value.low, value.high) if metric in NUMBERS else (max(0.0, value.low), min(1.0, value.high))
    return f"{scale * value.value:.1f}{unit}\n{scale * low:.1f} to {scale * high:.1f}"


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
