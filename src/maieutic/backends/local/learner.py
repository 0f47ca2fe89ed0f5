"""The learner: sums gradients over micro-batches, updates weights, and is saved and restored to the bit.

    step:  for each micro-batch    outputs → loss [B, T] → sum(weights * loss).backward()
           then                    clip, update

`weights [B, T]` are computed once for the whole optimiser batch, so gradients only add: they do not depend on how the
batch is split. The module is the sampler's too; it is never in training mode, so nothing in it is random.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from maieutic.backends.local.budget import Budget, in_parts
from maieutic.backends.local.check import forward_for
from maieutic.backends.local.critic import Critic
from maieutic.backends.local.evaluate import Forward, PackedForward, PaddedForward
from maieutic.backends.local.memory import give_back
from maieutic.backends.local.natural import kept_policy, twice_differentiable
from maieutic.backends.local.optimiser import Optimiser, Updater, hidden_matrices
from maieutic.backends.local.products import summing, unchanged
from maieutic.clock import phase
from maieutic.core.neighbourhood import KeptPolicy
from maieutic.core.trust_region import flatten
from maieutic.errors import ConfigError, DataError, ModelError, NumericalError, RunError
from maieutic.models.adapters import trained_weights
from maieutic.models.causal import POLICY, CausalModel, save_causal
from maieutic.models.lora import read_adapter
from maieutic.models.progress import no_progress_bars
from maieutic.protocols import LossTerms
from maieutic.types import Batch, Outputs

#: What the names of a critic's weights begin with.
CRITIC = "critic."

#: Products in which sampler and learner may differ by more than a loss should pass over, and by how much (mean
#: over tokens, nats).
COARSE, FAR = (torch.bfloat16, torch.float16), 0.02

log = logging.getLogger("maieutic.backends.local")


class LocalLearner:
    """Trains a model in this process; see `maieutic.protocols.Learner`.

    micro_batch_tokens  tokens run through the model at once, at most (more only where one unit is larger). Fewer once
                        memory has run out: the batch is then begun anew, so its gradient is the same (`budget`).
    max_skips           updates in a row that may be skipped because a gradient was not finite.
    critic              what gives values (`ValueHead()`, `SeparateCritic(model)`); trained with the model.
    forward             how the module is run (None: as fast as its architecture allows, see `check`).
    restart             keep a copy of the weights that it begins with, to which `reset` goes back.
    gradient_checkpointing   keep only what goes into each layer, and run it again in the backward pass: a third more
                        arithmetic for much less memory. Of a `forward` that is given it is that one's own affair.
    """

    def __init__(
        self,
        model: CausalModel,
        optimiser: Optimiser,
        *,
        micro_batch_tokens: int = 16384,
        max_skips: int = 3,
        critic: Critic | None = None,
        forward: Forward | None = None,
        restart: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        if max_skips < 0:
            raise ConfigError(f"got max_skips={max_skips}; expected at least 0")
        if model.adapter_name != POLICY:
            raise ConfigError(
                f"got the adapter {model.adapter_name!r} beside a policy to train as a policy; expected the model that "
                "it lies beside, or the adapter's folder loaded by itself (load_causal)"
            )
        self.model = model
        self.version = 0
        self.skips = 0
        self.budget = Budget(micro_batch_tokens)
        self.max_skips = max_skips
        self.critic = None if critic is None else critic.join(model)
        model.module.eval()
        self.forward = forward or forward_for(model.module, gradient_checkpointing, model.precision)
        if gradient_checkpointing and self.critic is not None:
            self.critic.recompute()
        self.optimiser = optimiser
        self.updater = self._new_updater()
        self.start = {name: weight.detach().clone() for name, weight in self.weights().items()} if restart else None

    def _new_updater(self) -> Updater:
        critic = self._critic_weights()
        weights = {name: weight for name, weight in self.weights().items() if name not in critic}
        if not weights:
            raise ModelError("got a model without trainable weights; expected some with requires_grad")
        coarse = {weight.dtype for weight in weights.values()} & {torch.bfloat16, torch.float16}
        if coarse:
            log.warning(
                "the trained weights are %s, whose neighbours are up to 1 %% apart: small steps round to nothing. Load "
                "the model with dtype='float32'",
                ", ".join(map(str, coarse)),
            )
        rate = None if self.critic is None else self.critic.learning_rate
        return Updater(self.optimiser, weights, hidden_matrices(self.model.module), critic, rate)

    def _critic_weights(self) -> dict[str, Tensor]:
        return {name: weight for name, weight in self.weights().items() if name.startswith(CRITIC)}

    def _read_critic(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Put back the critic's trainable weights from those that `save` wrote."""
        saved = {name: value for name, value in tensors.items() if name.startswith(CRITIC)}
        own = self._critic_weights()
        if {name: value.shape for name, value in saved.items()} != {name: w.shape for name, w in own.items()}:
            raise RunError(
                f"{folder} holds a critic of {len(saved)} weights (0: none), and this policy has one of {len(own)}, or "
                "they differ in shape; resume with the critic of the saved run"
            )
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(saved[name])

    def weights(self) -> Mapping[str, Tensor]:
        """The trainable weights by name (views, not copies); those of the critic begin with `critic.`."""
        found: dict[str, Tensor] = dict(trained_weights(self.model.module))
        if self.critic is not None:
            own = self.critic.named_parameters()
            found |= {CRITIC + name: weight for name, weight in own if weight.requires_grad}
        return found

    @property
    def capabilities(self) -> frozenset[str]:
        """See `maieutic.protocols.Learner`."""
        able = {
            "values": self.critic is not None,
            "restart": self.start is not None,
            "trust_region": twice_differentiable(self.model.module, self.forward),
        }
        return frozenset(name for name, can in able.items() if can)

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens run through the model at once, at most."""
        return self.budget.tokens

    @micro_batch_tokens.setter
    def micro_batch_tokens(self, tokens: int) -> None:
        self.budget = Budget(tokens)

    @property
    def device(self) -> torch.device:
        """Where the weights are; batches are made on the CPU and brought there a micro-batch at a time."""
        return next(self.model.module.parameters()).device

    def outputs(self, batch: Batch, *, entropy: bool = True) -> Outputs:
        """What the model says of the batch now, all at once; with gradient unless it is disabled."""
        if self.critic is None:
            return self.forward.outputs(batch, entropy)
        return self.critic.outputs(self.forward, batch, entropy)

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """See `maieutic.protocols.Learner`."""
        return self._in_parts(batch, lambda rows: self.forward.outputs(rows, entropy=False).logprobs)

    @torch.no_grad()
    def values(self, batch: Batch) -> Tensor:
        """See `maieutic.protocols.Learner`. Raises `ConfigError` without a critic."""
        critic = self.critic
        if critic is None:
            raise ConfigError("this policy has no critic; make it with one, e.g. critic=ValueHead()")
        return self._in_parts(batch, lambda rows: critic.values(self.forward, rows))

    def _in_parts(self, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """`compute` over micro-batches on the weights' device, its rows put together in their order."""
        run = in_parts(self.budget, batch, self.forward.split, lambda rows: (compute(rows.to(self.device)),))
        return run[0]

    def step(
        self,
        batch: Batch,
        loss: LossTerms,
        *,
        needs: frozenset[str] = frozenset(),
    ) -> dict[str, float]:
        """One optimiser step on `sum(weights * loss)`; see `maieutic.protocols.Learner`.

        `outputs.entropy` is always there, with gradient, for the loss to use.
        `policy/sampler_mismatch_nats` compares the weights before this step with the sampler's: it says something
        about the engine only on the first step after sampling.

        Raises `DataError` when no token was chosen, `NumericalError` after more than `max_skips` skips in a row.
        """
        metrics = self.accumulate(batch, loss, needs=needs)
        if isinstance(self.forward, PackedForward | PaddedForward) and self.forward.numbers in COARSE:
            _say_if_far(metrics["policy/sampler_mismatch_nats"])
        with phase("optimiser"):
            return {**metrics, **self._update()}

    def accumulate(
        self,
        batch: Batch,
        loss: LossTerms,
        *,
        needs: frozenset[str] = frozenset(),
    ) -> dict[str, float]:
        """Make the gradient of `sum(weights * loss)` the weights' `grad`, in micro-batches.

        Nothing that was there before is left. Raises `DataError` as `step`, and `ConfigError` where rows that must be
        run together do not fit into memory.
        """
        if not bool(batch.mask.any()):
            raise DataError("got a batch in which no token was chosen; expected at least one. Leave such batches out")

        def begin() -> Tally:
            self.updater.forget_gradients()
            return Tally()

        def add(tally: Tally, rows: Tensor) -> None:
            self._differentiate(batch.rows(rows).to(self.device), loss, needs, tally)

        with unchanged(), summing():
            metrics = self.budget.over(batch, self.forward.split, begin, add).metrics()
        give_back()
        return {**metrics, "memory/micro_batch_tokens": float(self.budget.tokens)} if self.budget.lowered else metrics

    def _differentiate(self, micro: Batch, loss: LossTerms, needs: frozenset[str], tally: Tally) -> None:
        """Add the gradient of one micro-batch to the weights' `grad`, and what was seen of it to the tally."""
        with phase("forward"):
            outputs = self.outputs(micro)
            if "old_logprobs" in needs and not micro.has("old_logprobs"):
                micro = micro.with_(old_logprobs=outputs.logprobs.detach())
            value, watched = loss(outputs, micro)
            total = torch.where(micro.mask, micro.weights * value, 0.0).sum()
        if total.requires_grad:
            with phase("backward"):
                total.backward()
        tally.add(micro, outputs, total, watched)

    def _update(self) -> dict[str, float]:
        """Clip and step, or skip when the gradient is not finite."""
        norm = self.updater.clip()
        rate, skipped = 0.0, self._skips(norm)
        if not skipped:
            rate = self.updater.step()
            self.version += 1
        self.updater.forget_gradients()
        return {"optim/grad_norm": norm, "optim/learning_rate": rate, "optim/skipped": float(skipped)}

    def _skips(self, norm: float) -> bool:
        """Whether a gradient of that length is to be skipped. Raises `NumericalError` after too many in a row."""
        self.skips = 0 if math.isfinite(norm) else self.skips + 1
        if self.skips > self.max_skips:
            self.updater.forget_gradients()
            raise NumericalError(
                f"the gradient was not finite {self.skips} times in a row (its last norm was {norm}); expected "
                "finite ones. Lower the learning rate, or look at the last batch: a log-ratio may be out of range"
            )
        return self.skips > 0

    def gradient(self, batch: Batch, loss: LossTerms) -> tuple[Tensor, dict[str, float]]:
        """See `maieutic.protocols.TrustRegionLearner`."""
        metrics = self.accumulate(batch, loss)
        slope = flatten([torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights().values()])
        self.updater.forget_gradients()
        norm = float(slope.norm())
        return slope, {**metrics, "optim/grad_norm": norm, "optim/skipped": float(self._skips(norm))}

    def neighbourhood(self, batch: Batch, tokens: Tensor) -> KeptPolicy:
        """See `maieutic.protocols.TrustRegionLearner`."""
        weights, budget = list(self.weights().values()), self.micro_batch_tokens
        return kept_policy(self.model.module, self.forward, weights, self.outputs, batch, tokens, budget)

    def count_step(self) -> None:
        """See `maieutic.protocols.TrustRegionLearner`."""
        self.version += 1

    def reset(self, folder: Path | None = None, *, total_steps: int | None = None, keep_weights: bool = False) -> None:
        """See `maieutic.protocols.Learner`. `folder` is a model folder, or one that `save` wrote.

        A critic goes back too, where `folder` holds it; at a plain model's weights it stays as it is.
        """
        if keep_weights:
            pass
        elif folder is not None:
            folder = Path(folder)
            saved = (folder / "model").is_dir()
            _read_weights(self.model, folder / "model" if saved else folder)
            if saved and self.critic is not None:
                self._read_critic(load_file(folder / "learner.safetensors"), folder)
        elif self.start is not None:
            with torch.no_grad():
                for name, weight in self.weights().items():
                    weight.copy_(self.start[name])
        else:
            raise ConfigError("this learner kept no weights to go back to; make its policy with restart=True")
        if total_steps is not None:
            total_steps = max(total_steps, self.optimiser.warmup_steps + 1)
            self.optimiser = dataclasses.replace(self.optimiser, total_steps=total_steps)
        self.updater = self._new_updater()
        self.skips = 0

    def save(self, folder: Path) -> None:
        """See `maieutic.protocols.Learner`. `learner.safetensors` holds the optimiser's state."""
        folder = Path(folder)
        save_causal(self.model, folder / "model")
        tensors = {f"state/{name}": value for name, value in self.updater.state().items()}
        tensors |= self._critic_weights()
        save_file(
            {name: value.detach().contiguous() for name, value in tensors.items()}, folder / "learner.safetensors"
        )
        counters = {"version": self.version, "steps": self.updater.steps, "skips": self.skips}
        text = json.dumps({**counters, "optimiser": dataclasses.asdict(self.optimiser)}, indent=2)
        (folder / "learner.json").write_text(text + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """See `maieutic.protocols.Learner`. Raises `RunError` when the folder is not whole or of another model."""
        folder = Path(folder)
        try:
            counters = json.loads((folder / "learner.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "learner.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise RunError(f"cannot resume from {folder}: {error}. Resume from an earlier checkpoint") from error
        _read_weights(self.model, folder / "model")
        self._read_critic(tensors, folder)
        state = {name.removeprefix("state/"): t for name, t in tensors.items() if name.startswith("state/")}
        self.updater.restore(state, counters["steps"])
        self.version, self.skips = counters["version"], counters["skips"]


class Tally:
    """Sums over micro-batches, from which the step's metrics are made."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.widest = 0.0
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, batch: Batch, outputs: Outputs, total: Tensor, watched: Mapping[str, Tensor]) -> None:
        """Count a micro-batch: `watched` are per-token `[B, T]`, of which chosen tokens count, or per-pair `[P]`."""
        mismatch = (outputs.logprobs.detach() - batch.sampler_logprobs).abs()[batch.mask]
        chosen = {name: value[batch.mask] if value.dim() == 2 else value for name, value in watched.items()}
        seen = {name: value.detach() for name, value in chosen.items()}
        seen["policy/sampler_mismatch_nats"] = mismatch
        if outputs.entropy is not None:
            seen["policy/entropy"] = outputs.entropy.detach()[batch.mask]
        for name, value in seen.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.sum())
            self.counts[name] = self.counts.get(name, 0) + value.numel()
        self.loss += float(total.detach())
        self.widest = max(self.widest, float(mismatch.max()) if mismatch.numel() else 0.0)

    def metrics(self) -> dict[str, float]:
        """Means over chosen tokens, or over pairs; `loss` is the weighted sum that was minimised."""
        means = {name: value / max(1, self.counts[name]) for name, value in self.sums.items()}
        return {"loss": self.loss, **means, "policy/sampler_mismatch_max": self.widest}


@cache
def _warn_once() -> None:
    log.warning(
        "log-probs of sampler and learner differ by more than %s nats a token (policy/sampler_mismatch_nats): "
        "by rounding to bfloat16, or because the policy has moved since. Take a loss with a correction, such as "
        "corrected(clipped_surrogate(), truncated(2.0)), or precision = 'float32'",
        FAR,
    )


def _say_if_far(mismatch: float) -> None:
    if mismatch > FAR:
        _warn_once()


def _read_weights(model: CausalModel, folder: Path) -> None:
    """Copy the weights of a saved model into a loaded one, in place. Raises `ModelError` when they do not fit."""
    module: Any = model.module
    try:
        with no_progress_bars():
            if model.adapter:
                read_adapter(module, POLICY, folder)
            else:
                dtype = next(module.parameters()).dtype
                module.load_state_dict(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot read a model of this shape from {folder}: {error}") from error
