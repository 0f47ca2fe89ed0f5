"""Classifiers of Hugging Face seen as a causal model and a head, and back: weights are shared, never copied.

    LlamaForSequenceClassification(model, score)    ⇄    LlamaForCausalLM(model, lm_head) and Score(E → 1)
    LlamaForTokenClassification(model, score)       ⇄    the same; a head of two labels is the difference of its rows

A causal model can be trained and run by all that is there for policies. What it is written to is a classifier that
plain transformers loads. The language-model head of a view of a classifier is its embedding: nobody reads it.

    `M` states · `E` width of a hidden state
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from maieutic.errors import ModelError

#: Layout → the class of transformers that reads its folders.
CLASSES: dict[str, Any] = {
    "sequence": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "causal": AutoModelForCausalLM,
}


class Score(nn.Module):
    """Hidden states `[M, E]` → scores `[M, 1]`, in float32 at least; all 0 before it has learned."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device, bias: bool = False) -> None:
        super().__init__()
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.weight = nn.Parameter(torch.zeros(1, width, dtype=self.dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(1, dtype=self.dtype, device=device)) if bias else None

    def forward(self, states: Tensor) -> Tensor:
        """`[M, E]` → `[M, 1]`."""
        return nn.functional.linear(states.to(self.dtype), self.weight, self.bias)


class TokenScore(nn.Module):
    """Hidden states `[M, E]` → logit of one token minus logit of another `[M, 1]`: the log-odds of `good` among both.

    It has no weights: those of the language-model head are the module's.
    """

    def __init__(self, head: nn.Module, good: int, bad: int) -> None:
        super().__init__()
        self._head = (head,)  # no submodule: its weights are the model's own
        self.tokens = (good, bad)

    def forward(self, states: Tensor) -> Tensor:
        """`[M, E]` → `[M, 1]`."""
        head: Any = self._head[0]
        good, bad = self.tokens
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        weight = head.weight[good].to(wide) - head.weight[bad].to(wide)
        scores = states.to(wide) @ weight[:, None]
        return scores if head.bias is None else scores + (head.bias[good] - head.bias[bad]).to(wide)


def unwrapped(module: nn.Module) -> nn.Module:
    """The transformers module inside a PEFT wrapper (its adapter stays at work), or the module itself."""
    wrapped: Any = module
    return wrapped.get_base_model() if getattr(module, "peft_config", None) else module


def body_of(module: nn.Module) -> nn.Module | None:
    """The trunk of a transformers module, tokens → hidden states; of an adapted one with its adapter."""
    whole: Any = unwrapped(module)
    return getattr(whole, getattr(whole, "base_model_prefix", "") or "", None)


def new_score(module: nn.Module, layout: str) -> Score:
    """A fresh head for a causal module: a bias where the layout has one."""
    whole: Any = unwrapped(module)
    weight = whole.get_input_embeddings().weight
    width = int(getattr(whole.config.get_text_config(), "hidden_size", weight.shape[1]))
    return Score(width, weight.dtype, weight.device, bias=layout == "tokens")


def score_of(classifier: nn.Module) -> Score:
    """The head of a classifier as one score: its only row, or with two labels the second minus the first.

    Raises ModelError for a classifier of another shape.
    """
    head = _linear(classifier)
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    if weight.shape[0] == 2:
        weight, bias = weight[1:] - weight[:1], None if bias is None else bias[1:] - bias[:1]
    score = Score(int(weight.shape[1]), weight.dtype, weight.device, bias=bias is not None)
    with torch.no_grad():
        score.weight.copy_(weight)
        if score.bias is not None and bias is not None:
            score.bias.copy_(bias)
    return score


def causal_view(classifier: nn.Module) -> nn.Module | None:
    """A causal model around a classifier's trunk; None where transformers has no such causal model (encoders)."""
    whole: Any = classifier
    body = body_of(classifier)
    config = copy.deepcopy(whole.config)
    try:
        with torch.device("meta"):
            view: Any = AutoModelForCausalLM.from_config(config)
    except ValueError:  # what transformers says of a type of model that writes nothing
        return None
    if body is None or type(getattr(view, view.base_model_prefix, None)) is not type(body):
        return None
    if getattr(config, "is_decoder", True) is False or getattr(config, "is_encoder_decoder", False):
        return None
    setattr(view, view.base_model_prefix, body)
    head = view.get_output_embeddings()
    if head is None:
        return None
    embedding = view.get_input_embeddings().weight
    head.weight = embedding
    if getattr(head, "bias", None) is not None:
        head.bias = nn.Parameter(embedding.new_zeros(head.bias.shape), requires_grad=False)
    view.config = whole.config  # the layers' own: who sets how they attend sets it there
    return None if any(weight.is_meta for weight in view.parameters()) else view.eval()


def classifier_around(module: nn.Module, score: Score, layout: str, pad_id: int | None) -> nn.Module:
    """A classifier of transformers around a causal model's trunk, with `score` as its head.

    Two labels ("tokens", TRL's layout) get half of the score each, one with the sign turned: the softmax of both is the
    sigmoid of the score. `pad_id` is what transformers takes for padding.

    Raises ModelError for an architecture of which transformers has no such classifier.
    """
    whole: Any = module
    config = copy.deepcopy(whole.config)
    labels = 2 if layout == "tokens" else 1
    config.num_labels = labels
    config.pad_token_id = pad_id
    config.get_text_config().pad_token_id = pad_id
    try:
        with torch.device("meta"):
            made: Any = CLASSES[layout].from_config(config)
    except ValueError as error:
        raise ModelError(
            f"transformers has no {layout} classifier of the type {config.model_type!r} "
            f"({str(error).splitlines()[0][:120]}); choose another layout ({', '.join(CLASSES)})"
        ) from error
    setattr(made, made.base_model_prefix, body_of(module))
    head = _linear(made)
    weight = score.weight.detach()
    dtype = whole.get_input_embeddings().weight.dtype
    rows = weight if labels == 1 else torch.cat([-weight / 2, weight / 2])
    head.weight = nn.Parameter(rows.to(dtype))
    if head.bias is not None:
        bias = weight.new_zeros(1) if score.bias is None else score.bias.detach()
        head.bias = nn.Parameter((bias if labels == 1 else torch.cat([-bias / 2, bias / 2])).to(dtype))
    return made.eval()


def _linear(classifier: nn.Module) -> nn.Linear:
    body = body_of(classifier)
    heads = [part for part in classifier.children() if isinstance(part, nn.Linear) and part is not body]
    if len(heads) != 1 or heads[0].out_features not in (1, 2):
        shapes = ", ".join(str(head.out_features) for head in heads) or "no"
        raise ModelError(
            f"got a classifier ({type(classifier).__name__}) with {shapes} outputs; expected a single linear head with "
            "one score, or two labels of which the second is 'correct'"
        )
    return heads[0]
