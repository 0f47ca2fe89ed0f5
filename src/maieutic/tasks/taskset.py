"""Sequences of tasks, made lazily: `Tasks`, and what makes one sequence of another.

Nothing here holds a list of tasks. A taskset is a size and a function from an index to a task, so a million procedural
problems cost nothing until they are asked for, and the task at an index never depends on which others were asked for.

Every id begins with the name of its taskset, and is unique within it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import overload

from maieutic.environments.rules import EachInItsOwn
from maieutic.errors import ConfigError
from maieutic.protocols import Environment, Taskset, Tool, Verifier
from maieutic.types import Task, Verdict


@dataclass(frozen=True)
class Lazy(Sequence[Task]):
    """`size` tasks, of which the one at `index` is `make(index)`, made anew whenever it is asked for."""

    size: int
    make: Callable[[int], Task]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return Chosen(self, range(self.size)[index])
        return self.make(range(self.size)[index])


@dataclass(frozen=True)
class Chosen(Sequence[Task]):
    """The tasks of `items` at `indices`, in that order."""

    items: Sequence[Task] | Taskset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return Chosen(self.items, self.indices[index])
        return self.items[self.indices[index]]


@dataclass(frozen=True, eq=False)
class Tasks:
    """A taskset: items by index, the verifier that checks them, the tool that they may use, and the environment in
    which they are played turn by turn (None: the model answers once).

    >>> Tasks("sums", [Task("sums/0", (Message("user", "1 + 1"),), answer="2")], verifier=number_after_marker)

    Compared and hashed by identity, so that a taskset can be a key of `mixture`.
    """

    name: str
    items: Sequence[Task]
    verifier: Verifier
    tool: Tool | None = None
    environment: Environment | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Task:
        return self.items[index]

    def __iter__(self) -> Iterator[Task]:
        return (self.items[index] for index in range(len(self.items)))


def environment_of(tasks: object) -> Environment | None:
    """What tasks are played in; None where the model answers each of them once."""
    return getattr(tasks, "environment", None)


def take(tasks: Taskset, start: int = 0, stop: int | None = None) -> Tasks:
    """The tasks `start:stop`, as Python slices; raises ConfigError when that leaves none."""
    indices = range(len(tasks))[start:stop]
    if not indices:
        raise ConfigError(
            f"take({tasks.name!r}, {start}, {stop}) leaves no task; it has {len(tasks)}: give start < stop <= that"
        )
    return Tasks(tasks.name, Chosen(tasks, indices), tasks.verifier, tasks.tool, environment_of(tasks))


def shuffled(tasks: Taskset, seed: int | str) -> Tasks:
    """The same tasks in an order that depends on `seed` and on how many there are, and on nothing else."""
    indices = list(range(len(tasks)))
    Random(f"{seed}/shuffled/{len(indices)}").shuffle(indices)
    return Tasks(tasks.name, Chosen(tasks, indices), tasks.verifier, tasks.tool, environment_of(tasks))


@dataclass(frozen=True)
class EachByItsOwn:
    """Verify a task of a mixture with the verifier of the taskset that it came from.

    `meta["mixture"]` is the path of names from the outermost mixture inwards, so mixtures may be mixed again.
    """

    verifiers: Mapping[str, Verifier]

    def __call__(self, task: Task, text: str) -> Verdict:
        name, *inner = task.meta["mixture"]
        return self.verifiers[name](replace(task, meta={**task.meta, "mixture": tuple(inner)}), text)


@dataclass(frozen=True)
class Mixed:
    """Index → task of a mixture: `draws[i]` says which taskset, and which of its tasks."""

    tasksets: tuple[Taskset, ...]
    draws: tuple[tuple[int, int], ...]

    def __call__(self, index: int) -> Task:
        which, position = self.draws[index]
        tasks = self.tasksets[which]
        task = tasks[position]
        own = task.id if task.id.startswith(f"{tasks.name}/") else f"{tasks.name}/{task.id}"
        path = (tasks.name, *task.meta.get("mixture", ()))
        return replace(task, id=own, meta={**task.meta, "mixture": path})


def mixture(weights: Mapping[Taskset, float], seed: int | str, size: int | None = None, name: str = "mixture") -> Tasks:
    """`size` tasks drawn without replacement, each taskset's share in proportion to its weight, in a shuffled order.

        mixture({arithmetic(difficulty=2): 3, arithmetic(difficulty=4): 1}, seed=0, size=1000)

    Shares are rounded by largest remainder and are therefore exact, not random. `size=None` takes the largest size for
    which every taskset has enough tasks. Raises ConfigError for an empty mixture, a weight that is not positive, two
    tasksets of one name, different tools, an environment for some of them only, or a taskset too small for its share.
    """
    tasksets = tuple(weights)
    _check_mixture(weights)
    total = sum(weights.values())
    largest = int(min(len(tasks) * total / weight for tasks, weight in weights.items()) + 1e-9)
    size = largest if size is None else size
    counts = _shares([weight / total for weight in weights.values()], size)
    for tasks, count in zip(tasksets, counts):
        if count > len(tasks):
            raise ConfigError(
                f"a mixture of {size} tasks needs {count} of {tasks.name!r}, which has {len(tasks)}; "
                f"give size <= {largest}, a smaller weight, or a larger taskset"
            )
    draws = []
    for which, (tasks, count) in enumerate(zip(tasksets, counts)):
        order = list(range(len(tasks)))
        Random(f"{seed}/mixture/{tasks.name}/{len(tasks)}").shuffle(order)
        draws += [(which, position) for position in order[:count]]
    Random(f"{seed}/mixture/order/{size}").shuffle(draws)
    verifier = EachByItsOwn({tasks.name: tasks.verifier for tasks in tasksets})
    played = {tasks.name: found for tasks in tasksets if (found := environment_of(tasks)) is not None}
    environment = EachInItsOwn(played) if played else None
    return Tasks(name, Lazy(size, Mixed(tasksets, tuple(draws))), verifier, tasksets[0].tool, environment)


def _check_mixture(weights: Mapping[Taskset, float]) -> None:
    if not weights:
        raise ConfigError("a mixture of no tasksets; give at least one, {tasks: weight}")
    for tasks, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise ConfigError(f"got weight {weight} for {tasks.name!r} in a mixture; expected a positive number")
    names = [tasks.name for tasks in weights]
    if len(set(names)) < len(names):
        raise ConfigError(f"a mixture of tasksets named {', '.join(names)}; expected different names, so rename one")
    if any(tasks.tool != next(iter(weights)).tool for tasks in weights):
        raise ConfigError(
            f"the tasksets {', '.join(names)} have different tools, but the tasks of a mixture share one; "
            "give all of them the same tool, or none"
        )
    answered = [tasks.name for tasks in weights if environment_of(tasks) is None]
    if 0 < len(answered) < len(weights):
        raise ConfigError(
            f"a mixture of {', '.join(names)}, of which {', '.join(answered)} are answered once and the others played "
            "in an environment; mix tasks of one kind, or train on them in stages of their own"
        )


def _shares(fractions: Sequence[float], size: int) -> list[int]:
    """Whole numbers that add up to `size`, each within one of `fraction * size` (largest remainder, first one wins)."""
    exact = [fraction * size for fraction in fractions]
    counts = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: size - sum(counts)]:
        counts[i] += 1
    return counts
