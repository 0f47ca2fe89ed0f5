"""Plots as inline SVG: lines, bars, shapes of distributions, intervals. No script; a point says its value when hovered.

Each plot says in words, for those who do not see it, what it shows. Colours are CSS variables (`--s0` …), so that a
page can be light or dark; series also differ by their dashes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from maieutic.core.intervals import Interval
from maieutic.report.curves import Points, finite, number, smoothed, thinned
from maieutic.report.markup import Html, el

WIDTH, HEIGHT = 340, 180
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 8, 24
COLOURS = 6
DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 4", "1 4")

#: Points of a curve that are drawn, and points that answer to the pointer.
DRAWN, HOVERED = 400, 80

#: Points of which all of a plot is made: of a longer curve, means of stretches. A running mean over the curve itself
#: would take a time that grows with the square of its length.
AVERAGED = 2 * DRAWN


@dataclass(frozen=True, slots=True)
class Series:
    """A named list of (x, y)."""

    label: str
    points: Points


@dataclass(frozen=True, slots=True)
class Frame:
    """The data's range on the drawing area."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = WIDTH
    height: float = HEIGHT

    def across(self, x: float) -> float:
        """Where x is drawn."""
        low, high = self.x
        return LEFT + (x - low) / ((high - low) or 1) * (self.width - LEFT - RIGHT)

    def down(self, y: float) -> float:
        """Where y is drawn."""
        low, high = self.y
        return self.height - BOTTOM - (y - low) / ((high - low) or 1) * (self.height - TOP - BOTTOM)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within the range, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0.0, 1.0)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    return [round(i * unit, 12 - math.floor(math.log10(unit))) for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Numbers with as many decimals as tell them apart.

    >>> tick_labels([0.998, 1.0, 1.002])
    ['0.998', '1.000', '1.002']
    """
    if len(values) < 2:
        return [number(value) for value in values]
    unit, largest = values[1] - values[0], max(abs(value) for value in values)
    if largest < 1e-3 or largest >= 1e6:
        return [f"{value:.1e}" if value else "0" for value in values]
    shown = f"{unit:.6g}"
    decimals = len(shown.partition(".")[2]) if "e" not in shown else 6
    return [f"{value:,.{decimals}f}" for value in values]


def figure(caption: str, drawing: Html, *, names: Sequence[str] = (), note: str = "") -> Html:
    """A plot below its caption, with a legend where several series are named."""
    legend = el("p", [_key(i, name) for i, name in enumerate(names)], class_="legend") if len(names) > 1 else ""
    return el("figure", el("figcaption", caption), legend, drawing, el("p", note, class_="note") if note else "")


def lines(caption: str, series: Sequence[Series], *, unit: str = "step") -> Html:
    """Curves over steps: every value faint, the running mean strong."""
    series = [Series(each.label, known) for each in series if (known := finite(each.points))]
    extremes = [(min(values), max(values)) for values in ([y for _, y in each.points] for each in series)]
    steps = [each.points[end][0] for each in series for end in (0, -1)]
    frame = Frame((min(steps), max(steps)), _range([value for pair in extremes for value in pair]))
    words = "; ".join(
        f"{each.label} from {number(each.points[0][1])} to {number(each.points[-1][1])}, "
        f"lowest {number(low)}, highest {number(high)}"
        for each, (low, high) in zip(series, extremes, strict=True)
    )
    series = [Series(each.label, thinned(each.points, AVERAGED)) for each in series]
    parts = [_axes(frame, unit)]
    for i, each in enumerate(series):
        strong = smoothed(each.points, max(1, len(each.points) // 15 | 1))
        if len(series) == 1 and len(each.points) >= 30:
            parts.append(_path(frame, thinned(each.points, DRAWN), i, "faint"))
        parts.append(_path(frame, thinned(strong, DRAWN), i, "strong"))
    parts.append(_hover(frame, series, unit))
    names = [each.label for each in series]
    return figure(caption, _svg(parts, f"{caption} by {unit}: {words}"), names=names)


def shapes(caption: str, series: Sequence[tuple[str, Sequence[float]]], *, unit: str, note: str = "") -> Html:
    """Distributions as outlines over common bins, each the share of its own values."""
    every = [value for _, values in series for value in values]
    low, high = min(every), max(every)
    bins = max(1, min(24, math.ceil(high - low) or 1))
    edge = (high - low) / bins or 1.0
    shares = []
    for _, values in series:
        counts = [0] * bins
        for value in values:
            counts[min(bins - 1, int((value - low) / edge))] += 1
        shares.append([count / max(1, len(values)) for count in counts])
    frame = Frame((low, low + bins * edge), (0.0, 1.05 * max(max(each) for each in shares)))
    parts = [_axes(frame, unit, percent=True)]
    for i, each in enumerate(shares):
        outline = [(low + (j + side) * edge, share) for j, share in enumerate(each) for side in (0, 1)]
        parts.append(_outline(frame, outline, i))
    words = "; ".join(f"{name}: mean {number(sum(v) / len(v))}, longest {number(max(v))}" for name, v in series if v)
    return figure(caption, _svg(parts, f"{caption}, in {unit}. {words}"), names=[name for name, _ in series], note=note)


def bars(
    caption: str,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[int]]],
    *,
    note: str = "",
    after: float = 0,
) -> Html:
    """Counts side by side in classes. A dashed line stands before the class number `after` (0: none)."""
    width = max(WIDTH, 40 + 14 * len(labels) * max(2, len(series)))
    frame = Frame((0, len(labels)), (0, 1.05 * max(1, *(max(counts) for _, counts in series))), width)
    slot, parts = 0.84 / len(series), [_axes(frame, "", names=labels)]
    for i, (name, counts) in enumerate(series):
        for j, count in enumerate(counts):
            left, right = frame.across(j + 0.08 + i * slot), frame.across(j + 0.08 + (i + 1) * slot)
            top = frame.down(count)
            rect = el(
                "rect", el("title", f"{name}, {labels[j]}: {count:,}"), x=left, y=top, width=right - left,
                height=frame.height - BOTTOM - top, class_=f"s{i % COLOURS} bar",
            )  # fmt: skip
            parts.append(rect)
    if after:
        x = frame.across(after)
        parts.append(el("line", x1=x, x2=x, y1=TOP, y2=frame.height - BOTTOM, class_="mark"))
    words = "; ".join(
        f"{name}: " + ", ".join(f"{label}: {count}" for label, count in zip(labels, counts)) for name, counts in series
    )
    drawing = _svg(parts, f"{caption}. {words}", width)
    return figure(caption, drawing, names=[name for name, _ in series], note=note)


def stacked(caption: str, parts: Sequence[tuple[str, float]], *, whole: float) -> Html:
    """Parts of a whole in one bar, in seconds, in their order; what they leave is left empty."""
    width, height, at, drawn = 620, 26, 0.0, []
    for i, (name, value) in enumerate(parts):
        across = width * value / (whole or 1.0)
        said = el("title", f"{name}: {number(value)} s, {100 * value / (whole or 1.0):.1f} %")
        drawn.append(el("rect", said, x=at, y=0, width=across, height=height, class_=f"s{i % COLOURS} bar part"))
        at += across
    words = ", ".join(f"{name} {number(value)} s" for name, value in parts)
    keys = [
        el("span", el("svg", el("rect", width=12, height=12, class_=f"s{i % COLOURS} bar"), viewBox="0 0 12 12",
                      width=12, height=12, aria_hidden="true"), f" {name} {100 * value / (whole or 1.0):.0f} %")
        for i, (name, value) in enumerate(parts)
    ]  # fmt: skip
    bar = _svg(drawn, f"{caption}. {words}", width, height)
    return el("figure", el("figcaption", caption), el("p", keys, class_="legend"), bar)


def whiskers(caption: str, rows: Sequence[tuple[str, Sequence[tuple[str, Interval]]]]) -> Html:
    """Shares with their intervals, one line for each name, one dot for each series."""
    names = list(dict.fromkeys(label for _, values in rows for label, _ in values))
    step = 14 * len(names) + 12
    frame = Frame((0.0, 1.0), (0.0, 1.0), 620, TOP + BOTTOM + step * len(rows))
    parts = [_grid_across(frame)]
    for i, (name, values) in enumerate(rows):
        top = TOP + i * step
        parts.append(el("text", name, x=LEFT - 8, y=top + step / 2 + 4, class_="name", text_anchor="end"))
        for label, value in values:
            series = names.index(label)
            y = top + 13 + 14 * series
            low, high = frame.across(max(0.0, value.low)), frame.across(min(1.0, value.high))
            dot = el(
                "g", el("title", f"{name}, {label}: {value.percent()}"),
                el("line", x1=low, x2=high, y1=y, y2=y, class_=f"s{series % COLOURS} whisker"),
                el("circle", cx=frame.across(value.value), cy=y, r=4.5, class_=f"s{series % COLOURS} dot"),
            )  # fmt: skip
            parts.append(dot)
    words = "; ".join(f"{name}, {label}: {value.percent()}" for name, values in rows for label, value in values)
    return figure(caption, _svg(parts, f"{caption}. {words}", 620, frame.height), names=names)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A little more than the range; down to 0 where the values come near it."""
    low, high = min(values), max(values)
    if low == high:
        return low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    if 0 <= low <= 0.6 * high:
        low = 0.0
    room = 0.05 * (high - low)
    return (low if low == 0 else low - room), high + room


def _svg(parts: Sequence[Html], words: str, width: float = WIDTH, height: float = HEIGHT) -> Html:
    return el("svg", parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=words, width=width)


def _axes(frame: Frame, unit: str, *, percent: bool = False, names: Sequence[str] = ()) -> Html:
    parts = []
    values = ticks(*frame.y)
    labels = [f"{100 * value:.3g} %" for value in values] if percent else tick_labels(values)
    for value, label in zip(values, labels):
        y = frame.down(value)
        parts.append(el("line", x1=LEFT, x2=frame.width - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(el("text", label, x=LEFT - 6, y=y + 4, text_anchor="end"))
    low = frame.height - 7
    if names:
        every = max(1, math.ceil(len(names) * 9 / 40)) if frame.width <= WIDTH and len(names) > 20 else 1
        parts += [
            el("text", name, x=frame.across(i + 0.5), y=low, text_anchor="middle")
            for i, name in enumerate(names)
            if i % every == 0
        ]
    else:
        wanted = ticks(*frame.x, 6)
        parts += [
            el("text", label, x=frame.across(x), y=low, text_anchor="middle")
            for x, label in zip(wanted, tick_labels(wanted))
        ]
        parts.append(el("text", unit, x=6, y=low))
    return el("g", parts, class_="axes")


def _grid_across(frame: Frame) -> Html:
    parts = []
    for value in ticks(0.0, 1.0, 6):
        x = frame.across(value)
        parts.append(el("line", x1=x, x2=x, y1=TOP, y2=frame.height - BOTTOM, class_="grid"))
        parts.append(el("text", f"{100 * value:.0f} %", x=x, y=frame.height - 7, text_anchor="middle"))
    return el("g", parts, class_="axes")


def _path(frame: Frame, points: Sequence[tuple[float, float]], i: int, kind: str) -> Html:
    if len(points) == 1:
        return el("circle", cx=frame.across(points[0][0]), cy=frame.down(points[0][1]), r=3, class_=f"s{i} dot")
    drawn = " ".join(f"{frame.across(x):.1f},{frame.down(y):.1f}" for x, y in points)
    dash = DASHES[i % len(DASHES)] or None
    return el("polyline", points=drawn, class_=f"s{i % COLOURS} {kind}", stroke_dasharray=dash)


def _outline(frame: Frame, points: Sequence[tuple[float, float]], i: int) -> Html:
    closed = [(points[0][0], 0.0), *points, (points[-1][0], 0.0)]
    drawn = " ".join(f"{frame.across(x):.1f},{frame.down(y):.1f}" for x, y in closed)
    dash = DASHES[i % len(DASHES)] or None
    return el("polygon", points=drawn, class_=f"s{i % COLOURS} area", stroke_dasharray=dash)


def _hover(frame: Frame, series: Sequence[Series], unit: str) -> Html:
    """Invisible strips over the plot that say the values below them."""
    at: dict[int, list[str]] = {}
    for each in series:
        for x, y in thinned(each.points, HOVERED):
            at.setdefault(x, []).append(f"{each.label} {number(y)}" if len(series) > 1 else number(y))
    places = sorted(at)
    strips = []
    for i, x in enumerate(places):
        left = LEFT if i == 0 else (frame.across(places[i - 1]) + frame.across(x)) / 2
        right = frame.width - RIGHT if i + 1 == len(places) else (frame.across(places[i + 1]) + frame.across(x)) / 2
        title = el("title", f"{unit} {x}: {', '.join(at[x])}")
        strips.append(el("rect", title, x=round(left, 1), y=TOP, width=round(right - left, 1),
                         height=frame.height - TOP - BOTTOM))  # fmt: skip
    return el("g", strips, class_="hover")


def _key(i: int, name: str) -> Html:
    dash = DASHES[i % len(DASHES)] or None
    line = el("line", x1=0, x2=22, y1=6, y2=6, class_=f"s{i % COLOURS} strong", stroke_dasharray=dash)
    return el("span", el("svg", line, viewBox="0 0 22 12", width=22, height=12, aria_hidden="true"), f" {name}")
