"""Updates: how the weights move on a credited batch.

Weights of tokens are computed here, once for each optimiser step over all its rows, so that everything below
(micro-batches, ranks) only adds. Letters: `B` rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor

from maieutic.core.parts import Algorithm, Update
from maieutic.protocols import Learner
from maieutic.types import Batch

#: Metrics that compare the learner with the sampler: they mean something at the first optimiser step only.
AT_FIRST = ("policy/sampler_mismatch_nats", "policy/sampler_mismatch_max")


#: Share of tokens that would be as good without weights (Kish): (mean w)² / mean w², which is no mean over tokens.
EFFECTIVE = {"correction/effective_share": ("correction/weight", "correction/weight_squared")}


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
    return Update(label, run, steps=epochs * minibatches, passes=float(epochs))


class Rounds:
    """How many batches a refit has been through: the memory of one whose rounds grow."""

    def __init__(self) -> None:
        self.done = 0

    def state(self) -> dict[str, int]:
        """The count."""
        return {"rounds": self.done}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on after that many."""
        self.done = int(state["rounds"])


def refit(
    epochs: int = 1,
    rows: int = 64,
    restart: bool = True,
    steps: int | None = None,
    growth: float = 1.0,
    seed: int = 0,
) -> Update:
    """Fine-tune on the whole batch from a fresh start: one batch is one round of self-training.

    The optimiser and its learning-rate schedule begin anew; with `restart` the weights too, from those that the learner
    restarts from, so that a round's mistakes end with it. Then come `epochs` passes in optimiser batches of at most
    `rows` rows (as in `sgd`: whole units, weights computed for each batch, the shuffle seeded by (seed, updates so
    far)); or, where `steps` is given, so many optimiser steps in passes over the data, round(steps · growthⁱ) of them
    in round i = 0, 1, … (STaR, arXiv 2203.14465: 40 and 1.2).

    What compares learner and sampler is not reported: after a restart these are not the weights that sampled.
    """
    whole = all(isinstance(count, int) and count >= 1 for count in (epochs, rows, 1 if steps is None else steps))
    if not whole or not growth > 0 or (steps is None and growth != 1.0):
        raise ValueError(
            f"refit: got epochs={epochs}, rows={rows}, steps={steps}, growth={growth}; expected whole numbers, at "
            "least 1 each, and a growth above 0 (of steps: give those too)"
        )
    rounds = Rounds()

    def run(learner: Learner, batch: Batch, algorithm: Algorithm) -> dict[str, float]:
        batches = -(-len(torch.unique(batch.units)) // rows)
        total = epochs * batches if steps is None else max(1, round(steps * growth**rounds.done))
        learner.reset(total_steps=total, keep_weights=not restart)
        made: list[dict[str, float]] = []
        while len(made) < total:
            for index in islice(_split(batch, batches, f"{seed}/{learner.version}/{len(made)}"), total - len(made)):
                part = batch if batches == 1 else batch.rows(index)
                part = part.with_(weights=algorithm.weigh(part))
                made.append(learner.step(part, algorithm.loss.terms, needs=algorithm.loss.needs))
        rounds.done += 1
        found = {name: value for name, value in _summary(made).items() if name not in AT_FIRST}
        return {**found, "optim/steps": float(total)}

    how = f"epochs={epochs}" if steps is None else f"steps={steps}, growth={growth:g}"
    label = f"refit({how}, rows={rows}{'' if restart else ', restart=False'})"
    needed = frozenset({"restart"}) if restart else frozenset[str]()
    passes = float(epochs) if steps is None else None
    memory = (rounds,) if growth != 1.0 else ()
    return Update(label, run, requires=needed, memory=memory, steps=None, passes=passes, rows=rows)


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
    for name, (first, second) in EFFECTIVE.items():
        if second in mean:
            mean[name] = mean[first] ** 2 / mean.pop(second) if mean[second] else 0.0
    return {**mean, **{name: steps[0][name] for name in AT_FIRST if name in steps[0]}}
