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
        device = next(self.model.module.parameters()).device
        return _logprobs(self.forward, batch, self.micro_batch_tokens, device)


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
            device = next(self.module.parameters()).device
            return _logprobs(forward_for(frozen), batch, self.micro_batch_tokens, device)


@torch.no_grad()
def _logprobs(forward: Forward, batch: Batch, budget: int, device: torch.device) -> Tensor:
    parts = forward.split(batch, budget)
    found = [forward.outputs(batch.rows(rows).to(device), entropy=False).logprobs for rows in parts]
    return torch.cat([each.to(batch.tokens.device) for each in found])[torch.cat(parts).argsort()]
