"""The page of a search: accuracy against tokens for every method, one file without network or script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maieutic.compare.drawing import Band, learning_curves
from maieutic.compare.page import write_document
from maieutic.report.markup import Child, Html, el, table
from maieutic.report.plots import whiskers
from maieutic.search.results import BASELINE, Summary, sequential

#: Where the page lies in the folder of a search.
PAGE = "search.html"


def write_page(out: Path, found: Sequence[Summary], settings: Mapping[str, Any]) -> Path:
    """Write the page into a folder and return its path. Raises RunError where that is not possible."""
    heading = f"Searches by {settings.get('model', 'a model')} on {settings.get('task', 'tasks')}"
    body: list[Child] = [
        el("header", el("h1", heading), el("small", f"{found[0].problems:,} problems")),
        el("section", [picture(found), each_budget(found)], class_="charts"),
        results(found),
        revisions(found),
        el("section", el("h2", "How it was asked"), el("pre", json.dumps(dict(settings), indent=1, default=str))),
    ]
    return write_document(out / PAGE, heading, body)


def picture(found: Sequence[Summary]) -> Html:
    """Accuracy over tokens generated a problem, on a logarithmic axis; bands are the points' 95 % intervals."""
    bands = []
    for colour, method in enumerate(dict.fromkeys(each.method for each in found)):
        points = sorted(
            (max(each.cost["generated"], 1.0), each.accuracy.low, each.accuracy.value, each.accuracy.high)
            for each in found
            if each.method == method
        )
        bands.append(Band(method, colour, points))
    note = "Bands are 95 % intervals over problems (bootstrap). What counts is what was chosen, thrown away or not."
    return learning_curves("Right answers against tokens spent", bands, "tokens generated a problem", note)


def each_budget(found: Sequence[Summary]) -> Html:
    """The methods beside each other at each budget."""
    rows: dict[str, list[Any]] = {}
    for each in found:
        rows.setdefault(f"{each.budget:,} tokens", []).append((each.method, each.accuracy))
    return whiskers("Right answers at each budget", list(rows.items()))


def results(found: Sequence[Summary]) -> Html:
    """Accuracy and cost of every method at every budget, and the two numbers of sequential scaling."""
    head = ["method", "budget", "right (95 % interval)", f"against {BASELINE}", "generated", "inserted", "read",
            "reused", "calls", "judged"]  # fmt: skip
    names = ("generated", "inserted", "prefilled", "reused", "calls", "judged")
    rows: list[list[Child]] = [
        [each.method, f"{each.budget:,}", each.accuracy.percent(),
         "" if each.against is None else each.against.percent().partition(";")[0],
         *(f"{each.cost[name]:,.1f}" for name in names)]
        for each in found
    ]  # fmt: skip
    parts: list[Child] = [el("h2", "Results"), table(head, rows, "Tokens and calls are means a problem", "numbers")]
    if told := sequential(found):
        lines: list[list[Child]] = [
            [method, f"{10_000 * each['scaling']:+.2f} points", f"{100 * each['performance']:.1f} %"]
            for method, each in told.items()
        ]
        caption = "Sequential scaling (arXiv 2501.19393): the mean slope, for 100 tokens, and the best of the budgets"
        parts.append(table(["method", "scaling", "performance"], lines, caption, "numbers"))
    return el("section", parts, id="results")


def revisions(found: Sequence[Summary]) -> Html:
    """What each round of revising did."""
    rows: list[list[Child]] = [
        [each.method, f"{each.budget:,}", str(number), *map(str, (turn.kept, turn.broken, turn.mended, turn.missed)),
         turn.difference.percent()]
        for each in found
        for number, turn in enumerate(each.transitions, 1)
    ]  # fmt: skip
    if not rows:
        return Html("")
    head = [
        "method",
        "budget",
        "round",
        "right → right",
        "right → wrong",
        "wrong → right",
        "wrong → wrong",
        "difference",
    ]
    return el("section", el("h2", "Revisions"), table(head, rows, "Problems", "numbers"), id="revisions")
