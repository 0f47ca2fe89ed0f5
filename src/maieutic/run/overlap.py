"""`overlap = true`: a stage whose rollouts are sampled one step ahead, in a process of its own (`maieutic.ahead`).

That process builds its model, source and rewards from the same config. `threads` is what each of both has; where the
config does not say, each has half of what one alone would have taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from maieutic.config import Config, StageConfig
from maieutic.protocols import Policy, Source
from maieutic.run.asking import as_asked
from maieutic.run.build import load_model, make_backend, make_source, make_stage_algorithm
from maieutic.run.rounds import restart_base
from maieutic.run.tasksets import Tasksets

if TYPE_CHECKING:
    from maieutic.ahead import Ahead, Practice


def practise(config: Config, stage: StageConfig, model: str, first: str) -> Practice:
    """What the other process of a stage works with; its weights come from the learner."""
    from maieutic.ahead import Practice
    from maieutic.backends.local import Optimiser

    backend = make_backend(config)
    # of the weights that are not trained those count that the stage's own setup has
    policy = backend.policy(load_model(config, restart_base(stage, model, first)), Optimiser())
    algorithm = make_stage_algorithm(stage).bind(policy.chat)
    policy, _ = as_asked(stage, model, algorithm, policy)
    return Practice(make_source(config, stage, algorithm, Tasksets(config)[stage.tasks], policy), policy)


def ahead(
    config: Config, stage: StageConfig, model: str, first: str, source: Source, policy: Policy, steps: int | None
) -> Ahead:
    """The stage's source, sampling ahead; `model` and `first` as in `set_up`."""
    from maieutic.ahead import Ahead

    return Ahead(source, policy.learner, partial(practise, config, stage, model, first), batches=steps)


@contextmanager
def cores_of(config: Config, stage: StageConfig) -> Iterator[None]:
    """Leave half of the cores to the other process, where there is one and the config does not say."""
    import torch

    before = torch.get_num_threads()
    if stage.overlap and config.threads is None:
        torch.set_num_threads(max(1, before // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)
