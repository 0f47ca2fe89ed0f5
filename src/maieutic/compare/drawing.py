"""Learning curves as inline SVG: means over seeds with bands from lowest to highest, over a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from maieutic.compare.results import Curve
from maieutic.report.curves import number, smoothed
from maieutic.report.markup import Html, el
from maieutic.report.plots import BOTTOM, COLOURS, DASHES, LEFT, RIGHT, TOP, Frame, figure, ticks

WIDTH, HEIGHT = 620, 300

#: Points of a band that are drawn.
DRAWN = 120


@dataclass(frozen=True, slots=True)
class Band:
    """An arm: `Band("grpo", 0, [(x, lowest, mean, highest), …])`. `colour` is its place among the arms."""

    label: str
    colour: int
    points: list[tuple[float, float, float, float]]


def band(label: str, colour: int, curves: Sequence[Curve], window: int = 1) -> Band | None:
    """The curves of an arm's seeds over the stretch that all of them cover; None where there is none.

    `window`: each curve is first smoothed by a running mean over so many points.
    """
    smooth = [_smoothed(curve, window) for curve in curves if curve]
    if not smooth or len(smooth) < len(curves):
        return None
    low, high = max(curve[0][0] for curve in smooth), min(curve[-1][0] for curve in smooth)
    places = sorted({x for curve in smooth for x, _ in curve if low <= x <= high})
    places = places[:: max(1, len(places) // DRAWN)] + places[-1:]
    points = []
    for x in dict.fromkeys(places):
        values = [at(curve, x) for curve in smooth]
        points.append((x, min(values), sum(values) / len(values), max(values)))
    return Band(label, colour, points) if points else None


def at(curve: Curve, x: float) -> float:
    """The curve's value at x, between its points in a straight line over log x."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= x <= x1:
            share = 0.0 if x1 == x0 else (math.log(x) - math.log(x0)) / (math.log(x1) - math.log(x0))
            return y0 + share * (y1 - y0)
    return curve[0][1] if x <= curve[0][0] else curve[-1][1]


def learning_curves(caption: str, bands: Sequence[Band], unit: str, note: str = "") -> Html:
    """Shares between 0 and 1 over what was spent."""
    xs = [math.log10(point[0]) for each in bands for point in each.points]
    highest = max(point[3] for each in bands for point in each.points)
    frame = Frame((min(xs), max(xs)), (0.0, min(1.0, 1.1 * highest) or 1.0), WIDTH, HEIGHT)
    parts = [_axes(frame, unit)]
    for each in bands:
        upper = [(math.log10(x), high) for x, _, _, high in each.points]
        lower = [(math.log10(x), low) for x, low, _, _ in reversed(each.points)]
        parts.append(el("polygon", points=_drawn(frame, [*upper, *lower]), class_=f"s{each.colour % COLOURS} band"))
        middle = [(math.log10(x), mean) for x, _, mean, _ in each.points]
        parts += [_line(_drawn(frame, middle), each.colour), *_whiskers(frame, each), _dots(frame, each, unit)]
    words = "; ".join(
        f"{each.label} from {100 * each.points[0][2]:.1f} % at {number(each.points[0][0])} to "
        f"{100 * each.points[-1][2]:.1f} % at {number(each.points[-1][0])}"
        for each in bands
    )
    box = f"0 0 {WIDTH} {HEIGHT + 14}"
    drawing = el("svg", parts, viewBox=box, role="img", aria_label=f"{caption} by {unit}: {words}", width=WIDTH)
    legend = el("p", [_key(each) for each in bands], class_="legend")
    return figure(caption, Html(legend + drawing), note=note)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten (their exponents): 1, 2 and 5 times each power.

    >>> log_ticks(2.0, 3.1)
    [100.0, 200.0, 500.0, 1000.0]
    """
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    found = [step * 10.0**power for power in powers for step in steps]
    return [x for x in found if low - 1e-9 <= math.log10(x) <= high + 1e-9]


def _axes(frame: Frame, unit: str) -> Html:
    parts = []
    for value in ticks(*frame.y):
        y = frame.down(value)
        parts.append(el("line", x1=LEFT, x2=frame.width - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(el("text", f"{100 * value:.3g} %", x=LEFT - 6, y=y + 4, text_anchor="end"))
    low = frame.height - 7
    for value in log_ticks(*frame.x):
        x = frame.across(math.log10(value))
        parts.append(el("line", x1=x, x2=x, y1=TOP, y2=frame.height - BOTTOM, class_="grid"))
        parts.append(el("text", number(value), x=x, y=low, text_anchor="middle"))
    parts.append(el("text", unit, x=(LEFT + frame.width - RIGHT) / 2, y=frame.height + 10, text_anchor="middle"))
    return el("g", parts, class_="axes")


def _drawn(frame: Frame, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{frame.across(x):.1f},{frame.down(y):.1f}" for x, y in points)


def _line(drawn: str, colour: int) -> Html:
    dash = DASHES[colour % len(DASHES)] or None
    return el("polyline", points=drawn, class_=f"s{colour % COLOURS} strong", stroke_dasharray=dash)


def _whiskers(frame: Frame, each: Band) -> list[Html]:
    """What a band is where all its points are at one place."""
    if each.points[0][0] != each.points[-1][0]:
        return []
    across = [frame.across(math.log10(x)) for x, *_ in each.points]
    return [
        el("line", x1=x, x2=x, y1=frame.down(low), y2=frame.down(high), class_=f"s{each.colour % COLOURS} strong")
        for x, (_, low, _, high) in zip(across, each.points)
    ]


def _key(each: Band) -> Html:
    """The band's line with its label, for the legend."""
    drawn = el("svg", _line("0,6 22,6", each.colour), viewBox="0 0 22 12", width=22, height=12, aria_hidden="true")
    return el("span", drawn, f" {each.label}")


def _dots(frame: Frame, each: Band, unit: str) -> Html:
    """Places that say their values when the pointer is over them."""
    dots = []
    for x, low, mean, high in each.points[:: max(1, len(each.points) // 40)]:
        said = f"{each.label}, {number(x)} {unit}: {100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        place = {"cx": frame.across(math.log10(x)), "cy": frame.down(mean)}
        dots.append(el("circle", el("title", said), **place, r=3, class_=f"s{each.colour % COLOURS} dot"))
    return el("g", dots)


def _smoothed(curve: Curve, window: int) -> Curve:
    means = smoothed([(i, value) for i, (_, value) in enumerate(curve)], window | 1)
    return [(x, mean) for (x, _), (_, mean) in zip(curve, means)]
