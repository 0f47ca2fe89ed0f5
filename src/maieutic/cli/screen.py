"""Where the command line writes: results to stdout, everything else to stderr, JSON where it is asked for.

With `--json -` stdout carries the JSON and nothing else; what people read then goes to stderr.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Columns of output that goes to a file or a pipe, where no terminal says how wide it is.
WIDTH_OF_A_FILE = 120


@dataclass(frozen=True)
class Screen:
    """What a verb writes to. `out` is for results, `err` for progress and notices (which `quiet` leaves out)."""

    out: Console
    err: Console
    quiet: bool
    json: str | None

    def note(self, text: str, style: str = "dim") -> None:
        """Something worth knowing that is not the result."""
        if not self.quiet:
            self.err.print(text, style=style, highlight=False, markup=False)

    def write_json(self, data: Mapping[str, Any]) -> None:
        """The result for programs, if `--json` asked for it. A number that is not finite becomes null."""
        if self.json is None:
            return
        text = json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if self.json == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            from maieutic.run.durable import write_text

            write_text(Path(self.json), text)


def screen(context: typer.Context, json: str | None = None, quiet: bool = False) -> Screen:
    """The screen of a verb. Raises ConfigError, before any work, when the JSON file could not be written."""
    if json not in (None, "-"):
        writable(Path(str(json)), "--json")
    quiet = quiet or bool((context.obj or {}).get("quiet"))
    if quiet:
        logging.getLogger("maieutic").setLevel(logging.WARNING)
    return Screen(_console(to_stderr=json == "-"), error_console(), quiet, json)


def writable(path: Path, option: str) -> None:
    """Raise ConfigError unless a file can be written at `path`."""
    if path.is_dir():
        raise ConfigError(f"{option} {path}: that is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}; make it, or choose another file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{option} {path}: it may not be written; choose another file")


def folder(path: Path | None, option: str) -> None:
    """Raise ConfigError where a file is in the way of a folder at `path`."""
    if path is not None and path.exists() and not path.is_dir():
        raise ConfigError(f"{option} {path}: that is a file; expected a folder, or the name of a new one")


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the style of the command line."""
    from rich import box
    from rich.table import Table

    return Table(*columns, title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)


def error_console() -> Console:
    """stderr as it is now (tests and shells redirect it)."""
    return _console(to_stderr=True)


def _console(*, to_stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    plain = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(file=stream, width=WIDTH_OF_A_FILE if plain else None)


def finite(value: Any) -> Any:
    """The same as JSON can say it: what is no number (NaN, infinite) is None, and keys are texts."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def quiet_libraries(debug: bool) -> Iterator[None]:
    """Keep what libraries say to their developers off the terminal, unless `debug`; show what maieutic says."""
    if not debug:
        # read by these libraries when they are imported; a user's own setting stays
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    log = logging.getLogger("maieutic")
    shown = _Shown()
    log.addHandler(shown)
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    with warnings.catch_warnings():
        if not debug and not sys.warnoptions:
            warnings.simplefilter("ignore")
        try:
            yield
        finally:
            log.removeHandler(shown)


class _Shown(logging.Handler):
    """Log records on stderr, above the progress bar when there is one; rich is imported for the first record only."""

    console: Console | None = None
    """The progress bar's console while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.markup import escape

        colour = "yellow" if record.levelno >= logging.WARNING else "dim"
        console = type(self).console or error_console()
        text = f"[{colour}]{record.levelname.lower()}:[/] {escape(record.getMessage())}"
        console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def log_above(console: Console) -> Iterator[None]:
    """Log records go to this console inside the block, so that they do not tear a live display apart."""
    before, _Shown.console = _Shown.console, console
    try:
        yield
    finally:
        _Shown.console = before


Json = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the result as JSON to FILE; - is stdout, which then carries nothing else."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notices: results and errors only.")]
