"""What a program may use, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum

from maieutic.errors import ConfigError

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    `seconds` of processor time for a call (or for all of a program that is run), and `wall_seconds` of the clock for
    one that sleeps or waits, so that a busy machine does not make a program fail; `total_seconds` of processor time for
    all of a program's calls together, and as many times more of the clock. A machine that was suspended does not count
    as time.

    Raises ConfigError for a limit that is not positive (`scratch_bytes` and `threads` may be 0).
    """

    seconds: float = 2.0
    wall_seconds: float = 10.0
    total_seconds: float = 10.0
    memory_bytes: int = 512 * _MIB
    output_bytes: int = _MIB
    """Of standard output, and of standard error. A program that writes more is ended."""
    value_bytes: int = _MIB
    """Of what one call returns, as it travels."""
    scratch_bytes: int = 0
    """Of a folder of the program's own, its working folder, in memory; 0: it can write nothing."""
    threads: int = 8
    files: int = 64

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name in ("scratch_bytes", "threads") else 1e-3
            if not math.isfinite(value) or value < least:
                raise ConfigError(f"Limits: got {each.name} = {value}; expected a finite number above 0")

    @property
    def total_wall_seconds(self) -> float:
        """Of the clock, for all of a program's calls together."""
        return self.total_seconds * max(1.0, self.wall_seconds / self.seconds)

    def for_process(self) -> dict[str, int]:
        """Those that the program's own process sets."""
        return {
            "memory_bytes": self.memory_bytes,
            "scratch_bytes": self.scratch_bytes,
            "threads": self.threads,
            "files": self.files,
            "cpu_seconds": math.ceil(max(self.seconds, self.total_seconds)) + 1,
        }


class Ended(StrEnum):
    """How a program ended."""

    FINISHED = "finished"
    """By itself; its exit code says more."""
    TIMEOUT = "timeout"
    """It took longer than it may."""
    OUTPUT = "output"
    """It wrote or returned more than it may."""
    KILLED = "killed"
    """By a signal: it crashed, or broke a limit that kills."""
    LOST = "lost"
    """The sandbox itself did not answer and was replaced."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program that was run.

    >>> Outcome(Ended.FINISHED, exit_code=0, stdout="42\\n")

    `exit_code` is None unless it finished; 1 after an exception, whose traceback is in `stderr`. `seconds` are of
    processor time, `memory_bytes` the most that it held (about ten MiB of it the interpreter's). `why` says in words
    what ended it, where it did not end by itself.
    """

    ended: Ended
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    memory_bytes: int = 0
    why: str = ""

    @property
    def ok(self) -> bool:
        """Whether it ran to its end without an error."""
        return self.ended is Ended.FINISHED and self.exit_code == 0
