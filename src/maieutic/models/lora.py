"""Low-rank adapters: train a small correction of each linear layer instead of the layer (LoRA, arXiv 2106.09685).

    y = W x + (alpha / rank) B A x        A [rank, in] random, B [out, rank] zero at the start, W frozen

A fresh adapter therefore starts exactly at the base model. Everything here needs the package `peft`. Several adapters
over one base: `maieutic.models.adapters`.

    `N` tokens · `in`, `out` widths of a layer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from maieutic.errors import ConfigError, ModelError


@dataclass(frozen=True)
class LoRA:
    """What to adapt, and how strongly. `LoRA(rank=16, alpha=32)`.

    `targets` is "all-linear" (every linear layer but the head) or the names of the layers to adapt, such as
    `("q_proj", "v_proj")`. `dropout` is only felt when a model is loaded with dropout. `seed` draws the matrices A.
    `rslora` scales by alpha / √rank instead of alpha / rank (arXiv 2312.03732), for ranks above 64 or so.
    """

    rank: int = 16
    alpha: float = 32
    targets: str | tuple[str, ...] = "all-linear"
    dropout: float = 0.0
    seed: int = 0
    rslora: bool = False

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
        use_rslora=lora.rslora,
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


def read_adapter(module: nn.Module, name: str, folder: Path) -> None:
    """Copy the weights of the adapter in `folder` into the adapter `name` of a module, in place.

    Raises `ModelError` unless both have the same weights: peft leaves those that a folder lacks as they are.
    """
    peft = _peft()
    try:
        saved = peft.load_peft_weights(str(folder), device="cpu")
        own = peft.get_peft_model_state_dict(module, adapter_name=name)
        wrong = sorted({each for each in {*own, *saved} if _shape(own, each) != _shape(saved, each)})
        if wrong:
            raise ModelError(
                f"got an adapter in {folder} that does not fit: {len(wrong)} of its weights differ, first {wrong[0]}: "
                f"got {_shape(saved, wrong[0]) or 'none'}, expected {_shape(own, wrong[0]) or 'none'} (rank times "
                "width). Take one of the same rank, on the same layers"
            )
        peft.set_peft_model_state_dict(module, saved, adapter_name=name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot read an adapter of this shape from {folder}: {error}") from error


def _shape(weights: dict[str, Tensor], name: str) -> tuple[int, ...]:
    return tuple(weights[name].shape) if name in weights else ()


def merged(module: nn.Module) -> nn.Module:
    """The plain base module with its adapter added into the weights: `W + (alpha / rank) B A`, in place."""
    whole: Any = module
    return whole.merge_and_unload()


@contextmanager
def quick(module: nn.Module) -> Iterator[None]:
    """Within, the LoRA layers of `module` compute with three operations where peft's own forward takes five.

    The layers, their weights and their classes stay as they are, and one that is not `plain` runs through peft's
    forward.
    """
    # a layer with a forward of its own already, as accelerate's hooks give it, keeps that
    own = [(vars(part), forward) for part, forward in _parts(module).quick if "forward" not in vars(part)]
    for kept, forward in own:
        kept["forward"] = forward
    try:
        yield
    finally:
        for kept, _ in own:
            del kept["forward"]


def switches(module: nn.Module) -> tuple[Any, ...]:
    """The parts of a module in which its adapters are switched; none where it has no adapter."""
    return _parts(module).switches


@dataclass(frozen=True)
class _Parts:
    """The parts of a module that belong to its adapters, found when these had the settings `adapters`.

    `quick` are the LoRA layers over plain linear ones, each with the forward that takes fewer operations.
    """

    adapters: tuple[Any, ...]
    switches: tuple[Any, ...] = ()
    quick: tuple[tuple[nn.Module, MethodType], ...] = ()


_found: WeakKeyDictionary[nn.Module, _Parts] = WeakKeyDictionary()


def _parts(module: nn.Module) -> _Parts:
    """Found once, and again when adapters were added: a new one may adapt further layers."""
    known = getattr(module, "peft_config", None) or {}
    found = _found.get(module)
    if found is None or [id(one) for one in found.adapters] != [id(one) for one in known.values()]:
        found = _found[module] = _find(module, tuple(known.values())) if known else _Parts(())
    return found


def _find(module: nn.Module, adapters: tuple[Any, ...]) -> _Parts:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    switched = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    parts: list[Any] = [part for part in module.modules() if isinstance(part, switched)]
    for part in parts:  # some take these from their class until they are switched
        vars(part).setdefault("_active_adapter", part.active_adapter)
        vars(part).setdefault("_disable_adapters", part.disable_adapters)
    layers = [part for part in parts if type(part) is _layer()]
    return _Parts(adapters, tuple(parts), tuple((layer, MethodType(_forward, layer)) for layer in layers))


class Plain(NamedTuple):
    """A linear layer in numbers, with what the adapter at work adds: W, b, A, B and alpha / rank; A and B are None
    where it adds nothing."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 0.0

    def __call__(self, rows: Tensor, product: Callable[..., Tensor] = nn.functional.linear) -> Tensor:
        """`[N, in]` → `[N, out]`: W x + b, made by `product`, and (alpha / rank) B (A x) added where it stands."""
        out = product(rows, self.weight, self.bias)
        if self.down is None or self.up is None:
            return out
        low = nn.functional.linear(rows, self.down)
        if low.dtype != self.up.dtype:  # computed in a coarser precision than the weights are kept in
            return out.add(nn.functional.linear(low, self.up), alpha=self.scale)
        return out.addmm_(low, self.up.t(), alpha=self.scale)

    def whole(self) -> Tensor:
        """`W + (alpha / rank) B A`, `[out, in]`, without gradient; W itself, not a copy, where nothing is added."""
        if self.down is None or self.up is None:
            return self.weight.detach()
        return torch.addmm(self.weight.detach(), self.up.detach(), self.down.detach(), alpha=self.scale)


def plain(part: nn.Module) -> Plain | None:
    """A linear layer, with an adapter or without; None for any other, or where there is more to it: merged weights,
    dropout, several adapters at work, a variant such as DoRA, weights in different precisions, hooks, or a forward of
    the layer's own (as accelerate gives it).

    What is asked of the layer is read out of its dictionaries: through `nn.Module.__getattr__` it would take as long as
    the product with A, for a few rows.
    """
    if _listened_to(part):
        return None
    if type(part) is nn.Linear:
        return Plain(part.weight, part.bias)
    own: dict[str, Any] = vars(part)
    parts, adapter = own["_modules"], own.get("_active_adapter")
    base = parts.get("base_layer")
    if type(base) is not nn.Linear or type(part) is not _layer() or _listened_to(base) or own["merged_adapters"]:
        return None
    weight, bias = base.weight, base.bias
    name = adapter[0] if isinstance(adapter, list) and len(adapter) == 1 else adapter
    if not isinstance(name, str):
        return None
    down, up = parts["lora_A"]._modules.get(name), parts["lora_B"]._modules.get(name)
    if own["_disable_adapters"] or down is None:
        return Plain(weight, bias)
    drops = parts["lora_dropout"]._modules[name]
    if name in own["lora_variant"] or (type(drops) is not nn.Identity and drops.training and drops.p):
        return None
    if not type(down) is type(up) is nn.Linear or up.bias is not None or _listened_to(down) or _listened_to(up):
        return None
    low, high = down.weight, up.weight
    return Plain(weight, bias, low, high, own["scaling"][name]) if weight.dtype == low.dtype == high.dtype else None


def _listened_to(part: nn.Module) -> bool:
    """Has it hooks, or a forward of its own that is not the one of `quick`?"""
    forward = vars(part).get("forward")
    own = forward is not None and getattr(forward, "__func__", None) is not _forward
    return bool(own or part._forward_hooks or part._forward_pre_hooks)


def _forward(layer: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
    """`[…, in]` → `[…, out]`, in place of peft's own forward."""
    found = plain(layer)
    if found is None or more or named or x.dtype != found.weight.dtype:
        return type(layer).forward(layer, x, *more, **named)
    return found(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


@cache
def _layer() -> Any:
    from peft.tuners.lora import Linear

    return Linear


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
