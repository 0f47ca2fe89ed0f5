"""Evaluations as people read them: tables of values with their 95 % intervals, and differences with their verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from maieutic.cli.screen import table
from maieutic.errors import DataError
from maieutic.evaluate import Evaluation, difference
from maieutic.report.measured import in_words, shown, title

if TYPE_CHECKING:
    from maieutic.core.intervals import Difference, Interval

#: Metrics that say how often the model is right; the others say how it writes.
RIGHT = ("greedy", "pass", "vote", "strict")

COLOURS = {"better": "green", "worse": "red"}


def headline(metrics: Mapping[str, Interval]) -> list[str]:
    """The names of the metrics that say how often the model is right."""
    return [name for name in metrics if name.partition("@")[0] in RIGHT]


def evaluation_table(evaluation: Evaluation, metrics: Mapping[str, Interval]) -> Table:
    """One evaluation: a metric a row."""
    heading = f"{evaluation.name}: {len(evaluation.problems):,} problems, {evaluation.n} samples each"
    made = table("metric", "value (95 % interval)", "what it says", title=heading)
    for name, value in metrics.items():
        made.add_row(name, shown(name, value), title_of(name))
    return made


def stages_table(rows: Sequence[tuple[str, Mapping[str, Interval]]], heading: str) -> Table:
    """Several evaluations of the same problems: one a row, its interval below each value."""
    names = list(dict.fromkeys(name for _, metrics in rows for name in headline(metrics)))
    made = table("", title=heading)
    for name in names:
        made.add_column(name, justify="right")
    for label, metrics in rows:
        made.add_row(f"[bold]{escape(label)}[/]", *(_cell(metrics.get(name)) for name in names))
    return made


def compare(new: Evaluation, old: Evaluation) -> dict[str, Difference]:
    """Every metric of rightness that both hold, `new - old` on the same problems; k is the smaller number of samples.

    Raises DataError when they are not of the same problems.
    """
    k = min(new.n, old.n, *new.ks, *old.ks)
    both_greedy = all(problem.greedy for made in (new, old) for problem in made.problems)
    names = ["greedy"] if both_greedy else []
    if k:
        names += dict.fromkeys(["pass@1", f"pass@{k}", f"vote@{k}", f"strict@{k}"])
    if not names:
        raise DataError(
            f"{new.name!r} and {old.name!r} have no metric in common: one has greedy samples only, the other none; "
            "evaluate both with the same --samples and --no-greedy"
        )
    return {name: difference(new, old, name) for name in names}


def print_differences(out: Console, differences: Mapping[str, Difference], heading: str) -> None:
    """A difference a line, coloured by its verdict."""
    out.print(f"[bold]{escape(heading)}[/]", highlight=False, soft_wrap=True)
    width = max(map(len, differences))
    for name, value in differences.items():
        colour = COLOURS.get(value.verdict, "default")
        out.print(f"  {name:<{width}}  [{colour}]{escape(in_words(name, value))}[/]", highlight=False, soft_wrap=True)
    out.print()


def json_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals or differences by name, as JSON."""
    return {name: value.to_dict() for name, value in values.items()}


def title_of(metric: str) -> str:
    """What a metric says, where its name does not."""
    said = title(metric)
    return "" if said == metric else said


def _cell(value: Interval | None) -> str:
    if value is None:
        return "–"
    return f"[bold]{100 * value.value:.1f} %[/]\n[dim]{100 * value.low:.1f} to {100 * value.high:.1f}[/]"
