"""`maieutic teach`: train a teacher whose reward is what a frozen student makes of its explanations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maieutic.cli.running import ConfigFile, DryRun, Resume, RunFolder, carry_out
from maieutic.cli.screen import Json, Quiet, screen
from maieutic.cli.train import check, conclude, say_plan

if TYPE_CHECKING:
    from maieutic.config import Config


def teach(
    context: typer.Context,
    config: ConfigFile,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: rl.steps=10.")
    ] = None,
    run: RunFolder = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Train a teacher: it is shown question and solution, and learns to write what makes a student find the solution.

    First fine-tuning on recorded explanations, then GRPO whose reward a frozen student gives by its log-probs. It is an
    ordinary run of two stages: --dry-run shows the whole config, `maieutic show` what was written.
    """
    show = screen(context, json, quiet)
    whole = read_teach(config, overrides or [])
    folder = run or Path("runs") / whole.name
    plan = check(whole)
    if dry_run:
        say_plan(show, whole, plan, folder)
        return
    again = f"maieutic train --run {folder} --resume"  # a run like any other, whose folder knows what was --set
    summary = carry_out(show, whole, folder, resume=resume, again=again)
    show.write_json(conclude(show, folder, summary))


def read_teach(path: Path, overrides: Sequence[str]) -> Config:
    """The whole config; folders of runs, for student and model, become their models' folders."""
    from maieutic.cli.values import model_source
    from maieutic.config import parse_table, read_tables
    from maieutic.config.teaching import TeachConfig
    from maieutic.run.teaching import teacher_config

    read = parse_table(TeachConfig, read_tables(path, overrides, "model, student and [tasks.train]"), str(path))
    model = read.model
    if model.path is not None:
        model = model.model_copy(update={"path": model_source(model.path)})
    return teacher_config(read.model_copy(update={"model": model, "student": model_source(read.student)}))
