"""What a function declares of itself before it becomes a part (`core.parts`): what it reads, asks for and remembers.

    @needs("advantages", "old_logprobs")     the batch columns that it reads
    @requires("values")                      what the learner must be able to do
    @compares(2)                             a credit that compares at least two rollouts of a task
    @shown                                   a select of what was shown, not of what the policy wrote
    @remembers(memory)                       what it carries from batch to batch

A declaration is an attribute of the function; parts that are made of several add them up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from maieutic.types import PROVIDERS, Group

F = TypeVar("F", bound=Callable[..., Any])


def _declared(**attributes: Any) -> Callable[[F], F]:
    def declare(function: F) -> F:
        for name, value in attributes.items():
            setattr(function, name, value)
        return function

    return declare


def needs(*columns: str) -> Callable[[F], F]:
    """Declare the columns that a function reads beyond those which `pack` fills (see `types.PROVIDERS`).

    Raises ValueError for a column that does not exist.
    """
    unknown = sorted(set(columns) - PROVIDERS.keys())
    if unknown:
        raise ValueError(f"needs({', '.join(unknown)}): no such column; known: {', '.join(PROVIDERS)}")

    return _declared(needs=frozenset(columns))


#: What a learner may be able to do beyond log-probs and steps, and what gives it that.
CAPABILITIES: Mapping[str, str] = {
    "values": "a policy with a critic: `LocalBackend().policy(model, optimiser, critic=ValueHead())`, or "
    "`[stages.critic]` in the config",
    "restart": "a policy that keeps the weights it began with: `LocalBackend().policy(model, optimiser, restart=True)`",
    "trust_region": "a learner with Fisher-vector products: the local backend's, for a model whose attention can be "
    'differentiated twice (`load_causal(path, attention="eager")`)',
}


def requires(*capabilities: str) -> Callable[[F], F]:
    """Declare what the learner must be able to do (see `CAPABILITIES`). Raises ValueError for what is not known."""
    unknown = sorted(set(capabilities) - CAPABILITIES.keys())
    if unknown:
        raise ValueError(f"requires({', '.join(unknown)}): no such capability; known: {', '.join(CAPABILITIES)}")

    return _declared(requires=frozenset(capabilities))


def remembers(*memory: Memory) -> Callable[[F], F]:
    """Declare that a function remembers something from batch to batch, which a run must save."""
    return _declared(memory=memory)


def shown(function: F) -> F:
    """Declare that a select is of what was shown (demonstrations, given preferences): nothing is to be sampled."""
    function.shown = True  # type: ignore[attr-defined]
    return function


def compares(siblings: int) -> Callable[[F], F]:
    """Declare that a credit has something to say only of groups of at least so many rollouts."""
    return _declared(siblings=siblings)


class Memory(Protocol):
    """Something that a part carries from batch to batch. `state` is JSON; `restore(state())` goes on as before."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Keeps(Memory, Protocol):
    """A memory of rollouts to learn from again; `add` puts those of these groups that are to be kept beside them."""

    def add(self, groups: Sequence[Group]) -> None: ...
