"""The table of a reward model's training: `maieutic reward train FILE.toml`, or the same as options."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from maieutic.config.strict import Strict
from maieutic.config.tables import LoraConfig, OptimiserConfig


class JudgeOptimiserConfig(OptimiserConfig):
    """How weights step; a reward model's body moves as in fine-tuning."""

    learning_rate: float = Field(1e-5, gt=0)


class RewardTrainConfig(Strict):
    """What a reward model learns, from what, and how; see `maieutic.core.reward_modelling` for the losses.

    `data` are files (layouts: `maieutic.tasks.judged`) and folders of runs, whose stored rollouts are judged already.
    """

    kind: Literal["outcome", "process", "pairs"] = "outcome"
    model: str = Field(description="a policy's folder or a Hub id, whose body is taken")
    data: list[str] = Field(min_length=1, description="files and folders of runs")
    layout: str = Field("auto", description="of the files; auto: by their columns")
    stage: str | None = Field(None, description="of runs: only this stage's rollouts")
    saved_as: Literal["sequence", "tokens", "causal"] | None = Field(None, description="default: by kind")
    at: Literal["end", "steps", "tokens"] = Field("end", description="where the label of a whole stands")
    lm: float = Field(0.0, ge=0, description="weight of the likelihood beside an outcome's label")
    hard: bool = Field(False, description="labels of steps: 1 where above 0")
    centre: float = Field(0.0, ge=0, description="pairs: weight of (s_c + s_r)²; 0.01 is usual")
    neutral: Literal["right", "wrong", "none"] = Field("right", description="PRM800K's rating 0")
    delimiter: str = Field("\n", description="what steps end in")
    mark: str | None = Field(None, description="text after each step, where it is judged; default: by the layout")
    good: str = Field("+", description="the token for right steps, saved as causal")
    bad: str = Field("-", description="the token for wrong steps, saved as causal")
    cap: int | None = Field(4, ge=1, description="different right ones of a prompt at most, and wrong ones")
    balance: bool = Field(True, description="as many right as wrong ones of each prompt")
    holdout: float = Field(0.1, ge=0, lt=1, description="share of prompts that are not learned from")
    epochs: float = Field(1.0, gt=0)
    prompts: int = Field(16, ge=1, description="prompts a step")
    optimiser: JudgeOptimiserConfig = JudgeOptimiserConfig()  # type: ignore[call-arg]
    head_learning_rate: float | None = Field(None, gt=0, description="default: ten times the body's")
    lora: LoraConfig | None = Field(None, description="train an adapter; the folder that is written has it merged")
    template: str = "auto"
    seed: int = 0
    device: str = "cpu"
    threads: int | None = Field(None, ge=1)
    micro_batch_tokens: int = Field(16384, ge=64)
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(50, ge=1, description="steps")

    @model_validator(mode="after")
    def _fits(self) -> RewardTrainConfig:
        idle = {
            "at": self.at != "end" and self.kind != "outcome",
            "lm": self.lm > 0 and self.kind != "outcome",
            "hard": self.hard and self.kind != "process",
            "centre": self.centre > 0 and self.kind != "pairs",
        }
        for key, wrong in idle.items():
            if wrong:
                raise ValueError(f"got {key}, which does nothing for kind = {self.kind!r}; leave it out")
        if self.saved_as == "tokens" and self.kind == "pairs":
            raise ValueError(
                'got saved_as = "tokens" for a model of pairs, whose scores are no probabilities; take "sequence"'
            )
        return self

    @property
    def layout_of_model(self) -> str:
        """The class of transformers that is to load the folder."""
        return self.saved_as or {"process": "tokens"}.get(self.kind, "sequence")
