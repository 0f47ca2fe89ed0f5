"""A Llama-like trunk in fewer calls: the same arithmetic as its module's own forward, on the same weights.

Where few rows are decoded together, what a step takes is not arithmetic but the number of operations it is made of: a
module of transformers makes some 200 a layer. Layers of the common form (root-mean-square norms before attention and a
gated feed-forward part, rotary positions) are run here with a third of them; and while a batch is decoded, with weights
laid out for their products (`products`). Whether a module has that form is seen from its parts, and believed only where
the numbers agree (`lean_for`); any other trunk stays as it is.

    `N` tokens of the flat sequence · `E` width · `H` query heads · `K` key-value heads · `D` size of a head
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm
from transformers.activations import SiLUActivation

from maieutic.backends.local import coarse
from maieutic.backends.local.attention import Layout
from maieutic.backends.local.compiled_passes import passes_for
from maieutic.backends.local.packing import Piece, lay_out
from maieutic.backends.local.passes import Composed, Passes, Turns, turned
from maieutic.backends.local.products import LaidOut, available, laid_out, trained
from maieutic.backends.local.recompute import Run, runner
from maieutic.backends.local.trunk import Trunk
from maieutic.models.lora import Plain, plain, quick

AGREES, AGREES_ON_GPU = 1e-5, 1e-3
"""Largest accepted difference of hidden states from the module's own, relative to their spread (float32); a GPU's
products of the same numbers differ by how many rows there are."""

AGREES_COARSE = {torch.bfloat16: 0.05, torch.qint8: 0.25}
"""The same where products are coarse (root of the mean square): every layer rounds to 8 bits, or to 255 steps."""

COMPOSED = Composed()

MANY = 256
"""Rows from which on a weight is laid out for a product that is made once."""

LAID_OUT = 1 << 30
"""Bytes of weights that are kept twice while a batch is decoded, at most."""


class Lean:
    """What a trunk computes, in fewer calls; where gradients are taken, with a first derivative. Made by `lean_for`.

    Between `begin` and `end` the weights must stay as they are: products use copies of them.
    """

    def __init__(self, trunk: Trunk, numbers: torch.dtype = torch.float32, passes: Passes | None = None) -> None:
        body: Any = trunk.body
        self.passes: Passes = passes or COMPOSED
        self.trunk = trunk
        self.body = body
        self.numbers = numbers
        self.layers: Sequence[_Layer] = [_Plain(layer, self.passes) for layer in body.layers]
        self.head: LaidOut | None = None

    @property
    def lays_out(self) -> bool:
        """Whether the weights are plain ones, on a CPU, and not too large to keep twice."""
        head = self.trunk.head
        if type(head) is not nn.Linear or not all(map(is_plain, self.body.layers)) or not available():
            return False
        if head.weight.device.type != "cpu":
            return False
        count = head.weight.numel() + sum(weight.numel() for weight in self.body.layers.parameters())
        return count * self.numbers.itemsize <= LAID_OUT

    def begin(self) -> None:
        """Lay the weights out, where that can be."""
        head: Any = self.trunk.head
        if self.lays_out:
            lay = coarse.LAYING[self.numbers]
            self.layers = [LaidOutLayer(layer, lay) for layer in self.body.layers]
            # Logits are large numbers, and what is rounded there is rounded in nats.
            self.head = laid_out(head.weight, head.bias)

    def end(self) -> None:
        """Give the copies' memory back."""
        self.layers, self.head = [_Plain(layer, self.passes) for layer in self.body.layers], None

    def hidden(self, tokens: Tensor, positions: Tensor, layout: Layout, recompute: bool = False) -> Tensor:
        """See `Trunk`."""
        run: Run = runner(self.trunk.module, partial(quick, self.trunk.module)) if recompute else _directly
        with quick(self.trunk.module):
            state = self.body.embed_tokens(tokens)
            turns = Turns.of(*(x[0] for x in self.body.rotary_emb(state, positions[None])))
            for index, layer in enumerate(self.layers):
                state = run(layer.run, index, state, turns, layout)
            return _normed(self.body.norm, state, self.passes)

    def logits(self, hidden: Tensor) -> Tensor:
        """`[N, E]` → `[N, V]`."""
        return self.trunk.logits(hidden) if self.head is None else self.head(hidden)


def _directly(layer: Callable[..., Tensor], *given: Any) -> Tensor:
    return layer(*given)


class _Layer(Protocol):
    """A decoder layer of the common form."""

    def run(self, index: int, state: Tensor, turns: Turns, layout: Layout) -> Tensor:
        """States `[N, E]` to states, at the positions of `turns`."""
        ...


@dataclass(frozen=True)
class _Plain:
    """On the module's own parts."""

    module: Any
    passes: Passes

    def run(self, index: int, state: Tensor, turns: Turns, layout: Layout) -> Tensor:
        """See `_Layer`."""
        attention, feed = self.module.self_attn, self.module.mlp
        given = _normed(self.module.input_layernorm, state, self.passes)
        query, key, value = (
            _through(part, given).view(len(state), -1, attention.head_dim)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            query, key = (
                _normed(part, x, self.passes) for part, x in ((attention.q_norm, query), (attention.k_norm, key))
            )
        passes = self.passes if _learning(state) else COMPOSED
        query, key = passes.turned(query, key, turns)
        query, key = query.to(value.dtype), key.to(value.dtype)  # wider only where products are coarser than weights
        read = passes.attended(layout, index, query, key, value, attention.scaling)
        state = state + _through(attention.o_proj, read.reshape(len(state), -1))
        given = _normed(self.module.post_attention_layernorm, state, self.passes)
        gate, up = _through(feed.gate_proj, given), _through(feed.up_proj, given)
        plain = type(feed.act_fn) in SILU and _many(state)
        opened = self.passes.gated(gate, up) if plain else feed.act_fn(gate) * up
        return state + _through(feed.down_proj, opened)


class LaidOutLayer:
    """On copies of its weights, laid out; queries, keys and values in one product (`reading`)."""

    def __init__(self, module: Any, lay: Callable[..., LaidOut]) -> None:
        attention, feed = module.self_attn, module.mlp
        self.module = module
        self.heads, self.keys = (
            part.out_features // attention.head_dim for part in (attention.q_proj, attention.k_proj)
        )
        self.reading = _joined([attention.q_proj, attention.k_proj, attention.v_proj], lay)
        self.parts = {
            name: lay(part.whole(), part.bias) for name, part in (("out", _numbers(attention.o_proj)), *_numbered(feed))
        }
        self.then = "swish" if type(feed.act_fn) in SILU else "none"
        self.normed = hasattr(attention, "q_norm")
        self.scale = None
        if self.normed:
            rows = [attention.q_norm.weight.detach()] * self.heads + [attention.k_norm.weight.detach()] * self.keys
            self.scale = torch.stack(rows)

    def run(self, index: int, state: Tensor, turns: Turns, layout: Layout) -> Tensor:
        """See `_Layer`."""
        attention = self.module.self_attn
        asked = self.heads + self.keys
        all_heads = self.reading(_normed(self.module.input_layernorm, state)).view(len(state), -1, attention.head_dim)
        turning = all_heads[:, :asked]
        if self.scale is not None:
            turning = rms_norm(turning, turning.shape[-1:], None, attention.q_norm.variance_epsilon) * self.scale
        both = turned(turning, turns)
        query, key = both[:, : self.heads], both[:, self.heads :]
        read = layout.attend(index, query, key, all_heads[:, asked:], attention.scaling)
        state = self.parts["out"].plus(read.reshape(len(state), -1), state)
        return self.fed(state, _normed(self.module.post_attention_layernorm, state))

    def fed(self, state: Tensor, given: Tensor) -> Tensor:
        """States `[N, E]` plus what the feed-forward part makes of `given`, their norm."""
        opened = self.parts["gate_proj"](given, self.then)
        if self.then == "none":
            opened = self.module.mlp.act_fn(opened)
        return self.parts["down_proj"].plus(self.parts["up_proj"].times(given, opened), state)


def _joined(parts: Sequence[nn.Module], lay: Callable[..., LaidOut]) -> LaidOut:
    """Linear parts of the same input as one."""
    found = [_numbers(part) for part in parts]
    given = [torch.zeros(len(part.weight)) if part.bias is None else part.bias.detach() for part in found]
    bias = None if all(part.bias is None for part in found) else torch.cat(given)
    return lay(torch.cat([part.whole() for part in found]), bias)


def is_plain(layer: Any) -> bool:
    """Are the layer's products linear ones, an adapter of them included, and no more than that?"""
    parts = (*layer.self_attn.named_children(), *layer.mlp.named_children())
    return all(plain(part) is not None for name, part in parts if name.endswith("_proj"))


def _numbers(part: nn.Module) -> Plain:
    found = plain(part)
    assert found is not None, "seen by is_plain"
    return found


def _numbered(feed: nn.Module) -> list[tuple[str, Plain]]:
    return [(name, _numbers(part)) for name, part in feed.named_children() if name.endswith("_proj")]


def _through(part: nn.Module, states: Tensor) -> Tensor:
    """A linear part, with its adapter; anything else as the module that it is."""
    found = plain(part)
    if found is None:
        return part(states)
    if states.device.type == "cpu" and torch.is_autocast_enabled("cpu") and coarse.has_units(torch.bfloat16):
        return found(states, coarse.learned)
    return found(states, trained if _learning(states) and available() else linear)


def _many(states: Tensor) -> bool:
    """Whether a derivative is to be taken over many rows, for which passes over memory count, and calls do not."""
    return torch.is_grad_enabled() and len(states) >= MANY


def _learning(states: Tensor) -> bool:
    """`_many`, where a CPU's norms and products are not the best there are; a GPU has one kernel for each."""
    if not _many(states) or states.device.type != "cpu":
        return False
    return not torch.is_autocast_enabled("cpu") or coarse.has_units(torch.bfloat16)


def _normed(part: Any, states: Tensor, passes: Passes = COMPOSED) -> Tensor:
    if _learning(states):
        return passes.normed(states, part.weight, part.variance_epsilon)
    return rms_norm(states.to(part.weight.dtype), states.shape[-1:], part.weight, part.variance_epsilon)


#: Modules that compute x · sigmoid(x).
SILU = (nn.SiLU, SiLUActivation)

#: The parts that a layer of the common form has, and those that it may have.
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION, NORMS = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}
FEED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def lean_for(trunk: Trunk, numbers: torch.dtype = torch.float32) -> Lean | None:
    """The trunk in fewer calls, or None where its module is not of the common form or the numbers differ.

    `numbers`: those of products between `begin` and `end`; see `coarse`.
    """
    body: Any = trunk.body
    parameter = next(body.parameters())
    if parameter.device.type not in ("cpu", "cuda") or parameter.dtype != torch.float32 or not has_common_form(body):
        return None
    made = Lean(trunk, numbers, passes_for(trunk))
    given = sample(trunk)
    with torch.no_grad():
        own, plain = trunk.hidden(*given), made.hidden(*given)
        made.begin()
        laid = made.hidden(*given)
        made.end()
    accepted = AGREES if parameter.device.type == "cpu" else AGREES_ON_GPU
    spread = float(own.std())
    if float((own - plain).abs().max()) > accepted * spread:
        return None
    if numbers in AGREES_COARSE:
        return made if float((own - laid).square().mean().sqrt()) <= AGREES_COARSE[numbers] * spread else None
    return made if float((own - laid).abs().max()) <= accepted * spread else None


def sample(trunk: Trunk) -> tuple[Tensor, Tensor, Layout]:
    """Some tokens, their positions and who sees whom: what two ways of running a trunk are compared on."""
    body: Any = trunk.body
    device = next(body.parameters()).device
    tokens = np.random.default_rng(0).integers(0, int(body.embed_tokens.num_embeddings), 9)
    layout, _, _ = lay_out([Piece(tokens, 0, 0)], [])
    return torch.from_numpy(tokens).to(device), torch.arange(1, 10, device=device), layout.to(device)


def has_common_form(body: Any) -> bool:
    """Has the module the parts that `Lean` reads, no others, and none that somebody listens to?"""
    if not all(hasattr(body, name) for name in ("embed_tokens", "layers", "norm", "rotary_emb")):
        return False
    if any(part._forward_hooks or part._forward_pre_hooks for part in body.modules()):
        return False
    return _is_norm(body.norm) and all(_common_layer(layer) for layer in body.layers)


def _common_layer(layer: nn.Module) -> bool:
    parts = dict(layer.named_children())
    if parts.keys() != LAYER:
        return False
    attention = dict(parts["self_attn"].named_children())
    norms = [part for name, part in (parts | attention).items() if name.endswith("norm")]
    return (
        attention.keys() in (ATTENTION, ATTENTION | NORMS)
        and dict(parts["mlp"].named_children()).keys() == FEED
        and all(hasattr(parts["self_attn"], name) for name in ("head_dim", "scaling"))
        and all(_is_norm(norm) for norm in norms)
    )


def _is_norm(part: nn.Module) -> bool:
    return hasattr(part, "variance_epsilon") and set(dict(part.named_parameters())) == {"weight"}
