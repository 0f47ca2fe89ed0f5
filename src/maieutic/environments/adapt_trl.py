"""Classes that people wrote for TRL's `environment_factory`: public methods are tools, `reset` begins an episode.

    class Counter:
        def reset(self, **columns) -> str | None: …      the task's columns; text is put after the last user message
        def add(self, step: int) -> int: …                a tool: type hints and a docstring, sync or async
        def get_reward(self) -> float: …                  if it is there: the reward, else the run's rewards judge

As in TRL, an episode ends with the turn that calls no tool. Each episode has an object of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from maieutic.environments.openings import followed_by
from maieutic.environments.tool_functions import SECONDS, ToolFunction, tool_function
from maieutic.environments.tool_use import Manner, ToolEpisode, check_tools
from maieutic.errors import ConfigError
from maieutic.types import Score, Task

#: Methods that are no tools.
OWN = ("reset", "get_reward")


class FactoryEnvironment:
    """A class of TRL's kind, or a function that makes such objects.

    `seconds` bound each call of a tool; `max_turns` is TRL's `max_tool_calling_iterations`, and one turn to answer in;
    the others as in `maieutic.environments.tool_use.ToolUse`.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        name: str = "trl",
        max_turns: int = 10,
        seconds: float = SECONDS,
        max_calls: int = 8,
        reply_characters: int = 4000,
        fenced: bool = True,
        describe: bool = True,
    ) -> None:
        self.name, self.max_turns = name, max_turns
        self.make, self.seconds = make, seconds
        self.manner = Manner(max_calls, reply_characters, fenced, describe)
        probe = make()
        if not is_factory_made(probe):
            raise ConfigError(
                f"environment {name!r}: got {type(probe).__name__}; expected a `reset` and public methods to be tools"
            )
        check_tools(self.tools(probe))
        self.scores = callable(getattr(probe, "get_reward", None))

    @property
    def timeout_seconds(self) -> float:
        """Of a turn: each call keeps its own time."""
        return 30.0 + self.manner.max_calls * self.seconds

    def tools(self, made: Any) -> list[ToolFunction]:
        """The public methods of an object. Raises ConfigError for one without a docstring."""
        return [tool_function(getattr(made, name), seconds=self.seconds) for name in tool_names(type(made))]

    async def start(self, task: Task, seed: str) -> ToolEpisode:  # noqa: ARG002  (TRL's have no seed)
        """A fresh object, reset with the task's columns."""
        made = self.make()
        found = made.reset(**_for_reset(made.reset, columns(task)))
        observation = await found if inspect.isawaitable(found) else found
        if observation is not None and not isinstance(observation, str):
            raise TypeError(f"reset returned {type(observation).__name__}; expected text or None")

        async def scored() -> Score | None:
            if not callable(getattr(made, "get_reward", None)):
                return None
            value = made.get_reward()
            reward = float(await value if inspect.isawaitable(value) else value)
            return Score(reward, correct=reward > 0)

        opening = followed_by(task.prompt, observation or "", between="")
        return ToolEpisode(opening, self.tools(made), self.manner, scored)


def columns(task: Task) -> dict[str, Any]:
    """A task as a row of a data set: its prompt as messages, its answer, and all that `meta` holds."""
    prompt = [{"role": message.role, "content": message.content} for message in task.prompt]
    return {**task.meta, "prompt": prompt, **({} if task.answer is None else {"answer": task.answer})}


def tool_names(kind: type) -> list[str]:
    """Names of the public methods that are tools, as TRL lists them."""
    methods = inspect.getmembers(kind, predicate=inspect.isfunction)
    return [name for name, _ in methods if not name.startswith("_") and name not in OWN]


def is_factory_made(found: Any) -> bool:
    """Whether a class or an object is of this kind: a `reset`, no `step`, and a tool with a docstring."""
    kind = found if isinstance(found, type) else type(found)
    if not callable(getattr(kind, "reset", None)) or hasattr(kind, "step"):
        return False
    return any(inspect.getdoc(getattr(kind, name)) for name in tool_names(kind))


def _for_reset(reset: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(reset).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}
