"""What a run shows while it goes: bars with the time left on a terminal, else a line now and then. Both on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from maieutic.cli.screen import Screen, log_above

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from maieutic.evaluate import Evaluation
    from maieutic.types import Step

#: Seconds between two lines where there is no terminal.
INTERVAL = 10.0
#: Steps over which the duration of a step is averaged.
RECENT = 20


def clock(seconds: float) -> str:
    """`4:07`, `1:02:33`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """How far a piece of work is and how long the rest will take, from the times at which parts of it were done."""

    def __init__(self, done: int = 0) -> None:
        self._times: list[tuple[float, int]] = [(time.monotonic(), done)]

    def left(self, done: int, total: int) -> str:
        """The time left, now that `done` of `total` is done; empty while nothing is known."""
        self._times = [*self._times, (time.monotonic(), done)][-RECENT:]
        (start, before), (now, after) = self._times[0], self._times[-1]
        if after <= before:
            return ""
        return clock((now - start) / (after - before) * (total - after))


def watched(metrics: Any) -> str:
    """`reward 0.412  loss -0.013` of a step's metrics, as far as it has them."""
    shown = [("reward", "reward/mean"), ("correct", "reward/correct"), ("loss", "loss")]
    imitates = metrics.get("rollouts/count") and metrics.get("reward/std") == 0 and "reward/correct" not in metrics
    return "  ".join(
        f"{label} {metrics[name]:.3f}"
        for label, name in shown
        if name in metrics and not (imitates and label == "reward")
    )


class Bars:
    """A bar for each stage and each evaluation."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, Any] = {}
        self._paces: dict[str, Pace] = {}

    def show(self, key: str, done: int, total: int, text: str = "") -> None:
        """Move the bar of that name, which is made when it is first moved."""
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(key, total=total, completed=done, text=text, left="")
            self._paces[key] = Pace(done)
            return
        left = "" if done == total else self._paces[key].left(done, total)
        self._progress.update(self._bars[key], total=total, completed=done, text=text, left=left and f"{left} left")


class Lines:
    """A line every `INTERVAL` seconds, one when a piece of work begins and one when it ends."""

    def __init__(self, err: Console) -> None:
        self._err = err
        self._paces: dict[str, Pace] = {}
        self._last = 0.0

    def show(self, key: str, done: int, total: int, text: str = "") -> None:
        """Say how far it is, if it is time to."""
        first = key not in self._paces
        pace = self._paces.setdefault(key, Pace(done))
        left = "" if first else pace.left(done, total)
        if first or done == total or time.monotonic() - self._last >= INTERVAL:
            self._last = time.monotonic()
            parts = [f"{key}: {done}/{total}", text, f"{left} left" if left and done < total else ""]
            self._err.print("  ".join(part for part in parts if part), highlight=False, markup=False, soft_wrap=True)


class Nothing:
    """For `--quiet`."""

    def show(self, key: str, done: int, total: int, text: str = "") -> None:
        """Say nothing."""


Display = Bars | Lines | Nothing


class RunWatch:
    """The `Watch` of a run (see `maieutic.run.runner`) that moves a display."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._steps: dict[str, int] = {}

    def stage(self, name: str, algorithm: str, done: int, steps: int) -> None:
        """A stage begins, or goes on after `done` steps."""
        self._steps[name] = steps
        self._display.show(_stage(name), done, steps, algorithm)

    def step(self, stage: str, step: Step, seconds: float) -> None:
        """A step is done and stored."""
        del seconds  # the display takes the time itself, evaluations and checkpoints included
        self._display.show(_stage(stage), step.index + 1, self._steps[stage], watched(step.metrics))

    def evaluating(self, stage: str, name: str, done: int, total: int) -> None:
        """That many of the problems are answered."""
        if done < total:  # the last one is told by `evaluated`
            self._display.show(f"evaluate {stage} on {name}", done, total)

    def evaluated(self, stage: str, name: str, evaluation: Evaluation) -> None:
        """All problems are answered."""
        metrics = evaluation.metrics()
        said = "  ".join(f"{key} {100 * metrics[key].value:.1f} %" for key in ("greedy", "pass@1") if key in metrics)
        total = len(evaluation.problems)
        self._display.show(f"evaluate {stage} on {name}", total, total, said)


def _stage(name: str) -> str:
    return f"stage {name}"


@contextmanager
def display(screen: Screen) -> Iterator[Display]:
    """Bars where stderr is a terminal, lines where it is not, nothing where the user wants quiet."""
    if screen.quiet:
        yield Nothing()
    elif screen.err.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("[cyan]{task.fields[text]}"),
            TextColumn("[dim]{task.fields[left]}"),
        ]
        with Progress(*columns, console=screen.err, refresh_per_second=4) as progress, log_above(screen.err):
            yield Bars(progress)
    else:
        yield Lines(screen.err)
