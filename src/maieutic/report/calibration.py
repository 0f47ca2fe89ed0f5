"""Are a reward model's probabilities what they say? The picture of it, and a page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from maieutic.core.judging import Bin
from maieutic.report.markup import Child, Html, el, table
from maieutic.report.plots import BOTTOM, LEFT, RIGHT, TOP, Frame, figure, ticks
from maieutic.report.style import STYLE
from maieutic.run.durable import write_text

SIDE = 300


def picture(bins: Sequence[Bin]) -> Html:
    """A dot a bin with its interval: the mean probability across, the share that is right upwards; on the dashed
    diagonal probabilities are what they say. The larger the dot, the more is in the bin."""
    frame = Frame((0.0, 1.0), (0.0, 1.0), SIDE + LEFT + RIGHT, SIDE + TOP + BOTTOM)
    parts: list[Child] = []
    for value in ticks(0.0, 1.0):
        x, y, label = frame.across(value), frame.down(value), f"{100 * value:.0f} %"
        parts.append(el("line", x1=LEFT, x2=frame.width - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(el("text", label, x=LEFT - 6, y=y + 4, text_anchor="end"))
        parts.append(el("text", label, x=x, y=frame.height - 7, text_anchor="middle"))
    across, down = frame.across, frame.down
    parts.append(el("line", x1=across(0), y1=down(0), x2=across(1), y2=down(1), class_="s1 strong",
                    stroke_dasharray="6 3"))  # fmt: skip
    most = max((each.count for each in bins), default=1)
    for each in bins:
        x = across(each.said)
        words = f"{each.count:,} at {100 * each.said:.0f} %: right {each.seen.percent()}"
        parts.append(el(
            "g", el("title", words),
            el("line", x1=x, x2=x, y1=down(each.seen.low), y2=down(each.seen.high), class_="s0 whisker"),
            el("circle", cx=x, cy=down(each.seen.value), r=2.5 + 4 * (each.count / most) ** 0.5, class_="s0 dot"),
        ))  # fmt: skip
    said = "; ".join(f"said {100 * each.said:.0f} %, right {each.seen.percent(0)}" for each in bins)
    drawing = el(
        "svg", el("g", parts, class_="axes"), viewBox=f"0 0 {frame.width:g} {frame.height:g}", role="img",
        width=frame.width, aria_label=f"Share that is right, by the probability that was said: {said}",
    )  # fmt: skip
    return figure("Share that is right, by the probability that was said", drawing)


def page(title: str, measures: Mapping[str, tuple[str, str]], bins: Sequence[Bin]) -> str:
    """The whole page: `measures` are name → (value, what it says)."""
    head = [
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        el("title", f"{title}: a reward model, audited"),
        el("style", Html(STYLE)),
    ]
    rows = [[name, value, says] for name, (value, says) in measures.items()]
    binned = [
        [f"{100 * b.low:.0f} to {100 * b.high:.0f} %", f"{b.count:,}", f"{100 * b.said:.1f} %", b.seen.percent()]
        for b in bins
    ]
    body = [
        el("header", el("h1", title)),
        table(("measure", "value", "what it says"), rows, "How well it judges"),
        picture(bins),
        table(("said", "how many", "mean", "right (95 % interval)"), binned, "Are probabilities what they say?"),
    ]
    html = el("html", el("head", head), el("body", el("main", body)), lang="en")
    return f"<!DOCTYPE html>\n{html}\n"


def write_page(path: Path, title: str, measures: Mapping[str, tuple[str, str]], bins: Sequence[Bin]) -> None:
    """Write the page to a file."""
    write_text(path, page(title, measures, bins))
