"""Several models over one base: named adapters in one module, of which one is at work at a time.

    model   = load_causal("runs/sft/model")                      the policy: the base and its adapter, named "default"
    teacher = beside(model, "runs/teacher/model", "teacher")     another adapter of the same base, in the same module
    critic  = copied(model, "critic", trainable=True)            one that stands where the policy stands now
    with active(model.module, "teacher") as module:
        logits = module(tokens).logits

What each takes is the bytes of its adapter. A `CausalModel` names the adapter that it means, so scorers, teachers and
critics take such a model as they take one that was loaded by itself. The name "" means the base without an adapter.

PEFT switches adapters too (`set_adapter`), but walks over every module of the model each time, and makes what it
activates trainable and everything else not. Here a switch sets two attributes of each adapted layer, and nothing else.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maieutic.errors import ConfigError, ModelError, UnknownName
from maieutic.models.causal import BASE, POLICY, CausalModel, load_tokenizer, parameter_count
from maieutic.models.find import base_of, find_model, holds
from maieutic.models.lora import read_adapter, switches


@contextmanager
def active(module: nn.Module, name: str) -> Iterator[nn.Module]:
    """Within: the module with the adapter `name` at work (`BASE`: with none), and as before afterwards, come what may.

    No weight is touched, and no `requires_grad`: what was computed within keeps its graph, so an adapter that is
    trainable is trained through it. Not for two threads at once.

    Raises `UnknownName` for an adapter that the module has not.
    """
    known = getattr(module, "peft_config", {})
    if name not in known and (name != BASE or not known):
        raise UnknownName("adapter", name, [*known, BASE] if known else [])
    own = [vars(part) for part in switches(module)]
    before = [(kept["_active_adapter"], kept["_disable_adapters"]) for kept in own]
    for kept in own:
        kept.update(_active_adapter=[name] if name else kept["_active_adapter"], _disable_adapters=not name)
    try:
        yield module
    finally:
        for kept, (adapter, disabled) in zip(own, before, strict=True):
            kept.update(_active_adapter=adapter, _disable_adapters=disabled)


def adapter_weights(module: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The weights of an adapter, trainable or not, by their names in the module. Raises `UnknownName`."""
    known = getattr(module, "peft_config", {})
    if name not in known:
        raise UnknownName("adapter", name, known)
    own: set[int] = set()
    for part in switches(module):
        for place in part.adapter_layer_names:
            kept = attrgetter(place)(part)
            if hasattr(kept, "keys") and name in kept:
                found = kept[name]
                own.update(map(id, [found] if isinstance(found, nn.Parameter) else found.parameters()))
    return {each: weight for each, weight in module.named_parameters() if id(weight) in own}


def trained_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The policy's trainable weights by name; those of adapters beside its own are not the policy's."""
    beside = [name for name in getattr(module, "peft_config", {}) if name != POLICY]
    others = {id(weight) for name in beside for weight in adapter_weights(module, name).values()}
    return {
        name: weight for name, weight in module.named_parameters() if weight.requires_grad and id(weight) not in others
    }


def parameters_of(model: CausalModel) -> int:
    """`parameter_count` of a model: of its base and its own adapter, whatever else lies beside it."""
    others = [name for name in getattr(model.module, "peft_config", {}) if name != model.adapter_name]
    beside = {id(weight) for name in others for weight in adapter_weights(model.module, name).values()}
    return parameter_count(model.module, leave_out=beside)


def shares_base(model: CausalModel, source: str | Path, revision: str | None = None) -> bool:
    """Whether the model at `source` is the base of `model`, or an adapter of that base which can lie beside its own.

    `revision` is that of a `source` which is no adapter. False where `model` has no adapter: all its weights move.
    """
    return _why_apart(model, source, revision) == ""


def beside(
    model: CausalModel,
    source: str | Path,
    name: str,
    *,
    revision: str | None = None,
    trainable: bool = False,
    seed: int = 0,
) -> CausalModel:
    """The model at `source` within the module of `model`, whose base it shares.

    source      an adapter folder of the same base; or the base itself, and then what is added is nothing (the base
                without an adapter), or where it is to be trained a fresh adapter with the policy's settings, drawn by
                `seed`.
    name        of the new adapter; one that is there already is refused.

    Raises `ConfigError` for a model on another base or a policy without an adapter, `ModelError` for an adapter that
    does not fit.
    """
    why = _why_apart(model, source, revision)
    if why:
        raise ConfigError(
            f"got {source} to lie beside {model.source} as its adapter {name!r}: {why}. Load it by itself, "
            "which takes the memory of another base"
        )
    folder = Path(find_model(source))
    if holds(folder, "adapter_config.json"):
        _check_name(model, name)
        _add(model.module, name, _settings(folder), trainable, seed)
        read_adapter(model.module, name, folder)
        tokenizer = load_tokenizer(folder) if holds(folder, "tokenizer_config.json") else model.tokenizer
        return dataclasses.replace(
            model, tokenizer=tokenizer, source=str(source), adapter_source=str(folder), adapter_name=name
        )
    if not trainable:
        return dataclasses.replace(model, source=str(source), adapter=False, adapter_source="", adapter_name=BASE)
    _check_name(model, name)
    _add(model.module, name, _settings_of(model), trainable, seed)
    return dataclasses.replace(model, source=str(source), adapter_source="", adapter_name=name)


def copied(model: CausalModel, name: str, *, trainable: bool = False) -> CausalModel:
    """`model` as it stands now, as one more adapter of its own module.

    Called again with the same name, it moves that adapter to where the policy is by then.
    Raises `ConfigError` for a model without an adapter.
    """
    module: Any = model.module
    if not model.adapter:
        raise ConfigError(f"got {model.source} to copy the adapter of, and all its weights are trained; {_REMEDY}")
    if name == model.adapter_name:
        raise ConfigError(f"got {name!r} for a copy of the adapter {name!r}; expected another name")
    if name not in module.peft_config:
        _check_name(model, name)
        _add(module, name, _settings_of(model), trainable, 0)
    own, theirs = adapter_weights(module, name), adapter_weights(module, model.adapter_name)
    with torch.no_grad():
        for each, weight in theirs.items():
            own[_renamed(each, model.adapter_name, name)].copy_(weight)
    for weight in own.values():
        weight.requires_grad_(trainable)
    return dataclasses.replace(model, adapter_name=name)


def counterparts(module: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The weights of an adapter that was copied from the policy's, by the names of the policy's trained weights."""
    own = adapter_weights(module, name)
    return {each: own[_renamed(each, POLICY, name)] for each in trained_weights(module)}


_REMEDY = "expected a model with an adapter (load_causal(…, lora=LoRA()), in a config model.lora)"


def _renamed(weight: str, name: str, other: str) -> str:
    """The name of a weight in another adapter: adapters are the last parts of a path that bear their names."""
    before, _, after = weight.rpartition(f".{name}")
    return f"{before}.{other}{after}"


def _check_name(model: CausalModel, name: str) -> None:
    module: Any = model.module
    if name in module.peft_config or not name.isidentifier() or name in "lora_":  # the last, peft cannot tell apart
        raise ConfigError(
            f"got the name {name!r} for an adapter beside {', '.join(module.peft_config)}; expected another one, "
            "a word such as 'teacher'"
        )


def _why_apart(model: CausalModel, source: str | Path, revision: str | None) -> str:
    """Why the model at `source` cannot lie beside `model`, or an empty string."""
    module: Any = model.module
    if not getattr(module, "peft_config", None) or not hasattr(module, "get_base_model"):
        return f"all weights of {model.source} are trained; {_REMEDY}"
    own = module.peft_config[POLICY]
    theirs, ours = base_of(source, revision), (module.get_base_model().name_or_path, own.revision)
    if theirs != ours:
        said = [base + (f" at revision {at}" if at else "") for base, at in (theirs, ours)]
        return f"its base is {said[0]}; expected {said[1]}"
    found = Path(find_model(source))
    begun = [own, *([_settings(found)] if holds(found, "adapter_config.json") else [])]
    drawn = [one.init_lora_weights for one in begun if one.init_lora_weights not in (True, False, "gaussian", "eva")]
    if drawn:
        return f"an adapter of the two was begun by {drawn[0]!r}, which changes the base; expected it to be left alone"
    return ""


def _settings(folder: Path) -> Any:
    import peft

    return peft.LoraConfig.from_pretrained(str(folder))


def _settings_of(model: CausalModel) -> Any:
    """The settings of its adapter, for a fresh one of the same shape."""
    module: Any = model.module
    return copy.deepcopy(module.peft_config[model.adapter_name])


def _add(module: nn.Module, name: str, settings: Any, trainable: bool, seed: int) -> None:
    """Add an adapter, its matrix A drawn by `seed` and B zero; everything that was there stays as it was."""
    whole: Any = module
    # A plain start: others (PiSSA, …) would change the base weights under the adapters that are there.
    settings.init_lora_weights = True
    settings.lora_dropout = 0.0
    settings.inference_mode = False
    flags = {each: weight.requires_grad for each, weight in module.named_parameters()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            whole.add_adapter(name, settings)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"the adapter {name!r} does not fit its base model: {error}") from error
    finally:  # peft makes whichever adapter it activates trainable and the others not
        for each, weight in module.named_parameters():
            weight.requires_grad_(flags.get(each, trainable))
