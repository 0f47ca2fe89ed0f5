"""What a stage trains with: policy, source, reference, teacher. Built together, saved and restored together.

A model is loaded only where the stage's algorithm reads what it fills.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maieutic.config import Config, StageConfig
from maieutic.core.cost import Meter, Metered, step_cost
from maieutic.protocols import Policy, Scorer, Source, Taskset, Teacher
from maieutic.run.budget import optimiser_steps
from maieutic.run.build import load_model, make_critic, make_optimiser, make_source
from maieutic.run.checkpoints import Checkpoint
from maieutic.train import train
from maieutic.types import Step

if TYPE_CHECKING:
    from maieutic.backends.local import LocalBackend
    from maieutic.core.parts import Algorithm


@dataclass(frozen=True)
class Setup:
    """All that a stage's loop needs."""

    algorithm: Algorithm
    policy: Policy
    source: Source
    reference: Scorer | None = None
    teacher: Teacher | None = None
    parameters: int = 0
    """Of the policy, embeddings left out: what the estimate of its cost goes by. The reference has as many."""
    teacher_parameters: int = 0

    def train(self, steps: int, start: int) -> Iterator[Step]:
        """The loop over steps `start … steps − 1`, each with its cost among its metrics."""
        meter = Meter()

        def metered(model: Any, parameters: int) -> Any:
            return None if model is None else Metered(model, parameters, meter)

        policy = replace(self.policy, learner=metered(self.policy.learner, self.parameters))
        reference = metered(self.reference, self.parameters)
        teacher = metered(self.teacher, self.teacher_parameters)
        models = {"reference": reference, "teacher": teacher}
        for step in train(self.source, policy, self.algorithm, steps=steps, start=start, **models):
            cost = step_cost(step, self.source.samples, self.parameters, meter.read())
            yield replace(step, metrics={**step.metrics, **cost})

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the learner, as JSON."""
        return {"source": self.source.state(), "algorithm": self.algorithm.state()}

    def save(self, folder: Path) -> None:
        """Write what is too large for JSON."""
        self.policy.learner.save(folder)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint as if nothing had happened."""
        self.policy.learner.load(checkpoint.path)
        self.source.restore(checkpoint.state["source"])
        self.algorithm.restore(checkpoint.state.get("algorithm", []))


def set_up(
    config: Config,
    stage: StageConfig,
    backend: LocalBackend,
    model: str,
    taskset: Taskset,
    algorithm: Algorithm,
    steps: int | None,
) -> Setup:
    """A stage's setup at its beginning, from the model in the folder `model`; `steps` is None where nobody knows."""
    from maieutic.models.causal import parameter_count

    loaded = load_model(config, model)
    # taken before a checkpoint's weights are read: the reference is the model with which the stage began
    reference = backend.reference(loaded) if "ref_logprobs" in algorithm.asks else None
    optimiser = make_optimiser(stage, optimiser_steps(steps, algorithm))
    critic = make_critic(config, stage, model)
    policy = backend.policy(loaded, optimiser, critic=critic, restart="restart" in algorithm.requires)
    source = make_source(config, stage, algorithm, taskset, policy)
    return Setup(algorithm, policy, source, reference, parameters=parameter_count(loaded.module))
