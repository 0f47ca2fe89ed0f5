"""The tables of a config, as types. See `maieutic.config` for what a config looks like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from maieutic.config.guards import GuardConfig
from maieutic.config.strict import Strict
from maieutic.config.teachers import TeacherConfig
from maieutic.errors import UnknownName

#: The evaluation before the first stage is stored under this stage's name.
START = "start"


class SmallConfig(Strict):
    """A decoder built from scratch; see `maieutic.models.small`."""

    architecture: str = "llama"
    layers: int = Field(2, ge=1)
    width: int = Field(128, ge=8)
    heads: int = Field(4, ge=1)
    kv_heads: int = Field(2, ge=1)
    mlp: int | None = None
    context: int = Field(512, ge=8)
    tied: bool = True
    tokenizer: Literal["word", "bpe"] = "word"
    min_count: int = Field(1, ge=1, description="words seen less often become <unk>")
    vocabulary_size: int = Field(4096, ge=64, description="of a bpe tokenizer")
    extra_words: list[str] = Field(
        default_factory=list, description="tokens beside those of the text: labels, for example"
    )

    @property
    def shape(self) -> dict[str, Any]:
        """What goes to `SmallModel`; the rest is about the tokenizer."""
        return self.model_dump(exclude={"tokenizer", "min_count", "vocabulary_size", "extra_words"})


class LoraConfig(Strict):
    """A low-rank adapter; see `maieutic.models.lora`. Its dropout is 0, as every dropout of a run is."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    targets: str | list[str] = "all-linear"
    rslora: bool = Field(False, description="scale by alpha / √rank instead of alpha / rank")


class ModelConfig(Strict):
    """Where the model comes from: `path` (a folder or a Hub id) or `small` (built from scratch)."""

    path: str | None = None
    small: SmallConfig | None = None
    lora: LoraConfig | None = None
    template: str = "auto"
    revision: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> ModelConfig:
        if (self.path is None) == (self.small is None):
            raise ValueError(
                'expected exactly one of `path = "folder or Hub id"` and `small = {}` (built from scratch)'
            )
        return self


class TasksConfig(BaseModel):
    """A taskset by name; every key but those here is an option of that taskset, or `mixture = { name = weight }`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    taskset: str | None = None
    mixture: dict[str, float] | None = None
    size: int | None = None
    start: int = Field(0, ge=0)
    limit: int | None = Field(None, ge=1)
    shuffle: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> TasksConfig:
        if (self.taskset is None) == (self.mixture is None):
            raise ValueError('expected exactly one of `taskset = "name"` and `mixture = { name = weight, … }`')
        if self.mixture is not None and self.model_extra:
            raise ValueError(
                f"a mixture has no option {', '.join(sorted(self.model_extra))}; it takes mixture, size, start, limit "
                "and shuffle. Give the option to the tables that it mixes"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What goes to the taskset's factory."""
        extra = dict(self.model_extra or {})
        return extra if self.size is None or self.mixture else {**extra, "size": self.size}


class OptimiserConfig(Strict):
    """How weights step; see `maieutic.backends.local.optimiser`. `learning_rate` is AdamW's."""

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-6, gt=0)
    muon_learning_rate: float = Field(0.02, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_fraction: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)


class CriticConfig(Strict):
    """What estimates values, for algorithms that learn with a critic; see `maieutic.backends.local.critic`.

    "head" shares the policy's weights; "separate" has a model of its own, from `path` (default: what the stage begins
    with); "adapter" is the same over the base of a LoRA policy, and takes the memory of an adapter.
    """

    kind: Literal["head", "separate", "adapter"] = "head"
    learning_rate: float | None = Field(None, gt=0, description="of the critic's own weights; default: the policy's")
    hidden: int | None = Field(None, ge=1, description="units of a hidden layer in its head; default: none")
    path: str | None = None

    @model_validator(mode="after")
    def _separate(self) -> CriticConfig:
        if self.path is not None and self.kind == "head":
            raise ValueError(
                'got a path for a critic of kind "head", which has no model of its own: take "separate" or "adapter"'
            )
        return self


class ReferenceConfig(Strict):
    """The reference of a KL, where it is not simply the model that the stage begins with.

    "fixed" stays: there, or at the model in `path`. "following" begins there, and every `every` optimiser steps comes
    nearer to the policy: reference ← mix · policy + (1 − mix) · reference (see `maieutic.core.following`).
    """

    kind: Literal["fixed", "following"] = "fixed"
    every: int | None = Field(None, ge=1, description="optimiser steps; default: 512")
    mix: float | None = Field(None, gt=0, le=1, description="share of the policy; default: 0.6")
    path: str | None = Field(None, description="a folder or a Hub id, of a model with the policy's tokens")
    revision: str | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> ReferenceConfig:
        follows = self.kind == "following"
        if follows and self.path is not None:
            raise ValueError("got a path for a reference that follows: it begins at the policy. Leave one of both out")
        if not follows and (self.every is not None or self.mix is not None):
            raise ValueError('got every or mix for a reference that is fixed; expected them with kind = "following"')
        if self.revision is not None and self.path is None:
            raise ValueError("got a revision without a path; give the path, or leave the revision out")
        return self

    @property
    def following(self) -> dict[str, Any]:
        """How it follows, TRL's defaults filled in."""
        return {"every": self.every or 512, "mix": self.mix or 0.6}


class BudgetConfig(Strict):
    """What a stage may cost, in exactly one of these; see `maieutic.core.cost` for what each counts."""

    samples: float | None = Field(None, gt=0, description="rollouts drawn")
    generated_tokens: float | None = Field(None, gt=0)
    trained_tokens: float | None = Field(None, gt=0)
    flops: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_of(self) -> BudgetConfig:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError(f"expected exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def kind(self) -> str:
        """What is counted."""
        return next(iter(self.model_dump(exclude_none=True)))

    @property
    def amount(self) -> float:
        """How much of it."""
        return float(getattr(self, self.kind))


class ValidationConfig(Strict):
    """What is measured every few steps of a stage, on tasks of its own, and what follows from it."""

    tasks: str
    every: int = Field(1, ge=1, description="steps")
    limit: int | None = Field(None, ge=1)
    samples: int = Field(0, ge=0, description="beside the greedy one")
    k: int | None = Field(None, ge=1, description="of pass@k, vote@k, strict@k; default: samples")
    temperature: float = Field(1.0, gt=0)
    max_completion_length: int | None = Field(None, ge=1, description="default: the stage's")
    seed: int = 0
    metric: str = Field("greedy", description="what decides; or pass@k, vote@k, strict@k")
    patience: int | None = Field(None, ge=1, description="the stage ends after so many without a rise")
    min_delta: float = Field(0.0, ge=0, description="what counts as a rise is more than this")
    keep_best: bool = Field(False, description="the stage's model is the best evaluated one, not the last")

    @model_validator(mode="after")
    def _enough(self) -> ValidationConfig:
        if self.k is not None and self.k > self.samples:
            raise ValueError(f"got k = {self.k} and samples = {self.samples}; expected at least k samples a problem")
        return self


class CurriculumConfig(Strict):
    """Which tasks are worth another attempt; see `maieutic.curriculum`."""

    low: float = Field(0.0, ge=0, lt=1)
    high: float = Field(1.0, gt=0, le=1)
    skip: int = Field(2, ge=1, description="epochs")

    @model_validator(mode="after")
    def _room(self) -> CurriculumConfig:
        if self.low >= self.high:
            raise ValueError(f"got low = {self.low} and high = {self.high}; expected low below high")
        return self


class StageConfig(Strict):
    """One algorithm on one taskset."""

    name: str = ""
    algorithm: str
    options: dict[str, Any] = Field(default_factory=dict, description="hyper-parameters of the algorithm")
    tasks: str = "train"
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0, description="instead of steps: passes over the tasks")
    budget: BudgetConfig | None = Field(None, description="instead of steps: the stage ends when it has cost so much")
    prompts: int = Field(32, ge=1, description="tasks a step")
    num_generations: int = Field(8, ge=1, description="rollouts a task")
    max_completion_length: int = Field(256, ge=1)
    temperature: float = Field(1.0, gt=0)
    max_refill: int = Field(4, ge=0, description="rounds of drawing again for groups that carry no signal")
    early_stop: int | None = Field(
        None, ge=2, description="rollouts of a task that decide whether the others are written (dynamic sampling)"
    )
    curriculum: CurriculumConfig | None = Field(None, description="pass over tasks that are too easy or too hard")
    overlap: bool = Field(False, description="a second process samples the next step's rollouts during the update")
    rewards: dict[str, float] = Field(
        default_factory=lambda: {"answer": 1.0}, description="name or file.py:function → weight"
    )
    reward_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="name of a reward → its options, as { soft_overlong = { cache = 64 } }"
    )
    reward_timeout_seconds: float | None = Field(None, gt=0, description="default: the function's own, or 10")
    max_reward_failures: float | None = Field(
        None, ge=0, le=1, description="share of failed rewards that stops the run; default: the function's own, or 0.1"
    )
    optimiser: OptimiserConfig = OptimiserConfig()  # type: ignore[call-arg]
    old_logprobs: Literal["learner", "sampler"] = Field(
        "learner", description="sampler: as recorded, one forward pass fewer where a step has several optimiser steps"
    )
    critic: CriticConfig | None = None
    teacher: TeacherConfig | None = None
    reference: ReferenceConfig | None = Field(None, description="default: fixed, where the stage begins")
    restart_from: str = Field("stage", description="what rounds begin with: the stage's model, start, or a path")
    demonstrations: str | None = Field(None, description="tasks whose solutions are learned beside what is found")
    hint: str | None = Field(None, description="a text with {question} and {answer}, for tasks that failed")
    spare_rows: bool = Field(False, description="rows without advantage stay out of updates: the same gradient, sooner")
    checkpoint_every: int = Field(20, ge=1, description="steps")
    validation: ValidationConfig | None = None
    guards: dict[str, GuardConfig] | None = Field(None, description="name → what it does, over those of the run")
    evaluate: bool = True

    @model_validator(mode="after")
    def _length(self) -> StageConfig:
        if sum(given is not None for given in (self.steps, self.epochs, self.budget)) != 1:
            raise ValueError("expected exactly one of `steps`, `epochs` and `budget`")
        return self

    def step_count(self, tasks: int) -> int:
        """Steps of this stage over a taskset of that many tasks; of one with a budget, see `run.budget`."""
        if self.steps is not None:
            return self.steps
        return max(1, round(float(self.epochs or 0) * tasks / self.prompts))


class EvaluationConfig(Strict):
    """What is measured after each stage, and before the first where `at_start`."""

    tasks: str | list[str] = "test"
    limit: int | None = Field(None, ge=1)
    samples: int = Field(8, ge=1)
    k: int | None = Field(None, ge=1, description="of pass@k, vote@k, strict@k; default: samples")
    temperature: float = Field(1.0, gt=0)
    max_completion_length: int = Field(256, ge=1)
    at_start: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _enough(self) -> EvaluationConfig:
        if self.k is not None and self.k > self.samples:
            raise ValueError(f"got k = {self.k} and samples = {self.samples}; expected at least k samples a problem")
        return self

    @property
    def names(self) -> list[str]:
        """The tasksets' names."""
        return [self.tasks] if isinstance(self.tasks, str) else list(self.tasks)


class Config(Strict):
    """A whole run."""

    name: str = "run"
    seed: int = 0
    threads: int | None = Field(None, ge=1)
    device: str = "cpu"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of products: float32 on a CPU, bfloat16 on a GPU that has it; weights stay float32"
    )
    sampling_precision: Literal["same", "bfloat16", "int8"] = Field(
        "same", description="on a CPU, coarser numbers to sample in; ratios are then taken to the policy that sampled"
    )
    max_rows: int = Field(512, ge=1, description="rollouts sampled side by side")
    micro_batch_tokens: int = Field(16384, ge=64)
    gradient_checkpointing: bool = Field(False, description="a third more arithmetic in updates, for much less memory")
    exact_phases: bool = Field(False, description="on a GPU: wait at the ends of phases, so that each has its seconds")
    keep_checkpoints: int = Field(2, ge=1)
    model: ModelConfig
    tasks: dict[str, TasksConfig]
    stages: list[StageConfig] = Field(min_length=1)
    guards: dict[str, GuardConfig] | None = Field(None, description="name → what it does; default: all note")
    evaluation: EvaluationConfig | None = None

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not name or name.startswith(".") or set(name) & set("/\\\0"):
            raise ValueError(f"got {name!r}; expected the name of a folder (no slash, no dot in front): runs/NAME")
        return name

    @field_validator("stages")
    @classmethod
    def _named(cls, stages: list[StageConfig]) -> list[StageConfig]:
        named = [s if s.name else s.model_copy(update={"name": s.algorithm.rpartition(":")[2]}) for s in stages]
        names = [s.name for s in named]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two stages are called {name!r}: give each a `name` of its own")
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"a stage is called {name!r}: expected letters, digits, - and _ (it names a folder)")
            if name == START:
                raise ValueError(f"a stage is called {name!r}, as the evaluation before the first stage is: rename it")
        return named

    @model_validator(mode="after")
    def _tasks_exist(self) -> Config:
        wanted = [s.tasks for s in self.stages] + (self.evaluation.names if self.evaluation else [])
        wanted += [name for t in self.tasks.values() for name in t.mixture or {}]
        wanted += [s.demonstrations for s in self.stages if s.demonstrations is not None]
        wanted += [s.validation.tasks for s in self.stages if s.validation is not None]
        for name in wanted:
            if name not in self.tasks:
                raise ValueError(str(UnknownName("tasks", name, self.tasks)) + f" Add a table [tasks.{name}].")
        return self

    @model_validator(mode="after")
    def _validation_apart(self) -> Config:
        tested = self.evaluation.names if self.evaluation else []
        for stage in self.stages:
            if stage.validation is not None and stage.validation.tasks in (*tested, stage.tasks):
                raise ValueError(
                    f"stage {stage.name!r} is validated on {stage.validation.tasks!r}, on which it is also "
                    "trained or evaluated in the end: what was looked at meanwhile measures nothing any more. Give "
                    "it tasks of its own"
                )
        return self
