"""Floating-point operations that a decoder takes, counted from its shape and from lengths: what a rate is held against.

    shape = shape_of(model.module)              the products of a layer, the head, the attention, read from the module
    lengths = [Lengths(32, (100, 80)), ...]     a prompt and its siblings' completions, in tokens
    rollout(shape, lengths).total               to write them
    scoring(shape, lengths).total               to read them once, as a reference does
    update(shape, lengths).total                to learn from them: forward and backward

Counted is what has to be done, whatever is done: every prompt once for all its siblings, nothing of padding, the head
only where a token is predicted. A product `[n, K] @ [K, N]` takes 2·n·K·N operations; a token that sees `s` positions
takes 4·H·D·s in the attention of a layer (its scores and the mean of the values); the backward pass takes as many again
for the gradient of what goes in, and for that of every weight that is trained. Norms, rotations, softmaxes and the
optimiser are left out: they are few operations and are bound by memory.

    `n` tokens · `K, N` sides of a weight · `H` query heads · `D` size of a head · `s` positions that a token sees
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from maieutic.backends.local.trunk import bare
from maieutic.errors import ModelError


@dataclass(frozen=True, slots=True)
class Product:
    """A linear layer `[n, inner] @ [inner, columns]`, `times` of them. `trained`: their weights have gradients."""

    inner: int
    columns: int
    times: int = 1
    trained: bool = True

    @property
    def weights(self) -> int:
        """Numbers in the weights of all its occurrences."""
        return self.inner * self.columns * self.times


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how many operations a decoder takes: `products` of all layers together, `head` apart."""

    products: tuple[Product, ...]
    head: Product
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    bytes_each: int = 4

    @property
    def weight_bytes(self) -> int:
        """What a decode step reads of the weights: all products and the head once."""
        return self.bytes_each * (sum(each.weights for each in self.products) + self.head.weights)

    @property
    def token_bytes(self) -> int:
        """What a position takes of the key-value store, and what is read of it by every token that sees it."""
        return self.bytes_each * 2 * self.layers * self.kv_heads * self.head_width


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a prompt, and of the completions that follow it: `Lengths(32, (100, 80))`."""

    prompt: int
    completions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that run through the layers, positions that they see altogether, and predictions that the head makes."""

    tokens: int
    seen: int
    predictions: int


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating-point operations of the layers' products, of the head, and of the attention."""

    products: float
    head: float
    attention: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.products + self.head + self.attention


def shape_of(module: nn.Module) -> Shape:
    """Read a Hugging Face decoder, LoRA-wrapped or not: each linear layer by the shape of its weight.

    Raises `ModelError` for a module without a separate language-model head.
    """
    base: Any = bare(module)
    head = base.get_output_embeddings()
    if head is None:
        raise ModelError(f"got a {type(base).__name__} without a language-model head; expected a causal model")
    counts: dict[tuple[int, int, bool], int] = {}
    apart = set(head.modules())
    for part in module.modules():
        if isinstance(part, nn.Linear) and part not in apart:
            kind = (part.in_features, part.out_features, part.weight.requires_grad)
            counts[kind] = counts.get(kind, 0) + 1
    config = base.config
    heads = config.num_attention_heads
    return Shape(
        products=tuple(Product(inner, columns, times, on) for (inner, columns, on), times in counts.items()),
        head=Product(head.weight.shape[1], head.weight.shape[0], 1, head.weight.requires_grad),
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        bytes_each=head.weight.element_size(),
    )


def positions_seen(start: int, stop: int) -> int:
    """What tokens at positions `start … stop - 1` see altogether: each itself and all before it.

    >>> positions_seen(2, 4)  # 3 + 4
    7
    """
    return (stop * (stop + 1) - start * (start + 1)) // 2


def forward_work(groups: Iterable[Lengths]) -> Work:
    """A forward pass over prompts, each once, and completions, of which the last token is predicted and never fed."""
    tokens = seen = predictions = 0
    for group in groups:
        tokens += group.prompt
        seen += positions_seen(0, group.prompt)
        for length in group.completions:
            tokens += max(0, length - 1)
            seen += positions_seen(group.prompt, group.prompt + max(0, length - 1))
            predictions += length
    return Work(tokens, seen, predictions)


def rollout_work(groups: Iterable[Lengths]) -> Work:
    """Writing completions: as `forward_work`, but a prompt's siblings share one prediction of their first token."""
    groups = list(groups)
    work = forward_work(groups)
    shared = sum(max(0, len(group.completions) - 1) for group in groups)
    return Work(work.tokens, work.seen, work.predictions - shared)


def forward(shape: Shape, work: Work) -> Operations:
    """Operations of a forward pass."""
    return Operations(
        products=2.0 * work.tokens * sum(each.weights for each in shape.products),
        head=2.0 * work.predictions * shape.head.weights,
        attention=4.0 * shape.layers * shape.heads * shape.head_width * work.seen,
    )


def rollout(shape: Shape, groups: Iterable[Lengths]) -> Operations:
    """Operations of writing completions."""
    return forward(shape, rollout_work(groups))


def scoring(shape: Shape, groups: Iterable[Lengths]) -> Operations:
    """Operations of the log-probs of completions, without gradient."""
    return forward(shape, forward_work(groups))


def update(shape: Shape, groups: Iterable[Lengths]) -> Operations:
    """Operations of the loss and its gradient: three times the forward pass where every weight is trained.

    A frozen product (under LoRA) has no gradient of its weight: twice.
    """
    work = forward_work(groups)
    ahead = forward(shape, work)
    return Operations(
        products=2.0 * work.tokens * sum(each.weights * (3 if each.trained else 2) for each in shape.products),
        head=ahead.head * (3 if shape.head.trained else 2),
        attention=3 * ahead.attention,
    )


def rollout_bytes(shape: Shape, groups: Iterable[Lengths]) -> float:
    """Bytes that decoding all rows side by side has to read: the weights once a step, and every position seen.

    As many steps as the longest completion has tokens; the first is the prompts'. What the prompts see is not counted:
    they are read together, and what is bound there is arithmetic.
    """
    groups = list(groups)
    steps = max((length for group in groups for length in group.completions), default=0)
    seen = sum(
        positions_seen(group.prompt, group.prompt + max(0, length - 1))
        for group in groups
        for length in group.completions
    )
    return float(steps * shape.weight_bytes + seen * shape.token_bytes)
