"""What the sampler asks of a model: logits of the next token for rows that live in numbered slots.

`SlotDecoder` is the fast one (plugged attention, its own key-value store). `OrdinaryDecoder` serves every other
architecture with the module's own forward and cache, one prompt's siblings at a time: they are always equally long, so
nothing is padded and nothing needs to be known about the architecture.

    `N` prompts · `R` rows · `V` vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maieutic.backends.local.attention import Layout
from maieutic.backends.local.bags import BagDecode, BagStore
from maieutic.backends.local.cache import Admission, KeyValues, Store
from maieutic.backends.local.fused import fused_for
from maieutic.backends.local.lean import lean_for
from maieutic.backends.local.packing import Piece, lay_out
from maieutic.backends.local.prefixes import NOTHING, Prefixes, Prior, Resumed, fingerprint
from maieutic.backends.local.trunk import Trunk

if TYPE_CHECKING:
    from maieutic.backends.local.replay import Stepper

Ints = NDArray[np.int64]

COLUMN_STEP, SPARE_SLOTS = 64, 8
"""Room is reserved in steps of columns, with a spare slot for so many: one more row or a slightly longer prompt does
not move the whole store."""


class Decoder(Protocol):
    """Rows in slots `0, 1, …`; a slot is free again when a new row is admitted to it.

    `off_policy`: whether its numbers are coarser than those that the policy learns in, so that it is another policy.
    """

    off_policy: bool

    def begin(self, version: int = 0) -> None:
        """A batch of rows begins; until `end` the weights stay as they are. `version` counts their updates."""
        ...

    def end(self) -> None:
        """There are no rows any more: their memory, and what was made of the weights, is given back."""
        ...

    def columns_for(self, prompt: int, room: int, siblings: int) -> int:
        """Columns of the store that a row takes; see `cache.KeyValues`."""
        ...

    def admit(self, admissions: Sequence[Admission], columns: int, used: int) -> Tensor:
        """Run prompts into the slots of their siblings; logits after each prompt, `[N, V]`.

        `columns` is the most that any live row takes, and every live row is in one of the first `used` slots.
        """
        ...

    def decode(self, tokens: Ints, positions: Ints, alive: NDArray[np.bool_]) -> Tensor:
        """Feed one token to each of the slots `0 … R - 1`; logits `[R, V]`, of which those not alive mean nothing."""
        ...

    def move(self, sources: Ints, targets: Ints, columns: int) -> None:
        """Let slots `targets` go on where `sources` are; `columns` bounds the positions in use."""
        ...

    def rows_within(self, size: int, columns: int) -> int:
        """How many rows of so many columns fit in `size` bytes (at least one)."""
        ...

    def clear(self) -> None:
        """Forget every row and give their memory back."""
        ...

    def stepper(self) -> Stepper | None:
        """What runs several steps without asking the host in between; None where nothing does."""
        ...

    def keep(self, slot: int, tokens: Sequence[int]) -> None:
        """Keep the keys and values of a row that has ended, for prompts that begin with what it was fed."""
        ...


class SlotDecoder:
    """Decoding through plugged attention, in as few calls as the module allows.

    `store` makes what keeps keys and values (None: what suits the machine). `numbers` are those of the products of
    decode steps where the trunk can be run in them (None: the weights'); afterwards, those in which they are. Prompts
    are run in the weights' own on a CPU.
    """

    def __init__(
        self,
        trunk: Trunk,
        device: torch.device,
        store: Callable[[], KeyValues] | None = None,
        numbers: torch.dtype | None = None,
    ) -> None:
        self.trunk = trunk
        self.device = device
        plain = device.type == "cpu" and next(trunk.head.parameters()).dtype == torch.float32
        self.new_store: Callable[[], KeyValues] = store or (BagStore if plain else lambda: Store(device))
        self.store = self.new_store()
        kept = next(trunk.head.parameters()).dtype
        self.lean = lean_for(trunk, numbers or kept) if plain else lean_for(trunk)
        self.fused = fused_for(self.lean) if plain else None
        self.numbers = numbers if numbers and self.lean is not None and self.lean.lays_out else kept
        self.off_policy = False
        self.prefixes = Prefixes()

    def begin(self, version: int = 0) -> None:
        """See `Decoder`."""
        self._serve(version)
        if self.lean is not None:
            self.lean.begin()

    def _serve(self, version: int) -> None:
        self.prefixes.serve((version, fingerprint(self.trunk.module)))

    def end(self) -> None:
        """See `Decoder`. The store goes too: what comes next (an update) may want its memory."""
        self.clear()
        if self.lean is not None:
            self.lean.end()
        if self.fused is not None:
            self.fused.end()

    def columns_for(self, prompt: int, room: int, siblings: int) -> int:
        """See `Decoder`."""
        return self.store.columns_for(prompt, room, siblings)

    def admit(self, admissions: Sequence[Admission], columns: int, used: int) -> Tensor:
        """See `Decoder`."""
        self.store.reserve(used + used // SPARE_SLOTS, _up(columns, COLUMN_STEP))
        return self._prefill(admissions)

    def _prefill(self, admissions: Sequence[Admission]) -> Tensor:
        """Logits `[N, V]` after the prompts, whose keys and values the store then has."""
        priors = [NOTHING if one.prefill is None else self.prefixes.find(one.prompt) for one in admissions]
        for one, prior in zip(admissions, priors, strict=True):
            if one.prefill is not None:
                one.prefill.computed += len(one.prompt) - prior.length
                one.prefill.reused += prior.length
        if any(prior.length for prior in priors):
            return self._resume(admissions, priors)
        pieces = [Piece(np.asarray(one.prompt, dtype=np.int64), 0, i) for i, one in enumerate(admissions)]
        packed, starts, _ = lay_out(pieces, [])
        flat = np.empty(sum(len(p.tokens) for p in pieces), np.int64)
        positions = np.empty_like(flat)
        for piece, start in zip(pieces, starts, strict=True):
            flat[start : start + len(piece.tokens)] = piece.tokens
            positions[start : start + len(piece.tokens)] = np.arange(len(piece.tokens))
        order = iter(np.argsort(starts).tolist())
        members = [list(islice(order, block.rows)) for block in packed.blocks]
        layout = self.store.prefill(packed.to(self.device), members, admissions)
        hidden = self._run(self._put(flat), self._put(positions), layout)
        ends = starts + np.array([len(p.tokens) for p in pieces]) - 1
        return self._head(hidden[self._put(ends)])

    def _resume(self, admissions: Sequence[Admission], priors: Sequence[Prior]) -> Tensor:
        """As `_prefill`, of prompts of which the beginnings are there."""
        rest = [np.asarray(one.prompt, np.int64)[prior.length :] for one, prior in zip(admissions, priors, strict=True)]
        positions = [np.arange(prior.length, prior.length + len(own)) for prior, own in zip(priors, rest, strict=True)]
        layout = Resumed(self.store, admissions, priors, self.device)
        hidden = self._run(self._put(np.concatenate(rest)), self._put(np.concatenate(positions)), layout)
        return self._head(hidden[self._put(np.cumsum([len(own) for own in rest]) - 1)])

    def keep(self, slot: int, tokens: Sequence[int]) -> None:
        """See `Decoder`. Where decode steps are coarser than prompts, another read would be another prompt: nothing."""
        if self.numbers == next(self.trunk.head.parameters()).dtype:
            self.prefixes.keep(tokens, lambda start, stop: self.store.read(slot, start, stop))

    def _run(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        return self.trunk.hidden(tokens, positions, layout)

    def _head(self, hidden: Tensor) -> Tensor:
        return self.trunk.logits(hidden)

    def stepper(self) -> Stepper | None:
        """See `Decoder`."""
        return None

    def decode(self, tokens: Ints, positions: Ints, alive: NDArray[np.bool_]) -> Tensor:
        """See `Decoder`."""
        at = np.minimum(positions, positions[alive].max())
        layout = self.store.decode(at, alive)
        if self.fused is not None and self.fused.ready and isinstance(layout, BagDecode):
            return self.fused.lean.logits(self.fused.hidden(self._put(tokens), self._put(at), layout))
        body = self.lean or self.trunk
        return body.logits(body.hidden(self._put(tokens), self._put(at), layout))

    def move(self, sources: Ints, targets: Ints, columns: int) -> None:
        """See `Decoder`."""
        self.store.move(self._put(sources), self._put(targets), columns)

    def rows_within(self, size: int, columns: int) -> int:
        """See `Decoder`."""
        if not self.store.layers:  # what a column takes is seen by running a token
            self.admit([Admission([0], [0], 1)], 1, 1)
        slots = size // max(1, self.store.bytes_per_slot(_up(columns, COLUMN_STEP)))
        return max(1, slots * SPARE_SLOTS // (SPARE_SLOTS + 1))

    def clear(self) -> None:
        """See `Decoder`."""
        self.store = self.new_store()

    def _put(self, array: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self.device)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


class _Siblings:
    """The rows of one prompt: their slots (-1 once gone), their tokens `[n, t]`, and the module's cache of them.

    A module that returns no cache in transformers' common form is given all its tokens again each time.
    """

    def __init__(self, slots: Sequence[int], tokens: Tensor) -> None:
        self.slots = np.array(slots)
        self.tokens = tokens
        self.cache: Any = None

    def run(self, module: nn.Module) -> Tensor:
        """Logits after the latest token, `[n, V]`."""
        seen = self.tokens.shape[1]
        if self.cache is None:
            out = module(input_ids=self.tokens, attention_mask=torch.ones_like(self.tokens), use_cache=True)
        else:
            out = module(
                input_ids=self.tokens[:, -1:],
                attention_mask=torch.ones_like(self.tokens),
                position_ids=torch.full_like(self.tokens[:, -1:], seen - 1),
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache = getattr(out, "past_key_values", None)
        return out.logits[:, -1]


class OrdinaryDecoder:
    """Decoding through the module's own forward and cache. Slow, and right for every architecture."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module
        self.device = device
        self.families: list[_Siblings] = []
        self.off_policy = False

    def begin(self, version: int = 0) -> None:
        """See `Decoder`: nothing is made of the weights."""

    def keep(self, slot: int, tokens: Sequence[int]) -> None:
        """See `Decoder`: not known of an arbitrary cache."""

    def stepper(self) -> Stepper | None:
        """See `Decoder`."""
        return None

    def end(self) -> None:
        """See `Decoder`."""

    def columns_for(self, prompt: int, room: int, siblings: int) -> int:  # noqa: ARG002
        """See `Decoder`."""
        return prompt + room

    def admit(self, admissions: Sequence[Admission], columns: int, used: int) -> Tensor:  # noqa: ARG002
        """See `Decoder`."""
        self._vacate(np.concatenate([np.asarray(one.slots) for one in admissions]))
        after = []
        for one in admissions:
            # Every sibling runs the prompt: repeating a cache is not possible for every kind of cache.
            tokens = torch.tensor([list(one.prompt)], device=self.device).repeat(len(one.slots), 1)
            if one.prefill is not None:
                one.prefill.computed += tokens.numel()
            self.families.append(_Siblings(one.slots, tokens))
            after.append(self.families[-1].run(self.module)[0])
        return torch.stack(after)

    def decode(self, tokens: Ints, positions: Ints, alive: NDArray[np.bool_]) -> Tensor:  # noqa: ARG002
        """See `Decoder`."""
        self._keep(np.flatnonzero(alive))
        found = []
        for family in self.families:
            kept = family.slots >= 0
            fed = torch.from_numpy(np.where(kept, tokens[np.maximum(family.slots, 0)], 0)).to(self.device)
            family.tokens = torch.cat([family.tokens, fed[:, None]], dim=1)
            found.append((family.slots[kept], family.run(self.module)[torch.from_numpy(kept).to(self.device)]))
        logits = found[0][1].new_zeros(len(tokens), found[0][1].shape[-1])
        for slots, own in found:
            logits[torch.from_numpy(slots).to(self.device)] = own
        return logits

    def move(self, sources: Ints, targets: Ints, columns: int) -> None:  # noqa: ARG002
        """See `Decoder`."""
        self._vacate(targets)
        renamed = dict(zip(sources.tolist(), targets.tolist(), strict=True))
        for family in self.families:
            family.slots = np.array([renamed.get(slot, slot) for slot in family.slots.tolist()])

    def rows_within(self, size: int, columns: int) -> int:  # noqa: ARG002
        """Not known for an arbitrary cache: as many as the sampler wants."""
        return size

    def clear(self) -> None:
        """See `Decoder`."""
        self.families = []

    def _vacate(self, slots: Ints) -> None:
        for family in self.families:
            family.slots[np.isin(family.slots, slots)] = -1
        self._drop_empty()

    def _keep(self, slots: Ints) -> None:
        for family in self.families:
            family.slots[~np.isin(family.slots, slots)] = -1
        self._drop_empty()

    def _drop_empty(self) -> None:
        self.families = [family for family in self.families if (family.slots >= 0).any()]
