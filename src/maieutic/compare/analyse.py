"""From trials to statements: `analyse(results, taskset) ─► Analysis`.

Letters: `S` seeds, `N` problems, `k` samples.

Claims are made of two families of comparisons only, each held to 5 % by Holm's method: the pairs of arms in the study's
one metric, and each arm against its start in that metric and in pass@k. Everything else is shown with its interval, and
decides nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from maieutic.compare.measures import shown_metrics, table
from maieutic.compare.results import Results
from maieutic.core.cost import COSTS
from maieutic.core.crossed import Effect, crossed, crossed_effect, two_level_bootstrap
from maieutic.core.intervals import Interval, holm, t_interval

#: Claims err with at most this probability, all of a family together.
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Value:
    """A metric of an arm: the mean over seeds and problems, with the intervals that follow from one noise or from both.

    `interval` reckons with seeds and problems (see `core.crossed`), `over_seeds` is Student's over the seeds' means,
    `bootstrap` draws seeds and problems anew.
    """

    interval: Interval
    over_seeds: Interval
    bootstrap: Interval
    by_seed: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`new − old` in a metric, paired by seed and problem.

    `p_adjusted` is Holm's over the family that the comparison belongs to, None where it belongs to none (no claim is
    made of it). `seeds` are those for which both are there.
    """

    new: str
    old: str
    metric: str
    effect: Effect
    over_seeds: Interval
    seeds: int
    problems: int
    p_adjusted: float | None = None

    @property
    def claimed(self) -> bool:
        """Whether the difference may be called one."""
        return self.p_adjusted is not None and self.p_adjusted < ALPHA and self.effect.seen


@dataclass(frozen=True)
class Analysis:
    """What may be said of a study on one taskset. `START` is the model that all arms started from."""

    taskset: str
    metric: str
    k: int
    metrics: tuple[str, ...]
    arms: Mapping[str, Mapping[str, Value]]
    start: Mapping[str, Value]
    pairs: tuple[Comparison, ...]
    """Between arms, in the study's metric: the first family."""
    gains: tuple[Comparison, ...]
    """Each arm against its start, in the study's metric and in pass@k: the second family."""
    others: tuple[Comparison, ...]
    """Between arms in the other metrics: shown, not claimed."""
    costs: Mapping[str, Mapping[str, float]]
    """Arm → cost, seconds and entropy, means over seeds."""

    def gain(self, arm: str, metric: str) -> Comparison | None:
        """An arm against its start."""
        return next((gain for gain in self.gains if (gain.new, gain.metric) == (arm, metric)), None)


def analyse(results: Results, taskset: str) -> Analysis:
    """Everything of one taskset. Arms without any complete trial are left out."""
    plan = results.plan
    arms = [arm.name for arm in plan.arms if results.seeds(arm.name)]
    every = [e for arm in arms for e in results.evaluations(arm, taskset, results.seeds(arm))]
    begun = [start[taskset] for start in results.starts.values() if taskset in start]
    metrics = tuple(shown_metrics([*every, *begun], results.k)) if every else ()
    order = sorted(problem.task_id for problem in every[0].problems) if every else []
    main = [plan.study.metric]
    chosen = [m for m in dict.fromkeys([*main, *metrics]) if every and _holds(m, every[0].n)]
    pairs = compared(arms, plan.reference_arm)
    found = {m: [_between(results, taskset, new, old, m, order) for new, old in pairs] for m in chosen}
    first = [c for c in found.get(main[0], []) if c is not None]
    gains = [_gained(results, taskset, arm, m, order) for arm in arms for m in dict.fromkeys([*main, _pass_k(results)])]
    return Analysis(
        taskset, main[0], results.k, tuple(chosen),
        {arm: _values(results.evaluations(arm, taskset, results.seeds(arm)), chosen, order) for arm in arms},
        _values(begun, chosen, order) if begun else {},
        adjusted(first),
        adjusted([gain for gain in gains if gain is not None]),
        tuple(c for m in chosen if m != main[0] for c in found[m] if c is not None),
        {arm: _costs(results, arm) for arm in arms},
    )  # fmt: skip


def compared(arms: Sequence[str], reference: str | None) -> list[tuple[str, str]]:
    """Which arms are compared, (new, old): all with the reference, or all pairs."""
    if reference is not None:
        return [(arm, reference) for arm in arms if arm != reference and reference in arms]
    return [(new, old) for old, new in combinations(arms, 2)]


def adjusted(family: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The comparisons with p values for all of them together."""
    p_values = holm([comparison.effect.p_value for comparison in family])
    return tuple(replace(comparison, p_adjusted=p) for comparison, p in zip(family, p_values))


def value(x: np.ndarray, share: bool = True) -> Value:
    """A table `[S, N]` as a value with its intervals."""
    bounds = (0.0, 1.0) if share and x.min() >= 0 and x.max() <= 1 else None
    means = x.mean(1)
    return Value(crossed(x, bounds=bounds), t_interval(means), two_level_bootstrap(x), tuple(float(m) for m in means))


def compare(new: np.ndarray, old: np.ndarray, names: tuple[str, str], metric: str) -> Comparison:
    """Two tables `[S, N]` of the same seeds and problems."""
    x = new - old
    return Comparison(*names, metric, crossed_effect(x), t_interval(x.mean(1)), *x.shape)


def _between(
    results: Results, taskset: str, new: str, old: str, metric: str, order: Sequence[str]
) -> Comparison | None:
    seeds = results.seeds(new, old)
    if not seeds:
        return None
    tables = [table(results.evaluations(arm, taskset, seeds), metric, order) for arm in (new, old)]
    return compare(tables[0], tables[1], (new, old), metric)


def _gained(results: Results, taskset: str, arm: str, metric: str, order: Sequence[str]) -> Comparison | None:
    seeds = [seed for seed in results.seeds(arm) if taskset in results.starts.get(seed, {})]
    if not seeds or not _holds(metric, results.evaluations(arm, taskset, seeds)[0].n):
        return None
    new = table(results.evaluations(arm, taskset, seeds), metric, order)
    old = table([results.starts[seed][taskset] for seed in seeds], metric, order)
    return compare(new, old, (arm, "start"), metric)


def _values(evaluations: Sequence, metrics: Sequence[str], order: Sequence[str]) -> dict[str, Value]:
    return {metric: value(table(evaluations, metric, order)) for metric in metrics}


def _holds(metric: str, n: int) -> bool:
    """Whether n samples a problem are enough for the metric."""
    name, at, k = metric.partition("@")
    return n >= 1 if name == "unique" else not at or int(k) <= n


def _pass_k(results: Results) -> str:
    return f"pass@{results.k}"


def _costs(results: Results, arm: str) -> dict[str, float]:
    trials = list(results.trials[arm].values())
    found = {name: statistics.fmean(trial.costs[name] for trial in trials) for name in COSTS}
    found["seconds"] = statistics.fmean(trial.seconds for trial in trials)
    entropies = [trial.entropy[1] for trial in trials if trial.entropy is not None]
    return {**found, "entropy": statistics.fmean(entropies)} if entropies else found
