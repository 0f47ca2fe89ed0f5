"""Outlines: a model's module without its weights. What a model would take is read off it, and nothing is taken.

    module = outline("Qwen/Qwen2.5-0.5B-Instruct", lora=LoRA(rank=16))       its config is read, no weights are
    module = small_outline(SmallModel(layers=2), tokenizer)                  as `build_small` would make it

Every tensor is on torch's device "meta": it has a shape and a type, and no memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from maieutic.errors import ModelError
from maieutic.models.causal import load_tokenizer
from maieutic.models.chat import ChatFormat, chat_format
from maieutic.models.find import adapter_base, adapter_revision, find_model, holds, unreadable
from maieutic.models.lora import LoRA, add_lora
from maieutic.models.small import SmallModel, small_config


def outline(
    source: str | Path, *, lora: LoRA | None = None, dtype: torch.dtype = torch.float32, revision: str | None = None
) -> nn.Module:
    """The module that `load_causal` would load, with the same weights trainable. Raises `ModelError` as it does."""
    name = find_model(source)
    home = find_model(adapter_base(Path(name))) if holds(name, "adapter_config.json") else name
    try:
        config = AutoConfig.from_pretrained(home, revision=_base_revision(name, revision))
        module = _without_weights(config, dtype)
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(home, error) from error
    return _adapted(module, name, lora)


def small_outline(
    spec: SmallModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    lora: LoRA | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The module that `build_small` would make for this tokenizer, and `load_causal` load."""
    return _adapted(_without_weights(small_config(spec, tokenizer), dtype), "", lora)


def chat_of(source: str | Path, template: str | Path = "auto", revision: str | None = None) -> ChatFormat:
    """The chat format of a model whose weights are not read. Raises `ModelError` as `load_causal` does."""
    name = find_model(source)
    adapter = holds(name, "adapter_config.json")
    home = name if not adapter or holds(name, "tokenizer_config.json") else find_model(adapter_base(Path(name)))
    try:
        return chat_format(load_tokenizer(home, _base_revision(name, revision)), template)
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(home, error) from error


def _base_revision(name: str, revision: str | None) -> str | None:
    return adapter_revision(Path(name)) if holds(name, "adapter_config.json") else revision


def _without_weights(config: Any, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _adapted(module: nn.Module, name: str, lora: LoRA | None) -> nn.Module:
    """With the adapter that lies in the folder `name`, or with a fresh one."""
    with torch.device("meta"):
        if holds(name, "adapter_config.json"):
            return _folder_adapter(module, name)
        return module if lora is None else add_lora(module, lora)


def _folder_adapter(module: nn.Module, name: str) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise ModelError(f"{name} is an adapter, which needs the package peft; pip install 'maieutic[lora]'") from error
    settings: Any = peft.PeftConfig.from_pretrained(name)
    settings.inference_mode = False
    return peft.get_peft_model(module, settings)
