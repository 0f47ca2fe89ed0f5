"""Rows from which nothing is learned need not be run: where every advantage of a row is 0, so is its gradient.

    policy = replace(policy, learner=Sparing(policy.learner))

Siblings with equal rewards have advantage 0 in every comparison of siblings. They are a third of all rows and more,
once a policy solves what it can solve. The weights of the other rows' tokens were computed before, over all rows, so an
update is the same to the order of its sums. Measures of an update (`policy/entropy`, `clip_ratio/…`) are then those of
the rows that were run.

A loss must be 0, and flat, where advantages are: a KL to a reference, an entropy bonus or a critic's loss is not, and
`is_silent` says so by trying.

    `B` rows · `T` tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maieutic.core.parts import Loss
from maieutic.errors import MissingColumn
from maieutic.protocols import Learner, LossTerms
from maieutic.types import PROVIDERS, Batch, Outputs

#: Columns that say something else than a number a token, and so are not made up to try a loss.
_OTHER = frozenset({"pairs", "teacher_top_ids", "teacher_top_logprobs"})


class Sparing:
    """A learner whose optimiser steps leave out the rows without an advantage. All else is the learner's own.

    Where no row has one, the first is run all the same: a step is a step, with its weight decay and learning rate.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def step(self, batch: Batch, loss: LossTerms, *, needs: frozenset[str] = frozenset()) -> dict[str, float]:
        """See `protocols.Learner`; `update/rows_spared` is how many rows were left out."""
        kept = ((batch.advantages != 0) & batch.mask).any(1).nonzero().flatten()
        kept = kept if len(kept) else kept.new_zeros(1)
        if len(kept) == batch.size:
            return {**self.learner.step(batch, loss, needs=needs), "update/rows_spared": 0.0}
        metrics = self.learner.step(batch.rows(kept), loss, needs=needs)
        return {**metrics, "update/rows_spared": float(batch.size - len(kept))}


def is_silent(loss: Loss) -> bool:
    """Whether the loss and its gradient are 0 wherever advantages are, seen by trying it on made-up numbers."""
    if "advantages" not in loss.needs or loss.needs & _OTHER:
        return False
    batch, given = _made_up(loss.needs)
    outputs = Outputs(given["logprobs"], given["entropy"], given["values"])
    try:
        value = loss(outputs, batch)
    except MissingColumn:
        return False
    if not value.requires_grad:
        return not value.any()
    slopes = torch.autograd.grad(value.sum(), list(given.values()), allow_unused=True)
    return not value.any() and all(slope is None or not slope.any() for slope in slopes)


def _made_up(needs: frozenset[str]) -> tuple[Batch, Mapping[str, Tensor]]:
    """Two rows of four tokens, three of them chosen, with advantages 0, and what a policy says of them."""
    draw = torch.Generator().manual_seed(0)

    def numbers() -> Tensor:
        return -torch.rand(2, 4, generator=draw)

    mask = torch.tensor([False, True, True, True]).expand(2, -1)
    zero, two = torch.zeros(2, 4), torch.arange(2)
    ends = torch.full((2,), 4)
    batch = Batch(two.new_ones(2, 4), mask, ends, numbers(), zero[:, 0], zero, two >= 0, two * 0, two)
    columns = {name: numbers() for name in sorted(needs - {"advantages"}) if name in PROVIDERS}
    said = {name: numbers().requires_grad_() for name in ("logprobs", "entropy", "values")}
    return batch.with_(advantages=zero, **columns), said
