"""Keys and values of what was read before, kept for prompts that begin with it: a search goes on from the same
beginnings again and again, and computes only what is new.

    prompt ┬ step a ┬ step c          a tree of stretches of tokens; what two sequences begin with is there once
           │        └ step d          a prompt reads the stretches that it begins with, and runs the rest
           └ step b

Keys and values of a token depend on the tokens before it and on the weights, so that a stretch serves whatever follows.
When the weights have changed, everything is forgotten; when there is no room, what was not read for longest.

    `t` tokens of a stretch · `N` tokens of a flat sequence · `K` key-value heads · `H` query heads · `D` size of a head
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from maieutic.backends.local.attention import attended
from maieutic.backends.local.cache import Admission

KEPT = 256 << 20
"""Bytes of keys and values that are kept at most."""

#: Keys and values `[t, K, D]` by layer.
Layers = dict[int, tuple[Tensor, Tensor]]


class Prior(NamedTuple):
    """What is there already of a prompt: its first `length` tokens."""

    length: int
    layers: Layers


NOTHING = Prior(0, {})


@dataclass(eq=False)
class _Stretch:
    """Tokens that follow those of `above`, with their keys and values; `below` by first token; `used` when last."""

    tokens: tuple[int, ...]
    layers: Layers
    above: _Stretch | None
    used: int = 0
    below: dict[int, _Stretch] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(each.nbytes for pair in self.layers.values() for each in pair)


class Prefixes:
    """The tree, of at most `bound` bytes (0: nothing is kept)."""

    def __init__(self, bound: int = KEPT) -> None:
        self.bound = bound
        self.size = 0
        self.root = _Stretch((), {}, None)
        self.clock = 0
        self.weights: Hashable = None

    def serve(self, weights: Hashable) -> None:
        """From now on the weights are these; what other ones made is forgotten."""
        if weights != self.weights:
            self.forget()
            self.weights = weights

    def forget(self) -> None:
        """Keep nothing of what there is."""
        self.root = _Stretch((), {}, None)
        self.size = 0

    def find(self, tokens: Sequence[int]) -> Prior:
        """What is there of a prompt, its last token left out: that one is to be run, for what comes after it."""
        path = list(self._along(tuple(tokens)[:-1]))
        if not path:
            return NOTHING
        length = sum(count for _, count in path)
        layers = {
            layer: (
                torch.cat([part.layers[layer][0][:count] for part, count in path]),
                torch.cat([part.layers[layer][1][:count] for part, count in path]),
            )
            for layer in path[0][0].layers
        }
        return Prior(length, layers)

    def keep(self, tokens: Sequence[int], read: Callable[[int, int], Layers]) -> None:
        """Keep a sequence; `read(start, stop)` gives the keys and values of what is not there yet, as tensors that
        nobody else writes to."""
        whole = tuple(tokens)
        path = list(self._along(whole))
        at = sum(count for _, count in path)
        if at == len(whole) or self.bound <= 0:
            return
        last, count = path[-1] if path else (self.root, 0)
        if count < len(last.tokens):
            last = self._split(last, count)
        new = _Stretch(whole[at:], read(at, len(whole)), last, self.clock)
        last.below[whole[at]] = new
        self.size += new.size
        self._shrink()

    def _along(self, tokens: tuple[int, ...]) -> Iterator[tuple[_Stretch, int]]:
        """The stretches that the tokens begin with, and how many tokens of each they have."""
        self.clock += 1
        at, here = 0, self.root
        while at < len(tokens) and tokens[at] in here.below:
            here = here.below[tokens[at]]
            here.used = self.clock
            count = _alike(here.tokens, tokens[at:])
            yield here, count
            at += count
            if count < len(here.tokens):
                return

    def _split(self, stretch: _Stretch, at: int) -> _Stretch:
        """Cut a stretch in two; the first half is returned, and is in the tree where the whole was."""
        above = stretch.above
        assert above is not None, "the root has no tokens, and is never cut"
        first = _Stretch(stretch.tokens[:at], _cut(stretch.layers, 0, at), above, stretch.used)
        above.below[first.tokens[0]] = first
        stretch.tokens, stretch.layers = stretch.tokens[at:], _cut(stretch.layers, at, len(stretch.tokens))
        stretch.above = first
        first.below[stretch.tokens[0]] = stretch
        return first

    def _shrink(self) -> None:
        while self.size > self.bound:
            for leaf in sorted(self._leaves(self.root), key=lambda each: each.used):
                assert leaf.above is not None, "something is kept, so the root is no leaf"
                del leaf.above.below[leaf.tokens[0]]
                self.size -= leaf.size
                if self.size <= self.bound:
                    return

    def _leaves(self, stretch: _Stretch) -> list[_Stretch]:
        found, waiting = [], list(stretch.below.values())
        while waiting:
            each = waiting.pop()
            waiting.extend(each.below.values())
            if not each.below:
                found.append(each)
        return found


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """With how many equal tokens the two begin."""
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


def _cut(layers: Layers, start: int, stop: int) -> Layers:
    """Copies, so that the memory of the one half is given back without the other."""
    return {layer: (keys[start:stop].clone(), values[start:stop].clone()) for layer, (keys, values) in layers.items()}


@torch.inference_mode()
def fingerprint(module: nn.Module) -> Hashable:
    """Changes when a parameter is written to or replaced. Torch counts writes, but not those of fused optimisers, which
    change every parameter: so a number of each is part of it."""
    parameters = list(module.parameters())
    some = [each.as_strided((1,), (1,)).float() for each in parameters if each.numel()]
    counted = tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in parameters)
    return counted, torch.cat(some).cpu().numpy().tobytes()


class Places(Protocol):
    """A store of keys and values as `Resumed` writes to it."""

    def place(self, admission: Admission) -> Any:
        """Where the keys and values of a prompt go."""
        ...

    def put(self, place: Any, layer: int, key: Tensor, value: Tensor) -> None:
        """Write a whole prompt's, `[t, K, D]`, of one layer."""
        ...


class Resumed:
    """A forward over the rest of prompts, one after the other in a flat sequence: each attends to what is there of it
    already and to itself, and all of it goes to the store."""

    def __init__(
        self, store: Places, admissions: Sequence[Admission], priors: Sequence[Prior], device: torch.device
    ) -> None:
        self.store = store
        self.priors = tuple(priors)
        self.places = tuple(store.place(one) for one in admissions)
        self.counts = tuple(len(one.prompt) - prior.length for one, prior in zip(admissions, priors, strict=True))
        self.masks = [
            (
                torch.arange(prior.length + count, device=device)
                <= torch.arange(prior.length, prior.length + count, device=device)[:, None]
            )
            if prior.length
            else None
            for prior, count in zip(priors, self.counts, strict=True)
        ]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See `attention.Layout`."""
        found, at = [], 0
        for prior, place, count, mask in zip(self.priors, self.places, self.counts, self.masks, strict=True):
            keys, values = key[at : at + count], value[at : at + count]
            if prior.length:
                kept = prior.layers[layer]
                keys, values = torch.cat([kept[0], keys]), torch.cat([kept[1], values])
            self.store.put(place, layer, keys, values)
            found.append(attended(query[at : at + count], keys, values, mask, scaling))
            at += count
        return torch.cat(found) if len(found) > 1 else found[0]
