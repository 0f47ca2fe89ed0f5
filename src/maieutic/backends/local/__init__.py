"""The local backend: one process, on a CPU or one GPU. Sampler and learner share the weights.

backend = LocalBackend(device="cpu", threads=1)
policy = backend.policy(load_causal("models/tiny"), Optimiser(learning_rate=5e-4))
reference = backend.frozen(load_causal("models/tiny"))
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from maieutic.backends.local.check import why_not
from maieutic.backends.local.critic import Critic, SeparateCritic, ValueHead
from maieutic.backends.local.learner import LocalLearner
from maieutic.backends.local.optimiser import Optimiser
from maieutic.backends.local.sampler import LocalSampler
from maieutic.backends.local.scorer import (
    FollowingReference,
    LocalScorer,
    LocalTeacher,
    ReferenceScorer,
    check_vocabularies,
)
from maieutic.backends.local.switched import decoder_of
from maieutic.models.causal import CausalModel, place_of
from maieutic.protocols import Learner, Policy

__all__ = [
    "FollowingReference", "LocalBackend", "LocalLearner", "LocalSampler", "LocalScorer", "LocalTeacher", "Optimiser",
    "ReferenceScorer", "SeparateCritic", "ValueHead", "check_vocabularies", "why_not",
]  # fmt: skip


class LocalBackend:
    """Everything in this process.

    device              "cpu" or "cuda" (or "cuda:1"); models are moved there. What they compute in is theirs:
                        `load_causal(…, dtype="float32", precision="auto")` keeps weights in float32 and makes products
                        in bfloat16 on a GPU that has it, for sampler and learner alike.
    threads             CPU threads of torch, for the whole process (None: leave as it is).
    max_rows            completions written together at most.
    micro_batch_tokens  tokens in one forward and backward pass at most.
    cache_bytes         bound on the sampler's key-value store (None: 4 GiB on a CPU; on a GPU half of its memory, and
                        never more than four fifths of what is free when sampling begins).
    gradient_checkpointing   learn with a third more arithmetic and much less memory; see `LocalLearner`.
    sampling_precision  what policies sample in: "same" as they learn in, or on a CPU "bfloat16" or "int8", which is
                        another policy (`maieutic.backends.local.coarse`).
    """

    def __init__(
        self,
        device: str = "cpu",
        threads: int | None = None,
        max_rows: int = 512,
        micro_batch_tokens: int = 16384,
        cache_bytes: int | None = None,
        gradient_checkpointing: bool = False,
        sampling_precision: str = "same",
    ) -> None:
        self.device = place_of(device)
        self.max_rows = max_rows
        self.micro_batch_tokens = micro_batch_tokens
        self.cache_bytes = _cache_bytes(self.device) if cache_bytes is None else cache_bytes
        self.gradient_checkpointing = gradient_checkpointing
        self.sampling_precision = sampling_precision
        if threads is not None:
            torch.set_num_threads(threads)

    def policy(
        self,
        model: CausalModel,
        optimiser: Optimiser,
        *,
        critic: Critic | None = None,
        restart: bool = False,
    ) -> Policy:
        """A learner and a sampler on one set of weights: an update is there for the sampler at once.

        `critic` gives it values: `ValueHead()` or `SeparateCritic(load_causal(…))`.
        `restart` keeps a copy of the weights, to which algorithms that begin each round anew go back.
        """
        model.module.to(self.device)
        budget = self.micro_batch_tokens
        learner = LocalLearner(
            model,
            optimiser,
            micro_batch_tokens=budget,
            critic=critic,
            restart=restart,
            gradient_checkpointing=self.gradient_checkpointing,
        )
        sampler = self._sampler(model, lambda: learner.version, self.sampling_precision)
        exact = self._sampler(model, lambda: learner.version) if sampler.off_policy else None
        return Policy(learner, sampler, model.chat, exact=exact)

    def sampler(self, model: CausalModel) -> LocalSampler:
        """A sampler of a model that is not trained (evaluation, a teacher's demonstrations)."""
        model.module.to(self.device)
        return self._sampler(model, lambda: 0)

    def frozen(self, model: CausalModel) -> LocalScorer:
        """A scorer of a model that is not trained: reference, teacher, student; or of an adapter beside a policy."""
        model.module.to(self.device)
        return LocalScorer(model, micro_batch_tokens=self.micro_batch_tokens)

    def reference(self, model: CausalModel) -> ReferenceScorer:
        """A scorer that stays where the policy's model is now, whatever is learned afterwards."""
        return ReferenceScorer(model, micro_batch_tokens=self.micro_batch_tokens)

    def following(self, model: CausalModel, learner: Learner, every: int = 512, mix: float = 0.6) -> FollowingReference:
        """A reference that begins where the policy's `model` is now and every `every` optimiser steps of its `learner`
        comes nearer, θ_ref ← mix · θ + (1 − mix) · θ_ref. The defaults are TRL's."""
        budget = self.micro_batch_tokens
        return FollowingReference(model, lambda: learner.version, every, mix, micro_batch_tokens=budget)

    def teacher(self, model: CausalModel, student: CausalModel, top_k: int | None = 64) -> LocalTeacher:
        """A scorer of a model to imitate, which keeps its `top_k` likeliest candidates (None: the whole vocabulary)."""
        model.module.to(self.device)
        return LocalTeacher(model, student, top_k=top_k, micro_batch_tokens=self.micro_batch_tokens)

    def _sampler(self, model: CausalModel, version: Callable[[], int], sampling: str = "same") -> LocalSampler:
        model.module.eval()
        decoder = decoder_of(model, sampling)
        return LocalSampler(
            model.module, decoder, version=version, max_rows=self.max_rows, cache_bytes=self.cache_bytes
        )


def _cache_bytes(device: torch.device) -> int:
    return 4 << 30 if device.type != "cuda" else torch.cuda.get_device_properties(device).total_memory // 2
