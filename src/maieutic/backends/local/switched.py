"""Engines over one adapter of a module that has several: whatever they are asked, that adapter is at work meanwhile.

    teacher = beside(policy, "runs/teacher/model", "teacher")
    forward_of(teacher).outputs(batch, entropy=False)

Between two calls the module is the policy's, so a sampler of the policy may be in the middle of its rows. A backward
pass needs no switch: a graph keeps the weights that it was made with.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, TypeVar, cast

from maieutic.backends.local.check import decoder_for, forward_for
from maieutic.backends.local.decoder import Decoder
from maieutic.backends.local.evaluate import Forward
from maieutic.models.adapters import active
from maieutic.models.causal import POLICY, CausalModel

Engine = TypeVar("Engine")


def forward_of(model: CausalModel, recompute: bool = False) -> Forward:
    """The way to run this model, be it a module of its own or an adapter beside another; see `check.forward_for`."""
    return switched(forward_for(model.module, recompute, model.precision), model)


def decoder_of(model: CausalModel, sampling: str = "same") -> Decoder:
    """The way to sample from this model; see `check.decoder_for`."""
    return switched(decoder_for(model.module, model.precision, sampling), model)


def switched(engine: Engine, model: CausalModel) -> Engine:
    """The engine of `model.module`, at work with the adapter that `model` names; the engine itself for a policy's."""
    return engine if model.adapter_name == POLICY else cast("Engine", _Switched(engine, model))


class _Switched:
    """Every method of an engine, within `active`."""

    def __init__(self, engine: Any, model: CausalModel) -> None:
        self.engine = engine
        self.model = model

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.engine, name)
        if not callable(found):
            return found

        @wraps(found)
        def call(*given: Any, **named: Any) -> Any:
            with active(self.model.module, self.model.adapter_name):
                return found(*given, **named)

        return call
