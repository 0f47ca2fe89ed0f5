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

#: The exit code of a process that Ctrl-C ended.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (by default with the process's arguments) and return the exit code."""
    # PyTorch's threads wait for each other by spinning, and two runs on the same cores spin each other to a crawl. With
    # a short spin a run alone is as fast, and two share the cores fairly. Read by libgomp when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given  # understood anywhere, before or after the verb

    def work() -> None:
        from maieutic.cli.app import command
        from maieutic.cli.screen import quiet_libraries

        with quiet_libraries(debug):
            command(args=[word for word in given if word != "--debug"], prog_name="maieutic")

    return exit_code(work, debug=debug)


def exit_code(work: Callable[[], object], *, debug: bool = False) -> int:
    """Do the work; whatever it raises is told on stderr and becomes an exit code. `debug` tells it with a traceback."""
    try:
        work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return _interrupted() if code == INTERRUPTED else code
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        # nobody reads any more, as in `maieutic tasks | head -1`; Python must not flush into the closed pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the last boundary: whatever it is, it is told, with what to do
        return _failed(error, debug)
    return 0


def _interrupted(message: str = "interrupted; what was saved before stays") -> int:
    print(message, file=sys.stderr)
    return INTERRUPTED


def _failed(error: Exception, debug: bool) -> int:
    """Tell what went wrong, and return its exit code."""
    code = error.exit_code if isinstance(error, MaieuticError) else 1
    if code == INTERRUPTED:
        return _interrupted(str(error))
    message = _message(error)
    if debug or not message:
        import traceback

        traceback.print_exception(error)
    from rich.markup import escape

    from maieutic.cli.screen import error_console

    said = message or "this is a fault in maieutic; please report it with the command and the lines above"
    error_console().print(f"[bold red]error:[/] {escape(said)}", soft_wrap=True, highlight=False)
    return code


def _message(error: Exception) -> str:
    """What to say of an error that a user can do something about; empty for any other."""
    if isinstance(error, MaieuticError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:  # the disk is full, a file may not be read, …
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return ""
