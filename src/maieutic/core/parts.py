"""Parts of an algorithm: functions that know what they read, print as they were written, and compose.

    @credit / @loss / @weigh / @select       turn a factory `clipped_surrogate(epsilon=0.2)` into one that makes a Part
    @needs("advantages", "old_logprobs")     declares the batch columns that a function reads
    @compares(2)                             declares that a credit compares at least two rollouts of a task

    clipped_surrogate(0.2) + 0.01 * kl_to_reference()      losses add and scale
    kl_in_reward(0.05) | gae()                             credits chain, left first

A part's `needs` is the union of what it is made of, so the loop asks models for those columns and no others.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from maieutic.errors import MissingColumn
from maieutic.types import PROVIDERS, Batch, Example, Group, Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from maieutic.protocols import Learner

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])


def needs(*columns: str) -> Callable[[F], F]:
    """Declare the columns that a function reads beyond those which `pack` fills (see `types.PROVIDERS`).

    Raises ValueError for a column that does not exist.
    """
    unknown = sorted(set(columns) - PROVIDERS.keys())
    if unknown:
        raise ValueError(f"needs({', '.join(unknown)}): no such column; known: {', '.join(PROVIDERS)}")

    def declare(function: F) -> F:
        function.needs = frozenset(columns)  # type: ignore[attr-defined]
        return function

    return declare


def compares(siblings: int) -> Callable[[F], F]:
    """Declare that a credit has something to say only of groups of at least so many rollouts."""

    def declare(function: F) -> F:
        function.siblings = siblings  # type: ignore[attr-defined]
        return function

    return declare


@dataclass(frozen=True)
class Part:
    """A named pure function with its hyper-parameters closed over: `label` is how it was written."""

    label: str
    function: Callable[..., Any]
    needs: frozenset[str] = frozenset()

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
    draw again for groups that would not be (dynamic sampling).
    """

    @property
    def keeps(self) -> Callable[[Group], bool] | None:
        return getattr(self.function, "keeps", None)

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
        def chained(batch: Batch) -> Batch:
            return then(self(batch))

        chained.siblings = max(self.siblings, then.siblings)  # type: ignore[attr-defined]
        # What the first one fills, the second one may read; if it did not fill it, the second one's own check says so.
        asked = self.needs | (then.needs - {"advantages", "returns"})
        return Credit(f"{self.label} | {then.label}", chained, asked)


@dataclass(frozen=True)
class Loss(Part):
    """(outputs, batch) → per-token loss `[B, T]`. A loss never reduces; `weigh` says how tokens count.

    The function behind it returns the loss, or the loss and a dict of per-token quantities worth watching (detached,
    `[B, T]`); their masked means are logged under the names given.
    """

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self.terms(outputs, batch)[0]

    def terms(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The per-token loss and what to watch."""
        self.check(batch)
        made = self.function(outputs, batch)
        return made if isinstance(made, tuple) else (made, {})

    def __add__(self, other: Loss) -> Loss:
        def both(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            (a, seen_a), (b, seen_b) = self.terms(outputs, batch), other.terms(outputs, batch)
            return a + b, {**seen_a, **seen_b}

        return Loss(f"{self.label} + {other.label}", both, self.needs | other.needs)

    def __rmul__(self, coefficient: float) -> Loss:
        def scaled(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            value, seen = self.terms(outputs, batch)
            return coefficient * value, seen

        label = self.label if " + " not in self.label else f"({self.label})"
        return Loss(f"{coefficient:g} * {label}", scaled, self.needs)


@dataclass(frozen=True)
class Weigh(Part):
    """batch → weights `[B, T]`: how much each token counts, computed once for a whole optimiser batch."""

    def __call__(self, batch: Batch) -> Tensor:
        self.check(batch)
        return self.function(batch)


@dataclass(frozen=True)
class Update(Part):
    """(learner, batch, algorithm) → metrics: how the weights move on a credited batch.

    `steps` is how many optimiser steps one batch makes at most. With one, each row meets the policy that the batch
    began with, so the old policy is the present one and `old_logprobs` need no forward pass of their own.
    """

    steps: int = 1

    def __call__(self, learner: Learner, batch: Batch, algorithm: Algorithm) -> dict[str, float]:
        return self.function(learner, batch, algorithm)


#: Columns that the algorithm itself fills while a step goes on; all others are asked of models.
FILLED_BY_ALGORITHM = frozenset({"advantages", "returns", "weights", "pairs"})


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
    def needs(self) -> frozenset[str]:
        """Every column that its parts read."""
        return self.select.needs | self.credit.needs | self.loss.needs | self.weigh.needs | self.update.needs

    @property
    def samples(self) -> bool:
        """Whether it judges what the policy wrote (else it imitates what it is shown)."""
        return "advantages" in self.loss.needs

    @property
    def asks(self) -> frozenset[str]:
        """The columns that models must fill before credit is given: a reference, an old policy, a critic."""
        spared = {"old_logprobs"} - self.credit.needs if self.update.steps == 1 else set()
        return self.needs - FILLED_BY_ALGORITHM - spared


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(getattr(value, "__name__", value))


def _labelled(kind: Any, factory: Callable[P, Any]) -> Callable[P, Any]:
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        inside = ", ".join(f"{name}={_written(value)}" for name, value in given.items())
        function = factory(*args, **kwargs)
        return kind(f"{factory.__name__}({inside})", function, getattr(function, "needs", frozenset()))

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
