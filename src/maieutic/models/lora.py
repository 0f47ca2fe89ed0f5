"""Low-rank adapters: train a small correction of each linear layer instead of the layer (LoRA, arXiv 2106.09685).

    y = W x + (alpha / rank) B A x        A [rank, in] random, B [out, rank] zero at the start, W frozen

A fresh adapter therefore starts exactly at the base model. Everything here needs the package `peft`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maieutic.errors import ConfigError, ModelError


@dataclass(frozen=True)
class LoRA:
    """What to adapt, and how strongly. `LoRA(rank=16, alpha=32)`.

    `targets` is "all-linear" (every linear layer but the head) or the names of the layers to adapt, such as
    `("q_proj", "v_proj")`. `dropout` is only felt when a model is loaded with dropout. `seed` draws the matrices A.
    """

    rank: int = 16
    alpha: float = 32
    targets: str | tuple[str, ...] = "all-linear"
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ConfigError(f"got {self}; expected rank >= 1, alpha > 0 and 0 <= dropout < 1")


def add_lora(module: nn.Module, lora: LoRA, revision: str | None = None) -> nn.Module:
    """The module with a fresh adapter named "default", which alone is trainable.

    `revision` is that of the base model; it is saved with the adapter, which fits no other one.

    Raises `ConfigError` when `targets` names no layer of this model, `ModelError` when peft is not installed.
    """
    peft = _peft()
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        lora_dropout=lora.dropout,
        task_type="CAUSAL_LM",
        revision=revision,
        fan_in_fan_out=_has_transposed_layers(module),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lora.seed)
        try:
            return peft.get_peft_model(module, settings)
        except ValueError as error:
            raise ConfigError(f"got LoRA targets {lora.targets!r}, which do not fit this model: {error}") from error


def load_adapter(module: nn.Module, folder: Path) -> nn.Module:
    """The base module with the adapter that `folder` holds, named "default" and trainable.

    Raises `ModelError` when the adapter does not fit the module, or peft is not installed.
    """
    peft = _peft()
    try:
        return peft.PeftModel.from_pretrained(module, folder, is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the adapter in {folder} cannot be put on its base model: {error}") from error


def merged(module: nn.Module) -> nn.Module:
    """The plain base module with its adapter added into the weights: `W + (alpha / rank) B A`, in place."""
    whole: Any = module
    return whole.merge_and_unload()


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            "LoRA adapters need the package peft, which is not installed; pip install 'maieutic[lora]'"
        ) from error
    return peft


def _has_transposed_layers(module: nn.Module) -> bool:
    # GPT-2 keeps its weights transposed, in layers of this name; peft warns unless it is told.
    return any(type(part).__name__ == "Conv1D" for part in module.modules())
