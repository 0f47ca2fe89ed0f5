"""Models beside the policy that score tokens and are not trained: a reference, one that follows, a teacher, a student.

`B` rows, `T` tokens · `K` candidates that a teacher keeps
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maieutic.backends.local.budget import Budget, in_parts
from maieutic.backends.local.check import forward_for
from maieutic.backends.local.evaluate import Forward
from maieutic.backends.local.switched import forward_of
from maieutic.backends.local.trunk import bare
from maieutic.core.following import Following
from maieutic.errors import ConfigError, DataError, ModelError, RunError
from maieutic.models.causal import CausalModel
from maieutic.models.reference import Reference, moving_reference_of, reference_of
from maieutic.types import Batch


class LocalScorer:
    """Log-probs under a model that is not trained; see `maieutic.protocols.Scorer`.

    It may be an adapter beside a policy (`maieutic.models.adapters`), which is left alone.
    """

    def __init__(self, model: CausalModel, *, micro_batch_tokens: int = 16384) -> None:
        self.model = model
        self.budget = Budget(micro_batch_tokens)
        model.module.eval()
        self.forward = forward_of(model)

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats at the batch's temperature, 0 off the mask."""
        device = next(self.model.module.parameters()).device
        return _logprobs(self.forward, batch, self.budget, device)


class ReferenceScorer:
    """Log-probs under a model as it was when this scorer was made, while the model itself is trained.

    A LoRA policy's reference lives inside its own module and takes no second copy of the base weights; see
    `maieutic.models.reference`.
    """

    def __init__(self, model: CausalModel, *, micro_batch_tokens: int = 16384) -> None:
        self.module = model.module
        self.budget = Budget(micro_batch_tokens)
        model.module.eval()
        self.reference = reference_of(model)
        self.forward = _forward_of(self.reference, model)

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats at the batch's temperature, 0 off the mask."""
        with self.reference.active(self.module):
            device = next(self.module.parameters()).device
            return _logprobs(self.forward, batch, self.budget, device)


class FollowingReference:
    """Log-probs under a reference that follows the policy's model: see `maieutic.core.following` for when and how far.

    `version` counts the learner's optimiser steps. It moves when it is asked for log-probs, which the loop does once a
    step, before the weights move. `save` writes its weights and how often it has moved; after `load` it goes on to the
    same bits.
    """

    def __init__(
        self, model: CausalModel, version: Callable[[], int], every: int, mix: float, *, micro_batch_tokens: int = 16384
    ) -> None:
        self.module = model.module
        self.version = version
        self.budget = Budget(micro_batch_tokens)
        model.module.eval()
        self.rule = Following(every, mix, version())
        self.reference, self.weights = moving_reference_of(model)
        self.forward = _forward_of(self.reference, model)

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats at the batch's temperature, 0 off the mask, after the moves that are due."""
        self.rule.move(self.version(), self.weights, dict(self.module.named_parameters()))
        with self.reference.active(self.module):
            device = next(self.module.parameters()).device
            return _logprobs(self.forward, batch, self.budget, device)

    def save(self, folder: Path) -> None:
        """`reference.safetensors`: the weights that move, and the number of moves."""
        kept = {f"weight/{name}": weight.detach().contiguous() for name, weight in self.weights.items()}
        save_file({**kept, "moves": torch.tensor(self.rule.moves)}, folder / FOLLOWING)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises `RunError` when it is not whole or of another model."""
        try:
            saved = load_file(folder / FOLLOWING)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"cannot resume the reference that follows from {folder}: {error}. Resume from an earlier checkpoint"
            ) from error
        moves = saved.pop("moves", None)
        kept = {name.removeprefix("weight/"): weight for name, weight in saved.items()}
        own = {name: weight.shape for name, weight in self.weights.items()}
        if moves is None or {name: weight.shape for name, weight in kept.items()} != own:
            raise RunError(f"{folder / FOLLOWING} is of another model; resume with the model of the saved run")
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(kept[name])
        self.rule.moves = int(moves)


#: The file of a reference that follows, in a checkpoint.
FOLLOWING = "reference.safetensors"


class LocalTeacher(LocalScorer):
    """A model to imitate; see `maieutic.protocols.Teacher`.

    student   the model that learns from it. Both must read and write the same tokens, id by id.
    top_k     candidates kept for each token, or all tokens where there are fewer (None: always all of them, which takes
              `[B, T, V]` of memory: for small models).

    Embeddings may be padded to different sizes (as within the Qwen 2.5 family): a candidate is always a token of the
    tokenizer. Raises `ModelError` for a student with another vocabulary, `ConfigError` for a `top_k` below 1.
    """

    def __init__(
        self, model: CausalModel, student: CausalModel, *, top_k: int | None = 64, micro_batch_tokens: int = 16384
    ) -> None:
        super().__init__(model, micro_batch_tokens=micro_batch_tokens)
        check_vocabularies(model, student, "teacher")
        if top_k is not None and top_k < 1:
            raise ConfigError(f"got a teacher with top_k={top_k}; expected at least 1, or None (the whole vocabulary)")
        self.vocabulary = 1 + max(student.tokenizer.get_vocab().values())
        self.top_k = self.vocabulary if top_k is None else min(top_k, self.vocabulary)
        config = getattr(bare(model.module), "config", None)
        self.limit: int | None = getattr(config, "max_position_embeddings", None)

    def logprobs(self, batch: Batch) -> Tensor:
        """As `LocalScorer`. Raises `DataError` for rows that are longer than the teacher's context."""
        self._check_lengths(batch)
        return super().logprobs(batch)

    @torch.no_grad()
    def top(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and log-probs `[B, T, K]` at the batch's temperature, falling; 0 off the mask. Raises as `logprobs`."""
        self._check_lengths(batch)
        device = next(self.model.module.parameters()).device
        ids, logprobs = in_parts(
            self.budget,
            batch,
            self.forward.split,
            lambda rows: self.forward.top(rows.to(device), self.top_k, self.vocabulary),
        )
        return ids, logprobs

    def _check_lengths(self, batch: Batch) -> None:
        longest = int(batch.lengths.max())
        if self.limit is not None and longest > self.limit:
            raise DataError(
                f"got a row of {longest} tokens; the teacher ({self.model.source}) has {self.limit} positions. Lower "
                "max_completion_length, so that it can read all that the student writes, take a teacher with a longer "
                'context, or let rows teach as far as it can read ([stages.teacher] too_long = "cut")'
            )


def check_vocabularies(model: CausalModel, policy: CausalModel, role: str) -> None:
    """Raise `ModelError` unless a model beside the policy has the policy's tokens, id by id."""
    theirs, ours = model.tokenizer.get_vocab(), policy.tokenizer.get_vocab()
    if theirs == ours:
        return
    wrong = next((t for t in ours if theirs.get(t) != ours[t]), None) or next(t for t in theirs if t not in ours)
    raise ModelError(
        f"got a {role} ({model.source}) of {len(theirs)} tokens for a policy ({policy.source}) of {len(ours)}; they "
        f"differ, for example in the id of {wrong!r}: {theirs.get(wrong)} and {ours.get(wrong)}. Expected the same "
        "tokens with the same ids, because log-probs are compared token by token. What remains for models of different "
        "vocabularies is text: let the teacher write solutions, and fine-tune on them (sft), or compare sums over "
        "spans of text (on_policy_distillation with [stages.teacher] align = true)"
    )


def _forward_of(reference: Reference, model: CausalModel) -> Forward:
    """The way to run the reference, made once: it takes a look at the whole module."""
    with reference.active(model.module) as frozen:
        return forward_for(frozen, precision=model.precision)


@torch.no_grad()
def _logprobs(forward: Forward, batch: Batch, budget: Budget, device: torch.device) -> Tensor:
    run = in_parts(
        budget, batch, forward.split, lambda rows: (forward.outputs(rows.to(device), entropy=False).logprobs,)
    )
    return run[0]
