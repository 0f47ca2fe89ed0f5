"""The loop. It yields; logging, evaluation, checkpoints and plots live outside it.

groups ─ select ─► examples ─ pack ─► batch ─ annotate ─► batch ─ credit ─► batch ─ update ─► weights ─ publish
"""

from __future__ import annotations

from collections.abc import Iterator

from maieutic.core.measures import group_measures
from maieutic.core.parts import Algorithm
from maieutic.errors import ConfigError
from maieutic.pack import pack
from maieutic.protocols import Policy, Scorer, Source
from maieutic.types import PROVIDERS, Batch, Step


def annotate(batch: Batch, columns: frozenset[str], policy: Policy, reference: Scorer | None) -> Batch:
    """The batch with the columns that models fill: the old policy's log-probs and the reference's, where asked for."""
    if "old_logprobs" in columns:
        batch = batch.with_(old_logprobs=policy.learner.logprobs(batch))
    if reference is not None and "ref_logprobs" in columns:
        batch = batch.with_(ref_logprobs=reference.logprobs(batch))
    return batch


def train(
    source: Source,
    policy: Policy,
    algorithm: Algorithm,
    *,
    steps: int,
    reference: Scorer | None = None,
    start: int = 0,
) -> Iterator[Step]:
    """Yield steps `start … steps − 1`, each after its update; the caller does what it likes between them.

    Raises ConfigError at once when the algorithm reads a column that nothing here can fill.
    """
    filled = {"old_logprobs"} | ({"ref_logprobs"} if reference is not None else set())
    for column in sorted(algorithm.asks - filled):
        raise ConfigError(f"{algorithm.name} reads {column!r}, and nothing fills it: it needs {PROVIDERS[column]}.")
    return _loop(source, policy, algorithm, range(start, steps), reference)


def _loop(
    source: Source, policy: Policy, algorithm: Algorithm, indices: range, reference: Scorer | None
) -> Iterator[Step]:
    for index in indices:
        groups = tuple(source.next())
        measures = group_measures(groups)
        examples = tuple(algorithm.select(groups))
        if not examples:
            yield Step(index, groups, (), None, {**measures, "train/skipped": 1.0})
            continue
        batch = annotate(pack(examples), algorithm.asks, policy, reference)
        batch = algorithm.credit(batch)
        metrics = algorithm.update(policy.learner, batch, algorithm)
        policy.publish()
        yield Step(index, groups, examples, batch, {**measures, **metrics, "train/skipped": 0.0})
