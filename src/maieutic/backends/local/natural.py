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
from maieutic.core.trust_region import fisher_product, flatten
from maieutic.models.adapters import trained_weights
from maieutic.types import Batch, Outputs

SOME, STEP, TOLERANCE = 16, 0.01, 0.1
"""Second derivatives are tried along so many of a model's weights, by such a share of their size, and may be so wrong.
Tiny models of eight architectures are within .012 of what is expected, and .7 off where attention has none."""

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
    device = weights[0].device
    split = forward.split(batch, max(1, min(budget // 2, max(512, HELD // vocabulary(module)))))

    def parts() -> Iterator[tuple[Batch, Tensor]]:
        return ((batch.rows(rows).to(device), tokens[rows].to(device)) for rows in split)

    return KeptPolicy(weights, parts, outputs, lambda part, at: logits(forward, part, at))


def vocabulary(module: nn.Module) -> int:
    """`V`."""
    whole: Any = bare(module)
    return int(whole.get_input_embeddings().weight.shape[0])


def logits(forward: Forward, batch: Batch, at: Tensor) -> Tensor:
    """`[M, V]` at the batch's temperature; where gradients are taken, they may be differentiated once more."""
    with sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else nullcontext():
        return forward.logits(batch, at) / (batch.temperature if batch.temperature > 0 else 1.0)


def twice_differentiable(module: nn.Module, forward: Forward) -> bool:
    """Whether second derivatives of this model's logits are right. Tried once a module, on a few tokens and weights."""
    if module not in _found:
        _found[module] = _try(module, forward)
    return _found[module]


def _try(module: nn.Module, forward: Forward) -> bool:
    """Does vᵀFv agree with how the logits change along v?

    A kernel without a second derivative does not always say so: autograd may go around what it cannot differentiate and
    return something else. So numbers are compared, along the smallest weights (norms, biases, adapters), of which those
    before an attention are felt through it alone. In half precision no change of so few weights stands out from the
    rounding, and a kernel has to say it itself.
    """
    trainable: list[Tensor] = list(trained_weights(module).values())
    some = sorted(trainable, key=lambda weight: weight.numel())[:SOME]
    if not some:
        return False
    draw = torch.Generator().manual_seed(0)
    sizes = [max(float(weight.detach().square().mean()) ** 0.5, 0.1) for weight in some]
    way = [STEP * size * torch.randn(w.shape, generator=draw).to(w) for size, w in zip(sizes, some, strict=True)]
    batch = _few_tokens(module, some[0].device)
    try:
        with torch.enable_grad():
            vector = flatten(way)
            found = float(vector.dot(fisher_product(logits(forward, batch, batch.mask), some, vector)))
    except RuntimeError:  # a derivative that someone's kernel does not have
        return False
    if any(torch.finfo(weight.dtype).eps > 1e-4 for weight in module.parameters()):
        return True
    expected = _change(forward, batch, some, way)
    return abs(found - expected) <= TOLERANCE * expected


def _few_tokens(module: nn.Module, device: torch.device) -> Batch:
    """One row of a prompt token and seven chosen ones.

    All are different, as attention to equal tokens has no slope, and from the middle of the vocabulary: a padding token
    may have an embedding of 0, on which a norm is anything but smooth.
    """
    size = vocabulary(module)
    places = torch.arange(8, device=device)[None]
    mask, zeros, one = places > 0, torch.zeros(1, 8, device=device), torch.zeros(1, dtype=torch.long, device=device)
    return Batch((places + size // 2) % size, mask, one + 8, zeros, zeros[:, 0], zeros, one == 0, one, one)


@torch.no_grad()
def _change(forward: Forward, batch: Batch, weights: list[Tensor], way: list[Tensor]) -> float:
    """Σ_M Var_π(Δ logits) for a step along `way`, which is vᵀFv to first order. The weights are put back."""
    kept = [weight.clone() for weight in weights]
    ends = []
    try:
        for sign in (1.0, -1.0):
            for weight, start, part in zip(weights, kept, way, strict=True):
                weight.copy_(start + sign * part)
            ends.append(forward.logits(batch, batch.mask).float())
    finally:
        for weight, start in zip(weights, kept, strict=True):
            weight.copy_(start)
    chances = torch.softmax(forward.logits(batch, batch.mask).float(), dim=-1)
    change = 0.5 * (ends[0] - ends[1])
    return float((chances * (change - (chances * change).sum(-1, keepdim=True)) ** 2).sum())
