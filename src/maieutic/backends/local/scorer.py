"""A frozen model that scores tokens: reference, teacher, student."""

from __future__ import annotations

import torch
from torch import Tensor

from maieutic.backends.local.check import forward_for
from maieutic.models.causal import CausalModel
from maieutic.types import Batch


class LocalScorer:
    """Log-probs under a model that is not trained; see `maieutic.protocols.Scorer`."""

    def __init__(self, model: CausalModel, *, micro_batch_tokens: int = 16384) -> None:
        self.model = model
        self.micro_batch_tokens = micro_batch_tokens
        model.module.eval()
        self.forward = forward_for(model.module)

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats at the batch's temperature, 0 off the mask."""
        parts = self.forward.split(batch, self.micro_batch_tokens)
        found = torch.cat([self.forward.outputs(batch.rows(rows), entropy=False).logprobs for rows in parts])
        return found[torch.cat(parts).argsort()]
