"""The page of a sweep: what it says in words, each hyper-parameter, each setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maieutic.compare import words
from maieutic.compare.page import PAGE, notes, plan_of, runs, write_document
from maieutic.compare.results import Results
from maieutic.compare.sensitivity import Run, Sensitivity, diverged, median, quartiles
from maieutic.report.markup import Child, Html, el, table
from maieutic.report.plots import whiskers


def write_sweep_page(results: Results, found: Sequence[Sensitivity], out: Path) -> Path:
    """Write the page into the sweep's folder and return its path. Raises RunError where that is not possible."""
    study = results.plan.study
    body: list[Child] = [
        el("header", el("h1", study.name), el("small", f"seeds {', '.join(map(str, study.seeds))}")),
        notes((), [str(failure) for failure in results.failures]),
    ]
    body += [_section(each) for each in found]
    body += [runs(results), plan_of(results)]
    return write_document(out / PAGE, f"{study.name}: a sweep", body)


def summary(found: Sensitivity) -> list[str]:
    """What the sweep says, in words."""
    every = found.runs
    if not every:
        return ["No run is at its end yet: there is nothing to say."]
    low, high = quartiles(every)
    told = [
        f"{len(found.settings)} settings, {len(every)} runs on {found.taskset}: the median final {found.metric} is "
        f"{share(median(every))}, half of the runs lie between {share(low)} and {share(high)}.",
        f"{share(diverged(every))} of the runs diverged: numbers that were not finite, a final pass@1 more than "
        f"{100 * found.margin:g} points below the start's, or an entropy below a tenth of what it was without a gain.",
    ]
    keys = sorted(dict.fromkeys(level.key for level in found.levels), key=lambda key: -_known(found.spread(key)))
    for key in keys:
        told.append(
            f"{key}: the medians at its values are {100 * _known(found.spread(key)):.1f} points apart ("
            + "; ".join(f"{shown(lvl.value)}: {share(median(lvl.runs))}" for lvl in found.levels if lvl.key == key)
            + ")."
        )
    told.append("These medians describe the runs that were made; they are no test of one value against another.")
    return told


def level_rows(found: Sensitivity) -> list[list[str]]:
    """A row for each value of each hyper-parameter: key, value, runs, median, quartiles, share diverged."""
    return [
        [level.key, shown(level.value), str(len(level.runs)), *_numbers(level.runs)] for level in found.levels
    ]  # fmt: skip


def setting_rows(found: Sensitivity) -> list[list[str]]:
    """A row for each setting: its values, the mean with its interval, quartiles over seeds, share diverged."""
    rows = []
    for setting in found.settings:
        told = ", ".join(f"{key.rpartition('.')[2]} {shown(value)}" for key, value in setting.values.items())
        mean = "–" if setting.interval is None else words.shown(found.metric, setting.interval)
        rows.append([setting.name, told, mean, *_numbers(setting.runs)])
    return rows


def share(x: float) -> str:
    """`41.2 %`."""
    return "–" if math.isnan(x) else f"{100 * x:.1f} %"


def shown(value: Any) -> str:
    """A hyper-parameter's value."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _numbers(runs: Sequence[Run]) -> list[str]:
    low, high = quartiles(runs)
    return [share(median(runs)), f"{share(low)} to {share(high)}", share(diverged(runs))]


def _known(x: float) -> float:
    return 0.0 if math.isnan(x) else x


def _section(found: Sensitivity) -> Html:
    parts: list[Child] = [
        el("h2", f"On {found.taskset}"),
        el("ul", [el("li", sentence) for sentence in summary(found)]),
    ]
    if found.settings:
        head = ["hyper-parameter", "value", "runs", "median", "quartiles", "diverged"]
        parts.append(table(head, level_rows(found), f"Final {found.metric} by hyper-parameter", "numbers"))
        dots = [(each.name, [("", each.interval)]) for each in found.settings if each.interval is not None]
        parts.append(whiskers(f"Final {found.metric} of each setting, with intervals over seeds and problems", dots))
        head = ["setting", "values", "mean (95 % interval)", "median of seeds", "quartiles of seeds", "diverged"]
        parts.append(table(head, setting_rows(found), "Settings", "numbers"))
        reasons = [f"{s.name}, seed {run.seed}: {run.reason}" for s in found.settings for run in s.runs if run.reason]
        if reasons:
            parts.append(
                el("details", el("summary", "Runs that diverged"), el("ul", [el("li", each) for each in reasons]))
            )
    return el("section", parts, id=f"on-{found.taskset}")
