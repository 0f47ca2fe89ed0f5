"""What a run shows while it goes: bars with the time left on a terminal, else a line now and then. Both on stderr."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from maieutic.cli.screen import Screen, log_above

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from maieutic.evaluate import Evaluation
    from maieutic.types import Step

#: Seconds between two lines where there is no terminal.
INTERVAL = 10.0
#: The pace is that of the last so many parts, and at least of the last so many seconds: evaluations end in bursts.
RECENT, WINDOW = 20, 60.0
#: The share that must be done before a time is told: what ends first of an evaluation says nothing about the rest.
TELLING = 0.01


def clock(seconds: float) -> str:
    """`4:07`, `1:02:33`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """How long the rest of a piece of work will take, from when which part of it was done lately."""

    def __init__(self, done: int, since: float) -> None:
        self._times, self._began = deque([(since, done)]), done

    def left(self, done: int, total: int) -> str:
        """The time left, now that `done` of `total` is done; empty when nothing is left or known."""
        now = time.monotonic()
        self._times.append((now, done))
        while len(self._times) > RECENT and now - self._times[1][0] > WINDOW:
            self._times.popleft()
        start, before = self._times[0]
        if done <= before or done >= total or done - self._began < TELLING * total:
            return ""
        return f"{clock((now - start) / (done - before) * (total - done))} left"


def watched(metrics: Mapping[str, float]) -> str:
    """`reward 0.412  correct 0.400  entropy 0.035` of a step, as far as it has them; `loss 1.023` of imitation.

    The reward of demonstrations is 1 by definition and says nothing; only what a reward function judged has parts. The
    loss of a policy gradient is about 0 whatever happens, and says nothing either: entropy tells whether the policy
    still tries things.
    """
    judged = any(name.startswith("reward/parts/") for name in metrics)
    shown = [("reward", "reward/mean"), ("correct", "reward/correct"), ("entropy", "policy/entropy")]
    if not judged:
        shown = [("loss", "loss")]
    return "  ".join(f"{label} {metrics[name]:.3f}" for label, name in shown if name in metrics)


class Bars:
    """A bar for each stage and each evaluation."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def show(self, key: str, done: int, total: int, text: str, left: str) -> None:
        """Move the bar of that name, which is made when it is first moved."""
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(key, total=total, text="", left="")
        self._progress.update(self._bars[key], completed=done, total=total, text=text, left=left)


class Lines:
    """A line every `INTERVAL` seconds, one when a piece of work begins and one when it ends."""

    def __init__(self, err: Console) -> None:
        self._err = err
        self._last = dict[str, float]()

    def show(self, key: str, done: int, total: int, text: str, left: str) -> None:
        """Say how far it is, if it is time to."""
        now = time.monotonic()
        if done == total or now - self._last.get(key, -INTERVAL) >= INTERVAL:
            self._last[key] = now
            parts = [part for part in (f"{key}: {done}/{total}", text, left) if part]
            self._err.print("  ".join(parts), highlight=False, markup=False, soft_wrap=True)


class Nothing:
    """For `--quiet`."""

    def show(self, key: str, done: int, total: int, text: str, left: str) -> None:
        """Say nothing."""


class Display:
    """What goes on, with the time left, on bars, lines or nothing."""

    def __init__(self, surface: Bars | Lines | Nothing) -> None:
        self._surface = surface
        self._paces: dict[str, Pace] = {}
        self._event = time.monotonic()

    def begin(self, key: str, done: int, total: int, text: str = "") -> None:
        """A piece of work begins; `done` of it was done before."""
        self._event = time.monotonic()
        self._paces[key] = Pace(done, self._event)
        self._surface.show(key, done, total, text, "")

    def show(self, key: str, done: int, total: int, text: str = "") -> None:
        """`done` of `total` is done. What has no beginning of its own began when something was last shown."""
        pace = self._paces.setdefault(key, Pace(0, self._event))
        self._event = time.monotonic()
        self._surface.show(key, done, total, text, pace.left(done, total))


class RunWatch:
    """The `Watch` of a run (see `maieutic.run.runner`) that moves a display."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._steps: dict[str, int | None] = {}

    def stage(self, name: str, algorithm: str, done: int, steps: int | None) -> None:
        """A stage begins, or goes on after `done` steps; `steps` is None where only its budget will tell how many."""
        self._steps[name] = steps
        self._display.begin(_stage(name), done, done + 1 if steps is None else steps, algorithm)

    def step(self, stage: str, step: Step, seconds: float) -> None:
        """A step is done and stored."""
        del seconds  # the display takes the time itself, evaluations and checkpoints included
        done, total = step.index + 1, self._steps[stage]
        self._display.show(_stage(stage), done, total or _expected(done, step.metrics), watched(step.metrics))

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


def _expected(done: int, metrics: Mapping[str, float]) -> int:
    """How many steps the stage's budget will allow for, if they go on costing as much."""
    spent = metrics.get("budget/spent", 0.0)
    if spent >= 1:
        return done
    return max(done + 1, round(done / spent) if spent else 0)


def _stage(name: str) -> str:
    return f"stage {name}"


@contextmanager
def display(screen: Screen) -> Iterator[Display]:
    """Bars where stderr is a terminal, lines where it is not, nothing where the user wants quiet."""
    if screen.quiet:
        yield Display(Nothing())
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
            yield Display(Bars(progress))
    else:
        yield Display(Lines(screen.err))
