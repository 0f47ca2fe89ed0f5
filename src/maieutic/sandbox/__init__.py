"""Running code that a model wrote, inside a boundary that it cannot leave. See docs/sandbox.md for what that means.

    from maieutic.sandbox import Limits, run

    outcome = run("print(sum(range(10)))", limits=Limits(seconds=1.0))
    outcome.ok, outcome.stdout          # (True, "45\\n")

    run          one program, as `python program.py` would, in the process's own sandboxes → Outcome
    examine      a program against tests, with a verdict that it cannot forge → Report
    probe        what this machine has to confine programs with; ConfigError, with the remedy, if that is not enough
    Sandboxes    a pool of one's own

Names are loaded when they are first used: the zygote imports this package too, and should be small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maieutic.sandbox.check import probe
    from maieutic.sandbox.host import Boundary
    from maieutic.sandbox.limits import Ended, Limits, Outcome
    from maieutic.sandbox.pool import Sandbox, Sandboxes, run, shared
    from maieutic.sandbox.verdict import Call, Checks, Report, Result, Script, examine, read_tests

#: Public name → the module that defines it.
_HOME = {
    **dict.fromkeys(("probe",), "check"),
    **dict.fromkeys(("Call", "Checks", "Report", "Result", "Script", "examine", "read_tests"), "verdict"),
    **dict.fromkeys(("Boundary",), "host"),
    **dict.fromkeys(("Ended", "Limits", "Outcome"), "limits"),
    **dict.fromkeys(("Sandbox", "Sandboxes", "run", "shared"), "pool"),
}

__all__ = [
    "Boundary", "Call", "Checks", "Ended", "Limits", "Outcome", "Report", "Result", "Sandbox", "Sandboxes", "Script",
    "examine", "probe", "read_tests", "run", "shared",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'maieutic.sandbox' has no attribute {name!r}")
    return getattr(importlib.import_module(f"maieutic.sandbox.{_HOME[name]}"), name)
