"""The optimiser: AdamW, or Muon for hidden matrices with AdamW for the rest, under a learning-rate schedule.

    rate(step) = learning_rate * warm-up * schedule            step counts from 0

AdamW: arXiv 1711.05101. Muon: Keller Jordan's orthogonalised momentum, `torch.optim.Muon`. State is kept as plain
tensors by parameter name, so that it is saved without pickle and restored bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maieutic.errors import ConfigError, RunError, UnknownName

#: progress in [0, 1] after the warm-up, final fraction → share of the learning rate
SCHEDULES: Mapping[str, Callable[[float, float], float]] = {
    "constant": lambda progress, final: 1.0,  # noqa: ARG005
    "linear": lambda progress, final: 1.0 - (1.0 - final) * progress,
    "cosine": lambda progress, final: final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True)
class Optimiser:
    """How weights are updated. `Optimiser(learning_rate=5e-4, schedule="linear", warmup_steps=5, total_steps=80)`.

    kind                 "adamw", or "muon": Muon at `muon_learning_rate` for the hidden layers' matrices, AdamW at
                         `learning_rate` for embeddings, head, norms and biases.
    warmup_steps         the rate rises linearly over so many optimiser steps.
    schedule             "constant", "linear" or "cosine", from the warm-up's end to `final_fraction` of the rate at
                         `total_steps`. Only steps that are taken count: where steps are skipped, the rate ends above.
    max_grad_norm        gradients longer than this (all weights of the policy together, and those of a critic) are
                         shortened to it.
    """

    kind: str = "adamw"
    learning_rate: float = 1e-5
    muon_learning_rate: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: str = "constant"
    final_fraction: float = 0.0
    total_steps: int | None = None
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("optimiser", self.kind, KINDS)
        if self.schedule not in SCHEDULES:
            raise UnknownName("schedule", self.schedule, SCHEDULES)
        if self.schedule != "constant" and (self.total_steps is None or self.total_steps <= self.warmup_steps):
            raise ConfigError(
                f"got schedule {self.schedule!r} with total_steps={self.total_steps} and warmup_steps="
                f"{self.warmup_steps}; expected total_steps, larger than warmup_steps: the rate falls until then"
            )
        if min(self.learning_rate, self.muon_learning_rate, self.weight_decay, self.warmup_steps) < 0:
            raise ConfigError(f"got {self}; expected rates, weight decay and warm-up of 0 or more")
        if not self.max_grad_norm > 0:
            raise ConfigError(f"got max_grad_norm={self.max_grad_norm}; expected more than 0 (inf: never shorten)")

    def share(self, step: int) -> float:
        """The share of the learning rate at optimiser step `step` (from 0)."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        span = max(1, (self.total_steps or 0) - self.warmup_steps)
        return SCHEDULES[self.schedule](min(1.0, (step - self.warmup_steps) / span), self.final_fraction)


class Updater:
    """The optimiser at work on one model's trainable weights."""

    def __init__(
        self,
        config: Optimiser,
        weights: Mapping[str, Tensor],
        matrices: frozenset[str],
        critic: Mapping[str, Tensor] | None = None,
        critic_rate: float | None = None,
    ) -> None:
        """`weights` are the policy's trainable ones by name; `matrices` names those of them that Muon may take.

        A critic's own weights are AdamW's, at `critic_rate` (None: `learning_rate`) under the same schedule.
        """
        self.config = config
        self.critic = dict(critic or {})
        self.weights = {**weights, **self.critic}
        self.steps = 0
        self.engines = KINDS[config.kind](config, dict(weights), matrices)
        if self.critic:
            self.engines["critic"] = (_adamw(config, self.critic)["adamw"][0], critic_rate or config.learning_rate)
        self.names = {id(weight): name for name, weight in self.weights.items()}

    def clip(self) -> float:
        """The gradient's length, after which it is at most `max_grad_norm` long. Not finite: left as it is.

        A critic's own weights are measured and shortened by themselves: one that is far off, as it is at first, would
        otherwise shorten the policy's steps. The length returned is that of all together.
        """
        policy = [weight for name, weight in self.weights.items() if name not in self.critic]
        parts = [[w for w in part if w.grad is not None] for part in (policy, list(self.critic.values()))]
        norms = [torch.nn.utils.get_total_norm([w.grad for w in part if w.grad is not None]) for part in parts if part]
        length = math.hypot(*(float(norm) for norm in norms))
        if math.isfinite(length):
            for part, norm in zip(filter(None, parts), norms, strict=True):
                if float(norm) > self.config.max_grad_norm:  # else it would multiply every gradient by 1
                    torch.nn.utils.clip_grads_with_norm_(part, self.config.max_grad_norm, norm)
        return length

    def step(self) -> float:
        """Update the weights, and return the learning rate used."""
        share = self.config.share(self.steps)
        for engine, rate in self.engines.values():
            for group in engine.param_groups:
                group["lr"] = rate * share
            engine.step()
        self.steps += 1
        return self.config.learning_rate * share

    def forget_gradients(self) -> None:
        """Start the next sum of gradients from nothing."""
        for weight in self.weights.values():
            weight.grad = None

    def state(self) -> dict[str, Tensor]:
        """Every tensor of state as `engine/weight/quantity`."""
        return {
            f"{kind}/{self.names[id(weight)]}/{quantity}": value
            for kind, (engine, _) in self.engines.items()
            for weight, kept in engine.state.items()
            for quantity, value in kept.items()
        }

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Put back what `state` returned. Raises `RunError` when it belongs to other weights or another optimiser."""
        for engine, _ in self.engines.values():
            engine.state.clear()
        for name, value in state.items():
            kind, _, rest = name.partition("/")
            weight, _, quantity = rest.rpartition("/")
            if kind not in self.engines or weight not in self.weights:
                raise RunError(
                    f"the saved optimiser state has {name!r}; expected {'/'.join(self.engines)} state of this model's "
                    "trainable weights. Resume with the optimiser and the adapter settings of the saved run"
                )
            owner = self.weights[weight]
            engine = self.engines[kind][0]
            # AdamW that is not fused counts its steps on the CPU; everything else lies where the weight does.
            aside = value.dim() == 0 and not engine.param_groups[0].get("fused")
            engine.state[owner][quantity] = value.to(value.device if aside else owner.device, copy=True)
        self.steps = steps


Engines = dict[str, tuple[torch.optim.Optimizer, float]]


def _adamw(config: Optimiser, weights: Mapping[str, Tensor], matrices: frozenset[str] = frozenset()) -> Engines:  # noqa: ARG001
    engine = torch.optim.AdamW(
        list(weights.values()),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=all(weight.device.type in ("cpu", "cuda") for weight in weights.values()),
    )
    return {"adamw": (engine, config.learning_rate)}


def _muon(config: Optimiser, weights: Mapping[str, Tensor], matrices: frozenset[str]) -> Engines:
    hidden = {name: weight for name, weight in weights.items() if name in matrices}
    rest = {name: weight for name, weight in weights.items() if name not in matrices}
    if not hidden:
        raise ConfigError("got optimiser 'muon' for a model without trainable hidden matrices; use kind='adamw'")
    engine = torch.optim.Muon(list(hidden.values()), lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    return {"muon": (engine, config.muon_learning_rate), **(_adamw(config, rest) if rest else {})}


#: name → what makes its engines: (settings, weights, names of hidden matrices) → engines with their own rates
KINDS: Mapping[str, Callable[[Optimiser, Mapping[str, Tensor], frozenset[str]], Engines]] = {
    "adamw": _adamw,
    "muon": _muon,
}


def hidden_matrices(module: nn.Module) -> frozenset[str]:
    """Names of the two-dimensional weights that are neither an embedding nor the language-model head."""
    whole: Any = module
    outer = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    head = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
    taken = {id(weight) for part in (*outer, head) if part is not None for weight in part.parameters()}
    return frozenset(
        name for name, weight in module.named_parameters() if weight.dim() == 2 and id(weight) not in taken
    )
