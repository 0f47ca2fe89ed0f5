"""The tables of `maieutic teach` and `maieutic distil`; defaults are those of the released run of arXiv 2506.08388."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from maieutic.config.strict import Strict
from maieutic.config.tables import (
    EvaluationConfig,
    ModelConfig,
    OptimiserConfig,
    ReferenceConfig,
    TasksConfig,
)


class LessonConfig(Strict):
    """How lessons are made of tasks; see `maieutic.tasks.teaching.teaching`."""

    tags: str = "s1"
    solution: str | None = Field(None, description="what is explained; default: {solution}")
    explanation: str | None = Field(None, description="the column of recorded explanations; default: reasoning_trace")
    until: str | None = Field(None, description="only what stands before the last such mark in it")


class EngineConfig(Strict):
    """What every run says of itself and of the machine; see `maieutic.config.tables.Config`."""

    name: str = "run"
    seed: int = 0
    threads: int | None = Field(None, ge=1)
    device: str = "cpu"
    max_rows: int = Field(512, ge=1)
    micro_batch_tokens: int = Field(16384, ge=64)
    gradient_checkpointing: bool = False

    def engine(self, **more: Any) -> dict[str, Any]:
        """The same keys for a whole config, and `more`."""
        kept = {name: getattr(self, name) for name in EngineConfig.model_fields}
        return {**{key: value for key, value in kept.items() if value is not None}, **more}


class WarmupOptimiserConfig(OptimiserConfig):
    """How weights step in fine-tuning."""

    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"


class WarmupConfig(Strict):
    """Fine-tuning on recorded explanations, which teaches the layout; loss on explanation and closing tag alone."""

    tasks: str = "train"
    epochs: float | None = Field(10.0, gt=0)
    steps: int | None = Field(None, ge=1, description="instead of epochs")
    prompts: int = Field(16, ge=1)
    warmup_share: float = Field(0.05, ge=0, lt=1, description="of the steps, in which the learning rate rises")
    checkpoint_every: int = Field(100, ge=1)
    optimiser: WarmupOptimiserConfig = WarmupOptimiserConfig()  # type: ignore[call-arg]


class PractiseConfig(Strict):
    """Reinforcement learning of the teacher: GRPO with one update a batch, so that no ratio is ever clipped."""

    tasks: str = "train"
    steps: int = Field(125, ge=1)
    prompts: int = Field(16, ge=1)
    num_generations: int = Field(64, ge=2)
    max_completion_length: int = Field(16384, ge=1)
    temperature: float = Field(0.7, gt=0)
    beta: float = Field(0.04, ge=0, description="of the KL to the reference, k3 in the loss")
    reference: ReferenceConfig = ReferenceConfig(kind="following", every=32, mix=0.9)  # type: ignore[call-arg]
    checkpoint_every: int = Field(20, ge=1)
    optimiser: OptimiserConfig = OptimiserConfig()  # type: ignore[call-arg]


class TeachConfig(EngineConfig):
    """A teacher's run: `maieutic teach FILE`. `student` is the frozen model whose log-probs are the reward."""

    name: str = "teacher"
    model: ModelConfig
    student: str = Field(description="a folder, a run or a Hub id")
    tasks: dict[str, TasksConfig]
    lesson: LessonConfig = LessonConfig()  # type: ignore[call-arg]
    warmup: WarmupConfig | None = Field(WarmupConfig(), description="left out with warmup = false")  # type: ignore[call-arg]
    rl: PractiseConfig = PractiseConfig()  # type: ignore[call-arg]
    reward: dict[str, Any] = Field(default_factory=dict, description="options of the reward teaching")

    @model_validator(mode="before")
    @classmethod
    def _no_warmup(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("warmup") is False:
            return {**data, "warmup": None}
        return data

    def engine(self, **more: Any) -> dict[str, Any]:
        """As `EngineConfig.engine`, with the model."""
        return super().engine(model=self.model.model_dump(exclude_none=True), **more)


class CollectConfig(Strict):
    """How explanations are collected. Nothing is filtered or rewritten, unless it is said here.

    candidates   of each task. One is kept: the first, or the best by `rank`: "reward" (of the reward "teaching", with
                 the frozen `student`) or "exam" (how well students do that are shown it; `students`).
    reserved     where the best one is not closed, take the task's recorded explanation.
    max_tokens   a demonstration (question, explanation, solution) of more tokens of the student's is no candidate.
    margin       where best and worst candidate are so far apart, they are kept as a preference for the teacher itself.
    """

    tasks: str = "train"
    limit: int | None = Field(None, ge=1, description="tasks")
    candidates: int = Field(1, ge=1)
    temperature: float = Field(0.7, gt=0)
    max_completion_length: int = Field(16384, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    rank: Literal["first", "reward", "exam"] = "first"
    student: str | None = Field(None, description="the frozen model of rank = reward")
    reward: dict[str, Any] = Field(default_factory=dict, description="options of the reward teaching")
    students: list[str] = Field(default_factory=list, description="who is examined, with rank = exam")
    exams: int = Field(3, ge=1, description="problems of an examination")
    repeats: int = Field(3, ge=1, description="answers to each")
    similar: str | None = Field(None, description="the meta column in which a task and its exam problems should agree")
    reserved: bool = False
    margin: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> CollectConfig:
        if self.rank == "reward" and self.student is None:
            raise ValueError('got rank = "reward" without a student; expected the frozen model that is to judge')
        if self.rank == "exam" and not self.students:
            raise ValueError('got rank = "exam" without students; expected at least one model to be examined')
        if self.rank != "first" and self.candidates < 2:
            raise ValueError(f"got rank = {self.rank!r} of one candidate; expected candidates = 2 or more")
        if self.margin is not None and self.rank == "first":
            raise ValueError(
                'got a margin for rank = "first", which compares nothing; expected rank = "exam" or "reward"'
            )
        idle = {"student": self.student and self.rank != "reward", "students": self.students and self.rank != "exam"}
        for key, wrong in idle.items():
            if wrong:
                raise ValueError(f"got {key}, which does nothing with rank = {self.rank!r}; leave it out")
        return self


class FineTuneConfig(Strict):
    """Fine-tuning of the student on what was collected."""

    model: ModelConfig
    epochs: float | None = Field(3.0, gt=0)
    steps: int | None = Field(None, ge=1, description="instead of epochs")
    prompts: int = Field(96, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    optimiser: WarmupOptimiserConfig = WarmupOptimiserConfig()  # type: ignore[call-arg]


class DistilConfig(EngineConfig):
    """Explanations of a teacher, and a student that learns them: `maieutic distil FILE`."""

    name: str = "distil"
    teacher: str = Field(description="a folder, a run or a Hub id")
    template: str = Field("auto", description="of the teacher")
    tasks: dict[str, TasksConfig]
    lesson: LessonConfig = LessonConfig()  # type: ignore[call-arg]
    collect: CollectConfig = CollectConfig()  # type: ignore[call-arg]
    student: FineTuneConfig | None = None
    evaluation: EvaluationConfig | None = None
