"""The reference: the policy as it was when training began, against which KL is measured; or one that follows it.

    reference = reference_of(model)                     before the first update
    with reference.active(model.module) as frozen:
        logits = frozen(tokens).logits                  no gradient inside

What has to be kept depends on what is trained:

    all weights                     a frozen copy of the module
    a fresh adapter                 nothing: the same module with its adapter switched off *is* the start
    an adapter that was loaded      a frozen second adapter in the same module. Switching the adapter off would give the
                                    base model, from which this run did not start.

In each case the KL to the policy is exactly 0 before the first update, and the reference stays where it is afterwards.

A reference that follows (`moving_reference_of`) has weights of its own in every case: a copy, or a second adapter. Of
an adapter it is the matrices A and B that are mixed, each with its like, and not their product.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from maieutic.models.adapters import active, adapter_weights, copied, counterparts, trained_weights
from maieutic.models.causal import BASE, POLICY, CausalModel, without_dropout

FROZEN = "reference"


class Reference(Protocol):
    """A frozen model that may live inside the policy's module."""

    def active(self, module: nn.Module) -> AbstractContextManager[nn.Module]:
        """Within the block: the module to call for the reference, without gradient. `module` is the policy's, which
        must not be used for anything else meanwhile and is as before afterwards."""
        ...


@dataclass(frozen=True)
class FrozenCopy:
    """A copy of all weights."""

    kept: nn.Module

    @contextmanager
    def active(self, module: nn.Module) -> Iterator[nn.Module]:  # noqa: ARG002 - the copy stands alone
        """The copy."""
        with torch.no_grad():
            yield self.kept


@dataclass(frozen=True)
class AdapterOff:
    """The policy's module without its adapter."""

    @contextmanager
    def active(self, module: nn.Module) -> Iterator[nn.Module]:
        """The module, its adapter switched off."""
        with torch.no_grad(), active(module, BASE):
            yield module


@dataclass(frozen=True)
class FrozenAdapter:
    """A second adapter of the policy's module."""

    name: str = FROZEN

    @contextmanager
    def active(self, module: nn.Module) -> Iterator[nn.Module]:
        """The module, with the second adapter instead of the trained one."""
        with torch.no_grad(), active(module, self.name):
            yield module


def reference_of(model: CausalModel) -> Reference:
    """The reference that stands where `model` stands now. Call it before the first update.

    For an adapter that was loaded this adds a frozen adapter named "reference" to the module (`save_causal` leaves it
    out); calling it again moves that adapter to the present weights.
    """
    if model.adapter and not model.adapter_source and _adds_nothing(model.module):
        return AdapterOff()
    return _kept(model)


def moving_reference_of(model: CausalModel) -> tuple[Reference, Mapping[str, Tensor]]:
    """A reference that stands where `model` stands now, and its own copies of the weights that are trained, by the
    names these have in the policy's module: what moves when it follows."""
    reference = _kept(model)
    if isinstance(reference, FrozenAdapter):
        return reference, counterparts(model.module, reference.name)
    own = dict(reference.kept.named_parameters())
    return reference, {name: own[name] for name in trained_weights(model.module)}


def _adds_nothing(module: nn.Module) -> bool:
    """Whether the adapter is as it was drawn, B zero: it may have been moved since, to where a stage begins."""
    own = adapter_weights(module, POLICY)
    return all("lora_" in name for name in own) and not any(bool(own[name].any()) for name in own if "lora_B" in name)


def _kept(model: CausalModel) -> FrozenCopy | FrozenAdapter:
    """Weights of its own: of the whole module, or of its adapter."""
    if model.adapter:
        return FrozenAdapter(copied(model, FROZEN).adapter_name)
    kept = without_dropout(copy.deepcopy(model.module)).eval()
    return FrozenCopy(kept.requires_grad_(False))
