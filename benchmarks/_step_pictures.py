"""Curves of the study of step-by-step supervision as SVG files of their own: medians, and lowest to highest of seeds.

The frame and the ticks are the report's; colours are Okabe and Ito's, and lines differ by their dashes too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maieutic.report.markup import Html, el
from maieutic.report.plots import BOTTOM, DASHES, LEFT, RIGHT, TOP, Frame, tick_labels, ticks

COLOURS = ("#0072b2", "#d55e00", "#008f68", "#b0568c", "#8a6d00", "#5b5b5b", "#56b4e9")
WIDTH, HEIGHT, LINE = 620, 300, 16

#: x → y of one seed.
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """A picture: `curves` of each arm, one a seed. `log`: both axes in powers of two; `doubling`: x alone."""

    title: str
    across: str
    up: str
    curves: Mapping[str, Sequence[Curve]]
    percent: bool = False
    log: bool = False
    doubling: bool = False


def band(curves: Sequence[Curve]) -> list[tuple[float, float, float, float]]:
    """(x, lowest, median, highest) over the seeds; a curve that has ended stays where it ended."""
    found = []
    for x in sorted({x for curve in curves for x, _ in curve}):
        values = [[y for at, y in curve if at <= x][-1] for curve in curves if curve and curve[0][0] <= x]
        found.append((x, min(values), statistics.median(values), max(values)))
    return found


def smoothed(curve: Curve, window: int = 5) -> Curve:
    """Means of the last `window` values."""
    return [
        (x, statistics.fmean(y for _, y in curve[max(0, i + 1 - window) : i + 1])) for i, (x, _) in enumerate(curve)
    ]


def draw(panel: Panel) -> str:
    """The picture as an SVG document."""
    bands = {name: band(curves) for name, curves in panel.curves.items()}
    flat = [point for points in bands.values() for point in points]
    xs, ys = [p[0] for p in flat], [y for p in flat for y in (p[1], p[3])]
    place = (lambda v: math.log2(max(v, 1e-9))) if panel.log else float
    low, high = (min(map(place, ys)), max(map(place, ys))) if panel.log else (min(0.0, *ys), max(ys) * 1.05 or 1.0)
    along = math.log2 if panel.doubling else place
    frame = Frame((min(map(along, xs)), max(map(along, xs))), (low, high), WIDTH, HEIGHT)
    parts = [_axes(frame, panel)]
    for i, points in enumerate(bands.values()):
        upper = [(along(x), place(top)) for x, _, _, top in points]
        lower = [(along(x), place(bottom)) for x, bottom, _, _ in reversed(points)]
        middle = [(along(x), place(y)) for x, _, y, _ in points]
        colour = COLOURS[i % len(COLOURS)]
        dash = DASHES[i % len(DASHES)] or None
        parts.append(el("polygon", points=_drawn(frame, [*upper, *lower]), fill=colour, fill_opacity=0.12))
        parts.append(
            el(
                "polyline",
                points=_drawn(frame, middle),
                fill="none",
                stroke=colour,
                stroke_width=2,
                stroke_dasharray=dash,
            )
        )
        y = HEIGHT + 26 + LINE * (i // 3)
        x = LEFT + 185 * (i % 3)
        key = el("line", x1=x, x2=x + 24, y1=y - 4, y2=y - 4, stroke=colour, stroke_width=2, stroke_dasharray=dash)
        parts.append(el("g", key, el("text", list(panel.curves)[i], x=x + 30, y=y)))
    tall = HEIGHT + 34 + LINE * ((len(bands) - 1) // 3)
    words = "; ".join(f"{name}: {points[0][2]:.3g} to {points[-1][2]:.3g}" for name, points in bands.items())
    paper = el("rect", width=WIDTH, height=tall + 20, y=-20, fill="#ffffff")
    title = el("text", panel.title, x=LEFT, y=-6, font_weight="bold")
    drawing = el(
        "svg", paper, title, parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 -20 {WIDTH} {tall + 20}",
        width=WIDTH, role="img", aria_label=f"{panel.title}. {words}", font_family="sans-serif", font_size=12,
        fill="#1f2328",
    )  # fmt: skip
    return drawing + "\n"


def _drawn(frame: Frame, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{frame.across(x):.1f},{frame.down(y):.1f}" for x, y in points)


def _axes(frame: Frame, panel: Panel) -> Html:
    parts = []
    if panel.log:
        xs, ys = (
            [2.0**k for k in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
            for low, high in (frame.x, frame.y)
        )
        places = [(math.log2(x), f"{x:g}") for x in xs], [(math.log2(y), f"{y:g}") for y in ys]
    else:
        up = ticks(*frame.y)
        shown = [f"{100 * y:.3g} %" for y in up] if panel.percent else tick_labels(up)
        across = ticks(*frame.x, 6)
        named = tick_labels(across)
        if panel.doubling:
            across = [
                math.log2(x) for x in dict.fromkeys(x for each in panel.curves.values() for c in each for x, _ in c)
            ]
            named = [f"{2**x:.0f}" for x in across]
        places = list(zip(across, named)), list(zip(up, shown))
    for y, label in places[1]:
        at = frame.down(y)
        parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, stroke="#d9dde2"))
        parts.append(el("text", label, x=LEFT - 6, y=at + 4, text_anchor="end"))
    for x, label in places[0]:
        at = frame.across(x)
        parts.append(el("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, stroke="#d9dde2"))
        parts.append(el("text", label, x=at, y=HEIGHT - 8, text_anchor="middle"))
    parts.append(el("text", f"{panel.up}, by {panel.across}", x=LEFT, y=HEIGHT + 8))
    return el("g", parts)
