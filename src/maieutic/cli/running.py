"""Carrying out a run with a display, and reading what it measured."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.screen import Screen

if TYPE_CHECKING:
    from maieutic.config import Config
    from maieutic.report.measured import Measured

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A TOML file of settings.", autocompletion=complete.configs)
]
RunFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The run's folder.", show_default="runs/<name>", autocompletion=complete.runs),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is in the folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, stop.")]


def carry_out(
    show: Screen, config: Config, folder: Path, *, resume: bool, again: str, acknowledge: Sequence[str] = ()
) -> dict[str, Any]:
    """Run the config in the folder, showing how it goes, and return the runner's summary.

    Raises Interrupted after Ctrl-C; `again` is the command that goes on. `acknowledge`: alarms to go on past.
    """
    from maieutic.cli.progress import RunWatch, display
    from maieutic.run.directory import RunDirectory
    from maieutic.run.guarding import changes_only_guards
    from maieutic.run.runner import Interrupted, Runner, config_text

    text, allowed = config_text(config, folder, resume=resume), resume and changes_only_guards(config, folder)
    with (
        RunDirectory.create(folder, text, resume=resume, allow_config_change=allowed) as directory,
        display(show) as shown,
    ):
        runner = Runner(config, directory, RunWatch(shown), acknowledge)
        try:
            with _told(show, runner.stop):
                return runner.run()
        except Interrupted as stop:
            raise Interrupted(f"{str(stop).partition(';')[0]}; everything is saved. Go on with: {again}") from stop
        except KeyboardInterrupt as stop:
            raise Interrupted(f"interrupted. Go on from the last checkpoint with: {again}") from stop


def measurements(folder: Path) -> tuple[Measured, ...]:
    """Every evaluation of the run, the latest of each name after each stage."""
    from maieutic.config import read_config
    from maieutic.report.measured import read_measured
    from maieutic.run.directory import RunDirectory
    from maieutic.run.store import Store

    directory = RunDirectory.open(folder)
    spec = read_config(directory.config).evaluation
    with Store.open_reader(directory.database) as store:
        return read_measured(store, None if spec is None else spec.k)[0]


def write_report(folder: Path) -> Path:
    """Write the run's report and return where it lies."""
    from maieutic.report import write_report as write

    return write(folder)


class _told:
    """Inside the block, the first Ctrl-C is answered at once: the step that is going on may take a while."""

    def __init__(self, show: Screen, stop: threading.Event) -> None:
        self._show, self._stop, self._over = show, stop, threading.Event()
        self._thread = threading.Thread(target=self._wait, name="maieutic-stop", daemon=True)

    def _wait(self) -> None:
        while not self._over.is_set():
            if self._stop.wait(0.2):
                if not self._over.is_set():
                    self._show.err.print("stopping after this step (Ctrl-C again: at once)", highlight=False)
                return

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
