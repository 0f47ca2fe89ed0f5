"""Frozen models that score tokens: a reference, a teacher, a student."""

from __future__ import annotations

import torch
from torch import Tensor

from maieutic.backends.local.check import forward_for
from maieutic.backends.local.evaluate import Forward
from maieutic.models.causal import CausalModel
from maieutic.models.reference import reference_of
from maieutic.types import Batch


class LocalScorer:
    """Log-probs under a model that is not trained; see `maieutic.protocols.Scorer`."""

    def __init__(self, model: CausalModel, *, micro_batch_tokens: int = 16384) -> None:
        self.model = model
        self.micro_batch_tokens = micro_batch_tokens
        model.module.eval()
        self.forward = forward_for(model.module)

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats at the batch's temperature, 0 off the mask."""
        return _logprobs(self.forward, batch, self.micro_batch_tokens)


class ReferenceScorer:
    """Log-probs under a model as it was when this scorer was made, while the model itself is trained.

    A LoRA policy's reference lives inside its own module and takes no second copy of the base weights; see
    `maieutic.models.reference`.
    """

    def __init__(self, model: CausalModel, *, micro_batch_tokens: int = 16384) -> None:
        self.module = model.module
        self.micro_batch_tokens = micro_batch_tokens
        model.module.eval()
        self.reference = reference_of(model)

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats at the batch's temperature, 0 off the mask."""
        with self.reference.active(self.module) as frozen:
            return _logprobs(forward_for(frozen), batch, self.micro_batch_tokens)


@torch.no_grad()
def _logprobs(forward: Forward, batch: Batch, budget: int) -> Tensor:
    parts = forward.split(batch, budget)
    found = torch.cat([forward.outputs(batch.rows(rows), entropy=False).logprobs for rows in parts])
    return found[torch.cat(parts).argsort()]
