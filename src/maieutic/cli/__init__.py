"""The command line. `main` is what `maieutic` runs; the verbs are in the files beside this one.

This is the one place where errors end. What maieutic raises on purpose becomes one message on stderr and the exit code
of its kind; a traceback means a fault in maieutic, and says so.

    0 done   1 another error   2 usage or config   3 data   4 model   5 rewards   6 numbers   7 run   130 Ctrl-C
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from maieutic.errors import MaieuticError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (by default with the process's arguments) and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given  # understood anywhere, before or after the verb
    given = [word for word in given if word != "--debug"]
    try:
        from maieutic.cli.app import command
        from maieutic.cli.screen import quiet_libraries

        with quiet_libraries(debug):
            return _code(command, given)
    except KeyboardInterrupt:
        return _interrupted()
    except MaieuticError as error:
        if debug:
            raise
        return _failed(str(error), error.exit_code)
    except BrokenPipeError:
        # nobody reads any more, as in `maieutic tasks | head -1`; Python must not flush into the closed pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug:
            raise
        about = f"{error.filename}: " if error.filename else ""
        return _failed(f"{about}{error.strerror or error}", 1)
    except Exception:  # noqa: BLE001 - the last boundary: whatever it is, the user sees it and what to do with it
        import traceback

        traceback.print_exc()
        return _failed("this is a fault in maieutic; please report it with the lines above and the command", 1)


def _code(command: Callable[..., object], given: list[str]) -> int:
    """The exit code of a command, which ends by `SystemExit` whatever happens."""
    try:
        command(args=given, prog_name="maieutic")
    except SystemExit as end:
        if end.code == 130:
            return _interrupted()
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return 130


def _failed(message: str, code: int) -> int:
    from maieutic.cli.screen import error_console

    error_console().print(f"[bold red]error:[/] {_plain(message)}", soft_wrap=True, highlight=False)
    return code


def _plain(message: str) -> str:
    """The message with square brackets kept from being read as colours."""
    from rich.markup import escape

    return escape(message)
