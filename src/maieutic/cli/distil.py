"""`maieutic distil`: explanations of a teacher as demonstrations, and a student that is fine-tuned on them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli.running import ConfigFile, carry_out
from maieutic.cli.screen import Json, Quiet, Screen, screen, table
from maieutic.cli.screen import folder as no_file
from maieutic.cli.train import check, conclude
from maieutic.run.interrupt import interrupted

if TYPE_CHECKING:
    from maieutic.config.teaching import DistilConfig


def distil(
    context: typer.Context,
    config: ConfigFile,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: collect.candidates=4.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where everything goes.", show_default="runs/<name>")
    ] = None,
    only_collect: Annotated[
        bool, typer.Option("--only-collect", help="Write the explanations and stop: no student is fine-tuned.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Let a teacher explain tasks, and fine-tune a student on question, explanation and solution.

    Explanations are taken as they are; with candidates = N and a rank the best of N is. DIR/explanations.jsonl is read
    by the taskset "file"; the student's run lies in DIR/student, and further training begins from there.
    """
    from maieutic.run.distil import STUDENT, begin, student_config

    show = screen(context, json, quiet)
    no_file(out, "--out")
    read = read_distil(config, overrides or [])
    folder = out or Path("runs") / read.name
    if not only_collect:
        student_config(read, folder)  # before anything slow: is there a student?
    begin(read, folder, resume=resume)
    found = _collect(show, read, folder)
    _say(show, found)
    if only_collect:
        show.write_json(found)
        return
    whole, run = student_config(read, folder), folder / STUDENT
    check(whole)
    summary = carry_out(show, whole, run, resume=run.exists(), again=go_on(config, overrides or [], folder))
    show.write_json({**found, "student": conclude(show, run, summary)})


def go_on(config: Path, overrides: Sequence[str], folder: Path) -> str:
    """The command that goes on, for a shell: with the same settings, else it would be refused."""
    given = [word for override in overrides for word in ("--set", override)]
    return shlex.join(["maieutic", "distil", str(config), *given, "--out", str(folder), "--resume"])


def read_distil(path: Path, overrides: Sequence[str]) -> DistilConfig:
    """The settings; folders of runs become their models' folders."""
    from maieutic.cli.values import model_source, template_of
    from maieutic.config import parse_table, read_tables
    from maieutic.config.teaching import DistilConfig

    read = parse_table(DistilConfig, read_tables(path, overrides, "teacher and [tasks.train]"), str(path))
    spec = read.collect
    judge = None if spec.student is None else model_source(spec.student)
    collect = spec.model_copy(update={"student": judge, "students": [model_source(each) for each in spec.students]})
    teacher = model_source(read.teacher)
    template = template_of(teacher) if read.template == "auto" else read.template
    changed: dict[str, Any] = {"teacher": teacher, "template": template, "collect": collect}
    if read.student is not None and read.student.model.path is not None:
        model = read.student.model.model_copy(update={"path": model_source(read.student.model.path)})
        changed["student"] = read.student.model_copy(update={"model": model})
    return read.model_copy(update=changed)


def _collect(show: Screen, config: DistilConfig, folder: Path) -> dict[str, Any]:
    from maieutic.cli.progress import display
    from maieutic.run.distil import collect

    with interrupted() as stop, display(show) as shown:
        return collect(config, folder, stop=stop.is_set, watch=lambda done, total: shown.show("explain", done, total))


def _say(show: Screen, found: dict[str, Any]) -> None:
    rows = table("", "", title=f"{found['explanations']:,} explanations of {found['lessons']:,} lessons")
    rows.add_row("closed", f"{found['closed']:,}")
    rows.add_row("recorded ones in their place", f"{found['reserved']:,}")
    rows.add_row("lessons left out", f"{found['left_out']:,}")
    rows.add_row("tokens, mean", f"{found['tokens']:.1f}")
    if found["reward"] is not None:
        rows.add_row("reward, mean", f"{found['reward']:.3f}")
    show.out.print(rows)
    show.out.print(f"file    {found['file']}", markup=False, highlight=False, soft_wrap=True)
