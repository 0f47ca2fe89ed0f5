"""`maieutic sweep`: an algorithm over a grid of hyper-parameters: how sensitive is it, how often does it go wrong?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from maieutic.cli.compare import DryRun, File, Jobs, Out, Overrides, carry_out
from maieutic.cli.screen import Json, Quiet, Screen, screen


def sweep(
    context: typer.Context,
    file: File,
    overrides: Overrides = None,
    out: Out = None,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Sweep hyper-parameters with several seeds: the spread of final results, and the share of runs that diverged.

    Every setting and seed is an ordinary run. The same command goes on where it was stopped.
    """
    from maieutic.compare.sweep import read_sweep

    show = screen(context, json, quiet)
    found = read_sweep(file, tuple(overrides or ()))
    folder = out or Path("runs") / found.plan.study.name
    failures = carry_out(show, found.plan, folder, jobs, dry_run)
    if failures is not None:
        show.write_json({**_conclude(show, found, folder), "failed": [str(failure) for failure in failures]})


def _conclude(show: Screen, found: Any, folder: Path) -> dict[str, Any]:
    """Print tables and a summary, write the page, and return everything for JSON."""
    from maieutic.cli.screen import table
    from maieutic.compare.data import sensitivity_data
    from maieutic.compare.results import read_results
    from maieutic.compare.sensitivity import sensitivity
    from maieutic.compare.sweep_page import level_rows, setting_rows, summary, write_sweep_page

    results = read_results(found.plan, folder)
    every = [sensitivity(found, results, name) for name in found.plan.study.evaluation.names]
    for each in every:
        levels = table("hyper-parameter", "value", "runs", "median", "quartiles", "diverged",
                       title=f"{each.taskset}: final {each.metric} by hyper-parameter")  # fmt: skip
        for row in level_rows(each):
            levels.add_row(*row)
        settings = table("setting", "values", "mean (95 % interval)", "median", "quartiles", "diverged",
                         title="Settings, over seeds")  # fmt: skip
        for row in setting_rows(each):
            settings.add_row(*row)
        show.out.print(levels)
        show.out.print(settings)
        for sentence in summary(each):
            show.out.print(f"• {sentence}", markup=False, highlight=False, soft_wrap=True)
        show.out.print()
    page = write_sweep_page(results, every, folder)
    show.out.print(f"runs    {folder}\npage    {page}", markup=False, highlight=False, soft_wrap=True)
    return {**sensitivity_data(results, every), "out": str(folder), "page": str(page)}
