"""The loop. It yields; logging, evaluation, checkpoints and plots live outside it.

groups ─ select ─► examples ─ pack ─► batch ─ annotate ─► batch ─ credit ─► batch ─ update ─► weights ─ publish
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from maieutic.annotate import Filler, annotate, asked_columns, check, check_old, fillers, is_anchored_at_sampler
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

    `old_logprobs`: who says what the policy was before several optimiser steps on a batch: the "learner", by one more
    forward pass, or the "sampler", as it recorded them, where both say the same (see `annotate.RecordedOld`).

    Raises ConfigError at once when the source or the models cannot serve the algorithm.
    """
    anchored = is_anchored_at_sampler(source, algorithm)
    fill = fillers(policy, reference, teacher, sampler_is_old=anchored, old_logprobs=old_logprobs)
    check(source, policy, algorithm, fill)
    check_old(source, old_logprobs)
    return _loop(source, policy, algorithm, range(start, steps), fill)


def _loop(
    source: Source, policy: Policy, algorithm: Algorithm, indices: range, fill: Mapping[str, Filler]
) -> Iterator[Step]:
    columns, stale = asked_columns(source, algorithm), getattr(source, "stale", False)
    for index in indices:
        with phase("sampling"):
            groups = tuple(source.next())
        with phase("select"):
            examples = tuple(algorithm.select(groups))
        measures = {**group_measures(groups), **row_measures(groups, examples)}
        measures |= staleness(groups, policy.learner.version) if stale and source.samples else {}
        if not examples:
            yield Step(index, groups, (), None, {**measures, "train/skipped": 1.0})
            continue
        batch = annotate(pack(examples), columns, fill)
        measures |= memory_measures(algorithm)  # as they are for this batch: credit may change them
        with phase("credit"):
            batch = algorithm.credit(batch)
        measures |= batch_measures(batch)
        with phase("update"):
            metrics = algorithm.update(policy.learner, batch, algorithm)
        with phase("publish"):
            policy.publish()
        yield Step(index, groups, examples, batch, {**measures, **metrics, "train/skipped": 0.0})
