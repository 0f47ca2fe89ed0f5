"""From a batch to what the model says of it: log-probs, entropies and values of the chosen tokens.

`PackedForward` computes without padding through plugged attention; `PaddedForward` is the module's ordinary forward,
for architectures that the plug cannot serve. Both send only predictions of chosen tokens to the softmax.

    `B` rows, `T` columns · `M` predictions · `E` width of a hidden state · `V` vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maieutic.backends.local.packing import pack_tokens, split, split_padded
from maieutic.backends.local.trunk import Trunk, bare
from maieutic.models.causal import selected_logprobs, selected_logprobs_and_entropy
from maieutic.types import Batch, Outputs

HELD = 1 << 26
"""Logits that may be held for the backward pass (float32: 256 MB, and a few times that with what is made of them).
More are made chunk by chunk, and again in the backward pass."""

CHUNK = 1 << 20
"""Logits of a chunk: few enough to stay in a processor's cache from one operation to the next."""

ROWS = 256
"""Predictions of a chunk at least: the head's matrix is read once for each chunk."""


class Forward(Protocol):
    """A way of running a module over a batch."""

    def split(self, batch: Batch, budget: int) -> list[Tensor]:
        """Row numbers of micro-batches that run `budget` tokens at once; see `packing.split`."""
        ...

    def outputs(self, batch: Batch, entropy: bool, value_head: nn.Module | None = None) -> Outputs:
        """What the model says of the chosen tokens, `[B, T]`, 0 elsewhere; `entropy` asks for entropies."""
        ...

    def values(self, batch: Batch, value_head: nn.Module) -> Tensor:
        """The values alone, `[B, T]`."""
        ...


class PackedForward:
    """Without padding, every prompt once. See `packing`."""

    def __init__(self, trunk: Trunk, held: int = HELD) -> None:
        self.trunk = trunk
        self.held = held

    def split(self, batch: Batch, budget: int) -> list[Tensor]:
        """See `Forward`."""
        return split(batch, budget)

    def outputs(self, batch: Batch, entropy: bool, value_head: nn.Module | None = None) -> Outputs:
        """See `Forward`."""
        packed = pack_tokens(batch.tokens, batch.mask)
        if packed is None:
            return _nothing(batch, entropy, value_head)
        hidden = self.trunk.hidden(packed.tokens, packed.positions, packed.layout)
        states = hidden.index_select(0, packed.sources)
        scored = _score(self.trunk.logits, states, packed.targets, batch.temperature, entropy, self.held)
        values = None if value_head is None else value_head(states).reshape(-1)
        return _scatter(batch, packed.rows, packed.columns, scored, values)

    def values(self, batch: Batch, value_head: nn.Module) -> Tensor:
        """See `Forward`."""
        packed = pack_tokens(batch.tokens, batch.mask)
        if packed is None:
            return _zeros(batch)
        states = self.trunk.hidden(packed.tokens, packed.positions, packed.layout).index_select(0, packed.sources)
        return _placed(batch, packed.rows, packed.columns, value_head(states).reshape(-1))


class PaddedForward:
    """The module's own forward over right-padded rows."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        base: Any = bare(module)
        self.vocabulary = base.get_input_embeddings().weight.shape[0]

    def split(self, batch: Batch, budget: int) -> list[Tensor]:
        """See `Forward`. Here the module makes logits of all tokens, so a large vocabulary lowers the budget."""
        return split_padded(batch, min(budget, max(512, 2 * HELD // self.vocabulary)))

    def outputs(self, batch: Batch, entropy: bool, value_head: nn.Module | None = None) -> Outputs:
        """See `Forward`."""
        if not batch.mask.any():
            return _nothing(batch, entropy, value_head)
        out = self._run(batch, hidden=value_head is not None)
        rows, columns = torch.nonzero(batch.mask, as_tuple=True)
        logits = out.logits[rows, columns - 1]
        scored = _score(lambda x: x, logits, batch.tokens[rows, columns], batch.temperature, entropy)
        values = None if value_head is None else value_head(out.hidden_states[-1][rows, columns - 1]).reshape(-1)
        return _scatter(batch, rows, columns, scored, values)

    def values(self, batch: Batch, value_head: nn.Module) -> Tensor:
        """See `Forward`."""
        if not batch.mask.any():
            return _zeros(batch)
        rows, columns = torch.nonzero(batch.mask, as_tuple=True)
        states = self._run(batch, hidden=True).hidden_states[-1][rows, columns - 1]
        return _placed(batch, rows, columns, value_head(states).reshape(-1))

    def _run(self, batch: Batch, hidden: bool) -> Any:
        tokens = batch.tokens[:, : int(batch.lengths.max())]
        return self.module(
            input_ids=tokens,
            # Padding comes last, so no token that counts can see it; a mask that hid it would leave padded queries
            # of a sliding window with nothing to see, and their NaN would reach the gradient.
            attention_mask=torch.ones_like(tokens),
            use_cache=False,
            output_hidden_states=hidden,
        )


def _score(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    targets: Tensor,
    temperature: float,
    entropy: bool,
    held: int = HELD,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs `[M]` and entropies `[M]` of predictions from states `[M, E]`, chunk by chunk where that helps."""
    at = temperature if temperature > 0 else 1.0  # greedy samples carry log-probs at temperature 1

    def score(some: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = head(some)
        if entropy:
            return selected_logprobs_and_entropy(logits, tokens, at)
        return selected_logprobs(logits, tokens, at), None

    with torch.no_grad():
        vocabulary = head(states[:1]).shape[-1]
    learning = torch.is_grad_enabled()
    if learning and len(states) * vocabulary <= held:
        return score(states, targets)
    size = max(1, min(held, max(CHUNK, ROWS * vocabulary)) // vocabulary)
    pieces = [
        checkpoint(score, some, tokens, use_reentrant=False) if learning else score(some, tokens)
        for some, tokens in zip(states.split(size), targets.split(size), strict=True)
    ]
    entropies = [spread for _, spread in pieces if spread is not None]
    return torch.cat([logprobs for logprobs, _ in pieces]), torch.cat(entropies) if entropies else None


def _scatter(
    batch: Batch, rows: Tensor, columns: Tensor, scored: tuple[Tensor, Tensor | None], values: Tensor | None
) -> Outputs:
    logprobs, entropies = scored
    return Outputs(
        _placed(batch, rows, columns, logprobs),
        None if entropies is None else _placed(batch, rows, columns, entropies),
        None if values is None else _placed(batch, rows, columns, values),
    )


def _placed(batch: Batch, rows: Tensor, columns: Tensor, flat: Tensor) -> Tensor:
    """`flat [M]` at its places in `[B, T]`, 0 elsewhere."""
    return flat.new_zeros(batch.mask.shape).index_put((rows, columns), flat)


def _zeros(batch: Batch) -> Tensor:
    return torch.zeros(batch.mask.shape, device=batch.tokens.device)


def _nothing(batch: Batch, entropy: bool, value_head: nn.Module | None) -> Outputs:
    zero = _zeros(batch)
    return Outputs(zero, zero if entropy else None, None if value_head is None else zero)
