"""Where the parts of a study lie.

OUT/plan.json              what is to be done, resolved
OUT/seed-1/start/          the run of the shared start
OUT/seed-1/ARM/            the run of an arm; failed.json beside it where its numbers went wrong for good
OUT/logs/seed-1-ARM.log    what its process said
OUT/results.html, .json    what came of it
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from maieutic.errors import RunError
from maieutic.run.directory import RunDirectory

#: The run of the shared start has this name; no arm may.
SHARED = "start"

#: Begins the lines that a run's process says to whoever started it; other lines are what rewards and tools print.
MARK = "maieutic-study: "


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that did not come to its end: `Failure(2, "ppo", 6, "the gradient was not finite …")`."""

    seed: int
    name: str
    code: int
    message: str

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.name}: {self.message}"


def plan_file(out: Path) -> Path:
    """The resolved plan."""
    return out / "plan.json"


def run_folder(out: Path, seed: int, name: str) -> Path:
    """The folder of a run."""
    return out / f"seed-{seed}" / name


def log_file(out: Path, seed: int, name: str) -> Path:
    """What the process of a run said."""
    return out / "logs" / f"seed-{seed}-{name}.log"


def failure_file(folder: Path) -> Path:
    """Why the run in a folder cannot come to its end, however often it is tried."""
    return folder / "failed.json"


def failed(out: Path, seed: int, name: str) -> Failure | None:
    """The failure that is recorded of a run."""
    try:
        told = json.loads(failure_file(run_folder(out, seed, name)).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Failure(seed, name, told["code"], told["message"])


def complete(folder: Path) -> bool:
    """Whether the run in a folder is at its end."""
    return RunDirectory(folder).summary() is not None


def model_of(out: Path, seed: int) -> str:
    """The model from which the arms of a seed start. Raises RunError where it is not trained yet."""
    folder = run_folder(out, seed, SHARED)
    summary = RunDirectory(folder).summary()
    if summary is None:
        raise RunError(f"the start of seed {seed} is not complete; expected a complete run in {folder}")
    return str(Path(summary["model"]).resolve())
