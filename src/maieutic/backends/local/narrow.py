"""A Llama-like trunk on coarse copies of its weights, for decoding on a GPU: bfloat16 is half of what a step reads.

States between layers, norms and rotations are float32, and what goes into a product or into attention is rounded: the
same numbers as those of a learner that computes in bfloat16 (`maieutic.models.precision`), but for the order of sums.
Queries, keys and values come out of one product, and gates with what they open. Copies stay where they are when they
are made anew, so that a captured graph finds them there.

    `N` tokens · `E` width · `H` query heads · `K` key-value heads · `D` size of a head · `V` vocabulary
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu

from maieutic.backends.local.attention import Layout
from maieutic.backends.local.lean import SILU, has_common_form, is_plain, sample
from maieutic.backends.local.passes import Turns, turned
from maieutic.backends.local.trunk import Trunk
from maieutic.models.lora import Plain, plain
from maieutic.models.precision import wide

log = logging.getLogger("maieutic.backends.local")

AGREES, AGREES_COARSE = 1e-4, 5e-2
"""Largest accepted difference of a token's hidden state from the module's own (root of the mean square, relative to the
spread of states): in float32, and where every layer rounds to 8 bits."""


class Narrow:
    """What a trunk computes, on copies of its weights in `numbers` as they were at the latest `begin`.

    Weights that are in `numbers` already, and that nothing is added to, are used as they are. Made by `narrow_for`.
    """

    def __init__(self, trunk: Trunk, numbers: torch.dtype) -> None:
        body: Any = trunk.body
        self.trunk = trunk
        self.body = body
        self.numbers = numbers
        self.layers = [_Layer(layer, numbers) for layer in body.layers]
        self.head = _Joined([trunk.head], numbers)

    @torch.no_grad()
    def begin(self) -> None:
        """Read the weights, and what the adapter at work adds to them."""
        for layer in self.layers:
            layer.begin()
        self.head.begin()

    def hidden(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Last hidden states `[N, E]` of flat `tokens` at `positions`, both `[N]`."""
        state = self.body.embed_tokens(tokens).float()
        turns = Turns.of(*(x[0] for x in self.body.rotary_emb(state, positions[None])))
        for index, layer in enumerate(self.layers):
            state = layer.run(index, state, turns, layout)
        return _normed(self.body.norm, state)

    def logits(self, hidden: Tensor) -> Tensor:
        """`[N, E]` → `[N, V]`, float32 where copies are coarse."""
        given, weight = hidden.to(self.numbers), self.head.weight
        if self.numbers == torch.float32:
            return linear(given, weight, self.head.bias)
        out = wide(given, weight.t())
        return out if self.head.bias is None else out + self.head.bias


class _Joined:
    """Linear parts of the same input as one, in other numbers: `weight [O, I]`, `bias [O]`."""

    def __init__(self, parts: Sequence[nn.Module], numbers: torch.dtype) -> None:
        self.parts = parts
        found = [_numbers(part) for part in parts]
        first = found[0]
        whole = len(parts) == 1 and first.weight.dtype == numbers and first.up is None
        self.borrowed = whole  # the weight itself, not a copy
        sides = sum(each.weight.shape[0] for each in found), first.weight.shape[1]
        self.weight = first.weight.detach() if whole else first.weight.detach().new_empty(sides, dtype=numbers)
        biased = any(each.bias is not None for each in found)
        self.bias = first.weight.detach().new_zeros(sides[0], dtype=numbers) if biased else None

    def begin(self) -> None:
        """Copy the weights as they are."""
        start = 0
        for part in self.parts:
            found = _numbers(part)
            stop = start + found.weight.shape[0]
            if not self.borrowed:
                self.weight[start:stop].copy_(found.whole())
            if self.bias is not None and found.bias is not None:
                self.bias[start:stop].copy_(found.bias)
            start = stop

    def __call__(self, rows: Tensor) -> Tensor:
        """`[N, I]` → `[N, O]`."""
        return linear(rows, self.weight, self.bias)


class _Layer:
    """A decoder layer of the common form."""

    def __init__(self, module: Any, numbers: torch.dtype) -> None:
        attention, feed = module.self_attn, module.mlp
        self.module = module
        self.numbers = numbers
        reading = [attention.q_proj, attention.k_proj, attention.v_proj]
        # Joined ones are copies; of weights that are coarse already one copy less is worth more than a call less.
        apart = all(_numbers(part).weight.dtype == numbers and _numbers(part).up is None for part in reading)
        self.reading = _all_of(reading, numbers, apart)
        self.opening = _all_of([feed.gate_proj, feed.up_proj], numbers, apart)
        self.out, self.down = (_Joined([part], numbers) for part in (attention.o_proj, feed.down_proj))
        self.heads = [part.out_features // attention.head_dim for part in reading]

    def begin(self) -> None:
        """Copy the weights as they are."""
        for each in (*self.reading, *self.opening, self.out, self.down):
            each.begin()

    def run(self, index: int, state: Tensor, turns: Turns, layout: Layout) -> Tensor:
        """States `[N, E]` to states, at the positions of `turns`."""
        attention, feed = self.module.self_attn, self.module.mlp
        given = _normed(self.module.input_layernorm, state).to(self.numbers)
        made = _through(self.reading, given).view(len(state), -1, attention.head_dim)
        asked = self.heads[0] + self.heads[1]
        turning, value = made[:, :asked], made[:, asked:]
        if hasattr(attention, "q_norm"):
            parts = turning.split(self.heads[:2], dim=1)
            norms = (attention.q_norm, attention.k_norm)
            turning = torch.cat([_normed(norm, part) for norm, part in zip(norms, parts, strict=True)], dim=1)
        both = turned(turning.float(), turns).to(self.numbers)
        query, key = both[:, : self.heads[0]], both[:, self.heads[0] :]
        read = layout.attend(index, query, key, value, attention.scaling)
        state = state + self.out(read.reshape(len(state), -1))
        given = _normed(self.module.post_attention_layernorm, state).to(self.numbers)
        gate, up = _through(self.opening, given).chunk(2, dim=1)
        act = silu if type(feed.act_fn) in SILU else feed.act_fn
        return state + self.down(act(gate) * up)


def _all_of(parts: Sequence[nn.Module], numbers: torch.dtype, apart: bool) -> list[_Joined]:
    return [_Joined([part], numbers) for part in parts] if apart else [_Joined(parts, numbers)]


def _through(parts: Sequence[_Joined], rows: Tensor) -> Tensor:
    found = [part(rows) for part in parts]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _normed(part: Any, states: Tensor) -> Tensor:
    """In float32 at least, as the module's own does."""
    return rms_norm(states.float(), states.shape[-1:], part.weight.float(), part.variance_epsilon)


def _numbers(part: nn.Module) -> Plain:
    found = plain(part)
    assert found is not None, "seen by narrow_for"
    return found


def narrow_for(trunk: Trunk, numbers: torch.dtype) -> Narrow | None:
    """The trunk on copies in `numbers`; None (said in the log) where its module is not of the common form, copies do
    not fit, or its numbers differ."""
    body: Any = trunk.body
    why = _why_not(trunk, body, numbers)
    if not why:
        made = Narrow(trunk, numbers)
        made.begin()
        given = sample(trunk)
        with torch.no_grad():
            own, found = trunk.hidden(*given).float(), made.hidden(*given).float()
        difference = float((own - found).square().mean(dim=1).max().sqrt() / own.std())
        accepted = AGREES if numbers == torch.float32 else AGREES_COARSE
        if difference <= accepted:
            return made
        why = f"its numbers differ by {difference:.2g} of their spread (accepted: {accepted:.2g})"
    log.warning("%s is decoded by its own layers, without captured graphs: %s.", type(body).__name__, why)
    return None


def _why_not(trunk: Trunk, body: Any, numbers: torch.dtype) -> str:
    if not has_common_form(body) or not all(map(is_plain, body.layers)) or plain(trunk.head) is None:
        return "its layers are not of the common form"
    weight = next(body.parameters())
    if weight.dtype not in (torch.float32, numbers) or numbers == torch.float64:
        return f"its weights are {weight.dtype}"
    if weight.device.type == "cuda" and weight.dtype != numbers:
        wanted = sum(each.numel() for each in trunk.module.parameters()) * numbers.itemsize
        free = torch.cuda.mem_get_info(weight.device)[0]
        if wanted > free:
            return f"a copy in {numbers} takes {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    return ""
