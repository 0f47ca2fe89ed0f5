"""Gymnasium environments whose observations can be said in words, as episodes of several turns.

    reset(seed=…) ─► observation ─► text        step(action) ─► (observation, reward, terminated, truncated, info)

    observation   `observe(observation)`; or text as it is; or what `render()` draws, in mode "ansi"; or the value
    action        `<action>…</action>`, or the whole turn: a name of `actions`, a number (Discrete), text (Text), JSON

An environment is one episode: each has an object of its own, seeded from the task. A turn that is no action is told so
and does not step the environment.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maieutic.environments.foreign import acted, library, own_function, seed_of
from maieutic.environments.openings import followed_by
from maieutic.environments.tool_functions import as_text
from maieutic.errors import ConfigError
from maieutic.protocols import Reply
from maieutic.types import Message, Score, Task

#: The extra that brings it.
EXTRA = "maieutic[environments]"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m(.*?)\x1b\[0m", re.DOTALL)
_WHOLE = re.compile(r"(?<![\w.-])-?\d{1,9}(?![\w]|\.\d)")


class GymnasiumEnvironment:
    """An environment of Gymnasium's kind.

    make            makes a fresh object for an episode.
    max_turns       turns of the model, whatever the environment's own limit.
    actions         names of actions: a list, in the order of Discrete, or name → action.
    observe         (observation) → text, a function or "file.py:function".
    pay             "episode": the reward is the sum of all, paid at the end; "turns": each turn is paid its own, and
                    the outcome nothing.
    solved_above    an episode whose sum is greater is a right answer, where `info` says nothing of a "success".
    """

    def __init__(
        self,
        make: Callable[[], Any],
        name: str = "gymnasium",
        max_turns: int = 20,
        actions: Sequence[str] | Mapping[str, Any] | None = None,
        observe: Callable[[Any], str] | str | None = None,
        pay: str = "episode",
        solved_above: float = 0.0,
    ) -> None:
        if pay not in ("episode", "turns"):
            raise ConfigError(f'environment {name!r}: got pay = {pay!r}; expected "episode" or "turns"')
        self.name, self.max_turns, self.scores = name, max_turns, True
        self.make = make
        self.observe = own_function("observe", observe)
        self.solved_above = solved_above
        self.by_turn = pay == "turns"
        probe = make()
        try:
            _check_shape(probe, name)
            self.actions = _named_actions(actions, probe)
        finally:
            probe.close()

    async def start(self, task: Task, seed: str) -> GymnasiumEpisode:
        """A fresh object, reset with the task's seed."""
        return GymnasiumEpisode(self, self.make(), task, seed_of(task, seed))

    def words(self, game: Any, observation: Any) -> str:
        """An observation in words."""
        if self.observe is not None:
            return str(self.observe(observation))
        if isinstance(observation, str):
            return observation
        if getattr(game, "render_mode", None) == "ansi":
            return _COLOUR.sub(r"[\1]", str(game.render())).rstrip()
        if isinstance(observation, Mapping):
            return "\n".join(f"{name}: {_value(each)}" for name, each in observation.items())
        return _value(observation)


class GymnasiumEpisode:
    """One object, from its reset to its close."""

    def __init__(self, environment: GymnasiumEnvironment, game: Any, task: Task, seed: int) -> None:
        self.environment, self.game = environment, game
        found = game.reset(seed=seed) if _takes(game.reset, "seed") else game.reset()
        # the reset of gym, before Gymnasium, returned the observation alone
        observation = found[0] if isinstance(found, tuple) and len(found) == 2 else found
        self.opening: tuple[Message, ...] = followed_by(task.prompt, environment.words(game, observation))
        self.total = 0.0
        self.invalid = 0
        self.success: bool | None = None

    @property
    def parts(self) -> dict[str, float]:
        """How often a turn was no action."""
        return {"invalid_actions": float(self.invalid)}

    async def step(self, message: Message) -> Reply:
        """Take the turn's action, if it has one."""
        text = acted(message.content)
        try:
            action = read_action(text, self.game.action_space, self.environment.actions)
        except ValueError as error:
            self.invalid += 1
            return Reply((Message("user", f"That is no action: {error}."),), reward=self._paid(0.0))
        observation, reward, *ended, info = self.game.step(action)
        self.total += float(reward)
        for key in ("success", "is_success"):
            if isinstance(info, Mapping) and key in info:
                self.success = bool(info[key])
        words = self.environment.words(self.game, observation)
        return Reply((Message("user", words),), done=any(map(bool, ended)), reward=self._paid(float(reward)))

    def _paid(self, reward: float) -> float | None:
        return reward if self.environment.by_turn else None

    async def score(self) -> Score:
        """The sum of the rewards, and whether it was enough."""
        right = self.total > self.environment.solved_above if self.success is None else self.success
        return Score(0.0 if self.environment.by_turn else self.total, right, {"return": self.total})

    async def close(self) -> None:
        """The object's own."""
        self.game.close()


def gymnasium_environment(
    where: str,
    make: Mapping[str, Any] | None = None,
    max_turns: int = 20,
    actions: Sequence[str] | Mapping[str, Any] | None = None,
    observe: str | None = None,
    pay: str = "episode",
    solved_above: float = 0.0,
) -> GymnasiumEnvironment:
    """`environment = "gymnasium:ID"`: `gymnasium.make(ID, **make)`, which draws in text where it can and nobody says
    what its observations mean. Raises ConfigError for an id that there is not."""
    gymnasium = library("gymnasium", "gymnasium:", EXTRA)
    options = dict(make or {})

    def made() -> Any:
        try:
            return gymnasium.make(where, **options)
        except (gymnasium.error.Error, TypeError) as error:
            raise ConfigError(f"environment 'gymnasium:{where}': {error}") from error

    probe = made()
    drawn = "ansi" in (probe.metadata.get("render_modes") or ())
    textual = isinstance(probe.observation_space, gymnasium.spaces.Text)
    probe.close()
    if drawn and not textual and observe is None:
        options.setdefault("render_mode", "ansi")
    return GymnasiumEnvironment(made, f"gymnasium:{where}", max_turns, actions, observe, pay, solved_above)


def is_gymnasium(found: Any) -> bool:
    """Whether a class or an object is of this kind: `step`, and a `reset` with `seed` and `options`."""
    if not callable(getattr(found, "step", None)) or not callable(getattr(found, "reset", None)):
        return False
    spaces = not isinstance(found, type) and hasattr(found, "action_space")
    return spaces or (_takes(found.reset, "seed") and _takes(found.reset, "options"))


def read_action(text: str, space: Any, names: Mapping[str, Any]) -> Any:
    """The action that a text names, in an action space of Gymnasium's. Raises ValueError, with what is expected.

    >>> read_action("I go Left.", Discrete(2), {"left": 0, "right": 1})
    0
    """
    said = text.casefold()
    if names:
        mentioned = [name for name in names if re.search(rf"(?<!\w){re.escape(name.casefold())}(?!\w)", said)]
        whole = [name for name in names if name.casefold() == said]
        if len(whole or mentioned) == 1:
            return names[(whole or mentioned)[0]]
        raise ValueError(f"expected one of {', '.join(names)}")
    kind = type(space).__name__
    if kind == "Text":
        if hasattr(space, "contains") and not space.contains(text):
            raise ValueError(f"expected text of {space.min_length} to {space.max_length} known characters")
        return text
    if kind == "Discrete":
        first, count = int(getattr(space, "start", 0)), int(space.n)
        numbers = {int(each) for each in _WHOLE.findall(text)}
        if len(numbers) == 1 and first <= (number := numbers.pop()) < first + count:
            return number
        raise ValueError(f"expected a number from {first} to {first + count - 1}")
    return _of_json(text, space)


def _of_json(text: str, space: Any) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"expected JSON for {space}") from None
    if isinstance(value, list):
        import numpy

        try:
            value = numpy.asarray(value, dtype=getattr(space, "dtype", None))
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"expected {space}") from None
    if hasattr(space, "contains") and not space.contains(value):
        raise ValueError(f"expected {space}")
    return value


def _named_actions(given: Sequence[str] | Mapping[str, Any] | None, probe: Any) -> dict[str, Any]:
    if given is None:
        meanings = getattr(getattr(probe, "unwrapped", probe), "get_action_meanings", None)
        given = meanings() if callable(meanings) else None
    if isinstance(given, Mapping):
        return {str(name): action for name, action in given.items()}
    first = int(getattr(probe.action_space, "start", 0))
    return {str(name): first + number for number, name in enumerate(given or ())}


def _check_shape(probe: Any, name: str) -> None:
    missing = [each for each in ("reset", "step", "close", "action_space") if not hasattr(probe, each)]
    if missing:
        raise ConfigError(
            f"environment {name!r}: got {type(probe).__name__} without {', '.join(missing)}; expected an environment "
            "of Gymnasium's kind"
        )


def _takes(function: Any, name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _value(value: Any) -> str:
    shown = value.tolist() if hasattr(value, "tolist") else value
    return as_text(shown)
