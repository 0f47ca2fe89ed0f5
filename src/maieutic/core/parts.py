"""Parts of an algorithm: functions that know what they read, print as they were written, and compose.

    @credit / @loss / @weigh / @select       turn a factory `clipped_surrogate(epsilon=0.2)` into one that makes a Part
    @needs, @requires, @compares, @shown     what a function declares of itself before that (`core.declared`)

    clipped_surrogate(0.2) + 0.01 * kl_to_reference()      losses add and scale; a loss times 0 is no loss
    kl_in_reward(0.05) | gae()                             credits chain, left first; `none()` vanishes in a chain

What a part is made of adds up: `needs` and `requires` are unions, so the loop asks models for those columns and no
others, and refuses a learner that cannot do what is asked before anything is sampled. A part that remembers (a KL
coefficient that adapts) says so by `memory`, and what it remembers is saved with the run.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ParamSpec

import torch

from maieutic.core.declared import CAPABILITIES, Keeps, Memory, compares, needs, remembers, requires, shown
from maieutic.errors import MissingColumn
from maieutic.types import PROVIDERS, Batch, Example, Group, Outputs, Score

if TYPE_CHECKING:
    from torch import Tensor

    from maieutic.protocols import Chat, Learner
    from maieutic.steps import Labels

__all__ = [  # with what a function declares, for those who write parts
    "CAPABILITIES", "Algorithm", "Credit", "Keeps", "Loss", "Memory", "Part", "Select", "Update", "Weigh",
    "compares", "credit", "loss", "needs", "remembers", "requires", "select", "shown", "weigh",
]  # fmt: skip

P = ParamSpec("P")


@dataclass(frozen=True)
class Part:
    """A named function with its hyper-parameters closed over: `label` is how it was written.

    `needs` are the batch's columns that it reads, `requires` what the learner must be able to do, `memory` what it
    carries from batch to batch (nothing, for a pure function). An `absent` part does nothing and vanishes in sums and
    chains: what a coefficient of 0 leaves.
    """

    label: str
    function: Callable[..., Any]
    needs: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()
    memory: tuple[Memory, ...] = ()
    absent: bool = False

    def __str__(self) -> str:
        return self.label

    def check(self, batch: Batch) -> None:
        """Raise `MissingColumn`, naming this part, unless `batch` has all that it reads."""
        for column in sorted(self.needs):
            if not batch.has(column):
                raise MissingColumn(
                    f"{self.label} reads {column!r}, which this batch does not have. "
                    f"It is filled by {PROVIDERS[column]}."
                )


@dataclass(frozen=True)
class Select(Part):
    """groups → examples: which rollouts become training rows, and how they are arranged.

    `keeps` says of one group whether any of its rows would be selected, where that is known (else None): a source may
    draw again for groups that would not be (dynamic sampling). `siblings` is the smallest group of which it can take
    any row. `shown`: its rows were shown to the policy, which samples nothing. `kept`: what it has kept of earlier
    batches, where it goes on learning from that. `hints` says of a score whether a rollout is taken, where the source
    should try again, with the answer in the prompt, the tasks of which none is.
    """

    @property
    def siblings(self) -> int:
        return getattr(self.function, "siblings", 1)

    @property
    def shown(self) -> bool:
        return getattr(self.function, "shown", False)

    @property
    def keeps(self) -> Callable[[Group], bool] | None:
        return getattr(self.function, "keeps", None)

    @property
    def labels(self) -> Labels | None:
        """The labels that its rows carry before their steps, with which the model is to be asked afterwards."""
        return getattr(self.function, "labels", None)

    @property
    def continuations(self) -> int:
        """From the end of each step, how many continuations are to be judged for its step reward (0: none)."""
        return getattr(self.function, "continuations", 0)

    def bind(self, chat: Chat) -> Select:
        """For a model's chat; itself where it writes no tokens. ModelError for what the vocabulary lacks."""
        bind = getattr(self.function, "bind", None)
        return self if bind is None else replace(self, function=bind(chat))

    @property
    def kept(self) -> Keeps | None:
        return getattr(self.function, "kept", None)

    @property
    def hints(self) -> Callable[[Score], bool] | None:
        return getattr(self.function, "hints", None)

    def __call__(self, groups: Sequence[Group]) -> list[Example]:
        return list(self.function(groups))


@dataclass(frozen=True)
class Credit(Part):
    """batch → batch with `advantages` (and perhaps `returns`): spreads the judgement over tokens.

    `siblings` is the smallest group of which it can say anything: 2 where rollouts of one task are compared.
    """

    @property
    def siblings(self) -> int:
        return getattr(self.function, "siblings", 1)

    def __call__(self, batch: Batch) -> Batch:
        self.check(batch)
        return self.function(batch)

    def __or__(self, then: Credit) -> Credit:
        if self.absent or then.absent:
            return then if self.absent else self

        def chained(batch: Batch) -> Batch:
            return then(self(batch))

        chained.siblings = max(self.siblings, then.siblings)  # type: ignore[attr-defined]
        spend = (getattr(link.function, "spends_steps", False) for link in (self, then))
        chained.spends_steps = any(spend)  # type: ignore[attr-defined]
        # What the first one fills, the second one may read; if it did not fill it, the second one's own check says so.
        asked = self.needs | (then.needs - {"advantages", "returns"})
        memory = self.memory + then.memory
        return Credit(f"{self.label} | {then.label}", chained, asked, self.requires | then.requires, memory)


@dataclass(frozen=True)
class Loss(Part):
    """(outputs, batch) → per-token loss `[B, T]`. A loss never reduces; `weigh` says how tokens count.

    The function behind it returns the loss, or the loss and a dict of quantities worth watching (detached): per token
    `[B, T]`, whose mean over chosen tokens is logged under the name given, or per pair `[P]`.

    `corrected`: a factor in it is the ratio of the old policy to the one that sampled (`core.corrections`).
    """

    corrected: bool = False

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self.terms(outputs, batch)[0]

    def terms(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The per-token loss and what to watch."""
        self.check(batch)
        made = self.function(outputs, batch)
        return made if isinstance(made, tuple) else (made, {})

    def __add__(self, other: Loss) -> Loss:
        if self.absent or other.absent:
            return other if self.absent else self

        def both(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            (a, seen_a), (b, seen_b) = self.terms(outputs, batch), other.terms(outputs, batch)
            return a + b, {**seen_a, **seen_b}

        label, memory = f"{self.label} + {other.label}", self.memory + other.memory
        asked, able = self.needs | other.needs, self.requires | other.requires
        return Loss(label, both, asked, able, memory, corrected=self.corrected or other.corrected)

    def __rmul__(self, coefficient: float) -> Loss:
        if coefficient == 0:
            return Loss("0", lambda outputs, _: torch.zeros_like(outputs.logprobs), absent=True)

        def scaled(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            value, seen = self.terms(outputs, batch)
            return coefficient * value, seen

        label = self.label if " + " not in self.label else f"({self.label})"
        return replace(self, label=f"{coefficient:g} * {label}", function=scaled)


@dataclass(frozen=True)
class Weigh(Part):
    """batch → weights `[B, T]`: how much each token counts, computed once for a whole optimiser batch."""

    def __call__(self, batch: Batch) -> Tensor:
        self.check(batch)
        return self.function(batch)


@dataclass(frozen=True)
class Update(Part):
    """(learner, batch, algorithm) → metrics: how the weights move on a credited batch.

    `steps`: optimiser steps of one batch, at most; None where that depends on it (the update then begins the rate's
    schedule anew itself). With one, each row meets the policy that the batch began with, so the old policy is the
    present one and `old_logprobs` need no pass of their own (unless the update `needs` them). One that `uses_optimiser`
    steps as the learner's does. `passes`: how often a row goes forward and backward, about; None where that depends.
    `rows`: of an optimiser step, at most, where the update says so itself.
    """

    steps: int | None = 1
    uses_optimiser: bool = True
    passes: float | None = 1.0
    rows: int | None = None

    def __call__(self, learner: Learner, batch: Batch, algorithm: Algorithm) -> dict[str, float]:
        return self.function(learner, batch, algorithm)


#: Columns that packing and the algorithm fill while a step goes on; models are asked for all others.
FILLED_BY_ALGORITHM = frozenset(
    {"advantages", "returns", "weights", "pairs", "reward_parts", "step_rewards", "forfeits"}
)


@dataclass(frozen=True)
class Algorithm:
    """An algorithm is a value: named pure functions with their hyper-parameters closed over.

    >>> Algorithm("grpo", everything(), group_normalized(), clipped_surrogate(0.2), sequence_mean(), sgd())
    """

    name: str
    select: Select
    credit: Credit
    loss: Loss
    weigh: Weigh
    update: Update

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its parts, in the order in which they act."""
        return (self.select, self.credit, self.loss, self.weigh, self.update)

    @property
    def needs(self) -> frozenset[str]:
        """Every column that its parts read."""
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def requires(self) -> frozenset[str]:
        """What the learner must be able to do (see `CAPABILITIES`)."""
        return frozenset().union(*(part.requires for part in self.parts))

    @property
    def samples(self) -> bool:
        """Whether it learns from what the policy wrote (else from what it is shown)."""
        return not self.select.shown

    @property
    def siblings(self) -> int:
        """The smallest group from which it learns anything."""
        return max(self.select.siblings, self.credit.siblings)

    @property
    def asks(self) -> frozenset[str]:
        """The columns that models must fill before credit is given: a reference, an old policy, a critic."""
        spared = {"old_logprobs"} - self.credit.needs - self.update.needs if self.update.steps == 1 else set()
        return self.needs - FILLED_BY_ALGORITHM - spared

    def bind(self, chat: Chat) -> Algorithm:
        """The algorithm for a policy's chat: `rcrl().bind(policy.chat)`. Itself where no part writes tokens."""
        return replace(self, select=self.select.bind(chat))

    def state(self) -> list[dict[str, Any]]:
        """What its parts remember, as JSON."""
        return [memory.state() for part in self.parts for memory in part.memory]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Put back what `state` returned."""
        for memory, kept in zip((m for part in self.parts for m in part.memory), state, strict=True):
            memory.restore(kept)


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "__name__", value))


def _labelled(kind: Any, factory: Callable[P, Any]) -> Callable[P, Any]:
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        inside = ", ".join(f"{name}={_written(value)}" for name, value in given.items())
        function = factory(*args, **kwargs)
        return kind(
            f"{factory.__name__}({inside})",
            function,
            getattr(function, "needs", frozenset()),
            getattr(function, "requires", frozenset()),
            getattr(function, "memory", ()),
            getattr(function, "absent", False),
        )

    return make


def select(factory: Callable[P, Any]) -> Callable[P, Select]:
    """Make a factory of `groups -> examples` functions return `Select` parts."""
    return _labelled(Select, factory)


def credit(factory: Callable[P, Any]) -> Callable[P, Credit]:
    """Make a factory of `batch -> batch` functions return `Credit` parts."""
    return _labelled(Credit, factory)


def loss(factory: Callable[P, Any]) -> Callable[P, Loss]:
    """Make a factory of `(outputs, batch) -> [B, T]` functions return `Loss` parts."""
    return _labelled(Loss, factory)


def weigh(factory: Callable[P, Any]) -> Callable[P, Weigh]:
    """Make a factory of `batch -> weights [B, T]` functions return `Weigh` parts."""
    return _labelled(Weigh, factory)
