"""`maieutic compare`: algorithms × seeds at equal cost, and what may be said of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.screen import Json, Quiet, Screen, screen
from maieutic.errors import ConfigError

if TYPE_CHECKING:
    from maieutic.compare.places import Failure
    from maieutic.compare.plan import Plan
    from maieutic.compare.results import Results

File = Annotated[Path, typer.Argument(metavar="FILE", help="A TOML file.", autocompletion=complete.configs)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: budget.samples=1000.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where the runs go.", show_default="runs/<name>")
]
Jobs = Annotated[int | None, typer.Option(min=1, metavar="N", help="Runs at the same time.", show_default="cores")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be run, stop.")]


def compare(
    context: typer.Context,
    file: File,
    overrides: Overrides = None,
    out: Out = None,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Compare algorithms: several arms × seeds from one start at equal cost, with intervals and a verdict.

    Every arm and seed is an ordinary run. The same command goes on where it was stopped, and shows the results again
    when nothing is left to do.
    """
    from maieutic.compare.plan import read_comparison

    show = screen(context, json, quiet)
    plan = read_comparison(file, tuple(overrides or ()))
    folder = out or Path("runs") / plan.study.name
    failures = carry_out(show, plan, folder, jobs, dry_run)
    if failures is None:
        return
    show.write_json(_conclude(show, plan, folder, failures))


def carry_out(show: Screen, plan: Plan, folder: Path, jobs: int | None, dry_run: bool) -> list[Failure] | None:
    """Check the plan and carry it out, with its progress shown; None where only a plan was asked for."""
    from maieutic.cli.progress import display
    from maieutic.compare.execute import all_jobs, execute

    checked(show, plan)
    work = all_jobs(plan)
    if dry_run:
        say_plan(show, plan, folder, len(work))
        return None
    # one thread a run: as many runs as cores are busiest; several on one GPU would only share it
    wanted = jobs or (cores() if plan.study.device == "cpu" else 1)

    def told(failure: Failure) -> None:
        show.err.print(f"failed: {failure}", style="red", highlight=False, markup=False, soft_wrap=True)

    with display(show) as shown:
        shown.begin(plan.study.name, 0, 100)
        return execute(
            plan, folder, jobs=wanted, told=told,
            heard=lambda: show.err.print("stopping after these steps (Ctrl-C again: at once)", highlight=False),
            watch=lambda share, words: shown.show(plan.study.name, int(100 * share), 100, words),
        )  # fmt: skip


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def checked(show: Screen, plan: Plan) -> None:
    """Find every mistake of every arm before the first run begins, and say what a reader should know."""
    from maieutic.cli.train import check

    for arm in plan.arms:
        try:
            check(plan.whole(arm, plan.study.seeds[0]))
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name!r}: {error}") from error
    for warning in plan.warnings:
        show.note(f"note: {warning}", style="yellow")


def say_plan(show: Screen, plan: Plan, folder: Path, runs: int) -> None:
    """What would be run, for `--dry-run`."""
    from maieutic.run.build import describe
    from maieutic.run.tasksets import Tasksets

    plans = {}
    for arm in plan.arms:
        config = plan.whole(arm, plan.study.seeds[0])
        plans[arm.name] = describe(config, Tasksets(config))
        show.out.print(f"[bold]{arm.name}[/]")
        show.out.print(plans[arm.name] + "\n", markup=False, highlight=False, soft_wrap=True)
    seeds = ", ".join(map(str, plan.study.seeds))
    show.out.print(
        f"{runs} runs (seeds {seeds}) would go to {folder}; nothing was written", markup=False, highlight=False
    )
    show.write_json({"arms": plans, "seeds": plan.study.seeds, "runs": runs, "out": str(folder)})


def _conclude(show: Screen, plan: Plan, folder: Path, failures: list[Failure]) -> dict[str, Any]:
    """Print tables and verdicts, write the page, and return everything for JSON."""
    from maieutic.compare.analyse import analyse
    from maieutic.compare.data import as_data
    from maieutic.compare.page import write_page
    from maieutic.compare.results import read_results
    from maieutic.compare.verdict import verdict

    results = read_results(plan, folder)
    analyses = [analyse(results, name) for name in plan.study.evaluation.names]
    for analysis in analyses:
        if analysis.arms:
            print_tables(show, results, analysis)
        for sentence in verdict(results, analysis):
            show.out.print(f"• {sentence}", markup=False, highlight=False, soft_wrap=True)
        show.out.print()
    page = write_page(results, analyses, folder)
    show.out.print(f"runs    {folder}\npage    {page}", markup=False, highlight=False, soft_wrap=True)
    return {**as_data(results, analyses), "out": str(folder), "page": str(page), "failed": [str(f) for f in failures]}


def print_tables(show: Screen, results: Results, analysis: Any) -> None:
    """The arms with their metrics, and what they cost."""
    from maieutic.cli.screen import table
    from maieutic.compare.measures import title
    from maieutic.compare.words import amount, cell, cost_titles

    rows = {**({"start": analysis.start} if analysis.start else {}), **analysis.arms}
    seeds = len(plan_seeds(results))
    made = table("", title=f"{analysis.taskset}: means over {seeds} seed{'s' * (seeds != 1)}, 95 % intervals")
    for metric in analysis.metrics:
        made.add_column(metric, justify="right")
    for name, values in rows.items():
        made.add_row(f"[bold]{name}[/]", *(cell(m, values[m].interval) for m in analysis.metrics))
    show.out.print(made)
    named = "; ".join(f"{metric}: {title(metric)}" for metric in analysis.metrics if title(metric) != metric)
    show.out.print(named, style="dim", highlight=False, markup=False)
    spent = table("", title="What each arm cost, means over seeds (evaluations and the start are not counted)")
    for heading in cost_titles():
        spent.add_column(heading, justify="right")
    for arm, costs in analysis.costs.items():
        spent.add_row(f"[bold]{arm}[/]", *(amount(name, costs.get(name)) for name in cost_titles().values()))
    show.out.print(spent)


def plan_seeds(results: Results) -> list[int]:
    """The seeds for which any arm is complete."""
    return [seed for seed in results.plan.study.seeds if any(seed in each for each in results.trials.values())]
