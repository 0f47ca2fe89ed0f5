"""What a stage trains with: policy, source, reference, teacher. Built together, saved and restored together.

A model is loaded only where the stage's algorithm reads what it fills.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maieutic.ahead import Ahead, spent_beside
from maieutic.config import Config, StageConfig
from maieutic.core.cost import Meter, Metered, step_cost
from maieutic.core.sparing import Sparing
from maieutic.environments.conditioned import Conditioned, asked_with, write_inference
from maieutic.protocols import Policy, Scorer, Source, Teacher
from maieutic.run.asking import as_asked
from maieutic.run.budget import optimiser_steps
from maieutic.run.build import load_model, make_critic, make_optimiser, make_source
from maieutic.run.checkpoints import Checkpoint
from maieutic.run.frozen import changing, make_reference
from maieutic.run.overlap import ahead
from maieutic.run.rounds import give_demonstrations, restart_base
from maieutic.run.tasksets import Tasksets
from maieutic.run.teachers import make_teacher
from maieutic.steps import Labels
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
    """Of the policy, embeddings left out: what the estimate of its cost goes by."""
    reference_parameters: int = 0
    teacher_parameters: int = 0
    labels: Labels | None = None
    """Of a policy that is to be asked with labels from here on; they go with its weights."""
    old_logprobs: str = "learner"
    """Who fills that column; see `train`."""
    spare_rows: bool = False
    """Whether rows without an advantage are left out of updates; see `maieutic.core.sparing`."""

    def train(self, steps: int, start: int) -> Iterator[Step]:
        """The loop over steps `start … steps − 1`, each with its cost among its metrics."""
        meter = Meter()

        def metered(model: Any, parameters: int) -> Any:
            return None if model is None else Metered(model, parameters, meter)

        learner = metered(self.policy.learner, self.parameters)
        policy = replace(self.policy, learner=Sparing(learner) if self.spare_rows else learner)
        reference = metered(self.reference, self.reference_parameters)
        teacher = metered(self.teacher, self.teacher_parameters)
        models: dict[str, Any] = {"reference": reference, "teacher": teacher, "old_logprobs": self.old_logprobs}
        before, asked = spent_beside(self.source), self._asked()
        for step in train(self.source, policy, self.algorithm, steps=steps, start=start, **models):
            after = spent_beside(self.source)
            cost = step_cost(
                step, self.source.samples, self.parameters, meter.read(), beside=after.plus(before, times=-1)
            )
            before = after
            asked, had = self._asked(), asked
            cost |= {f"asked/{item}": value - had.get(item, 0.0) for item, value in asked.items()}
            yield replace(step, metrics={**step.metrics, **cost})

    def _asked(self) -> dict[str, float]:
        """What asking a teacher behind a server has cost so far."""
        return dict(getattr(self.teacher, "asked", {}))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the learner, as JSON."""
        return {"source": self.source.state(), "algorithm": self.algorithm.state()}

    def save(self, folder: Path) -> None:
        """Write what is too large for JSON."""
        self.policy.learner.save(folder)
        for model in changing(self.reference, self.teacher, self.source):
            model.save(folder)
        if self.labels is not None:
            write_inference(self.labels, folder / "model")

    def asked(self) -> Policy:
        """The policy as its model is to be asked from here on."""
        if self.labels is None or isinstance(self.policy.sampler, Conditioned):
            return self.policy
        return asked_with(self.policy, self.labels)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint as if nothing had happened."""
        self.policy.learner.load(checkpoint.path)
        self.source.restore(checkpoint.state["source"])
        for model in changing(self.reference, self.teacher, self.source):
            model.load(checkpoint.path)
        self.algorithm.restore(checkpoint.state.get("algorithm", []))

    def close(self) -> None:
        """End what goes on beside this process, if anything does."""
        if isinstance(self.source, Ahead):
            self.source.close()


def set_up(
    config: Config,
    stage: StageConfig,
    backend: LocalBackend,
    model: str,
    first: str,
    tasksets: Tasksets,
    algorithm: Algorithm,
    steps: int | None,
) -> Setup:
    """A stage's setup at its beginning, from the model in the folder `model`; `steps` is None where nobody knows.

    `first` is the run's first model, to which a stage may restart.
    """
    from maieutic.models.adapters import parameters_of

    base = restart_base(stage, model, first)
    loaded = load_model(config, base)
    optimiser = make_optimiser(stage, optimiser_steps(steps, algorithm))
    critic = make_critic(config, stage, model, loaded)
    policy = backend.policy(loaded, optimiser, critic=critic, restart="restart" in algorithm.requires)
    if base != model:  # it restarts from the one, and begins with the other
        policy.learner.reset(Path(model))
    # taken before a checkpoint's weights are read: the reference is the model with which the stage began
    reference = make_reference(config, stage, backend, loaded, policy, algorithm)
    teacher, teacher_parameters = make_teacher(config, stage, backend, loaded)
    algorithm = algorithm.bind(policy.chat)
    policy, asked = as_asked(stage, model, algorithm, policy)
    source = make_source(config, stage, algorithm, tasksets[stage.tasks], policy)
    if stage.overlap:
        source = ahead(config, stage, model, first, source, policy, steps)
    if stage.demonstrations is not None:
        give_demonstrations(algorithm, tasksets[stage.demonstrations], policy)
    labels = algorithm.select.labels or asked
    own, of_reference = parameters_of(loaded), parameters_of(getattr(reference, "model", loaded))
    beside = (own, of_reference, teacher_parameters, labels, stage.old_logprobs, stage.spare_rows)
    return Setup(algorithm, policy, source, reference, teacher, *beside)
