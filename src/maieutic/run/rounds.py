"""What a stage of self-training needs beside its source: where rounds restart from, what they begin with, hints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maieutic.config import StageConfig
from maieutic.errors import ConfigError
from maieutic.rationalise import HINT, Rationalised
from maieutic.sources import Recorded

if TYPE_CHECKING:
    from maieutic.core.parts import Algorithm
    from maieutic.protocols import Policy, Source, Taskset
    from maieutic.rollout import Rolls


def check_rounds(stage: StageConfig, algorithm: Algorithm) -> None:
    """Raise ConfigError for a key that would do nothing with this algorithm."""
    idle = [
        ("restart_from", stage.restart_from != "stage" and "restart" not in algorithm.requires, "never restarts"),
        ("demonstrations", stage.demonstrations is not None and algorithm.select.kept is None, "keeps nothing"),
        ("hint", stage.hint is not None and algorithm.select.hints is None, "gives no hints"),
    ]
    for key, does_nothing, why in idle:
        if does_nothing:
            raise ConfigError(
                f"stage {stage.name!r}: got {key} = {getattr(stage, key)!r}, which does nothing: {algorithm.name} "
                f"{why}. Leave it out, or choose an algorithm that does (expert_iteration restarts and keeps, star "
                "gives hints)"
            )


def restart_base(stage: StageConfig, model: str, first: str) -> str:
    """The model that each round restarts from: that of the stage's beginning, the run's first, or one of its own."""
    return {"stage": model, "start": first}.get(stage.restart_from, stage.restart_from)


def with_hints(source: Source, roller: Rolls, stage: StageConfig, algorithm: Algorithm) -> Source:
    """The source, trying again with a hint what failed, where the algorithm asks for that."""
    accepts = algorithm.select.hints
    return source if accepts is None else Rationalised(source, roller, accepts, hint=stage.hint or HINT)


def give_demonstrations(algorithm: Algorithm, taskset: Taskset, policy: Policy) -> None:
    """D₀: the worked solutions of a taskset, for the algorithm to keep from the first round on."""
    limit = getattr(policy.sampler, "limit", None)  # not every engine has one
    shown = Recorded(taskset, policy.chat, batch=len(taskset), tool=taskset.tool, limit=limit)
    assert algorithm.select.kept is not None  # see check_rounds
    algorithm.select.kept.add(shown.next())
