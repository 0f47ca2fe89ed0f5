"""What a model is in numbers, read off its module: an outline will do, nothing is run and no weight is looked at.

`E` width · `Q` query heads times their size · `K` key-value heads times theirs · `F` feed-forward width ·
`V` vocabulary
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from maieutic.backends.local import kernels
from maieutic.backends.local.check import why_not_by_config
from maieutic.backends.local.lean import has_common_form
from maieutic.backends.local.optimiser import hidden_matrices
from maieutic.backends.local.trunk import Trunk, bare
from maieutic.errors import ModelError


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of weights: `Weight(16384, 65536, trained=True, shape=(128, 128), hidden=True)`.

    `hidden`: a matrix that is neither an embedding nor the head, which Muon may take.
    """

    numbers: int
    bytes: int
    trained: bool
    shape: tuple[int, ...]
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Product:
    """A linear layer `[n, inner] @ [inner, outer]`, `times` of them; `trained`: their weights have gradients."""

    inner: int
    outer: int
    trained: bool = True
    times: int = 1

    @property
    def weights(self) -> int:
        """Numbers in the weights of all of them."""
        return self.inner * self.outer * self.times


@dataclass(frozen=True, slots=True)
class Sizes:
    """A decoder in numbers.

    products   the linear layers of the trunk; `head` apart.
    normed     numbers that norms are taken of for each token, over all layers.
    norm_kept  numbers that a norm keeps for the backward pass, for each that it is taken of: its input and its output,
               and between them, of a trained RMS norm, the numbers before they are scaled.
    mlp_kept   the same for each unit of a feed-forward layer.
    plugged    whether the fast engine can run it, as far as its config says.
    lean       whether on a CPU it is run in fewer calls (`lean`), with weights that are laid out once more.
    compiled   whether a CPU learns through compiled kernels (`compiled_passes`, `scoring`), as it is installed here.
    eager      whether attention writes its scores out, as where they are capped (Gemma 2).
    item       bytes of a number that is computed with.
    """

    weights: tuple[Weight, ...]
    buffers: int
    products: tuple[Product, ...]
    head: Product
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp: int
    normed: int
    norm_kept: int
    mlp_kept: int
    plugged: bool
    lean: bool = False
    compiled: bool = False
    eager: bool = False
    item: int = 4
    positions: int | None = None

    @property
    def width(self) -> int:
        """`E`."""
        return self.head.inner

    @property
    def vocabulary(self) -> int:
        """`V`."""
        return self.head.outer

    @property
    def queries(self) -> int:
        """`Q`."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """`K`."""
        return self.kv_heads * self.head_width

    def parameters(self, trained: bool | None = None) -> int:
        """Weights in all, or those that are trained, or that are not."""
        return sum(w.numbers for w in self.weights if trained is None or w.trained == trained)

    def bytes(self, trained: bool | None = None) -> int:
        """What they take; buffers are with those that are not trained."""
        own = sum(w.bytes for w in self.weights if trained is None or w.trained == trained)
        return own + (0 if trained else self.buffers)


def sizes_of(module: nn.Module) -> Sizes:
    """Read a Hugging Face decoder, LoRA-wrapped or not. Raises `ModelError` where it has no language-model head."""
    base: Any = bare(module)
    head = base.get_output_embeddings()
    if head is None:
        raise ModelError(f"got a {type(base).__name__} without a language-model head; expected a causal model")
    config = base.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    normed, plain = _norms(module, {"q_norm": heads * head_width, "k_norm": kv_heads * head_width})
    mlp, gated = _feed_forward(config, base)
    products, plugged = _products(module, head), not why_not_by_config(module)
    lean = plugged and gated and _is_lean(module)
    return Sizes(
        weights=_weights(module),
        buffers=sum(kept.numel() * kept.element_size() for kept in module.buffers()),
        products=products,
        head=Product(head.weight.shape[1], head.weight.shape[0], head.weight.requires_grad),
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        mlp=mlp,
        normed=normed,
        norm_kept=2 if plain else 3,
        # gated: gate, its activation, the other half, their product; else a tanh GELU written out, as GPT-2's
        mlp_kept=4 if gated else 5,
        plugged=plugged,
        lean=lean,
        compiled=lean and type(head) is nn.Linear and _is_compiled(module),
        eager=config._attn_implementation == "eager",
        item=head.weight.element_size(),
        positions=getattr(config, "max_position_embeddings", None),
    )


def _is_lean(module: nn.Module) -> bool:
    """Whether `lean` will serve, as far as parts and precision say; an adapter is laid out with its weight."""
    body = Trunk(module).body
    return next(body.parameters()).dtype == torch.float32 and has_common_form(body)


def _is_compiled(module: nn.Module) -> bool:
    """Whether it is large enough for the kernels, and there are any."""
    body = Trunk(module).body
    return sum(each.numel() for each in body.parameters()) >= kernels.SMALLEST and kernels.available()


def _weights(module: nn.Module) -> tuple[Weight, ...]:
    hidden = hidden_matrices(module)
    return tuple(
        Weight(w.numel(), w.numel() * w.element_size(), w.requires_grad, tuple(w.shape), name in hidden)
        for name, w in module.named_parameters()
    )


def _products(module: nn.Module, head: nn.Module) -> tuple[Product, ...]:
    """Every linear layer but the head; GPT-2 keeps its weights transposed, in layers of a type of its own."""
    apart = set(head.modules())
    counts = Counter[tuple[int, int, bool]]()
    for part in module.modules():
        weight: Any = getattr(part, "weight", None)
        if part in apart or weight is None:
            continue
        if isinstance(part, nn.Linear):
            counts[part.in_features, part.out_features, weight.requires_grad] += 1
        elif type(part).__name__ == "Conv1D":
            counts[weight.shape[0], weight.shape[1], weight.requires_grad] += 1
    return tuple(Product(*kind, times) for kind, times in counts.items())


def _norms(module: nn.Module, of_heads: dict[str, int]) -> tuple[int, bool]:
    """Numbers that norms are taken of for each token, and whether these keep no more than what goes in and comes out:
    layer norms are one operation, and the weight of a frozen norm has no gradient."""
    found = [(name, part) for name, part in module.named_modules() if type(part).__name__.endswith("Norm")]
    sized = [(name, part, getattr(part, "weight", None)) for name, part in found]
    total = sum(of_heads.get(name.rpartition(".")[2], w.numel()) for name, _, w in sized if w is not None)
    plain = all(isinstance(part, nn.LayerNorm) or w is None or not w.requires_grad for _, part, w in sized)
    return total, plain


def _feed_forward(config: Any, base: Any) -> tuple[int, bool]:
    """`F`, and whether the feed-forward layers are gated (two products go in)."""
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    return int(width), any(name.endswith("gate_proj") for name, _ in base.named_modules())
