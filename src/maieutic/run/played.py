"""Tasks that are played turn by turn in an environment: what a stage on them cannot have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maieutic.config import StageConfig
from maieutic.errors import ConfigError
from maieutic.protocols import Taskset
from maieutic.tasks.taskset import environment_of

if TYPE_CHECKING:
    from maieutic.core.parts import Algorithm


def check_played(stage: StageConfig, algorithm: Algorithm, taskset: Taskset) -> None:
    """Raise ConfigError where the algorithm asks for something that an episode of several turns has not."""
    environment = environment_of(taskset)
    if environment is None or not algorithm.samples:
        return
    select = algorithm.select
    wants = {
        "a hint in the prompt of tasks that failed": select.hints is not None,
        "continuations of half an attempt": bool(select.continuations),
        "labels in front of steps": select.labels is not None,
    }
    for what, wanted in wants.items():
        if wanted:
            raise ConfigError(
                f"stage {stage.name!r}: {algorithm.name} wants {what}, which an episode of several turns has not "
                f"(tasks {stage.tasks!r} are played in {environment.name!r}). Choose another algorithm (grpo, ppo), or "
                "tasks without an environment"
            )
