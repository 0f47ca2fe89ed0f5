"""The learner: sums gradients over micro-batches, updates weights, and is saved and restored to the bit.

    step:  for each micro-batch    outputs → loss [B, T] → sum(weights * loss).backward()
           then                    clip, update

`weights [B, T]` are computed once for the whole optimiser batch, so gradients only add: they do not depend on how the
batch is split. The module is the sampler's too; it is never in training mode, so nothing in it is random.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from maieutic.backends.local.check import forward_for
from maieutic.backends.local.evaluate import Forward
from maieutic.backends.local.optimiser import Optimiser, Updater, hidden_matrices
from maieutic.errors import ConfigError, DataError, ModelError, NumericalError, RunError
from maieutic.models.causal import CausalModel, save_causal
from maieutic.models.progress import no_progress_bars
from maieutic.protocols import LossTerms
from maieutic.types import Batch, Outputs

VALUE_HEAD = "value_head."


class LocalLearner:
    """Trains a model in this process; see `maieutic.protocols.Learner`.

    micro_batch_tokens  tokens run through the model at once, at most (more only where one unit is larger).
    max_skips           updates in a row that may be skipped because a gradient was not finite.
    value_head          maps hidden states `[M, E]` to values `[M, 1]`; its weights are trained with the model's.
    forward             how the module is run (None: as fast as its architecture allows, see `check`).
    restart             keep a copy of the weights that it begins with, to which `reset` goes back.
    """

    def __init__(
        self,
        model: CausalModel,
        optimiser: Optimiser,
        *,
        micro_batch_tokens: int = 16384,
        max_skips: int = 3,
        value_head: nn.Module | None = None,
        forward: Forward | None = None,
        restart: bool = False,
    ) -> None:
        if micro_batch_tokens < 1 or max_skips < 0:
            raise ConfigError(
                f"got micro_batch_tokens={micro_batch_tokens}, max_skips={max_skips}; expected at least 1 and 0"
            )
        self.model = model
        self.version = 0
        self.skips = 0
        self.micro_batch_tokens = micro_batch_tokens
        self.max_skips = max_skips
        self.value_head = value_head
        model.module.eval()
        self.forward = forward or forward_for(model.module)
        self.optimiser = optimiser
        self.updater = self._new_updater()
        self.start = {name: weight.detach().clone() for name, weight in self.weights().items()} if restart else None

    def _new_updater(self) -> Updater:
        weights = dict(self.weights())
        if not weights:
            raise ModelError("got a model without trainable weights; expected some with requires_grad")
        return Updater(self.optimiser, weights, hidden_matrices(self.model.module))

    def weights(self) -> Mapping[str, Tensor]:
        """The trainable weights by name (views, not copies); those of the value head begin with `value_head.`."""
        found = dict(self.model.module.named_parameters())
        if self.value_head is not None:
            found |= {VALUE_HEAD + name: weight for name, weight in self.value_head.named_parameters()}
        return {name: weight for name, weight in found.items() if weight.requires_grad}

    @property
    def capabilities(self) -> frozenset[str]:
        """See `maieutic.protocols.Learner`."""
        able = {"values": self.value_head is not None, "restart": self.start is not None}
        return frozenset(name for name, can in able.items() if can)

    @property
    def device(self) -> torch.device:
        """Where the weights are; batches are made on the CPU and brought there a micro-batch at a time."""
        return next(self.model.module.parameters()).device

    def outputs(self, batch: Batch, *, entropy: bool = True) -> Outputs:
        """What the model says of the batch now, all at once; with gradient unless it is disabled."""
        return self.forward.outputs(batch, entropy, self.value_head)

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """See `maieutic.protocols.Learner`."""
        return self._evaluated(batch).logprobs

    @torch.no_grad()
    def values(self, batch: Batch) -> Tensor:
        """`[B, T]` values of the states before each chosen token. Raises `ConfigError` without a value head."""
        found = self._evaluated(batch).values
        if found is None:
            raise ConfigError("this policy has no value head; load it with one")
        return found

    def _evaluated(self, batch: Batch) -> Outputs:
        parts = [
            (rows, self.outputs(batch.rows(rows).to(self.device), entropy=False))
            for rows in self.forward.split(batch, self.micro_batch_tokens)
        ]
        order = torch.cat([rows for rows, _ in parts]).argsort()
        place = batch.tokens.device
        logprobs = torch.cat([out.logprobs.to(place) for _, out in parts])[order]
        found = [out.values.to(place) for _, out in parts if out.values is not None]
        return Outputs(logprobs, None, torch.cat(found)[order] if found else None)

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
        self.updater.forget_gradients()
        metrics = self.accumulate(batch, loss, needs=needs)
        return {**metrics, **self._update()}

    def accumulate(
        self,
        batch: Batch,
        loss: LossTerms,
        *,
        needs: frozenset[str] = frozenset(),
    ) -> dict[str, float]:
        """Add the gradient of `sum(weights * loss)` to the weights' `grad`, in micro-batches."""
        if not bool(batch.mask.any()):
            raise DataError("got a batch in which no token was chosen; expected at least one. Leave such batches out")
        tally = Tally()
        for rows in self.forward.split(batch, self.micro_batch_tokens):
            micro = batch.rows(rows).to(self.device)
            outputs = self.outputs(micro)
            if "old_logprobs" in needs and not micro.has("old_logprobs"):
                micro = micro.with_(old_logprobs=outputs.logprobs.detach())
            value, watched = loss(outputs, micro)
            total = torch.where(micro.mask, micro.weights * value, 0.0).sum()
            if total.requires_grad:
                total.backward()
            tally.add(micro, outputs, total, watched)
        return tally.metrics()

    def _update(self) -> dict[str, float]:
        """Clip and step, or skip when the gradient is not finite."""
        norm = self.updater.clip()
        rate, skipped = 0.0, not math.isfinite(norm)
        if skipped:
            self.skips += 1
        else:
            rate = self.updater.step()
            self.skips = 0
            self.version += 1
        self.updater.forget_gradients()
        if self.skips > self.max_skips:
            raise NumericalError(
                f"the gradient was not finite {self.skips} times in a row (its last norm was {norm}); expected "
                "finite ones. Lower the learning rate, or look at the last batch: a log-ratio may be out of range"
            )
        return {"optim/grad_norm": norm, "optim/learning_rate": rate, "optim/skipped": float(skipped)}

    def reset(self, folder: Path | None = None, *, total_steps: int | None = None) -> None:
        """See `maieutic.protocols.Learner`. `folder` is a model folder, or one that `save` wrote."""
        if folder is not None:
            folder = Path(folder)
            _read_weights(self.model, folder / "model" if (folder / "model").is_dir() else folder)
        elif self.start is not None:
            with torch.no_grad():
                for name, weight in self.weights().items():
                    weight.copy_(self.start[name])
        else:
            raise ConfigError("this learner kept no weights to go back to; make its policy with restart=True")
        if total_steps is not None:
            self.optimiser = dataclasses.replace(self.optimiser, total_steps=total_steps)
        self.updater = self._new_updater()
        self.skips = 0

    def save(self, folder: Path) -> None:
        """See `maieutic.protocols.Learner`. `learner.safetensors` holds the optimiser's state."""
        folder = Path(folder)
        save_causal(self.model, folder / "model")
        tensors = {f"state/{name}": value for name, value in self.updater.state().items()}
        if self.value_head is not None:
            tensors |= {VALUE_HEAD + name: value for name, value in self.value_head.state_dict().items()}
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
        if self.value_head is not None:
            own = {n.removeprefix(VALUE_HEAD): t for n, t in tensors.items() if n.startswith(VALUE_HEAD)}
            self.value_head.load_state_dict(own)
        state = {name.removeprefix("state/"): t for name, t in tensors.items() if name.startswith("state/")}
        self.updater.restore(state, counters["steps"])
        self.version, self.skips = counters["version"], counters["skips"]


class Tally:
    """Sums over micro-batches, from which the step's metrics are made."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.tokens = 0
        self.widest = 0.0
        self.sums: dict[str, float] = {}

    def add(self, batch: Batch, outputs: Outputs, total: Tensor, watched: Mapping[str, Tensor]) -> None:
        """Count a micro-batch: `watched` are per-token `[B, T]`, of which chosen tokens count."""
        mismatch = (outputs.logprobs.detach() - batch.sampler_logprobs).abs()[batch.mask]
        seen = {name: value.detach()[batch.mask] for name, value in watched.items()}
        seen["policy/sampler_mismatch_nats"] = mismatch
        if outputs.entropy is not None:
            seen["policy/entropy"] = outputs.entropy.detach()[batch.mask]
        for name, value in seen.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.sum())
        self.loss += float(total.detach())
        self.tokens += mismatch.numel()
        self.widest = max(self.widest, float(mismatch.max()) if mismatch.numel() else 0.0)

    def metrics(self) -> dict[str, float]:
        """Means over chosen tokens; `loss` is the weighted sum that was minimised."""
        means = {name: value / max(1, self.tokens) for name, value in self.sums.items()}
        return {"loss": self.loss, **means, "policy/sampler_mismatch_max": self.widest}


def _read_weights(model: CausalModel, folder: Path) -> None:
    """Copy the weights of a saved model into a loaded one, in place. Raises `ModelError` when they do not fit."""
    module: Any = model.module
    try:
        with no_progress_bars():
            if model.adapter:
                import peft

                weights = peft.load_peft_weights(str(folder), device="cpu")
                peft.set_peft_model_state_dict(module, weights)
            else:
                dtype = next(module.parameters()).dtype
                module.load_state_dict(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        kind = "an adapter" if model.adapter else "a model"
        raise ModelError(f"cannot read {kind} of this shape from {folder}: {error}") from error
