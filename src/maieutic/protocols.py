"""The verbs: what each stage must be able to do. Anything with these methods will serve; nothing is inherited.

Letters as in `maieutic.types`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from maieutic.types import Batch, Finish, Group, Message, Outputs, Rollout, Score, Task, Verdict

if TYPE_CHECKING:
    from torch import Tensor


class Verifier(Protocol):
    """Is the text a correct answer to the task? Pure, deterministic, never raises on model text."""

    def __call__(self, task: Task, text: str) -> Verdict: ...


class Reward(Protocol):
    """Judge the rollouts of one task: exactly one score each, in order."""

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]: ...


class Tool(Protocol):
    """Something that writes into a completion while the model is writing it, as a calculator completes `3 * 4 =`.

    Called with the completion so far whenever the model has just written `trigger`; what it returns is inserted (and
    masked out of every loss), None inserts nothing. Never raises on model text.
    """

    @property
    def trigger(self) -> str: ...

    def __call__(self, text: str) -> str | None: ...


@runtime_checkable
class Taskset(Protocol):
    """A sequence of tasks with the verifier that checks them, and the tool they may use."""

    @property
    def name(self) -> str: ...

    @property
    def verifier(self) -> Verifier: ...

    @property
    def tool(self) -> Tool | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Task: ...


#: Completion tokens so far → tokens that the environment inserts next (possibly none).
Interject = Callable[[Sequence[int]], Sequence[int]]


@dataclass(slots=True)
class Prefill:
    """Counts what a sampler does with the prompts of calls that carry it: tokens `computed`, and tokens `reused`, of
    which it still had the keys and values. `keep` False: what these calls read need not be kept."""

    computed: int = 0
    reused: int = 0
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample.

    `key` seeds a counter-based generator: the token at a position depends on (key, sibling, position) and the
    distribution there, not on which other rows share the batch. Temperature 0 means greedy (log-probs are then those
    at temperature 1). `stop_ids` end a completion (the stop token is part of it). `interject` is asked after each
    chosen token in `interject_ids`; what it returns follows with `mask` False. `not_first` cannot be the first token:
    what is left there is renormalised (log-probs too), as engines do that know a least number of tokens. `until` is
    asked, with the completion so far, after each token in `until_ids` that was chosen, and where an insertion ends in
    one: where it says True the completion ends (STOP). With `prefill`, engines that can keep what they read, for
    prompts that begin with it, and what was computed is counted there.
    """

    max_tokens: int
    temperature: float = 1.0
    stop_ids: frozenset[int] = frozenset()
    key: str = "0"
    interject: Interject | None = None
    interject_ids: frozenset[int] = frozenset()
    not_first: frozenset[int] = frozenset()
    until: Callable[[Sequence[int]], bool] | None = None
    until_ids: frozenset[int] = frozenset()
    prefill: Prefill | None = field(default=None, compare=False)

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether `until` says that a completion ends which has just got the last of these tokens."""
        return self.until is not None and tokens[-1] in self.until_ids and self.until(tokens)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a sampler returns for one sibling: tokens after the prompt, stop token included, each with its log-prob
    (nats, at the sampling temperature; 0 where `mask` is False, that is, where the environment wrote)."""

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    version: int = 0


class Sampler(Protocol):
    """Writes completions. Concurrent calls are batched by the engine behind it. A search wraps a sampler and is one."""

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]: ...


class Scorer(Protocol):
    """A frozen model that says how likely the chosen tokens are: nats `[B, T]`, 0 off the mask, no gradient."""

    def logprobs(self, batch: Batch) -> Tensor: ...


class Teacher(Scorer, Protocol):
    """A frozen model to imitate: beside the log-probs of the chosen tokens, its likeliest candidates for each."""

    def top(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and log-probs (nats, of the whole distribution, not renormalised) `[B, T, K]`, falling; 0 off the mask.
        How many it keeps is the teacher's to say; all of them make every divergence exact."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """What an environment answers to the model's turn. Filled by `Episode.step`.

    >>> Reply((Message("user", "too low"),), parts={"closer": 1.0})

    `messages` are shown to the model before its next turn; `done` ends the episode, and with it nothing more is shown.
    `reward` is paid for this turn, in training on the turn's last chosen token; None: turns have no rewards of their
    own. `parts` are numbers to be recorded, `note` is for people. `lacking`: of a game that the turn ended before its
    time, as an invalid guess may, how many turns there were still to be.
    """

    messages: tuple[Message, ...] = ()
    done: bool = False
    reward: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    lacking: int = 0


class Episode(Protocol):
    """One game, one attempt at a task: a state that the model's turns change. Used by one rollout, then closed.

    It may have `tools`, schemas that the model is told of; `parts`, numbers of the whole episode to be recorded;
    `judges_last_turn`, True where rewards are to see the model's last turn instead of the transcript; and `max_turns`,
    where it has fewer of them than its environment.
    """

    @property
    def opening(self) -> tuple[Message, ...]:
        """What the model is shown before its first turn; most often the task's own prompt."""
        ...

    async def step(self, message: Message) -> Reply:
        """Take the model's turn. May raise: the rollout then ends with ERROR, has no reward, and is counted."""
        ...

    async def score(self) -> Score | None:
        """How it went, asked once at the end, whoever ended it. None: the reward of the run judges the transcript."""
        ...

    async def close(self) -> None:
        """Give back what the episode holds (processes, files). Called whatever happened."""
        ...


@runtime_checkable
class Environment(Protocol):
    """What a model acts in, turn by turn. It makes episodes, and holds what they share (word lists, servers).

    It may have `scores`: True where every episode has a score of its own, False where none has. Without, that is seen
    when an episode is asked.
    """

    @property
    def name(self) -> str: ...

    @property
    def max_turns(self) -> int:
        """The most turns that the model has in an episode."""
        ...

    async def start(self, task: Task, seed: str) -> Episode:
        """A fresh episode of the task. Chance within it depends on `seed` only, so that an episode can be replayed."""
        ...


#: `loss(outputs, batch)` → (per-token loss `[B, T]`, quantities to watch, per token or per pair `[P]`); see
#: `maieutic.core.parts.Loss`.
LossTerms = Callable[[Outputs, Batch], tuple["Tensor", Mapping[str, "Tensor"]]]


class Learner(Protocol):
    """The engine that holds the weights being trained."""

    version: int
    """Optimiser steps taken so far."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can do beyond log-probs and steps; see `maieutic.core.parts.CAPABILITIES`."""
        ...

    def values(self, batch: Batch) -> Tensor:
        """`[B, T]` the critic's values of the states in which the chosen tokens were chosen, without gradient."""
        ...

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats at the batch's temperature under the present weights, without gradient."""
        ...

    def step(self, batch: Batch, loss: LossTerms, *, needs: frozenset[str] = frozenset()) -> dict[str, float]:
        """One optimiser step on `sum(weights * loss)` over the batch, split as memory asks; returns its metrics.

        `needs` are the columns that the loss reads. When it reads `old_logprobs` and the batch has none, this is the
        only step on these rows, so the old policy is the present one: `old_logprobs = stop_gradient(logprobs)`.
        """
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The trainable weights by name (views, not copies)."""
        ...

    def reset(self, folder: Path | None = None, *, total_steps: int | None = None, keep_weights: bool = False) -> None:
        """Put the weights of a saved model back (None: those it restarts from), and forget the optimiser's state.

        `total_steps`: the learning-rate schedule begins anew and ends after so many optimiser steps (a round that is
        shorter than the warm-up ends within it). `keep_weights`: forget the optimiser's state only.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write a plain model folder to `folder/model` and everything else that resuming needs beside it."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; continuing gives the same weights as never having stopped."""
        ...


class Neighbourhood(Protocol):
    """The policies around the one that a learner had when this was made, seen on one batch.

    Vectors `[n]` are the trainable weights end to end, in the order of `Learner.weights`, in float32 at least.
    """

    def parameters(self) -> Tensor:
        """`[n]` the present weights, copied."""
        ...

    def move(self, parameters: Tensor) -> None:
        """Go to these weights `[n]`. What `parameters` returned brings back the very same ones."""
        ...

    def objective(self, loss: LossTerms) -> float:
        """`sum(weights * loss)` over the batch under the present weights."""
        ...

    def fisher_product(self, vector: Tensor) -> Tensor:
        """`F v [n]`, the Fisher matrix of the present policy, a mean over the tokens that are compared."""
        ...

    def kl(self) -> float:
        """The mean KL(kept ‖ present) over those tokens, over the whole vocabulary at each: nats a token."""
        ...


class TrustRegionLearner(Learner, Protocol):
    """A learner with the capability "trust_region": its weights can be moved by hand, and policies compared."""

    def gradient(self, batch: Batch, loss: LossTerms) -> tuple[Tensor, dict[str, float]]:
        """The gradient `[n]` of `sum(weights * loss)` over the batch, and the metrics that a step would have.

        One that is not finite counts as a step that was skipped. Raises NumericalError after too many in a row.
        """
        ...

    def neighbourhood(self, batch: Batch, tokens: Tensor) -> Neighbourhood:
        """Keep the present policy, to compare others with it at `tokens [B, T]`, some of the chosen ones."""
        ...

    def count_step(self) -> None:
        """Take note that the weights were moved, and stay: one more optimiser step."""
        ...


class Source(Protocol):
    """Where groups come from. `state` is JSON; `restore(state())` continues as if nothing had happened.

    One whose rollouts are of another policy than the learner's is now (an older, or a coarser one) says so by an
    attribute `stale`, which is True.
    """

    @property
    def samples(self) -> bool:
        """Whether its rollouts are the policy's own, with its log-probs (else they were recorded)."""
        ...

    def next(self) -> list[Group]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Chat(Protocol):
    """Messages ↔ tokens for one model."""

    stop_ids: frozenset[int]

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the conversation up to where the assistant is to write.

        A last message of the assistant is the beginning of what it is to write: its turn stays open.
        """
        ...

    def completion(self, text: str) -> tuple[int, ...]:
        """Tokens of a finished assistant turn: the text and the stop token."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a piece of text in the middle of a turn, without special tokens."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special tokens left out."""
        ...

    def tokens_ending(self, trigger: str) -> frozenset[int]:
        """The ids of tokens after which a text can end in `trigger` (where a tool is asked)."""
        ...


@dataclass(frozen=True)
class Policy:
    """What is trained: one set of weights behind a learner and a sampler, and the chat format of its text."""

    learner: Learner
    sampler: Sampler
    chat: Chat
    publish: Callable[[], None] = field(default=lambda: None)
    """Bring the learner's weights to the sampler. Nothing to do when they share them."""
    exact: Sampler | None = None
    """Samples from what is learned, where `sampler` is coarser: for measuring. None: `sampler` does."""
