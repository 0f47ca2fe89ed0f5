"""What a trust region asks of a model: Fisher-vector products, and how far the policy has moved.

A product differentiates the divergence twice. PyTorch's fused attention kernels have a first derivative only, so for a
product attention is written out (the "math" kernel). Someone else's kernel may not allow that either; such a model is
found out when its learner is asked what it can do.

    `B` rows, `T` tokens · `M` tokens at which policies are compared · `V` vocabulary · `n` trainable weights
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from maieutic.backends.local.evaluate import HELD, Forward
from maieutic.backends.local.trunk import bare
from maieutic.core.neighbourhood import KeptPolicy
from maieutic.core.trust_region import fisher_product
from maieutic.types import Batch, Outputs

_found: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def kept_policy(
    module: nn.Module,
    forward: Forward,
    weights: list[Tensor],
    outputs: Callable[[Batch], Outputs],
    batch: Batch,
    tokens: Tensor,
    budget: int,
) -> KeptPolicy:
    """The present policy, kept at `tokens [B, T]` of the batch, to compare others with.

    `budget` are the tokens of a micro-batch of an ordinary step. Here it is half of that, as the graph of a second
    derivative holds the first one's beside its own, and less for a large vocabulary, as whole distributions are made.
    """
    whole: Any = bare(module)
    vocabulary = int(whole.get_input_embeddings().weight.shape[0])
    device = weights[0].device
    split = forward.split(batch, max(1, min(budget // 2, max(512, HELD // vocabulary))))

    def parts() -> Iterator[tuple[Batch, Tensor]]:
        return ((batch.rows(rows).to(device), tokens[rows].to(device)) for rows in split)

    return KeptPolicy(weights, parts, outputs, lambda part, at: logits(forward, part, at))


def logits(forward: Forward, batch: Batch, at: Tensor) -> Tensor:
    """`[M, V]` at the batch's temperature; where gradients are taken, they may be differentiated once more."""
    with sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else nullcontext():
        return forward.logits(batch, at) / (batch.temperature if batch.temperature > 0 else 1.0)


def twice_differentiable(module: nn.Module, forward: Forward) -> bool:
    """Whether this model's logits can be differentiated twice. Tried once a module, on four tokens."""
    if module not in _found:
        _found[module] = _try(module, forward)
    return _found[module]


def _try(module: nn.Module, forward: Forward) -> bool:
    trainable = [weight for weight in module.parameters() if weight.requires_grad]
    if not trainable:
        return False
    # the smallest one, and the first of those: in most models a norm or an adapter before the first attention
    weight = min(trainable, key=lambda one: one.numel())
    mask = torch.tensor([[False, True, True, True]], device=weight.device)
    zeros = torch.zeros(1, 4, device=weight.device)
    one = torch.zeros(1, dtype=torch.long, device=weight.device)
    batch = Batch(
        torch.zeros_like(mask, dtype=torch.long), mask, one + 4, zeros, zeros[:, 0], zeros, one == 0, one, one
    )
    try:
        with torch.enable_grad():
            fisher_product(logits(forward, batch, mask), [weight], torch.zeros(weight.numel(), device=weight.device))
    except RuntimeError:  # a derivative that someone's kernel does not have
        return False
    return True
