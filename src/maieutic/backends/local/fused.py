"""Decode steps on a CPU with all that is not a product in a few compiled calls (`kernels`), where Numba is installed.

A layer of the common form is then two norms, one attention over the rows' own columns and over their prompt's, and the
products of `lean`; and a token is drawn in one pass over its logits. Nothing here changes what is computed: before a
model is served so, a few steps of it are held against the same steps as `lean` runs them, and the draw against
`rows.draw`; where they differ, or Numba is not there, everything stays as it is. Which way is taken depends on the
machine and the model alone, never on how much there is to do: a run that is resumed takes the way that it took.

    `R` rows · `V` vocabulary · `E` width · `H` query heads · `K` key-value heads · `D` size of a head · `T` positions
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maieutic.backends.local import kernels, rows
from maieutic.backends.local.bags import WIDTH, BagDecode, BagStore
from maieutic.backends.local.cache import Admission
from maieutic.backends.local.families import Group, Shelf
from maieutic.backends.local.lean import AGREES, LaidOutLayer, Lean
from maieutic.models.lora import quick

log = logging.getLogger("maieutic.backends.local")

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

TOGETHER = 8
"""Rows of one prompt that meet its keys together, at most: their scores stay in the nearest cache."""

FEWEST = 256
"""Positions whose rotations are computed at least; more by doubling."""


class Fused:
    """Decode steps of a `lean` trunk whose weights are laid out, on compiled kernels. Made by `fused_for`."""

    def __init__(self, lean: Lean, made: Any) -> None:
        self.lean = lean
        self.kernels = made
        self.turns: Floats = np.zeros((2, 0, 0), np.float32)
        self.served: Sequence[object] = ()
        self.layers: list[_Layer] = []
        self.plan: _Plan | None = None

    @property
    def ready(self) -> bool:
        """Whether the weights are laid out."""
        return self.lean.head is not None

    def end(self) -> None:
        """Let go of the store and of the copies of the weights: the update wants their memory."""
        self.served, self.layers, self.plan = (), [], None

    def hidden(self, tokens: Tensor, positions: Tensor, step: BagDecode) -> Tensor:
        """Last hidden states `[R, E]` of `tokens [R]` at `positions [R]`; of dead rows they mean nothing."""
        if self.served is not self.lean.layers:
            self._serve(self.lean.layers)
        body = self.lean.body
        with quick(self.lean.trunk.module):
            state = body.embed_tokens(tokens)
        at = positions.numpy()
        self._rotate(int(at.max()) + 1, state)
        if self.plan is None or not self.plan.holds(step):
            self.plan = _Plan(step)
        read = np.zeros((len(state), self.layers[0].reads), np.float32)
        for index, layer in enumerate(self.layers):
            mixed = layer.layer.reading(self._normed(state, *layer.before))
            self._attend(index, layer, mixed, at, step, read)
            state = layer.layer.parts["out"].plus(torch.from_numpy(read), state)
            state = layer.layer.fed(state, self._normed(state, *layer.after))
        return self._normed(state, *_norm(body.norm))

    def _serve(self, layers: Sequence[object]) -> None:
        self.served = layers
        self.layers = [_Layer(layer) for layer in layers if isinstance(layer, LaidOutLayer)]
        self.turns = self.turns[:, :0]

    def _normed(self, state: Tensor, weight: Floats, epsilon: np.float32) -> Tensor:
        made = torch.empty_like(state)
        self.kernels.rms_norm(state.numpy(), weight, epsilon, made.numpy())
        return made

    def _rotate(self, reach: int, state: Tensor) -> None:
        """Let `turns [2, T, D / 2]` hold the cosines and sines of so many positions."""
        if self.turns.shape[1] < reach:
            at = torch.arange(max(FEWEST, 1 << (reach - 1).bit_length()))
            pair = self.lean.body.rotary_emb(state, at[None])
            self.turns = torch.stack([x[0, :, : x.shape[2] // 2] for x in pair]).numpy()

    def _attend(self, index: int, layer: _Layer, mixed: Tensor, at: Ints, step: BagDecode, read: Floats) -> None:
        assert self.plan is not None
        heads, size = layer.layer.keys, layer.size
        like = mixed[:, : heads * size].view(-1, heads, size)
        keys, values = (kept.numpy() for kept in step.store.layer(index, like))
        for part in self.plan.parts:
            prompt = layer.nothing if part.shelf is None else [kept.numpy() for kept in part.shelf.layers[index]]
            self.kernels.attend(
                kernels.crew(), mixed.numpy(), layer.scales, layer.epsilon, layer.scaling, self.turns, at,
                step.column.numpy(), part.starts, part.members, part.places, part.lengths, *prompt, keys, values, read,
            )  # fmt: skip


class _Layer:
    """A layer's parts as the kernels take them."""

    def __init__(self, layer: LaidOutLayer) -> None:
        module, attention = layer.module, layer.module.self_attn
        self.layer = layer
        self.size = int(attention.head_dim)
        self.reads = layer.heads * self.size
        self.before, self.after = _norm(module.input_layernorm), _norm(module.post_attention_layernorm)
        none = (np.zeros(0, np.float32), np.float32(0))
        query, key = (_norm(getattr(attention, name)) if layer.normed else none for name in ("q_norm", "k_norm"))
        self.scales, self.epsilon = (query[0], key[0]), query[1]
        self.scaling = np.float32(attention.scaling)
        shapes = (1, layer.keys, self.size, WIDTH), (1, layer.keys, WIDTH, self.size)
        self.nothing = [np.zeros(shape, np.float32) for shape in shapes]


def _norm(part: Any) -> tuple[Floats, np.float32]:
    return part.weight.detach().numpy(), np.float32(part.variance_epsilon)


@dataclass(frozen=True)
class _Part:
    """The rows whose prompts lie on one shelf, or on none: unit u has `members[starts[u]:starts[u + 1]]`."""

    shelf: Shelf | None
    starts: Ints
    members: Ints
    places: Ints
    lengths: Ints


class _Plan:
    """Which live rows are read with which prompt; it holds until one ends, begins or moves."""

    def __init__(self, step: BagDecode) -> None:
        self.store: BagStore = step.store
        self.groups: tuple[Group, ...] = step.groups
        self.alive = step.alive.copy()
        live = np.flatnonzero(self.alive)
        home = self.store.families.home[live]
        self.parts = [self._part(int(columns), live[home[:, 0] == columns]) for columns in np.unique(home[:, 0])]

    def holds(self, step: BagDecode) -> bool:
        """Is it a plan of that step?"""
        same = self.store is step.store and self.groups is step.groups
        return same and np.array_equal(self.alive, step.alive)

    def _part(self, columns: int, live: Ints) -> _Part:
        if not columns:
            none = np.zeros(len(live), np.int64)
            return _Part(None, np.arange(len(live) + 1), live, none, none)
        families = self.store.families
        order = np.argsort(families.home[live, 1], kind="stable")
        members = live[order]
        place = families.home[members, 1]
        bounds = [*np.flatnonzero(np.diff(place, prepend=-1)).tolist(), len(place)]
        starts = [at for begin, end in pairwise(bounds) for at in range(begin, end, TOGETHER)]
        places = place[starts]
        shelf = families.shelves[columns]
        return _Part(shelf, np.array([*starts, len(place)]), members, places, shelf.lengths[places])


def fused_for(lean: Lean | None, made: Any = None) -> Fused | None:
    """`lean` with kernels for its decode steps, or None where they cannot serve it or their numbers differ.

    `made`: the kernels (None: those of this package, where they can be had and the model has `SMALLEST` weights).
    """
    if lean is None or not lean.lays_out or not _fits(lean):
        return None
    if made is None and sum(weight.numel() for weight in lean.body.parameters()) >= kernels.SMALLEST:
        made = kernels.decoding()
    if made is None:
        return None
    plain = Lean(lean.trunk)
    plain.begin()
    with torch.inference_mode():
        expected = _decoded(plain, plain)
        try:
            found = _decoded(plain, Fused(plain, made))
        except made.FAILURES as error:
            _refuse(f"Decode steps of {type(lean.body).__name__} cannot be compiled ({error})")
            return None
    plain.end()
    # Taken together: a state that is nearly nothing before its norm has the rounding of both ways magnified.
    difference = float((expected - found).square().mean().sqrt() / expected.std())
    if not difference <= AGREES:
        _refuse(f"Compiled decode steps of {type(lean.body).__name__} differ by {difference:.2g} of their spread")
        return None
    return Fused(lean, made)


def _refuse(why: str) -> None:
    log.warning("%s: they are run one operation at a time instead, with the same numbers as ever.", why)


def _fits(lean: Lean) -> bool:
    """Are heads of a size that the kernels have, rotated whole, and all that is no product in float32?"""
    size = int(lean.body.layers[0].self_attn.head_dim)
    weights = (weight for name, weight in lean.body.named_parameters() if "norm" in name)
    turned = lean.body.rotary_emb(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long))
    whole = all(each.shape[-1] == size and each.dtype == torch.float32 for each in turned)
    return size % 8 == 0 and whole and all(weight.dtype == torch.float32 for weight in weights)


def _decoded(lean: Lean, body: Lean | Fused) -> Tensor:
    """Hidden states of two decode steps of `body`, over made-up keys and values: of three siblings, past the end of
    their prompt's first page, and of a row that is alone."""
    store, draw = BagStore(), torch.Generator().manual_seed(0)
    store.reserve(4, 64)
    prompts = [Admission([0] * (WIDTH + 3), [0, 1, 3], 4, siblings=3), Admission([0] * (WIDTH - 1), [2], 4)]
    for prompt in prompts:
        place = store.place(prompt)
        for index, layer in enumerate(lean.layers):
            assert isinstance(layer, LaidOutLayer)
            shape = (2, len(prompt.prompt), layer.keys, layer.module.self_attn.head_dim)
            key, value = torch.randn(shape, generator=draw)
            store.put(place, index, key, value)
    found = []
    for step in range(2):
        tokens = torch.randint(0, int(lean.body.embed_tokens.num_embeddings), (4,), generator=draw)
        at = np.array([WIDTH + 3, WIDTH + 3, WIDTH - 1, WIDTH + 3]) + step
        layout = store.decode(at, np.ones(4, np.bool_))
        assert isinstance(layout, BagDecode)
        found.append(body.hidden(tokens, torch.from_numpy(at), layout))
    return torch.cat(found)


def draw(logits: Tensor, temperatures: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """See `rows.draw`: in one call, where the kernel for it is to be had and fits."""
    made = _drawing()
    served = logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.is_contiguous()
    if made is None or not served:
        return rows.draw(logits, temperatures, uniform)
    return _drawn(made, logits, temperatures, uniform)


def _drawn(made: Any, logits: Tensor, temperatures: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    tokens, logprobs = torch.empty(len(logits), dtype=torch.long), torch.empty(len(logits))
    given = (logits.detach().numpy(), temperatures.numpy(), uniform.numpy(), tokens.numpy(), logprobs.numpy())
    made.draw(kernels.crew(), *given)
    return tokens, logprobs


@cache
def _drawing() -> ModuleType | None:
    """The kernels, where what they draw is what `rows.draw` draws. Tried once."""
    made = kernels.decoding()
    if made is None:
        return None
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(48, 5 * rows.BLOCK + 7, generator=generator)
    logits[:, ::3] = -torch.inf
    temperatures = torch.tensor([0.0, 0.7, 1.0]).repeat(16)
    uniform = torch.rand(48, generator=generator)
    expected = rows.draw(logits, temperatures, uniform)
    try:
        found = _drawn(made, logits, temperatures, uniform)
    except made.FAILURES as error:
        _refuse(f"Draws cannot be compiled ({error})")
        return None
    if torch.equal(expected[0], found[0]) and float((expected[1] - found[1]).abs().max()) <= AGREES:
        return made
    _refuse("Compiled draws differ from those of torch")
    return None
