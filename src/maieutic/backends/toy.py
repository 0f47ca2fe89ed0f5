"""The toy backend: a policy that is a table, for tests, documentation and sums by hand.

Its logits are looked up by (prompt, position in the completion, previous token), so it learns in milliseconds, and with
a small vocabulary every completion can be enumerated and every expectation computed exactly (`enumerate_completions`).
It obeys the same protocols as the real backends; what trains here trains there.

`ScriptedSampler` is the other fake: it "writes" what it is told to.

Letters: `B` rows, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maieutic.core.neighbourhood import KeptPolicy
from maieutic.core.trust_region import flatten
from maieutic.core.following import Following
from maieutic.errors import ConfigError, NumericalError, PromptTooLong
from maieutic.protocols import Completion, LossTerms, Policy, Sampling
from maieutic.types import Batch, Finish, Message, Outputs, Task, Verdict

STOP = 0
"""The id of the toy's stop token."""


class ToyChat:
    """Words ↔ ids over a fixed vocabulary; id 0 is the stop token, unknown words raise KeyError."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.words = ["<stop>", *vocabulary]
        self.ids = {word: i for i, word in enumerate(self.words)}
        self.stop_ids = frozenset({STOP})

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The words of all messages."""
        return self.encode(" ".join(m.content for m in messages))

    def completion(self, text: str) -> tuple[int, ...]:
        """The words and the stop token."""
        return (*self.encode(text), STOP)

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of the words."""
        return tuple(self.ids[word] for word in text.split())

    def decode(self, tokens: Sequence[int]) -> str:
        """The words without the stop token."""
        return " ".join(self.words[t] for t in tokens if t != STOP)

    def tokens_ending(self, trigger: str) -> frozenset[int]:
        """Ids of the words that end in the trigger's last word."""
        return frozenset(i for i, word in enumerate(self.words) if word.endswith(trigger.split()[-1]))


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

    def logits(self, batch: Batch) -> Tensor:
        """`[B, T, V]`, token-aligned: entry `t` is the distribution of `tokens[:, t]` (uniform off the completion)."""
        starts = [row.index(True) if True in row else len(row) for row in batch.mask.tolist()]
        buckets = torch.tensor([self.bucket(row[:s]) for row, s in zip(batch.tokens.tolist(), starts)])
        position = torch.arange(batch.tokens.shape[1])[None] - torch.tensor(starts)[:, None]
        inside = (position >= 0) & (position < self.length)
        previous = batch.tokens.roll(1, dims=1)
        found = self.table[buckets[:, None], position.clamp(0, self.length - 1), previous]
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


@dataclass
class ToySampler:
    """Samples from the table, token by token; the same key and sibling always draw the same numbers."""

    model: ToyModel
    version: Callable[[], int] = lambda: 0

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]:
        """`n` completions."""
        if params.max_tokens > self.model.length:
            raise PromptTooLong(
                f"the toy model has {self.model.length} positions: got max_tokens={params.max_tokens}; build it longer"
            )
        return [self._one(tuple(prompt_tokens), params, sibling) for sibling in range(n)]

    @torch.no_grad()
    def _one(self, prompt: tuple[int, ...], params: Sampling, sibling: int) -> Completion:
        rows = self.model.table[self.model.bucket(prompt)].double() / (params.temperature or 1.0)
        tokens: list[int] = []
        mask: list[bool] = []
        logprobs: list[float] = []
        while len(tokens) < params.max_tokens:
            position = len(tokens)
            distribution = torch.log_softmax(rows[position, tokens[-1] if tokens else prompt[-1]], dim=-1)
            if params.temperature:
                draw = random.Random(f"{params.key}/{sibling}/{position}").random()
                token = int((distribution.exp().cumsum(0) < draw).sum().clamp(max=len(distribution) - 1))
            else:
                token = int(distribution.argmax())
            tokens.append(token)
            mask.append(True)
            logprobs.append(float(distribution[token]))
            if token in params.stop_ids:
                return self._done(tokens, mask, logprobs, Finish.STOP)
            if params.interject is not None and token in params.interject_ids:
                inserted = list(params.interject(tuple(tokens)))[: params.max_tokens - len(tokens)]
                tokens += inserted
                mask += [False] * len(inserted)
                logprobs += [0.0] * len(inserted)
        return self._done(tokens, mask, logprobs, Finish.LENGTH)

    def _done(self, tokens: list[int], mask: list[bool], logprobs: list[float], finish: Finish) -> Completion:
        return Completion(tuple(tokens), tuple(mask), tuple(logprobs), finish, self.version())


class ToyLearner:
    """Adam on the table. `micro_batches` splits each step's rows, which must not change anything."""

    def __init__(self, model: ToyModel, learning_rate: float = 0.3, micro_batches: int = 1) -> None:
        self.model, self.learning_rate, self.micro_batches = model, learning_rate, micro_batches
        self.version = 0
        self._start = {name: weight.clone() for name, weight in model.state_dict().items()}
        self._optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.99))

    @property
    def capabilities(self) -> frozenset[str]:
        """It can restart, and be moved within a trust region."""
        return frozenset({"restart", "trust_region"})

    def values(self, batch: Batch) -> Tensor:
        """Raises ConfigError: the table has no critic."""
        raise ConfigError(f"this toy policy has no critic, and {batch.size} rows ask for values")

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
            outputs = self.model.outputs(part)
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
        if not all(torch.isfinite(p.grad).all() for p in self.model.parameters() if p.grad is not None):
            raise NumericalError("the gradient is not finite; look at the rewards and the learning rate")
        return {
            "loss": total, **watched, "policy/sampler_mismatch_nats": mismatch, "policy/entropy": entropy,
        }  # fmt: skip

    def weights(self) -> Mapping[str, Tensor]:
        """The table."""
        return dict(self.model.named_parameters())

    def reset(self, folder: Path | None = None, *, total_steps: int | None = None) -> None:  # noqa: ARG002
        """The table of a saved model (None: that of the beginning), and a fresh optimiser; its rate is constant."""
        self.model.load_state_dict(self._start if folder is None else load_file(folder / "model.safetensors"))
        self._optimiser = torch.optim.Adam(self.model.parameters(), lr=self.learning_rate, betas=(0.9, 0.99))

    def save(self, folder: Path) -> None:
        """Table, optimiser state and version."""
        (folder / "model").mkdir(parents=True, exist_ok=True)
        save_file(self.model.state_dict(), folder / "model" / "model.safetensors")
        state = self._optimiser.state.get(self.model.table, {})
        save_file({"version": torch.tensor(self.version), **state}, folder / "learner.safetensors")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.reset(folder / "model")
        state = load_file(folder / "learner.safetensors")
        self.version = int(state.pop("version"))
        if state:
            self._optimiser.state[self.model.table] = state


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


def toy_policy(chat: ToyChat, length: int, buckets: int = 1, *, learning_rate: float = 0.3, seed: int = 0) -> Policy:
    """A policy over a toy chat's words: completions of up to `length` tokens, `buckets` different prompts."""
    model = ToyModel(len(chat.words), length, buckets, seed=seed)
    learner = ToyLearner(model, learning_rate)
    return Policy(learner, ToySampler(model, lambda: learner.version), chat)


def enumerate_completions(model: ToyModel, max_tokens: int) -> Iterator[tuple[int, ...]]:
    """Every completion of up to `max_tokens`: those that stop, and those that the limit cuts."""
    others = [t for t in range(int(model.table.shape[2])) if t != STOP]
    for length in range(max_tokens):
        for body in itertools.product(others, repeat=length):
            yield (*body, STOP)
    yield from itertools.product(others, repeat=max_tokens)


@dataclass
class ScriptedSampler:
    """A sampler that writes what `script(prompt_tokens, sibling)` says, tokens chosen with certainty (log-prob 0)."""

    script: Callable[[tuple[int, ...], int], Sequence[int]]

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]:
        """The script's tokens, cut at `max_tokens`."""
        made = []
        for sibling in range(n):
            tokens = tuple(self.script(tuple(prompt_tokens), sibling))[: params.max_tokens]
            finish = Finish.STOP if tokens and tokens[-1] in params.stop_ids else Finish.LENGTH
            made.append(Completion(tokens, (True,) * len(tokens), (0.0,) * len(tokens), finish))
        return made


class ToySums:
    """A taskset for the toy backend: `a + b` with one-digit `a`, `b` below `limit`, answer digit by digit."""

    name = "toy_sums"
    tool = None

    def __init__(self, limit: int = 4) -> None:
        self.limit = limit

    @property
    def vocabulary(self) -> list[str]:
        """Digits and the plus sign."""
        return [str(d) for d in range(10)] + ["+"]

    def __len__(self) -> int:
        return self.limit**2

    def __getitem__(self, index: int) -> Task:
        if not 0 <= index < len(self):
            raise IndexError(index)
        a, b = divmod(index, self.limit)
        solution = " ".join(str(a + b))
        return Task(f"toy/{a}+{b}", (Message("user", f"{a} + {b}"),), solution, {"solution": solution})

    def verifier(self, task: Task, text: str) -> Verdict:
        """Right when the words are the digits of the sum."""
        return Verdict(text == task.answer, text or None)
