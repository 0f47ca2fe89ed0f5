"""The toy backend: a policy that is a table, for tests, documentation and sums by hand.

Its logits are looked up by (prompt, position in the completion, previous token), so it learns in milliseconds, and with
a small vocabulary every completion can be enumerated and every expectation computed exactly (`enumerate_completions`).
It obeys the same protocols as the real backends; what trains here trains there.

Other fakes are in `scripted`: `ScriptedSampler` "writes" what it is told to.

Letters: `B` rows, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import itertools
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maieutic.backends.scripted import ScriptedSampler
from maieutic.backends.toy_sums import STOP, ToyChat, ToySums
from maieutic.core.following import Following
from maieutic.core.neighbourhood import KeptPolicy
from maieutic.core.trust_region import flatten
from maieutic.errors import ConfigError, NumericalError, PromptTooLong
from maieutic.protocols import Completion, LossTerms, Policy, Sampling
from maieutic.types import Batch, Finish, Outputs

__all__ = [
    "STOP", "ScriptedSampler", "ToyChat", "ToyCritic", "ToyFollower", "ToyLearner", "ToyModel", "ToySampler",
    "ToyScorer", "ToySums", "enumerate_completions", "toy_policy",
]  # fmt: skip


class ToyModel(nn.Module):
    """Logits `table[prompt, position, previous token]`, `[buckets, length, V, V]`; a prompt is its tokens' hash."""

    def __init__(
        self, vocabulary: int, length: int, buckets: int = 1, *, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(buckets, length, vocabulary, vocabulary, generator=generator, dtype=torch.float64)
        self.table = nn.Parameter((0.1 * table).to(dtype))
        self.length = length

    def bucket(self, prompt: Sequence[int]) -> int:
        """Where a prompt's logits are."""
        value = 0
        for token in prompt:
            value = (value * 31 + token + 1) % 1_000_003
        return value % int(self.table.shape[0])

    def states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Where the table is looked up: bucket `[B, 1]`, position in the completion and previous token, `[B, T]`."""
        starts = [row.index(True) if True in row else len(row) for row in batch.mask.tolist()]
        buckets = torch.tensor([self.bucket(row[:s]) for row, s in zip(batch.tokens.tolist(), starts)])
        position = torch.arange(batch.tokens.shape[1])[None] - torch.tensor(starts)[:, None]
        return buckets[:, None], position, batch.tokens.roll(1, dims=1)

    def logits(self, batch: Batch) -> Tensor:
        """`[B, T, V]`, token-aligned: entry `t` is the distribution of `tokens[:, t]` (uniform off the completion)."""
        buckets, position, previous = self.states(batch)
        inside = (position >= 0) & (position < self.length)
        found = self.table[buckets, position.clamp(0, self.length - 1), previous]
        return torch.where(inside[..., None], found, torch.zeros_like(found))

    def outputs(self, batch: Batch) -> Outputs:
        """Log-probs and entropy of the chosen tokens, `[B, T]`, and those of a teacher's candidates, with gradient."""
        logprobs = torch.log_softmax(self.logits(batch) / batch.temperature, dim=-1)
        chosen = logprobs.gather(-1, batch.tokens[..., None])[..., 0]
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        zero = torch.zeros_like(chosen)
        top = None
        if batch.has("teacher_top_ids"):
            top = torch.where(batch.mask[..., None], logprobs.gather(-1, batch.teacher_top_ids), zero[..., None])
        return Outputs(torch.where(batch.mask, chosen, zero), torch.where(batch.mask, entropy, zero), top_logprobs=top)


class ToyCritic(nn.Module):
    """Values `table[prompt, position, previous token]`, `[buckets, length + 1, V]`, 0 at the start.

    One position more than the policy has: a completion of full length is cut in a state, which has a value.
    """

    def __init__(self, model: ToyModel) -> None:
        super().__init__()
        buckets, length, vocabulary, _ = model.table.shape
        self.table = nn.Parameter(torch.zeros(buckets, length + 1, vocabulary, dtype=model.table.dtype))

    def values(self, model: ToyModel, batch: Batch) -> Tensor:
        """`[B, T]` of the states in which the chosen tokens were chosen, 0 elsewhere, with gradient."""
        buckets, position, previous = model.states(batch)
        found = self.table[buckets, position.clamp(0, model.length), previous]
        return torch.where(batch.mask, found, torch.zeros_like(found))


@dataclass(frozen=True)
class _Choices:
    """What can be chosen at a position after each token, `[V, V]`: log-probs, and the chance of that token or one
    before it; `likeliest [V]`."""

    logprobs: list[list[float]]
    below: list[list[float]]
    likeliest: list[int]

    @staticmethod
    def of(logits: Tensor) -> _Choices:
        found = torch.log_softmax(logits, dim=-1)
        return _Choices(found.tolist(), found.exp().cumsum(1).tolist(), found.argmax(1).tolist())


@dataclass
class ToySampler:
    """Samples from the table, token by token; the same key and sibling always draw the same numbers.

    `opening`: how many tokens of a prompt are the conversation's first ones, where it has several turns; what follows
    them is looked up as the learner does, as part of the completion. None: all are.
    """

    model: ToyModel
    version: Callable[[], int] = lambda: 0
    opening: int | None = None

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]:
        """`n` completions."""
        prompt = tuple(prompt_tokens)
        said = 0 if self.opening is None else max(0, len(prompt) - self.opening)
        if said + params.max_tokens > self.model.length:
            raise PromptTooLong(
                f"the toy model has {self.model.length} positions: got {said} tokens after the opening and "
                f"max_tokens={params.max_tokens}; build it longer"
            )
        with torch.no_grad():
            table = self.model.table[self.model.bucket(prompt[: self.opening]), said:]
            rows = table.double() / (params.temperature or 1.0)
        rows[0].index_fill_(1, torch.tensor(sorted(params.not_first), dtype=torch.long), -torch.inf)
        at = lru_cache(maxsize=None)(lambda position: _Choices.of(rows[position]))  # siblings meet the same states
        return [self._one(prompt, params, sibling, at) for sibling in range(n)]

    def _one(
        self, prompt: tuple[int, ...], params: Sampling, sibling: int, at: Callable[[int], _Choices]
    ) -> Completion:
        tokens: list[int] = []
        mask: list[bool] = []
        logprobs: list[float] = []
        while len(tokens) < params.max_tokens:
            position, before = len(tokens), tokens[-1] if tokens else prompt[-1]
            choices = at(position)
            if params.temperature:
                draw = random.Random(f"{params.key}/{sibling}/{position}").random()
                token = min(bisect_left(choices.below[before], draw), len(choices.below) - 1)
            else:
                token = choices.likeliest[before]
            tokens.append(token)
            mask.append(True)
            logprobs.append(choices.logprobs[before][token])
            if token in params.stop_ids or params.ends(tokens):
                return self._done(tokens, mask, logprobs, Finish.STOP)
            if params.interject is not None and token in params.interject_ids:
                inserted = list(params.interject(tuple(tokens)))[: params.max_tokens - len(tokens)]
                tokens += inserted
                mask += [False] * len(inserted)
                logprobs += [0.0] * len(inserted)
                if inserted and params.ends(tokens):
                    return self._done(tokens, mask, logprobs, Finish.STOP)
        return self._done(tokens, mask, logprobs, Finish.LENGTH)

    def _done(self, tokens: list[int], mask: list[bool], logprobs: list[float], finish: Finish) -> Completion:
        return Completion(tuple(tokens), tuple(mask), tuple(logprobs), finish, self.version())


class ToyLearner:
    """Adam on the table, and on that of a critic. `micro_batches` splits each step's rows, which must not change
    anything."""

    def __init__(
        self,
        model: ToyModel,
        learning_rate: float = 0.3,
        micro_batches: int = 1,
        critic: ToyCritic | None = None,
    ) -> None:
        self.model, self.learning_rate, self.micro_batches = model, learning_rate, micro_batches
        self.critic = critic
        self.version = 0
        self._start = {name: weight.detach().clone() for name, weight in self.weights().items()}
        self._optimiser = self._new_optimiser()

    def _new_optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(self.weights().values()), lr=self.learning_rate, betas=(0.9, 0.99))

    @property
    def capabilities(self) -> frozenset[str]:
        """It can restart, be moved within a trust region, and give values where it has a critic."""
        return frozenset({"restart", "trust_region", *(("values",) if self.critic is not None else ())})

    @torch.no_grad()
    def values(self, batch: Batch) -> Tensor:
        """`[B, T]`. Raises ConfigError without a critic."""
        if self.critic is None:
            raise ConfigError("this toy policy has no critic; make it with one: toy_policy(…, critic=True)")
        return self.critic.values(self.model, batch)

    def outputs(self, batch: Batch) -> Outputs:
        """What the tables say of the batch, with gradient."""
        found = self.model.outputs(batch)
        return found if self.critic is None else replace(found, values=self.critic.values(self.model, batch))

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats."""
        return self.model.outputs(batch).logprobs

    def step(self, batch: Batch, loss: LossTerms, *, needs: frozenset[str] = frozenset()) -> dict[str, float]:
        """One optimiser step on `sum(weights * loss)`."""
        metrics = self._accumulate(batch, loss, needs)
        self._optimiser.step()
        self.version += 1
        return metrics

    def gradient(self, batch: Batch, loss: LossTerms) -> tuple[Tensor, dict[str, float]]:
        """See `maieutic.protocols.TrustRegionLearner`. Raises NumericalError for the first one that is not finite."""
        metrics = self._accumulate(batch, loss, frozenset())
        made = [w.new_zeros(w.shape) if w.grad is None else w.grad for w in self.model.parameters()]
        return flatten(made), metrics

    def neighbourhood(self, batch: Batch, tokens: Tensor) -> KeptPolicy:
        """See `maieutic.protocols.TrustRegionLearner`."""
        units = [some for some in torch.unique(batch.units).tensor_split(self.micro_batches) if len(some)]
        split = [torch.isin(batch.units, some).nonzero().flatten() for some in units]

        def logits(part: Batch, at: Tensor) -> Tensor:
            return self.model.logits(part)[at] / part.temperature

        def parts() -> Iterator[tuple[Batch, Tensor]]:
            return ((batch.rows(rows), tokens[rows]) for rows in split)

        return KeptPolicy(list(self.model.parameters()), parts, self.model.outputs, logits)

    def count_step(self) -> None:
        """See `maieutic.protocols.TrustRegionLearner`."""
        self.version += 1

    def _accumulate(self, batch: Batch, loss: LossTerms, needs: frozenset[str]) -> dict[str, float]:
        """Leave the gradient of `sum(weights * loss)` in the table's `grad`."""
        self._optimiser.zero_grad()
        watched: dict[str, float] = {}
        total, mismatch, entropy = 0.0, 0.0, 0.0
        chosen = float(batch.mask.sum())
        pairs = len(batch.pairs) if batch.has("pairs") else 0
        for units in torch.unique(batch.units).tensor_split(self.micro_batches):
            if not len(units):
                continue
            part = batch.rows(torch.isin(batch.units, units).nonzero().flatten())
            outputs = self.outputs(part)
            if "old_logprobs" in needs and not part.has("old_logprobs"):
                part = part.with_(old_logprobs=outputs.logprobs.detach())
            value, seen = loss(outputs, part)
            weighted = torch.where(part.mask, part.weights.to(value.dtype) * value, torch.zeros_like(value)).sum()
            weighted.backward()
            total += float(weighted.detach())
            for name, quantity in seen.items():
                mean = (quantity * part.mask).sum() / chosen if quantity.dim() == 2 else quantity.sum() / pairs
                watched[name] = watched.get(name, 0.0) + float(mean)
            mismatch += float(((outputs.logprobs.detach() - part.sampler_logprobs) * part.mask).abs().sum()) / chosen
            entropy += float(outputs.entropy.detach().sum()) / chosen if outputs.entropy is not None else 0.0
        if not all(torch.isfinite(p.grad).all() for p in self.weights().values() if p.grad is not None):
            raise NumericalError("the gradient is not finite; look at the rewards and the learning rate")
        return {
            "loss": total, **watched, "policy/sampler_mismatch_nats": mismatch, "policy/entropy": entropy,
        }  # fmt: skip

    def weights(self) -> Mapping[str, Tensor]:
        """The table, and `critic.table` where there is a critic."""
        found: dict[str, Tensor] = dict(self.model.named_parameters())
        return found if self.critic is None else {**found, "critic.table": self.critic.table}

    def reset(
        self,
        folder: Path | None = None,
        *,
        total_steps: int | None = None,  # noqa: ARG002
        keep_weights: bool = False,
    ) -> None:
        """The table of a saved model (None: that of the beginning, and the critic's), and a fresh optimiser; its rate
        is constant."""
        if not keep_weights:
            self._put(self._start if folder is None else load_file(folder / "model.safetensors"))
        self._optimiser = self._new_optimiser()

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.weights()[name].copy_(value)

    def save(self, folder: Path) -> None:
        """Table, optimiser state and version."""
        (folder / "model").mkdir(parents=True, exist_ok=True)
        save_file(self.model.state_dict(), folder / "model" / "model.safetensors")
        kept = {"version": torch.tensor(self.version)}
        for name, weight in self.weights().items():
            kept |= {f"{name}/{key}": value for key, value in self._optimiser.state.get(weight, {}).items()}
        if self.critic is not None:
            kept["critic.table"] = self.critic.table.detach()
        save_file(kept, folder / "learner.safetensors")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.reset(folder / "model")
        kept = load_file(folder / "learner.safetensors")
        self.version = int(kept.pop("version"))
        self._put({name: kept.pop(name) for name in self.weights() if name in kept})
        for key, value in kept.items():
            name, _, quantity = key.rpartition("/")
            self._optimiser.state[self.weights()[name]][quantity] = value


class ToyScorer:
    """A frozen copy of a toy model, as a reference or a teacher, of which it keeps `top_k` candidates (None: all)."""

    def __init__(self, model: ToyModel, top_k: int | None = None) -> None:
        self._model = ToyModel(
            int(model.table.shape[2]), model.length, int(model.table.shape[0]), dtype=model.table.dtype
        )
        self._model.load_state_dict(model.state_dict())
        self.top_k = int(model.table.shape[2]) if top_k is None else top_k

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats."""
        return self._model.outputs(batch).logprobs

    @torch.no_grad()
    def top(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and log-probs of its likeliest tokens, `[B, T, K]`; 0 off the mask."""
        logprobs, ids = torch.log_softmax(self._model.logits(batch) / batch.temperature, dim=-1).topk(self.top_k)
        return ids * batch.mask[..., None], logprobs * batch.mask[..., None]


class ToyFollower(ToyScorer):
    """A reference that follows a toy model; see `maieutic.core.following`."""

    def __init__(self, learner: ToyLearner, every: int, mix: float) -> None:
        super().__init__(learner.model)
        self._learner, self._rule = learner, Following(every, mix, learner.version)

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats, after the moves that are due."""
        self._rule.move(self._learner.version, dict(self._model.named_parameters()), self._learner.weights())
        return super().logprobs(batch)

    def save(self, folder: Path) -> None:
        """Its table, and how often it has moved."""
        state = {**self._model.state_dict(), "moves": torch.tensor(self._rule.moves)}
        save_file(state, folder / "reference.safetensors")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        state = load_file(folder / "reference.safetensors")
        self._rule.moves = int(state.pop("moves"))
        self._model.load_state_dict(state)


def toy_policy(
    chat: ToyChat,
    length: int,
    buckets: int = 1,
    *,
    learning_rate: float = 0.3,
    seed: int = 0,
    critic: bool = False,
    opening: int | None = None,
) -> Policy:
    """A policy over a toy chat's words: completions of up to `length` tokens, `buckets` different prompts. `opening`:
    tokens of the prompts of conversations, see `ToySampler`."""
    model = ToyModel(len(chat.words), length, buckets, seed=seed)
    learner = ToyLearner(model, learning_rate, critic=ToyCritic(model) if critic else None)
    return Policy(learner, ToySampler(model, lambda: learner.version, opening), chat)


def enumerate_completions(model: ToyModel, max_tokens: int) -> Iterator[tuple[int, ...]]:
    """Every completion of up to `max_tokens`: those that stop, and those that the limit cuts."""
    others = [t for t in range(int(model.table.shape[2])) if t != STOP]
    for length in range(max_tokens):
        for body in itertools.product(others, repeat=length):
            yield (*body, STOP)
    yield from itertools.product(others, repeat=max_tokens)
