"""Environments under rules of one's own: fewer turns, shorter ones, another time limit; and several side by side.

`ENVIRONMENTS` are those that a config names; one may also be a class in a user's file (`maieutic.own_environment`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from maieutic.choose import choose
from maieutic.environments.guess import Guess
from maieutic.environments.self_correction import SelfCorrection
from maieutic.environments.toolbox import tool_use
from maieutic.errors import ConfigError
from maieutic.protocols import Environment, Episode, Reply
from maieutic.types import Message, Score, Task

#: Name → factory.
ENVIRONMENTS: dict[str, Callable[..., Environment]] = {
    "guess": Guess,
    "self_correction": SelfCorrection,
    "tools": tool_use,
}


def make_environment(name: str, options: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> Environment:
    """The environment of that name; `known` is what a factory gets of the tasks where it has a parameter of the name.

    Raises UnknownName and ConfigError for what there is not.
    """
    return choose("environment", ENVIRONMENTS, name, options, known)


def scores_itself(environment: Environment) -> bool | None:
    """Whether its episodes have scores of their own: all (True), none (False); None where that is not known before."""
    told: bool | None = getattr(environment, "scores", None)
    return told


@dataclass(frozen=True)
class Ruled:
    """An environment with other limits than its own (None: its own).

    max_turns         turns of the model.
    max_turn_length   tokens of a turn; one that is cut ends the episode.
    timeout_seconds   for each answer of the environment.
    """

    environment: Environment
    turns: int | None = None
    turn_length: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = {"max_turns": self.turns, "max_turn_length": self.turn_length, "turn_timeout_seconds": self.seconds}
        for what, value in given.items():
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ConfigError(f"environment {self.name!r}: got {what} = {value!r}; expected a number above 0")

    @property
    def name(self) -> str:
        """The environment's."""
        return self.environment.name

    @property
    def max_turns(self) -> int:
        """The most turns that the model has in an episode."""
        return self.turns or self.environment.max_turns

    @property
    def max_turn_length(self) -> int | None:
        """The most tokens of a turn."""
        return self.turn_length or getattr(self.environment, "max_turn_length", None)

    @property
    def timeout_seconds(self) -> float | None:
        """For each answer."""
        return self.seconds or getattr(self.environment, "timeout_seconds", None)

    @property
    def at_once(self) -> bool:
        """Whether it answers without waiting; not where it has been given a time limit."""
        return self.seconds is None and getattr(self.environment, "at_once", False)

    @property
    def scores(self) -> bool | None:
        """Whether episodes have scores of their own, where the environment tells."""
        return scores_itself(self.environment)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words that the environment says, where it tells them."""
        return tuple(getattr(self.environment, "vocabulary", ()))

    async def start(self, task: Task, seed: str) -> Episode:
        """The environment's episode."""
        return await self.environment.start(task, seed)


@dataclass(frozen=True)
class EachInItsOwn:
    """Plays a task of a mixture in the environment of the taskset that it came from, with that one's limits.

    `meta["mixture"]` is the path of names from the outermost mixture inwards.
    """

    environments: Mapping[str, Environment]

    @property
    def name(self) -> str:
        """All names."""
        return "+".join(dict.fromkeys(each.name for each in self.environments.values()))

    @property
    def max_turns(self) -> int:
        """The most of any; each episode ends after its own environment's."""
        return max(each.max_turns for each in self.environments.values())

    @property
    def max_turn_length(self) -> int | None:
        """The most of any."""
        limits = [getattr(each, "max_turn_length", None) for each in self.environments.values()]
        return None if None in limits else max(limit for limit in limits if limit is not None)

    @property
    def timeout_seconds(self) -> float | None:
        """The most of any; where one says nothing, nothing."""
        limits = [getattr(each, "timeout_seconds", None) for each in self.environments.values()]
        return None if None in limits else max(limit for limit in limits if limit is not None)

    @property
    def at_once(self) -> bool:
        """Whether all of them answer without waiting."""
        return all(getattr(each, "at_once", False) for each in self.environments.values())

    @property
    def scores(self) -> bool | None:
        """What all of them tell; None where they differ."""
        told = {scores_itself(each) for each in self.environments.values()}
        return told.pop() if len(told) == 1 else None

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words of all."""
        words = (word for each in self.environments.values() for word in getattr(each, "vocabulary", ()))
        return tuple(dict.fromkeys(words))

    async def start(self, task: Task, seed: str) -> Episode:
        """An episode of its own environment."""
        name, *inner = task.meta["mixture"]
        own = self.environments[name]
        plain = replace(task, meta={**task.meta, "mixture": tuple(inner)})
        return Limited(await own.start(plain, seed), own.max_turns)


class Limited:
    """An episode that ends after so many turns."""

    def __init__(self, episode: Episode, turns: int) -> None:
        self.episode, self.left, self.max_turns = episode, turns, turns
        self.tools = tuple(getattr(episode, "tools", ()))
        self.judges_last_turn = bool(getattr(episode, "judges_last_turn", False))

    @property
    def parts(self) -> Mapping[str, float]:
        """The episode's."""
        return getattr(self.episode, "parts", {})

    @property
    def opening(self) -> tuple[Message, ...]:
        """The episode's."""
        return self.episode.opening

    async def step(self, message: Message) -> Reply:
        """The episode's answer; the last one ends it."""
        self.left -= 1
        reply = await self.episode.step(message)
        return reply if self.left > 0 else replace(reply, done=True)

    async def score(self) -> Score | None:
        """The episode's."""
        return await self.episode.score()

    async def close(self) -> None:
        """The episode's."""
        await self.episode.close()
