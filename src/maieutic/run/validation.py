"""Validation: what is measured on held-out tasks while a stage goes, when it ends the stage, and which model is kept.

    every n steps:  step stored ─► checkpoint ─► evaluate ─► (best so far? keep the model) ─► (flat? end the stage)

The checkpoint comes first: a run that is killed while it evaluates makes up for it when it is resumed, and what was
evaluated before is neither repeated nor lost. Results are stored as evaluations of the step, and as the curves
`validation/…` beside the training metrics.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from maieutic.config import StageConfig, ValidationConfig
from maieutic.errors import ConfigError, RunError
from maieutic.evaluate import Evaluation, Problem, Sample, evaluate_sync
from maieutic.protocols import Policy, Taskset
from maieutic.run.checkpoints import Checkpoints
from maieutic.run.store import Store
from maieutic.types import Finish

if TYPE_CHECKING:
    from maieutic.run.setup import Setup

log = logging.getLogger(__name__)

#: Beginning of the names of the curves.
CURVES = "validation/"

#: Metrics of which more is better, without their k: what may choose a model.
CHOOSING = ("greedy", "pass", "vote", "strict")


def check_metric(spec: ValidationConfig) -> None:
    """Raise ConfigError or UnknownName for a metric that the settings do not give, or of which less is better."""
    if spec.metric.partition("@")[0] not in CHOOSING:
        raise ConfigError(
            f"validation.metric: got {spec.metric!r}; expected one of which more is better: greedy, pass@k, vote@k, "
            "strict@k"
        )
    sample = Sample("", None, False, Finish.STOP, 0)
    Evaluation("validation", (Problem("t", sample, (sample,) * spec.samples),)).values(spec.metric)


class Validation:
    """The validation of one stage; does nothing where the stage has none.

    best       where the best evaluated model of each stage is kept.
    progress   told (done, total) after each problem; what it raises ends the evaluation.
    """

    def __init__(
        self, stage: StageConfig, store: Store, best: Checkpoints, progress: Callable[[str, int, int], None]
    ) -> None:
        self.stage, self.store, self.best, self.progress = stage.name, store, best, progress
        self.spec = stage.validation
        self.max_tokens = stage.max_completion_length
        if self.spec is not None:
            check_metric(self.spec)

    def due(self, done: int) -> bool:
        """Whether a stage that has done so many steps is to be evaluated then."""
        return self.spec is not None and done > 0 and done % self.spec.every == 0

    def values(self) -> list[tuple[int, float]]:
        """(step, value) of the metric that chooses, in order."""
        return [] if self.spec is None else self.store.metrics(self.stage, CURVES + self.spec.metric)

    def best_step(self) -> int | None:
        """The step with the best value, the first one among equals."""
        return max(self.values(), key=lambda point: (point[1], -point[0]), default=(None, 0.0))[0]

    def flat(self) -> bool:
        """Whether the metric has not risen by more than `min_delta` for `patience` evaluations."""
        if self.spec is None or self.spec.patience is None:
            return False
        values = [value for _, value in self.values()]
        before, lately = values[: -self.spec.patience], values[-self.spec.patience :]
        return bool(before) and max(lately) <= max(before) + self.spec.min_delta

    def owes(self, done: int) -> bool:
        """Whether something is still to be done about the step that was the last of so many."""
        return self.due(done) and (not self._measured(done - 1) or self._unkept(done - 1))

    def _measured(self, step: int) -> bool:
        return any(at == step for at, _ in self.values())

    def _unkept(self, step: int) -> bool:
        if self.spec is None or not self.spec.keep_best or self.best_step() != step:
            return False
        kept = self.best.latest(self.stage)
        return kept is None or kept.step != step + 1

    def after(self, done: int, setup: Setup, taskset: Taskset) -> Evaluation | None:
        """Do what is due after so many steps and not done yet; the evaluation, where one was made."""
        made = None
        if self.spec is None or not self.due(done):
            return None
        if not self._measured(done - 1):
            made = self._evaluate(self.spec, setup.asked(), taskset)
            curves = {CURVES + name: value.value for name, value in made.metrics(self.spec.k).items()}
            curves[CURVES + self.spec.metric] = float(made.values(self.spec.metric).mean())
            self.store.write_evaluation(self.stage, done - 1, made.name, json.loads(made.to_json()), curves)
        if self._unkept(done - 1):
            self.best.write(self.stage, done, partial(_save_model, setup), {})
        return made

    def _evaluate(self, spec: ValidationConfig, policy: Policy, taskset: Taskset) -> Evaluation:
        return evaluate_sync(
            policy.exact or policy.sampler,
            policy.chat,
            taskset,
            max_tokens=spec.max_completion_length or self.max_tokens,
            samples=spec.samples,
            temperature=spec.temperature,
            limit=spec.limit and min(spec.limit, len(taskset)),
            seed=spec.seed,
            name=spec.tasks,
            on_progress=lambda done, total: self.progress(spec.tasks, done, total),
        )

    def model(self) -> Path | None:
        """The best evaluated model, where that is to be the stage's; None: the last one is.

        Raises RunError when it is gone.
        """
        if self.spec is None or not self.spec.keep_best:
            return None
        step = self.best_step()
        if step is None:
            log.warning("stage %r was never evaluated on %r: its last model is kept", self.stage, self.spec.tasks)
            return None
        kept = self.best.latest(self.stage)
        if kept is None or kept.step != step + 1:
            raise RunError(
                f"the best model of stage {self.stage!r}, that of step {step + 1}, is not in {self.best.folder} any "
                "more, or is damaged; begin the run again in another folder"
            )
        return kept.path / "model"


def _save_model(setup: Setup, folder: Path) -> None:
    """The model alone: nobody resumes from the best one."""
    setup.save(folder)
    for beside in folder.iterdir():
        if beside.is_dir() and beside.name != "model":
            shutil.rmtree(beside)
        elif beside.is_file():
            beside.unlink()
