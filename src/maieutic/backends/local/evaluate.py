"""From a batch to what the model says of it: log-probs, entropies and values of the chosen tokens.

`PackedForward` computes without padding through plugged attention; `PaddedForward` is the module's ordinary forward,
for architectures that the plug cannot serve. Both send only predictions of chosen tokens to the softmax.

    `B` rows, `T` columns · `M` predictions · `E` width of a hidden state · `V` vocabulary · `K` candidates of a teacher
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maieutic.backends.local.coarse import has_units
from maieutic.backends.local.flexible import flexible_for, lay_out_flexibly
from maieutic.backends.local.lean import lean_for
from maieutic.backends.local.packing import Packed, pack_tokens, split, split_padded
from maieutic.backends.local.recompute import decoder_layers, recomputing, runner
from maieutic.backends.local.scoring import scoring_for
from maieutic.backends.local.segments import serves
from maieutic.backends.local.trunk import Trunk, bare
from maieutic.clock import count
from maieutic.models.causal import likeliest
from maieutic.models.precision import computing, wide_head
from maieutic.models.softmax import Scores, scores
from maieutic.types import Batch, Outputs

EASE = 960
"""Tokens that a CPU runs at once, where groups allow it. More gain little: products are at their full speed with a few
hundred rows, everything between them falls out of the caches, and all that is kept for the gradient is memory."""

HELD = 1 << 26
"""Logits that may be held for the backward pass (float32: 256 MB). More are made again in the backward pass."""

PIECE = 3 << 21
"""Logits of a piece, where they are held: their gradient is there for one piece at a time, of a size (float32: 25 MB)
whose memory the C library keeps from one to the next; larger blocks are given back and mapped anew."""

CHUNK = 1 << 20
"""Logits of a chunk, where they are made again: few enough to stay in a processor's cache between operations."""

ON_GPU = 1 << 28
"""Logits of a piece or chunk on a GPU (float32: 1 GB): some 2,000 rows of a large vocabulary, which fill it."""

ROWS = 256
"""Predictions of a piece or chunk at least: the head's matrix is read once for each."""


def held_on(device: torch.device) -> int:
    """`HELD`, or on a GPU as many logits as take a sixteenth of its memory."""
    if device.type != "cuda":
        return HELD
    return max(HELD, torch.cuda.get_device_properties(device).total_memory // 64)


class Forward(Protocol):
    """A way of running a module over a batch."""

    def split(self, batch: Batch, budget: int) -> list[Tensor]:
        """Row numbers of micro-batches that run `budget` tokens at once; see `packing.split`."""
        ...

    def outputs(self, batch: Batch, entropy: bool, value_head: nn.Module | None = None) -> Outputs:
        """What the model says of the chosen tokens, `[B, T]`, 0 elsewhere; `entropy` asks for entropies.

        Where the batch has `teacher_top_ids`, also what it says of these candidates, `[B, T, K]`.
        """
        ...

    def values(self, batch: Batch, value_head: nn.Module) -> Tensor:
        """The values alone, `[B, T]`."""
        ...

    def top(self, batch: Batch, k: int, vocabulary: int) -> tuple[Tensor, Tensor]:
        """Ids and log-probs `[B, T, K]` of the `k` likeliest of the first `vocabulary` tokens, falling; 0 elsewhere."""
        ...

    def logits(self, batch: Batch, at: Tensor) -> Tensor:
        """`[M, V]` of the distributions from which the chosen tokens `at [B, T]` came, at temperature 1, row by row.

        There is at least one of them.
        """
        ...


class PackedForward:
    """Without padding, every prompt once. See `packing`; with `recompute`, `recompute`.

    `numbers` are those of products (None: the weights'), see `maieutic.models.precision`.
    """

    def __init__(
        self,
        trunk: Trunk,
        held: int | None = None,
        recompute: bool = False,
        numbers: torch.dtype | None = None,
    ) -> None:
        self.trunk = trunk
        self.lean = lean_for(trunk)
        self.scoring = scoring_for(trunk)
        self.held = held_on(self._weight.device) if held is None else held
        self.recompute = recompute
        self.numbers = numbers or self._weight.dtype
        self.flexible = flexible_for(trunk.config, self._weight.device, self.numbers)

    def split(self, batch: Batch, budget: int) -> list[Tensor]:
        """See `Forward`."""
        return split(batch, budget, EASE if self._weight.device.type == "cpu" else None)

    def outputs(self, batch: Batch, entropy: bool, value_head: nn.Module | None = None) -> Outputs:
        """See `Forward`."""
        packed = self._pack(batch)
        if packed is None:
            return _nothing(batch, entropy, value_head)
        hidden = self._hidden(packed)
        states = hidden.index_select(0, packed.sources)
        if self.scoring is None or not self._in_float32:
            scored = _score(self._head(), states, batch, packed.rows, packed.columns, entropy, self.held)
        else:
            ids, asked = _ids(batch, packed.rows, packed.columns)
            found, spread = self.scoring(states, ids, _temperature(batch), self.held)
            scored = Scores(found[:, 0], spread if entropy else None, found[:, 1:] if asked else None)
        values = None if value_head is None else value_head(states).reshape(-1)
        return _scatter(batch, packed.rows, packed.columns, scored, values)

    def values(self, batch: Batch, value_head: nn.Module) -> Tensor:
        """See `Forward`."""
        packed = self._pack(batch)
        if packed is None:
            return _zeros(batch)
        states = self._hidden(packed).index_select(0, packed.sources)
        return _placed(batch, packed.rows, packed.columns, value_head(states).reshape(-1))

    def top(self, batch: Batch, k: int, vocabulary: int) -> tuple[Tensor, Tensor]:
        """See `Forward`."""
        packed = self._pack(batch)
        if packed is None:
            return _no_candidates(batch, k)
        states = self._hidden(packed).index_select(0, packed.sources)
        return _top(self._head(), states, batch, packed.rows, packed.columns, k, vocabulary)

    def logits(self, batch: Batch, at: Tensor) -> Tensor:
        """See `Forward`."""
        packed = pack_tokens(batch.tokens, batch.mask)  # in blocks: whoever asks may differentiate twice
        assert packed is not None, "there is a chosen token to compare at"
        count(len(packed.tokens))
        hidden = self.trunk.hidden(packed.tokens, packed.positions, packed.layout)
        return self.trunk.logits(hidden.index_select(0, packed.sources[at[packed.rows, packed.columns]]))

    @property
    def _weight(self) -> Tensor:
        return next(self.trunk.head.parameters())

    @property
    def _rounds_products_alone(self) -> bool:
        """Whether what comes out of a coarse product is float32 again, as of `coarse.learned`."""
        return self.lean is not None and self._weight.device.type == "cpu" and has_units(torch.bfloat16)

    @property
    def _in_float32(self) -> bool:
        """Whether hidden states are as wide as the weights."""
        return self.numbers == self._weight.dtype or self._rounds_products_alone

    def _pack(self, batch: Batch) -> Packed | None:
        return pack_tokens(
            batch.tokens,
            batch.mask,
            segments=serves(self._weight) and self._in_float32,
            arrange=lay_out_flexibly if self.flexible else None,
        )

    def _hidden(self, packed: Packed) -> Tensor:
        count(len(packed.tokens) - packed.filling)
        again = self.recompute and torch.is_grad_enabled()
        with computing(self._weight, self.numbers):
            return (self.lean or self.trunk).hidden(packed.tokens, packed.positions, packed.layout, again)

    def _head(self) -> Callable[[Tensor], Tensor]:
        """Logits of hidden states, in float32 at least where products are coarse."""
        plain = self._in_float32
        if plain and (self._weight.device.type == "cpu" or self.numbers.itemsize >= 4):
            return self.trunk.logits
        return wide_head(self.trunk.head, self.numbers) or self._coarse_logits

    def _coarse_logits(self, states: Tensor) -> Tensor:
        with computing(self._weight, self.numbers):
            return self.trunk.logits(states)


class PaddedForward:
    """The module's own forward over right-padded rows; `recompute` and `numbers` as in `PackedForward`."""

    def __init__(self, module: nn.Module, recompute: bool = False, numbers: torch.dtype | None = None) -> None:
        self.module = module
        self.recompute = recompute
        self.weight = next(module.parameters())
        self.numbers = numbers or self.weight.dtype
        base: Any = bare(module)
        self.vocabulary = base.get_input_embeddings().weight.shape[0]

    def split(self, batch: Batch, budget: int) -> list[Tensor]:
        """See `Forward`. Here the module makes logits of all tokens, so a large vocabulary lowers the budget."""
        return split_padded(batch, min(budget, max(512, 2 * HELD // self.vocabulary)))

    def outputs(self, batch: Batch, entropy: bool, value_head: nn.Module | None = None) -> Outputs:
        """See `Forward`."""
        if not batch.mask.any():
            return _nothing(batch, entropy, value_head)
        out = self._run(batch, hidden=value_head is not None, recompute=self.recompute)
        rows, columns = torch.nonzero(batch.mask, as_tuple=True)
        logits = out.logits[rows, columns - 1]
        scored = _score(lambda x: x, logits, batch, rows, columns, entropy)
        values = None if value_head is None else value_head(out.hidden_states[-1][rows, columns - 1]).reshape(-1)
        return _scatter(batch, rows, columns, scored, values)

    def values(self, batch: Batch, value_head: nn.Module) -> Tensor:
        """See `Forward`."""
        if not batch.mask.any():
            return _zeros(batch)
        rows, columns = torch.nonzero(batch.mask, as_tuple=True)
        states = self._run(batch, hidden=True, recompute=self.recompute).hidden_states[-1][rows, columns - 1]
        return _placed(batch, rows, columns, value_head(states).reshape(-1))

    def logits(self, batch: Batch, at: Tensor) -> Tensor:
        """See `Forward`."""
        rows, columns = torch.nonzero(at & batch.mask, as_tuple=True)
        return self._run(batch, hidden=False).logits[rows, columns - 1]

    def top(self, batch: Batch, k: int, vocabulary: int) -> tuple[Tensor, Tensor]:
        """See `Forward`."""
        if not batch.mask.any():
            return _no_candidates(batch, k)
        rows, columns = torch.nonzero(batch.mask, as_tuple=True)
        logits = self._run(batch, hidden=False).logits[rows, columns - 1]
        return _top(lambda x: x, logits, batch, rows, columns, k, vocabulary)

    def _run(self, batch: Batch, hidden: bool, recompute: bool = False) -> Any:
        tokens = batch.tokens[:, : int(batch.lengths.max())]
        count(int(batch.lengths.sum()))
        again = recompute and torch.is_grad_enabled()
        layers = decoder_layers(bare(self.module)) if again else []
        with computing(self.weight, self.numbers), recomputing(layers, runner(self.module)):
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
    batch: Batch,
    rows: Tensor,
    columns: Tensor,
    entropy: bool,
    held: int = HELD,
) -> Scores:
    """From states `[M, E]` that predict the tokens of the batch at `rows, columns [M]`."""
    at, asked = _temperature(batch), batch.has("teacher_top_ids")

    def read(logits: Tensor, tokens: Tensor, *ids: Tensor) -> tuple[Tensor, ...]:
        found = scores(logits, tokens, at, entropy=entropy, candidates=ids[0] if ids else None)
        return tuple(part for part in found if part is not None)

    aligned = [batch.tokens[rows, columns], *([batch.teacher_top_ids[rows, columns]] if asked else [])]
    found = _in_chunks(head, states, aligned, read, held)
    return Scores(found[0], found[1] if entropy else None, found[-1] if asked else None)


def _ids(batch: Batch, rows: Tensor, columns: Tensor) -> tuple[Tensor, bool]:
    """What is scored of each prediction, `[M, 1 + K]`: its token and a teacher's candidates; whether there are any."""
    tokens = batch.tokens[rows, columns][:, None]
    if not batch.has("teacher_top_ids"):
        return tokens, False
    return torch.cat([tokens, batch.teacher_top_ids[rows, columns]], dim=1), True


def _top(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    batch: Batch,
    rows: Tensor,
    columns: Tensor,
    k: int,
    vocabulary: int,
) -> tuple[Tensor, Tensor]:
    at = _temperature(batch)
    ids, logprobs = _in_chunks(head, states, [], lambda logits: likeliest(logits, k, vocabulary, at), HELD)
    return _placed(batch, rows, columns, ids), _placed(batch, rows, columns, logprobs)


def _temperature(batch: Batch) -> float:
    return batch.temperature if batch.temperature > 0 else 1.0  # greedy samples carry log-probs at temperature 1


def _in_chunks(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    aligned: Sequence[Tensor],
    read: Callable[..., tuple[Tensor, ...]],
    held: int,
) -> tuple[Tensor, ...]:
    """`read(head(states), *aligned)`, `[M, …]` each, chunk by chunk where that helps."""

    def run(some: Tensor, *beside: Tensor) -> tuple[Tensor, ...]:
        return read(head(some), *beside)

    with torch.no_grad():
        vocabulary = head(states[:1]).shape[-1]
    again = torch.is_grad_enabled() and len(states) * vocabulary > held
    wanted = PIECE if torch.is_grad_enabled() and not again else CHUNK
    if states.device.type == "cuda":
        wanted = ON_GPU
    size = max(1, min(held, max(wanted, ROWS * vocabulary)) // vocabulary)
    pieces = [
        checkpoint(run, *some, use_reentrant=False) if again else run(*some)
        for some in zip(*(each.split(size) for each in (states, *aligned)), strict=True)
    ]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def _scatter(batch: Batch, rows: Tensor, columns: Tensor, scored: Scores, values: Tensor | None) -> Outputs:
    def placed(flat: Tensor | None) -> Tensor | None:
        return None if flat is None else _placed(batch, rows, columns, flat)

    logprobs = _placed(batch, rows, columns, scored.logprobs)
    return Outputs(logprobs, placed(scored.entropy), placed(values), placed(scored.candidates))


def _placed(batch: Batch, rows: Tensor, columns: Tensor, flat: Tensor) -> Tensor:
    """`flat [M, …]` at its places in `[B, T, …]`, 0 elsewhere."""
    return flat.new_zeros((*batch.mask.shape, *flat.shape[1:])).index_put((rows, columns), flat)


def _zeros(batch: Batch) -> Tensor:
    return torch.zeros(batch.mask.shape, device=batch.tokens.device)


def _no_candidates(batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    zero = _zeros(batch)[..., None].expand(-1, -1, k)
    return zero.long(), zero


def _nothing(batch: Batch, entropy: bool, value_head: nn.Module | None) -> Outputs:
    zero = _zeros(batch)
    top = _zeros(batch)[..., None].expand_as(batch.teacher_top_ids) if batch.has("teacher_top_ids") else None
    return Outputs(zero, zero if entropy else None, None if value_head is None else zero, top)
