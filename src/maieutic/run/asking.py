"""How a stage's policy is asked: plainly, or with the labels that it learns or has learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maieutic.config import StageConfig
from maieutic.environments.conditioned import asked_with, read_inference
from maieutic.errors import ConfigError
from maieutic.protocols import Policy
from maieutic.steps import Labels

if TYPE_CHECKING:
    from maieutic.core.parts import Algorithm


def as_asked(stage: StageConfig, model: str, algorithm: Algorithm, policy: Policy) -> tuple[Policy, Labels | None]:
    """The policy as the stage samples from it, and the labels that the model in its folder was trained with.

    Raises ConfigError where the stage has others.
    """
    asked = read_inference(model) if algorithm.samples else None
    if asked is not None:  # a policy that was trained to be asked with labels goes on from there
        if algorithm.select.labels not in (None, asked):
            raise ConfigError(
                f"stage {stage.name!r}: got {algorithm.select.labels}, and its model was trained to be asked with "
                f"{asked}; expected the same labels and delimiter"
            )
        return asked_with(policy, asked), asked
    if algorithm.select.labels is not None:  # from its first update on it is a policy that knows labels
        learner = policy.learner
        return asked_with(policy, algorithm.select.labels, since=lambda: learner.version > 0), None
    return policy, None
