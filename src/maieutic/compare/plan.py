"""What a comparison file says, and the runs that follow from it.

    seeds = [1, 2, 3]
    [model] [tasks.NAME] [evaluation]         as in the config of a run
    [budget]                                  samples, generated_tokens, trained_tokens or flops: the same for every arm
    [[start]]                                 stages that are trained once a seed; every arm goes on from their model
    [stage]                                   what the arms have in common
    [[arms]]                                  name, algorithm, options, and any other key of a stage

An arm and a seed are one ordinary run, `OUT/seed-1/ARM`; the shared start of a seed is the run `OUT/seed-1/start`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from maieutic.config import (
    START,
    BudgetConfig,
    Config,
    EvaluationConfig,
    ModelConfig,
    StageConfig,
    Strict,
    TasksConfig,
    parse_config,
    parse_table,
    read_tables,
)
from maieutic.errors import ConfigError, UnknownName
from maieutic.run.build import SAMPLING_KEYS, unchecked_algorithm

#: Every arm's stage has this name, so that all of them draw the same tasks in the same order.
STAGE = "train"

#: Seeds from which on an interval over seeds says something.
ENOUGH_SEEDS = 3

#: The metrics of which claims may be made.
CLAIMED = ("greedy", "pass", "vote", "strict")


class Study(Strict):
    """What a comparison and a sweep have in common."""

    name: str = "compare"
    seeds: list[int] = Field(min_length=1)
    metric: str = Field("pass@1", description="what claims are made of: greedy, pass@k, vote@k or strict@k")
    device: str = "cpu"
    max_rows: int = Field(512, ge=1, description="rollouts sampled side by side")
    micro_batch_tokens: int = Field(16384, ge=64)
    model: ModelConfig
    tasks: dict[str, TasksConfig]
    start: list[dict[str, Any]] = Field(default_factory=list, description="stages trained once a seed, before the arms")
    stage: dict[str, Any] = Field(default_factory=dict, description="what the arms have in common")
    evaluation: EvaluationConfig

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: list[int]) -> list[int]:
        twice = [seed for seed in seeds if seeds.count(seed) > 1]
        if twice:
            raise ValueError(f"got the seed {twice[0]} more than once; the same run again says nothing new")
        return seeds

    @model_validator(mode="after")
    def _measures(self) -> Study:
        name, at, k = self.metric.partition("@")
        most = self.evaluation.samples
        if name not in CLAIMED or bool(at) != (name != "greedy") or (at and not k.isdecimal()):
            raise ValueError(f"got metric = {self.metric!r}; expected greedy, pass@k, vote@k or strict@k")
        if at and not 1 <= int(k) <= most:
            raise ValueError(f"got metric = {self.metric!r} with {most} samples a problem; expected k of 1 to {most}")
        if self.model.small is not None and not self.start:
            raise ValueError(
                "a small model is built from scratch and knows nothing: give it stages to begin with, [[start]] with "
                'algorithm = "sft"'
            )
        return self


class ComparisonConfig(Study):
    """A comparison file."""

    budget: BudgetConfig
    arms: list[dict[str, Any]] = Field(min_length=2)
    reference_arm: str | None = Field(None, description="compare every other arm with it; default: all pairs")


@dataclass(frozen=True)
class Arm:
    """One algorithm with its settings: `Arm("grpo", stage)`."""

    name: str
    stage: StageConfig


@dataclass(frozen=True)
class Plan:
    """A study with its arms resolved: which runs there will be."""

    study: Study
    arms: tuple[Arm, ...]
    start: tuple[StageConfig, ...]
    reference_arm: str | None = None

    @property
    def axis(self) -> str:
        """The cost over which learning curves are drawn: that of the budget, else samples."""
        budget = self.arms[0].stage.budget
        return "samples" if budget is None else budget.kind

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the results should know before there are any."""
        found = []
        seeds = len(self.study.seeds)
        if seeds < ENOUGH_SEEDS:
            found.append(
                f"{seeds} seed{'s' * (seeds > 1)}: at least {ENOUGH_SEEDS} are needed to tell an algorithm from luck"
            )
        evaluation = self.study.evaluation
        if evaluation.samples > 1 and evaluation.k in (None, evaluation.samples):
            found.append(
                f"k is the number of samples ({evaluation.samples}): pass@k is then only whether any was right; twice "
                "as many samples as k would make it surer"
            )
        return tuple(found)

    def arm(self, name: str) -> Arm:
        """The arm of that name. Raises UnknownName."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise UnknownName("arm", name, [arm.name for arm in self.arms])

    def whole(self, arm: Arm, seed: int) -> Config:
        """The start stages and the arm as one ordinary config: what is checked, and whose words a tokenizer reads."""
        return self._config(f"{self.study.name}-{arm.name}", seed, (*self.start, arm.stage), self.study.model, {})

    def start_config(self, seed: int) -> Config:
        """The run of the shared start; evaluated at its end."""
        last = self.start[-1].name
        stages = tuple(s.model_copy(update={"evaluate": s.name == last}) for s in self.start)
        return self._config(f"{self.study.name}-start", seed, stages, self.study.model, {})

    def arm_config(self, arm: Arm, seed: int, model: str | None) -> Config:
        """The run of an arm from the start's model (None: from the study's own).

        Without start stages, the first arm also measures the model that all of them start from.
        """
        begun = (
            self.study.model if model is None else self.study.model.model_copy(update={"path": model, "small": None})
        )
        measure = {"at_start": not self.start and arm == self.arms[0]}
        return self._config(f"{self.study.name}-{arm.name}", seed, (arm.stage,), begun, measure)

    def _config(
        self, name: str, seed: int, stages: tuple[StageConfig, ...], model: ModelConfig, measure: Mapping[str, Any]
    ) -> Config:
        study = self.study
        # the same for all arms of a seed, so that they are paired; another for each seed, so that seeds are independent
        evaluation = study.evaluation.model_copy(update={"seed": study.evaluation.seed + seed, **measure})
        tables = {
            "name": name,
            "seed": seed,
            "threads": 1,
            "device": study.device,
            "max_rows": study.max_rows,
            "micro_batch_tokens": study.micro_batch_tokens,
            "model": model,
            "tasks": study.tasks,
            "stages": [stage.model_dump(exclude_none=True) for stage in stages],
            "evaluation": evaluation,
        }
        return parse_config(tables, f"{study.name}, seed {seed}, {name}")

    def to_json(self) -> str:
        """All of it, for the processes that carry it out."""
        study = self.study.model_dump(mode="json", exclude_none=True, include=set(Study.model_fields))
        arms = [{"name": a.name, "stage": a.stage.model_dump(mode="json", exclude_none=True)} for a in self.arms]
        start = [stage.model_dump(mode="json", exclude_none=True) for stage in self.start]
        return json.dumps({"study": study, "arms": arms, "start": start, "reference_arm": self.reference_arm}, indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        """What `to_json` wrote."""
        table = json.loads(text)
        return Plan(
            parse_table(Study, table["study"], "plan"),
            tuple(Arm(each["name"], parse_table(StageConfig, each["stage"], "plan")) for each in table["arms"]),
            tuple(parse_table(StageConfig, each, "plan") for each in table["start"]),
            table["reference_arm"],
        )


def read_comparison(path: str | Path, overrides: tuple[str, ...] = ()) -> Plan:
    """The plan in a comparison file. Raises ConfigError, as `read_config` does."""
    data = read_tables(path, overrides, "seeds, [budget], [model], [tasks.train] and two [[arms]]")
    return comparison(parse_table(ComparisonConfig, data, str(path)), str(path))


def comparison(config: ComparisonConfig, where: str = "comparison") -> Plan:
    """The plan of a comparison, every arm checked. Raises ConfigError."""
    budget = {"budget": config.budget.model_dump(exclude_none=True)}
    arms = []
    for number, table in enumerate(config.arms):
        name = str(table.get("name") or str(table.get("algorithm", "")).rpartition(":")[2] or number)
        own = {key: value for key, value in table.items() if key != "name"}
        place = f"{where}, arm {name!r}"
        for key in ("budget", "steps", "epochs"):
            if key in own or key in config.stage:
                raise ConfigError(f"{place}: got {key}; every arm has the same [budget], and ends when it is spent")
        stage = resolved(config.stage, {**own, **budget}, place)
        if stage.validation is not None and stage.validation.patience is not None:
            raise ConfigError(f"{place}: got validation.patience, which would end an arm before its budget is spent")
        arms.append(Arm(_folder(name, place), stage))
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: two arms are called {name!r}; give each a `name` of its own")
    if config.reference_arm is not None and config.reference_arm not in names:
        raise UnknownName("reference_arm", config.reference_arm, names)
    return Plan(config, tuple(arms), start_stages(config, where), config.reference_arm)


def start_stages(study: Study, where: str) -> tuple[StageConfig, ...]:
    """The stages before the arms, checked. Raises ConfigError."""
    stages = tuple(
        parse_table(StageConfig, table, f"{where}, start stage {number}") for number, table in enumerate(study.start)
    )
    return tuple(stage.model_copy(update={"name": stage.name or stage.algorithm}) for stage in stages)


def resolved(shared: Mapping[str, Any], own: Mapping[str, Any], where: str) -> StageConfig:
    """The stage of an arm: what all have in common, changed by its own; `optimiser` and `options` key by key.

    What the arms share and this arm's algorithm has no use for is left out: how to sample, for one that learns from
    demonstrations; the optimiser, for one that has its own way to step. Raises ConfigError.
    """
    merged = dict(shared)
    for key, value in own.items():
        inner = merged.get(key)
        mix = key in ("optimiser", "options") and isinstance(inner, dict) and isinstance(value, dict)
        merged[key] = {**inner, **value} if mix and inner is not None else value
    algorithm = unchecked_algorithm(parse_table(StageConfig, {**merged, "name": STAGE}, where))
    idle = set() if algorithm.samples else set(SAMPLING_KEYS)
    idle |= set() if algorithm.update.uses_optimiser else {"optimiser"}
    kept = {key: value for key, value in merged.items() if key not in idle - own.keys()}
    return parse_table(StageConfig, {**kept, "name": STAGE}, where)


def _folder(name: str, where: str) -> str:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith(".") or name == START:
        raise ConfigError(f"{where}: got the name {name!r}; expected letters, digits, -, _ and . (it names a folder)")
    return name
