"""HTML as values: `el("td", "a < b", class_="n")` is `<td class="n">a &lt; b</td>`.

A child that is a plain string is text and is escaped; only what these functions made is taken as HTML. So no text of a
model, a task or a config can become markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from maieutic.report.transcripts import visible

VOID = frozenset({"meta", "br", "hr"})


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Iterable["Child"]


def el(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """An element. `class_` is written `class` and `stroke_width` `stroke-width`; True is an attribute without a value.

    Attributes that are None or False are left out.
    """
    opening = "".join([f"<{name}", *(_attribute(*each) for each in attributes.items())])
    return Html(f"{opening}>") if name in VOID else Html(f"{opening}>{inside(children)}</{name}>")


def inside(children: Child) -> Html:
    """Children one after the other, text escaped."""
    if isinstance(children, Html):
        return children
    if isinstance(children, str):
        return Html(html.escape(visible(children), quote=False))
    return Html("".join(map(inside, children)))


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], caption: str, class_: str = "") -> Html:
    """A table whose first column names its rows."""
    return el(
        "div",
        el(
            "table",
            el("caption", caption),
            el("thead", el("tr", [el("th", cell, scope="col") for cell in head])),
            el("tbody", [_row(list(row)) for row in rows]),
            class_=class_ or None,
        ),
        class_="wide",
    )


def _row(cells: list[Child]) -> Html:
    return el("tr", el("th", cells[0], scope="row"), [el("td", cell) for cell in cells[1:]])


def _attribute(name: str, value: str | float | bool | None) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    shown = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(visible(shown))}"'
