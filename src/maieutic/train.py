"""The loop. It yields; logging, evaluation, checkpoints and plots live outside it.

groups ─ select ─► examples ─ pack ─► batch ─ annotate ─► batch ─ credit ─► batch ─ update ─► weights ─ publish
"""

from __future__ import annotations

from collections.abc import Iterator

from maieutic.annotate import Annotator, annotator
from maieutic.clock import phase
from maieutic.core.measures import batch_measures, group_measures, memory_measures, row_measures, staleness
from maieutic.core.parts import Algorithm
from maieutic.pack import pack
from maieutic.protocols import Policy, Scorer, Source, Teacher
from maieutic.types import Step


def train(
    source: Source,
    policy: Policy,
    algorithm: Algorithm,
    *,
    steps: int,
    reference: Scorer | None = None,
    teacher: Teacher | None = None,
    start: int = 0,
    old_logprobs: str = "learner",
) -> Iterator[Step]:
    """Yield steps `start … steps − 1`, each after its update; the caller does what it likes between them.
    `old_logprobs`: who says what the policy was, "learner" or "sampler" (`annotate.RecordedOld`).

    Raises ConfigError at once when the source or the models cannot serve the algorithm.
    """
    fill = annotator(source, policy, algorithm, reference, teacher, old_logprobs)
    return _loop(source, policy, algorithm, range(start, steps), fill)


def _loop(source: Source, policy: Policy, algorithm: Algorithm, indices: range, fill: Annotator) -> Iterator[Step]:
    for index in indices:
        with phase("sampling"):
            groups = tuple(source.next())
        with phase("select"):
            examples = tuple(algorithm.select(groups))
        measures = {**group_measures(groups), **row_measures(groups, examples)}
        measures |= staleness(source, groups, policy.learner.version)
        if not examples:
            yield Step(index, groups, (), None, {**measures, "train/skipped": 1.0})
            continue
        batch = fill(pack(examples))
        measures |= memory_measures(algorithm)  # as they are for this batch: credit may change them
        with phase("credit"):
            batch = algorithm.credit(batch)
        measures |= batch_measures(batch)
        with phase("update"):
            metrics = algorithm.update(policy.learner, batch, algorithm)
        with phase("publish"):
            policy.publish()
        yield Step(index, groups, examples, batch, {**measures, **metrics, "train/skipped": 0.0})
