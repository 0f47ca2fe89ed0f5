"""The trainer that a row of our own table is, for the checks.

Rows are taken as selected: a check says which they are. Letters as in `maieutic.conformance.subject`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from maieutic.conformance.subject import Rows, TableModel
from maieutic.core.parts import Algorithm
from maieutic.types import Batch, Outputs

#: Columns of a batch that only other models could fill, made from the rows for an examination.
Fill = Callable[[TableModel, Batch], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Ours:
    """Credit, weights and loss of an algorithm, as `train` and `sgd` run them: weights once for all rows, then sums."""

    algorithm: Algorithm
    fill: Fill

    def backward(self, model: TableModel, rows: Rows, micro_batches: int) -> float:
        """See `maieutic.conformance.Trainer`."""
        algorithm = self.algorithm
        batch = batch_of(rows)
        batch = algorithm.credit(batch.with_(**self.fill(model, batch)))
        batch = batch.with_(weights=algorithm.weigh(batch))
        total = 0.0
        for part in _split(batch, micro_batches):
            micro = batch.rows(part)
            outputs = _outputs(model, micro)
            loss = torch.where(micro.mask, micro.weights * algorithm.loss(outputs, micro), 0.0).sum()
            if loss.requires_grad:
                loss.backward()
            total += float(loss.detach())
        return total


def of(algorithm: Algorithm, fill: Fill = lambda model, batch: {}) -> Ours:  # noqa: ARG005
    """The trainer that an algorithm is; `fill` makes columns that only a critic or a teacher could."""
    return Ours(algorithm, fill)


def batch_of(rows: Rows) -> Batch:
    """Rows as a batch with the columns of an old policy and a reference."""
    last = rows.mask.shape[1] - 1 - rows.mask.flip(1).to(torch.int8).argmax(1)
    outcome = torch.zeros_like(rows.old_logprobs)
    outcome[torch.arange(len(last)), last] = rows.rewards
    units = torch.arange(len(last))
    if len(rows.pairs):
        units[rows.pairs[:, 1]] = rows.pairs[:, 0]
    return Batch(
        rows.tokens, rows.mask, rows.lengths, rows.sampler_logprobs, rows.rewards, outcome, rows.terminated,
        rows.groups, units, rows.temperature,
        {"old_logprobs": rows.old_logprobs, "ref_logprobs": rows.ref_logprobs, "pairs": rows.pairs},
    )  # fmt: skip


def _outputs(model: TableModel, batch: Batch) -> Outputs:
    scores = torch.log_softmax(model(batch.tokens).logits / batch.temperature, dim=-1)
    spread = torch.nn.functional.pad(-(scores.exp() * scores).sum(-1)[:, :-1], (1, 0))
    values = torch.nn.functional.pad(model.values(batch.tokens)[:, :-1], (1, 0))
    logprobs = model.logprobs(batch.tokens, batch.temperature)
    top = None
    if batch.has("teacher_top_ids"):
        whole = torch.nn.functional.pad(scores[:, :-1], (0, 0, 1, 0))
        top = torch.where(batch.mask[..., None], whole.gather(-1, batch.teacher_top_ids), 0.0)
    logprobs, spread, values = (torch.where(batch.mask, column, 0.0) for column in (logprobs, spread, values))
    return Outputs(logprobs, spread, values, top)


def _split(batch: Batch, count: int) -> list[Tensor]:
    """Row numbers of so many micro-batches; rows of one unit stay together."""
    units = torch.unique(batch.units)
    parts = [torch.isin(batch.units, mine).nonzero().flatten() for mine in units.tensor_split(count)]
    return [part for part in parts if len(part)]
