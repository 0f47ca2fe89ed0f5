"""When a stage ends: after so many steps, or with the step at which what it cost reaches a budget.

What was spent is summed from the store, in the order of the steps, so that a resumed stage ends where an unbroken one
would have ended.
"""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from maieutic.config import StageConfig
from maieutic.core.cost import COSTS
from maieutic.errors import ConfigError
from maieutic.types import Step

if TYPE_CHECKING:
    from maieutic.core.parts import Algorithm
    from maieutic.run.store import Store

log = logging.getLogger(__name__)

#: The metric that says which share of its budget a stage has spent.
SPENT = "budget/spent"

#: Costs that demonstrations do not have.
OF_SAMPLING = ("samples", "generated_tokens")

#: A stage whose spending stands still for so many steps is ended: it would never reach its budget.
MAX_IDLE_STEPS = 50


def planned_steps(stage: StageConfig, algorithm: Algorithm, tasks: int) -> int | None:
    """How many steps the stage will have over a taskset of that many tasks; None where only its budget will tell.

    Raises ConfigError for a budget of what the algorithm never spends, and for a learning-rate schedule that would
    have to know how many steps there are.
    """
    if stage.budget is None:
        return stage.step_count(tasks)
    kind, most = stage.budget.kind, stage.budget.amount
    if kind in OF_SAMPLING and not algorithm.samples:
        raise ConfigError(
            f"stage {stage.name!r}: got a budget of {kind}, and {algorithm.name} samples nothing: it would never end. "
            "Give a budget of trained_tokens or flops"
        )
    if kind == "samples" and algorithm.select.keeps is None:
        return max(1, math.ceil(most / (stage.prompts * stage.num_generations)))
    if stage.optimiser.schedule != "constant" and algorithm.update.steps is not None:
        why = "groups without a signal are drawn again" if kind == "samples" else "completions differ in length"
        raise ConfigError(
            f"stage {stage.name!r}: got schedule {stage.optimiser.schedule!r} with a budget of {kind}, and nobody "
            f"knows how many steps that is ({why}), so the rate cannot fall until the last one. Remedy: "
            'schedule = "constant", or a number of steps'
        )
    return None


def optimiser_steps(steps: int | None, algorithm: Algorithm) -> int | None:
    """How many optimiser steps so many steps make at most; None where nobody knows.

    An update that begins the learning-rate schedule anew says itself where it ends, later: until then, nowhere.
    """
    if algorithm.update.steps is None:
        return sys.maxsize
    return None if steps is None else steps * algorithm.update.steps


class Spending:
    """What a stage has spent, and whether it is at its end."""

    def __init__(self, stage: StageConfig, store: Store, steps: int | None) -> None:
        self.steps = sys.maxsize if steps is None else steps
        self.budget, self.spent, self.idle = stage.budget, 0.0, 0
        if self.budget is not None:
            for _, cost in store.metrics(stage.name, COSTS[self.budget.kind]):
                self._add(cost)

    def _add(self, cost: float) -> None:
        self.spent += cost
        self.idle = 0 if cost > 0 else self.idle + 1

    def add(self, step: Step) -> Step:
        """Count a step; with a budget, the step gets the share that is now spent as a metric."""
        if self.budget is None:
            return step
        self._add(step.metrics[COSTS[self.budget.kind]])
        if self.idle == MAX_IDLE_STEPS:
            log.warning(
                "%d steps in a row spent none of the budget of %s: the stage ends with %.1f %% of it spent. No group "
                "carried a signal; the tasks are too easy or too hard for this policy",
                self.idle, self.budget.kind, 100 * self.spent / self.budget.amount,
            )  # fmt: skip
        return replace(step, metrics={**step.metrics, SPENT: self.spent / self.budget.amount})

    def ended(self, done: int) -> bool:
        """Whether a stage that has done so many steps is at its end."""
        if self.budget is not None and (self.spent >= self.budget.amount or self.idle >= MAX_IDLE_STEPS):
            return True
        return self.budget is None and done >= self.steps
