"""What a sweep shows: how much the final metric depends on each hyper-parameter, and how often training goes wrong.

A run *diverged*

* when its numbers were not finite (it failed for them, or updates were skipped),
* when its final pass@1 is more than the sweep's `margin` below that of the model it started from,
* or when its entropy fell below a tenth of what it was at first while its pass@1 is no better than its start's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maieutic.compare.analyse import value
from maieutic.compare.measures import table
from maieutic.compare.results import Results, Trial
from maieutic.compare.sweep import Sweep
from maieutic.core.intervals import Interval
from maieutic.errors import NumericalError

#: Entropy below this share of what it was at first has collapsed.
COLLAPSED = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a sweep: its final metric (None where its numbers failed), and why it diverged, if it did."""

    seed: int
    final: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """A point of the grid: `Setting("s003", {"temperature": 0.7}, interval, runs)`."""

    name: str
    values: Mapping[str, Any]
    interval: Interval | None
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """All runs in which a hyper-parameter had one value: `Level("options.beta", 0.04, runs)`."""

    key: str
    value: Any
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Sensitivity:
    """A sweep on one taskset."""

    taskset: str
    metric: str
    margin: float
    settings: tuple[Setting, ...]
    levels: tuple[Level, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run."""
        return tuple(run for setting in self.settings for run in setting.runs)

    def spread(self, key: str) -> float:
        """How far apart the medians at the values of a hyper-parameter are: from the lowest to the highest."""
        medians = [median(level.runs) for level in self.levels if level.key == key]
        known = [x for x in medians if not math.isnan(x)]
        return max(known) - min(known) if known else math.nan


def sensitivity(found: Sweep, results: Results, taskset: str) -> Sensitivity:
    """What the sweep says on one taskset. Settings without any run at its end are left out."""
    settings = [_setting(found, results, taskset, name) for name in found.settings]
    settings = [setting for setting in settings if setting.runs]
    keys = list(next(iter(found.settings.values())))
    levels = [level for key in keys for level in _levels(found, key, settings)]
    return Sensitivity(taskset, results.plan.study.metric, found.margin, tuple(settings), tuple(levels))


def divergence(results: Results, trial: Trial, taskset: str, margin: float) -> str | None:
    """Why the run counts as diverged (see above); None where it does not."""
    if trial.skipped:
        return f"{trial.skipped} updates were skipped, for their gradients were not finite"
    start = results.starts.get(trial.seed, {}).get(taskset)
    if start is None:
        return None
    began, final = (float(each.values("pass@1").mean()) for each in (start, trial.evaluations[taskset]))
    if final < began - margin:
        return f"pass@1 fell from {100 * began:.1f} to {100 * final:.1f} %"
    if trial.entropy is None or trial.entropy[1] >= COLLAPSED * trial.entropy[0] or final > began:
        return None
    return f"entropy fell from {trial.entropy[0]:.3g} to {trial.entropy[1]:.3g} nats a token, and nothing was gained"


def median(runs: Sequence[Run]) -> float:
    """The median final metric of the runs that have one."""
    found = [run.final for run in runs if run.final is not None]
    return statistics.median(found) if found else math.nan


def quartiles(runs: Sequence[Run]) -> tuple[float, float]:
    """The first and third quartile of the runs that have a final metric (between values: in a straight line)."""
    found = [run.final for run in runs if run.final is not None]
    if not found:
        return math.nan, math.nan
    low, high = np.quantile(found, [0.25, 0.75])
    return float(low), float(high)


def diverged(runs: Sequence[Run]) -> float:
    """The share of the runs that diverged."""
    return sum(run.reason is not None for run in runs) / len(runs) if runs else math.nan


def _setting(found: Sweep, results: Results, taskset: str, name: str) -> Setting:
    metric = results.plan.study.metric
    seeds = results.seeds(name)
    evaluations = results.evaluations(name, taskset, seeds)
    runs = [
        Run(seed, float(evaluation.values(metric).mean()),
            divergence(results, results.trials[name][seed], taskset, found.margin))
        for seed, evaluation in zip(seeds, evaluations)
    ]  # fmt: skip
    runs += [
        Run(failure.seed, None, failure.message)
        for failure in results.failures
        if failure.name == name and failure.code == NumericalError.exit_code
    ]
    interval = None
    if evaluations:
        order = sorted(problem.task_id for problem in evaluations[0].problems)
        interval = value(table(evaluations, metric, order)).interval
    return Setting(name, found.settings[name], interval, tuple(runs))


def _levels(found: Sweep, key: str, settings: Sequence[Setting]) -> list[Level]:
    """The values of a key with their runs; one at a time, only those in which the other keys stand at the centre."""
    keys = list(next(iter(found.settings.values())))
    centre = next(iter(found.settings.values()))
    counted = [
        setting
        for setting in settings
        if not found.around_centre or all(setting.values[other] == centre[other] for other in keys if other != key)
    ]
    choices: list[Any] = []
    for setting in counted:
        if setting.values[key] not in choices:
            choices.append(setting.values[key])
    return [
        Level(key, choice, tuple(run for each in counted if each.values[key] == choice for run in each.runs))
        for choice in choices
    ]
