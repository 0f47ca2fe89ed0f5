"""The policies around the one that a learner had at a moment, for learners whose weights are torch tensors.

Letters: `n` weights, `b` rows of a micro-batch, `T` tokens, `M` tokens of a micro-batch at which policies are compared,
`V` vocabulary. Divergences in nats a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maieutic.core.trust_region import fisher_product, flatten, unflatten
from maieutic.protocols import LossTerms
from maieutic.types import Batch, Outputs


@dataclass(repr=False)
class KeptPolicy:
    """A policy as it was, kept at some tokens to compare others with; see `maieutic.protocols.Neighbourhood`.

    weights    what is trained; every vector is these end to end.
    parts      the micro-batches, always in the same order, each with the tokens `[b, T]` to compare at.
    outputs    what the policy says of a micro-batch now.
    logits     its logits `[M, V]` at those tokens, at the batch's temperature; with gradients of gradients.

    Whole distributions are kept: M·V numbers in float32, so a share of the tokens is compared and not all of them.
    """

    weights: list[Tensor]
    parts: Callable[[], Iterable[tuple[Batch, Tensor]]]
    outputs: Callable[[Batch], Outputs]
    logits: Callable[[Batch, Tensor], Tensor]
    kept: list[Tensor] = field(init=False)
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.kept = [self._logprobs(part, at) for part, at in self._compared()]
        self.tokens = sum(len(one) for one in self.kept)

    def _compared(self) -> Iterator[tuple[Batch, Tensor]]:
        """The micro-batches that have tokens to compare at, without the rows that have none."""
        for part, at in self.parts():
            rows = at.any(1).nonzero().flatten()
            if len(rows):
                yield part.rows(rows), at[rows]

    def _logprobs(self, part: Batch, at: Tensor) -> Tensor:
        found = self.logits(part, at)
        return torch.log_softmax(found.to(torch.promote_types(found.dtype, torch.float32)), dim=-1)

    def parameters(self) -> Tensor:
        """See `maieutic.protocols.Neighbourhood`."""
        return flatten(self.weights)

    @torch.no_grad()
    def move(self, parameters: Tensor) -> None:
        """See `maieutic.protocols.Neighbourhood`."""
        for weight, value in zip(self.weights, unflatten(parameters, self.weights), strict=True):
            weight.copy_(value)

    @torch.no_grad()
    def objective(self, loss: LossTerms) -> float:
        """See `maieutic.protocols.Neighbourhood`."""
        total = 0.0
        for part, _ in self.parts():
            value, _ = loss(self.outputs(part), part)
            total += float(torch.where(part.mask, part.weights.to(value.dtype) * value, 0.0).sum())
        return total

    def fisher_product(self, vector: Tensor) -> Tensor:
        """See `maieutic.protocols.Neighbourhood`."""
        total = torch.zeros_like(vector)
        for part, at in self._compared():
            total += fisher_product(self.logits(part, at), self.weights, vector)
        return total / max(1, self.tokens)

    @torch.no_grad()
    def kl(self) -> float:
        """See `maieutic.protocols.Neighbourhood`."""
        total = 0.0
        for (part, at), kept in zip(self._compared(), self.kept, strict=True):
            total += float((kept.exp() * (kept - self._logprobs(part, at))).sum())
        return total / max(1, self.tokens)
