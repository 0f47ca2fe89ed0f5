"""From a config to stages in numbers."""

from __future__ import annotations

from maieutic.config import Config, EvaluationConfig, StageConfig, ValidationConfig
from maieutic.core.parts import Algorithm
from maieutic.core.select import sampled_share
from maieutic.environments.episodes import turn_limit
from maieutic.forecast.stage import (
    Asked,
    Lengths,
    Models,
    StageInputs,
    beside_of,
    prompt_lengths,
    shown_lengths,
)
from maieutic.run.budget import planned_steps
from maieutic.run.build import make_backend, make_stage_algorithm
from maieutic.run.tasksets import Tasksets
from maieutic.tasks.taskset import environment_of


class Reader:
    """Reads the stages of a config; what is read once is kept.

    `like` has read a config with the same models and tasks, such as another arm of a comparison: they are its.
    """

    def __init__(self, config: Config, like: Reader | None = None) -> None:
        self.config = config
        self.backend = make_backend(config)
        self.tasksets: Tasksets = Tasksets(config) if like is None else like.tasksets
        self.models: Models = Models(config, self.tasksets) if like is None else like.models
        self.prompts: dict[str, tuple[float, int]] = {} if like is None else like.prompts

    def stages(self) -> list[StageInputs]:
        """All of them, completions as long as they may be."""
        return [self.stage(index) for index in range(len(self.config.stages))]

    def stage(self, index: int) -> StageInputs:
        """One of them."""
        stage = self.config.stages[index]
        algorithm, taskset = make_stage_algorithm(stage), self.tasksets[stage.tasks]
        siblings = stage.num_generations if algorithm.samples else algorithm.siblings
        return StageInputs(
            index=index,
            name=stage.name,
            algorithm=algorithm.name,
            sizes=self.models.policy,
            lengths=self._lengths(stage, algorithm),
            groups=stage.prompts,
            siblings=siblings,
            samples=algorithm.samples,
            steps=planned_steps(stage, algorithm, len(taskset)),
            passes=algorithm.update.passes,
            optimiser_steps=algorithm.update.steps if algorithm.update.uses_optimiser else 0,
            optimiser=stage.optimiser.kind,
            max_rows=self.config.max_rows,
            micro_batch_tokens=self.config.micro_batch_tokens,
            cache_bytes=self.backend.cache_bytes,
            together=_together(algorithm, stage.prompts * siblings),
            device=self.config.device,
            budget=None if stage.budget is None else (stage.budget.kind, stage.budget.amount),
            counted=self.models.counted,
            share=sampled_share(algorithm.select) if algorithm.samples else 0.0,
            refills=stage.max_refill if algorithm.samples and algorithm.select.keeps is not None else 0,
            overlap=stage.overlap,
            beside=beside_of(stage, algorithm, self.models, first=index == 0),
            evaluations=tuple(self._evaluations(stage, index)),
        )

    def _lengths(self, stage: StageConfig, algorithm: Algorithm) -> Lengths:
        taskset = self.tasksets[stage.tasks]
        if not algorithm.samples:
            return shown_lengths(self.models.chat, taskset, algorithm.siblings)
        return self._sampled(stage.tasks, stage.max_completion_length)

    def _sampled(self, tasks: str, most: int) -> Lengths:
        if tasks not in self.prompts:
            self.prompts[tasks] = prompt_lengths(self.models.chat, self.tasksets[tasks])
        mean, longest = self.prompts[tasks]
        environment = environment_of(self.tasksets[tasks])
        if environment is None:
            return Lengths(mean, longest, most, most)
        turns, limit = min(environment.max_turns, most), turn_limit(environment)
        return Lengths(mean, longest, most, most, None, turns, min(1.0, turns * (limit or most) / most))

    def _evaluations(self, stage: StageConfig, index: int) -> list[Asked]:
        found, spec = [], self.config.evaluation
        if spec is not None:
            times = float(stage.evaluate) + float(spec.at_start and index == 0)
            found = [self._asked(spec, name, spec.max_completion_length, times) for name in spec.names if times]
        check = stage.validation
        if check is not None:
            most = check.max_completion_length or stage.max_completion_length
            found.append(self._asked(check, check.tasks, most, 0.0, check.every))
        return found

    def _asked(
        self, spec: EvaluationConfig | ValidationConfig, name: str, most: int, times: float, every: int = 0
    ) -> Asked:
        problems = len(self.tasksets[name])
        limited = problems if spec.limit is None else min(spec.limit, problems)
        return Asked(name, limited, spec.samples, self._sampled(name, most), times, every)


def _together(algorithm: Algorithm, rows: int) -> int:
    """Rows of an optimiser step: an update says how many, or how often they are divided."""
    update = algorithm.update
    if update.rows is not None:
        return min(rows, update.rows)
    return max(1, round(rows * (update.passes or 1.0) / (update.steps or 1))) if update.uses_optimiser else rows
