"""A causal language model seen as a trunk (tokens → hidden states) and a head (hidden state → logits)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from maieutic.backends.local.attention import Layout, Unservable, plugged
from maieutic.backends.local.recompute import decoder_layers, recomputing, runner
from maieutic.models.lora import quick


class Trunk:
    """The plugged view of a Hugging Face causal model, LoRA-wrapped or not. The module itself is not changed."""

    def __init__(self, module: nn.Module) -> None:
        base: Any = bare(module)
        prefix = getattr(base, "base_model_prefix", "")
        body, head = getattr(base, prefix, None) if prefix else None, base.get_output_embeddings()
        if body is None or head is None:
            raise Unservable("it has no separate trunk and language-model head")
        self.body: nn.Module = body
        self.head: nn.Module = head
        self.config = base.config
        self.module = module

    def hidden(self, tokens: Tensor, positions: Tensor, layout: Layout, recompute: bool = False) -> Tensor:
        """Last hidden states `[N, E]` of flat `tokens` at `positions`, both `[N]`.

        `recompute`: layers keep their input alone, and run once more in the backward pass.
        """
        within = partial(self._within, layout)
        again = recomputing(decoder_layers(self.body), runner(self.module, within)) if recompute else nullcontext()
        with within(), again:
            out = self.body(
                input_ids=tokens[None],
                attention_mask=torch.ones_like(tokens)[None],  # unread, but some modules warn without one
                position_ids=positions[None],
                use_cache=False,
            )
        return out.last_hidden_state[0]

    @contextmanager
    def _within(self, layout: Layout) -> Iterator[None]:
        with plugged(self.config, layout), quick(self.module):
            yield

    def logits(self, hidden: Tensor) -> Tensor:
        """`[N, E]` → `[N, V]`."""
        return self.head(hidden)


def bare(module: nn.Module) -> nn.Module:
    """The transformers module inside a PEFT wrapper (its adapter layers stay active), or the module itself."""
    wrapped: Any = module
    if getattr(module, "peft_config", None) and hasattr(module, "get_base_model"):
        return wrapped.get_base_model()
    return module
