"""Plugged attention: the Hugging Face module stays as it is, only what its layers attend to is ours.

Every forward is over one flat sequence of `N` tokens without padding, `[1, N]`, with explicit positions. A *layout*
says what each token attends to; it is set for the duration of the forward, so that outside of it the module is
exactly the ordinary one.

    `N` tokens of the flat sequence · `R` rows · `C` longest completion · `P` longest prompt · `L` live cache columns
    `H` query heads · `K` key-value heads · `D` size of a head
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig

from maieutic.errors import ModelError

NAME = "maieutic"

#: What modules pass to an attention function without it changing the result.
HARMLESS = frozenset({
    "position_ids", "position_embeddings", "cache_position", "use_cache", "output_attentions", "output_hidden_states",
    "output_router_logits", "return_dict", "is_causal",
})  # fmt: skip


class Unservable(Exception):
    """The plug cannot serve what a module asked of its attention. Raised while a model is being checked."""


class Layout(Protocol):
    """What the tokens of a flat forward attend to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Queries `[N, H, D]`, keys and values `[N, K, D]` of one layer → what each token reads, `[N, H, D]`."""
        ...


_layout: ContextVar[Layout | None] = ContextVar("maieutic_layout", default=None)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """The attention function in transformers' form: `[1, heads, N, D]` in, `[1, N, H, D]` out."""
    layout = _layout.get()
    if layout is None:
        raise ModelError(
            "the maieutic attention function was called outside a maieutic forward; expected a layout to be set. "
            "Load the model with its own attention implementation ('sdpa'): the backend plugs itself in when needed"
        )
    asked = sorted(n for n, given in extra.items() if n not in HARMLESS and given is not None and given is not False)
    causal = extra.get("is_causal", getattr(module, "is_causal", True))
    if asked or attention_mask is not None or dropout or causal is False:
        raise Unservable(f"its attention asks for {', '.join(asked) or 'a mask, dropout or non-causal attention'}")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise Unservable("its attention modules do not know which layer they are")
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotations are wider where products are coarse
    out = layout.attend(
        int(layer),
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scaling if scaling is not None else query.shape[-1] ** -0.5,
    )
    return out[None], None


AttentionInterface.register(NAME, _attend)
# No mask function is registered under this name, and transformers then builds none: layouts say who sees whom.


@contextmanager
def plugged(config: PreTrainedConfig, layout: Layout) -> Iterator[None]:
    """Within, modules of `config` attend as `layout` says."""
    before = config._attn_implementation
    token = _layout.set(layout)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _layout.reset(token)


class _Unpad(torch.autograd.Function):
    """`padded[where]` for distinct places: its gradient is a copy, several times cheaper than adding by index."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        ctx.places = padded.shape[0]
        return padded.index_select(0, where)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (where,) = ctx.saved_tensors
        gradient = gradients[0]
        return gradient.new_zeros(ctx.places, *gradient.shape[1:]).index_copy_(0, where, gradient), None


def _heads_first(flat: Tensor, rows: int) -> Tensor:
    """`[rows * n, heads, D]` → `[rows, heads, n, D]`."""
    return flat.view(rows, -1, *flat.shape[1:]).transpose(1, 2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention of `[R, H, q, D]` over `[R, K, k, D]`; causal when there is no mask."""
    share = query.shape[1] // key.shape[1]
    grouped = share > 1 and query.device.type == "cpu"
    if share > 1 and not grouped:  # off the CPU, a mask and grouped heads together leave the fast kernels
        key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention of one row: `[q, H, D]` over `[k, K, D]`, `mask [q, k]`; causal when there is none."""
    asked, keys, values = (x.transpose(0, 1)[None] for x in (query, key, value))
    return _sdpa(asked, keys, values, mask, scaling)[0].transpose(0, 1)


@dataclass(frozen=True)
class Block:
    """Rows of similar length, attended to in one padded call.

    `start:stop` are its tokens in the flat sequence, row after row; `where [stop - start]` their places in the padded
    `[rows * width]`. Without `context`, rows attend causally to themselves (prompts). With `context [rows, k]`, the
    flat indices of the keys that a row may see (its prompt, then its own tokens), `mask [rows, 1, width, k]` says
    which of them each token sees.
    """

    start: int
    stop: int
    rows: int
    where: Tensor
    width: int
    context: Tensor | None = None
    mask: Tensor | None = None

    def to(self, device: torch.device) -> Block:
        """The same block with its indices on `device`."""
        context, mask = (None if t is None else t.to(device) for t in (self.context, self.mask))
        return replace(self, where=self.where.to(device), context=context, mask=mask)

    def pad(self, flat: Tensor) -> Tensor:
        """Its tokens out of the flat `[N, heads, D]`, as `[rows, heads, width, D]`."""
        own = flat[self.start : self.stop]
        if self.rows * self.width == self.stop - self.start:
            return _heads_first(own, self.rows)
        padded = own.new_zeros(self.rows * self.width, *own.shape[1:]).index_copy(0, self.where, own)
        return _heads_first(padded, self.rows)

    def unpad(self, padded: Tensor) -> Tensor:
        """`[rows, H, width, D]` → `[stop - start, H, D]`."""
        flat = padded.transpose(1, 2).reshape(self.rows * self.width, padded.shape[1], padded.shape[3])
        return flat if flat.shape[0] == self.stop - self.start else _Unpad.apply(flat, self.where)


@dataclass(frozen=True)
class PackedLayout:
    """Prompts once each, completions attending to their prompt and to themselves: blocks in the flat order."""

    blocks: tuple[Block, ...]

    def to(self, device: torch.device) -> PackedLayout:
        """The same layout with its indices on `device`."""
        return PackedLayout(tuple(block.to(device) for block in self.blocks))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:  # noqa: ARG002
        """See `Layout`."""
        outs = []
        for block in self.blocks:
            if block.context is None:
                keys, values = block.pad(key), block.pad(value)
            else:
                keys, values = (_context(kept, block.context) for kept in (key, value))
            outs.append(block.unpad(_sdpa(block.pad(query), keys, values, block.mask, scaling)))
        return torch.cat(outs) if len(outs) > 1 else outs[0]


def _context(flat: Tensor, index: Tensor) -> Tensor:
    """`[N, K, D]` gathered at `[rows, k]` as `[rows, K, k, D]`. `embedding` has the cheapest gradient."""
    gathered = embedding(index.reshape(-1), flat.reshape(flat.shape[0], -1))
    return gathered.view(*index.shape, *flat.shape[1:]).transpose(1, 2)
