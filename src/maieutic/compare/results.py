"""What the runs of a study came to, read from their folders: `read_results(plan, out) ─► Results`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from maieutic.compare.places import SHARED, Failure, complete, failed, run_folder
from maieutic.compare.plan import STAGE, Plan
from maieutic.config import START
from maieutic.core.cost import COSTS
from maieutic.evaluate import Evaluation
from maieutic.report.curves import Points, ends, finite
from maieutic.run.store import Store

Curve = list[tuple[float, float]]

#: What of a validation is drawn: the first of these that there is.
VALIDATED = ("validation/pass@1", "validation/greedy")


@dataclass(frozen=True)
class Trial:
    """One arm with one seed, at its end.

    `evaluations` by taskset; `costs` by the names of budgets; `entropy`: nats a token in the first and last tenth of
    its steps (None where the algorithm has none). `curve` holds pairs (spent up to and with a step, share of its fresh
    rollouts that were correct), `measured` the same of the problems of a validation, where there was one.
    """

    seed: int
    arm: str
    evaluations: Mapping[str, Evaluation]
    costs: Mapping[str, float]
    seconds: float
    entropy: tuple[float, float] | None
    curve: Curve
    measured: Curve
    skipped: int = 0


@dataclass(frozen=True)
class Results:
    """Every trial that is complete, and the models that they started from."""

    plan: Plan
    trials: Mapping[str, Mapping[int, Trial]]
    """Arm → seed → trial."""
    starts: Mapping[int, Mapping[str, Evaluation]]
    """Seed → taskset → evaluation of the model that the arms of the seed started from."""
    failures: tuple[Failure, ...] = ()

    def seeds(self, *arms: str) -> list[int]:
        """The seeds for which these arms are complete."""
        return [seed for seed in self.plan.study.seeds if all(seed in self.trials.get(arm, {}) for arm in arms)]

    def evaluations(self, arm: str, taskset: str, seeds: list[int]) -> list[Evaluation]:
        """The final evaluations of an arm."""
        return [self.trials[arm][seed].evaluations[taskset] for seed in seeds]

    @property
    def k(self) -> int:
        """Of pass@k and the votes."""
        evaluation = self.plan.study.evaluation
        return evaluation.k or evaluation.samples


def read_results(plan: Plan, out: Path) -> Results:
    """Read every complete run of a plan. Runs that are not complete are left out."""
    trials: dict[str, dict[int, Trial]] = {arm.name: {} for arm in plan.arms}
    starts: dict[int, dict[str, Evaluation]] = {}
    failures: list[Failure] = []
    for seed in plan.study.seeds:
        if plan.start and complete(run_folder(out, seed, SHARED)):
            starts[seed] = _evaluations(run_folder(out, seed, SHARED), plan.start[-1].name)
        for arm in plan.arms:
            folder = run_folder(out, seed, arm.name)
            if complete(folder):
                trials[arm.name][seed] = read_trial(folder, seed, arm.name, plan.axis)
                starts.setdefault(seed, {}).update({} if plan.start else _evaluations(folder, START))
            elif (failure := failed(out, seed, arm.name)) is not None:
                failures.append(failure)
    return Results(plan, trials, {seed: found for seed, found in starts.items() if found}, tuple(failures))


def read_trial(folder: Path, seed: int, arm: str, axis: str = "samples") -> Trial:
    """What a complete run came to; its curves are over the cost `axis`."""
    with Store.open_reader(folder / "run.db") as store:
        costs = {name: sum(value for _, value in store.metrics(STAGE, metric)) for name, metric in COSTS.items()}
        entropy = ends(store.metrics(STAGE, "policy/entropy"))
        points = finite(store.metrics(STAGE, "policy/entropy"))
        if entropy is None and points:
            entropy = (points[0][1], points[0][1])
        spent = _running_sum(store.metrics(STAGE, COSTS[axis]))
        curve = _over(spent, store.metrics(STAGE, "reward/correct"))
        names = [name for name in VALIDATED if name in store.metric_names(STAGE)]
        measured = _over(spent, store.metrics(STAGE, names[0])) if names else []
        skipped = sum(value > 0 or math.isnan(value) for _, value in store.metrics(STAGE, "optim/skipped"))
        seconds = sum(step.seconds for step in store.steps(STAGE))
    return Trial(seed, arm, _evaluations(folder, STAGE), costs, seconds, entropy, curve, measured, skipped)


def _evaluations(folder: Path, stage: str) -> dict[str, Evaluation]:
    """The last evaluation of each taskset after a stage."""
    with Store.open_reader(folder / "run.db") as store:
        found = {each.name: each.result for each in store.evaluations(stage)}
    return {name: Evaluation.from_json(json.dumps(result)) for name, result in found.items()}


def _over(spent: Mapping[int, float], points: Points) -> Curve:
    """A curve over steps as one over what was spent."""
    return [(spent[step], value) for step, value in finite(points) if spent.get(step)]


def _running_sum(points: Points) -> dict[int, float]:
    total, sums = 0.0, {}
    for step, value in points:
        total += value
        sums[step] = total
    return sums
