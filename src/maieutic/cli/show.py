"""`maieutic show RUN`: a run in the terminal, as data, and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maieutic.cli import complete
from maieutic.cli.screen import Json, Quiet, screen


def show(
    context: typer.Context,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False, autocompletion=complete.runs)
    ],
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="This stage only.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A curve to draw; may be given again.")
    ] = None,
    best: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many of the rollouts with the highest reward.")
    ] = 2,
    worst: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many of the rollouts with the lowest reward.")
    ] = 1,
    step: Annotated[int | None, typer.Option(min=0, metavar="N", help="Rollouts of this step only.")] = None,
    report: Annotated[bool, typer.Option(help="Also write report.html into the run's folder.")] = True,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Show where a run is, what was measured, its curves, its health and what it wrote; also while it is going."""
    from maieutic.errors import RunError
    from maieutic.report import write_report
    from maieutic.report.curves import chosen
    from maieutic.report.data import as_data
    from maieutic.report.reading import Order, only, read_rollouts, read_run
    from maieutic.report.terminal import galleries, overview
    from maieutic.report.transcripts import find_tokenizer

    to = screen(context, json, quiet)
    whole = read_run(run)
    view = whole if stage is None else only(whole, stage)
    names = chosen(view.curves if metric else view.told, metric or ())
    found = {
        order.value: read_rollouts(run, order, count, stage=stage, step=step)
        for order, count in ((Order.BEST, best), (Order.WORST, worst))
    }
    to.out.print(overview(view, names, to.out.width))
    to.out.print(galleries(found, find_tokenizer(view)))
    if step is not None and (best or worst) and not any(found.values()):
        to.note(f"no rollouts with a reward are stored of step {step}")
    if report:
        try:
            to.note(f"report: {write_report(run, whole)}")
        except RunError as error:  # a full disk, or an archive that may not be written: the run is shown all the same
            to.note(str(error))
    to.write_json(as_data(view, metric or None, found))
