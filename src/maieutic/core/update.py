"""Updates: how the weights move on a credited batch.

Weights of tokens are computed here, once for each optimiser step over all its rows, so that everything below
(micro-batches, ranks) only adds. Letters: `B` rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from maieutic.core.parts import Algorithm, Update
from maieutic.protocols import Learner
from maieutic.types import Batch

#: Metrics that compare the learner with the sampler: they mean something at the first optimiser step only.
AT_FIRST = ("policy/sampler_mismatch_nats", "policy/sampler_mismatch_max")


def sgd(epochs: int = 1, minibatches: int = 1, seed: int = 0) -> Update:
    """`epochs` passes over the batch, each in `minibatches` optimiser steps on `sum(weights · loss)`.

    Rows are shuffled by unit (a unit never splits) with a generator seeded by (seed, updates so far), so a resumed
    run shuffles as an unbroken one. With one epoch and one minibatch the old policy is the present one
    (`Update.steps`). PPO, arXiv 1707.06347, algorithm 1.
    """
    if not all(isinstance(count, int) and count >= 1 for count in (epochs, minibatches)):
        raise ValueError(
            f"sgd: got epochs={epochs}, minibatches={minibatches}; expected whole numbers, at least 1 each"
        )

    def run(learner: Learner, batch: Batch, algorithm: Algorithm) -> dict[str, float]:
        steps: list[dict[str, float]] = []
        for _ in range(epochs):
            for rows in _split(batch, minibatches, f"{seed}/{learner.version}"):
                part = batch if minibatches == 1 else batch.rows(rows)
                part = part.with_(weights=algorithm.weigh(part))
                steps.append(learner.step(part, algorithm.loss.terms, needs=algorithm.loss.needs))
        return _summary(steps)

    label = f"sgd(epochs={epochs}, minibatches={minibatches})" if (epochs, minibatches) != (1, 1) else "sgd()"
    return Update(label, run, steps=epochs * minibatches)


def _split(batch: Batch, parts: int, seed: str) -> Iterator[Tensor]:
    """Row numbers `[b]` of up to `parts` minibatches: whole units, dealt so that sizes differ by one unit at most."""
    if parts == 1:
        yield torch.arange(batch.size)
        return
    units = torch.unique(batch.units).tolist()
    random.Random(seed).shuffle(units)
    for k in range(min(parts, len(units))):
        mine = torch.tensor(units[k::parts], device=batch.units.device)
        yield torch.isin(batch.units, mine).nonzero().flatten()


def _summary(steps: list[dict[str, float]]) -> dict[str, float]:
    """Means over the optimiser steps; what compares learner and sampler comes from the first one."""
    names = {name: None for step in steps for name in step}
    mean = {name: sum(s[name] for s in steps if name in s) / sum(name in s for s in steps) for name in names}
    return {**mean, **{name: steps[0][name] for name in AT_FIRST if name in steps[0]}}
