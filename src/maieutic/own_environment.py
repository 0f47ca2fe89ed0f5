"""Environments in users' files, `environment = "path/to/file.py:Game"`: a class with a `step` is enough.

    class Game:
        max_turns = 4                                    # default: 10

        def __init__(self, task): ...                    # any of task, prompt, answer, seed, and options by their names
        def step(self, message): return "higher"         # what the model is told, or a Reply (done=True ends it)
        def score(self): return 1.0                      # None, or no such method: the run's rewards judge

An object of the class is one episode. `opening` (an attribute; text or messages) is what the model is shown first, by
default the task's prompt; `close` is called at the end; `name`, `max_turns`, `max_turn_length` and `timeout_seconds` of
the class are the environment's. A class, function or object with a `start` is an `Environment` as it stands
(`maieutic.protocols`). What was written for Gymnasium, TextArena, verifiers or TRL is known by its shape
(`maieutic.environments.adapt`).

Where `step` is a plain function, games live in a process of their own, which is killed when a call takes too long. The
other games that lived in it are then played again there up to where they were, from their seeds and the model's turns,
so chance must come from `seed` only. Where `step` is `async`, it is cancelled at the limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from maieutic.choose import choose
from maieutic.environments.adapt import adapted
from maieutic.environments.asking import TIMEOUT
from maieutic.errors import ConfigError
from maieutic.own_code import load_function
from maieutic.protocols import Environment, Episode, Reply
from maieutic.rewards.adapt_rubric import rubric_reads
from maieutic.rewards.serve import Target
from maieutic.rewards.worker import Ended, Outcome, Worker
from maieutic.types import Message, Score, Task

T = TypeVar("T")

#: Turns of a game whose class says nothing.
MAX_TURNS = 10
#: What a class may ask for by the names of its parameters.
GIVEN = ("task", "prompt", "answer", "seed")

_numbers = itertools.count()


def load_environment(where: str, options: Mapping[str, Any] | None = None) -> Environment:
    """The environment "path/to/file.py:name", made with these options.

    Raises ConfigError for a file, name or option that there is not, and for what is no environment; DataError for a
    file that cannot be run.
    """
    found, path = load_function("environment", where)
    name, given = where.rpartition(":")[2], dict(options or {})
    of_library = adapted(found, where, given, rubric_reads)
    if of_library is not None:
        return of_library
    if isinstance(found, type) and hasattr(found, "step") and not hasattr(found, "start"):
        waits = inspect.iscoroutinefunction(found.step)
        target = None if waits else Target(name, path=str(path), adapt=f"{__name__}:served")
        return environment_of_games(found, given, target)
    made = choose("environment", {where: found}, where, given) if callable(found) else found
    if not isinstance(made, Environment):
        raise ConfigError(
            f"environment {where!r}: got {type(made).__name__}; expected a class whose objects have `step(message)`, "
            "or an object with name, max_turns and `async start(task, seed)` (maieutic.protocols.Environment)"
        )
    return made


def environment_of_games(game: type, options: Mapping[str, Any] | None = None, target: Target | None = None) -> Games:
    """A class of games, as at the top of this file, as an environment. `target`: where another process finds it; None
    keeps the games in this one, where a plain `step` that hangs is left behind and not killed.

    Raises ConfigError for an option that the class does not take, or lacks.
    """
    given = dict(options or {})
    choose("environment", {game.__name__: _nothing(game)}, game.__name__, given, dict.fromkeys(GIVEN))
    limit = float(getattr(game, "timeout_seconds", None) or TIMEOUT)
    return Games(
        game=game,
        options=given,
        name=str(getattr(game, "name", game.__name__)),
        max_turns=int(getattr(game, "max_turns", MAX_TURNS)),
        max_turn_length=getattr(game, "max_turn_length", None),
        vocabulary=tuple(getattr(game, "vocabulary", ())),
        timeout_seconds=limit if target is None else math.inf,
        calls=None if target is None else Calls(Worker(target, timeout_seconds=limit)),
    )


@dataclass(frozen=True)
class Games:
    """An environment of a class of games. With `calls` they live in another process, where the time limit is kept."""

    game: type
    options: Mapping[str, Any]
    name: str
    max_turns: int
    max_turn_length: int | None
    vocabulary: tuple[str, ...]
    timeout_seconds: float
    calls: Calls | None = field(compare=False)

    @property
    def scores(self) -> bool | None:
        """False for a class without a `score`; what one with it returns is seen when it is asked."""
        return None if hasattr(self.game, "score") else False

    async def start(self, task: Task, seed: str) -> Episode:
        """A fresh game."""
        if self.calls is None:
            return Here(await in_thread(_begin, self.game, self.options, task, seed))
        episode = There(self.options, self.calls, replace(task, meta=dict(task.meta)), seed)
        await episode.begin()
        return episode

    def with_timeout(self, seconds: float) -> Games:
        """The same with another time limit."""
        if self.calls is None:
            return replace(self, timeout_seconds=seconds)
        return replace(self, calls=Calls(Worker(self.calls.worker.target, timeout_seconds=seconds)))


class Calls:
    """Calls for games in a worker's process, one after the other; what came in meanwhile travels in one message."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._waiting: list[tuple[tuple[Any, ...], asyncio.AbstractEventLoop, asyncio.Future[Outcome]]] = []
        self._lock = threading.Lock()
        self._busy = False

    async def call(self, *arguments: Any) -> Outcome:
        """How the call ended."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        with self._lock:
            self._waiting.append((arguments, loop, future))
            idle, self._busy = not self._busy, True
        if idle:
            threading.Thread(target=self._work, name="maieutic-games", daemon=True).start()
        return await future

    def _work(self) -> None:
        while True:
            with self._lock:
                calls, self._waiting = self._waiting, []
                self._busy = bool(calls)
            if not calls:
                return
            outcomes = self.worker.call_each([(arguments, {}) for arguments, _, _ in calls])
            for (_, loop, future), outcome in zip(calls, outcomes, strict=True):
                with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                    loop.call_soon_threadsafe(_end, future, outcome, None)


def _end(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():  # nobody waits any more
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


class Here:
    """A game in this process."""

    def __init__(self, game: Any) -> None:
        self.game = game
        self.opening = _opening(game)

    async def step(self, message: Message) -> Reply:
        """The game's answer."""
        return as_reply(await _called(self.game.step, message))

    async def score(self) -> Score | None:
        """The game's, if it has one."""
        return as_score(await _called(self.game.score)) if hasattr(self.game, "score") else None

    async def close(self) -> None:
        """The game's, if it has one."""
        if hasattr(self.game, "close"):
            await _called(self.game.close)


class There:
    """A game in the worker's process; everything that it takes to play it again is here."""

    def __init__(self, options: Mapping[str, Any], calls: Calls, task: Task, seed: str) -> None:
        self.calls, self.number = calls, next(_numbers)
        self.rules = (dict(options), task, seed)
        self.turns: list[Message] = []
        self.opening: tuple[Message, ...] = ()

    async def begin(self) -> None:
        """Start it."""
        self.opening = await self._ask("opening")

    async def step(self, message: Message) -> Reply:
        """The game's answer."""
        self.turns.append(message)
        reply: Reply = await self._ask("step")
        return reply

    async def score(self) -> Score | None:
        """The game's, if it has one."""
        found: Score | None = await self._ask("score")
        return found

    async def close(self) -> None:
        """Forget it there."""
        if self.calls.worker.pid is not None:  # else nothing is there any more
            await self._ask("close")

    async def _ask(self, what: str) -> Any:
        outcome = await self.calls.call(what, self.number, *self.rules, tuple(self.turns))
        if outcome.ended is not Ended.RETURNED:
            raise GameFailed(outcome.detail.strip())
        return outcome.value


class GameFailed(Exception):
    """A game in another process raised, died or took too long; the message is its traceback, or a sentence."""

    def __str__(self) -> str:
        return super().__str__().rpartition("\n")[2]


def served(game: type) -> Callable[..., Any]:
    """What the worker's process does for games of the class: `(what, number, options, task, seed, turns)`.

    A game that it does not know, because the process is new, is played again up to its last turn but one.
    """
    games: dict[int, tuple[Any, int]] = {}

    def act(what: str, number: int, options: Mapping[str, Any], task: Task, seed: str, turns: Sequence[Message]) -> Any:
        if what == "close" and number not in games:
            return None
        known, played = games.pop(number, (None, 0))  # one that raises is not kept
        if known is None:
            known = _begin(game, options, task, seed)
        reply: Any = None
        for message in turns[played:]:
            reply = known.step(message)
        made = {
            "opening": lambda: _opening(known),
            "step": lambda: as_reply(reply),
            "score": lambda: as_score(known.score()) if hasattr(known, "score") else None,
            "close": lambda: known.close() if hasattr(known, "close") else None,
        }[what]()
        if what != "close":
            games[number] = (known, len(turns))
        return None if what == "close" else made

    return act


def as_reply(said: Any) -> Reply:
    """What `step` returned as a Reply: one as it stands, text, a message, or several. Raises TypeError for others."""
    if isinstance(said, Reply):
        return said
    return Reply(_messages(said, "step"))


def as_score(found: Any) -> Score | None:
    """What `score` returned as a Score: one as it stands, a number, whether it was right, or None."""
    if found is None or isinstance(found, Score):
        return found
    if not isinstance(found, int | float):
        raise TypeError(f"score returned {type(found).__name__}; expected a number, a bool, a Score or None")
    return Score(float(found), correct=found if isinstance(found, bool) else None)


def _messages(said: Any, what: str) -> tuple[Message, ...]:
    if isinstance(said, str):
        return (Message("user", said),)
    if isinstance(said, Message):
        return (said,)
    if isinstance(said, Sequence) and all(isinstance(each, Message) for each in said):
        return tuple(said)
    raise TypeError(f"{what}: got {type(said).__name__}; expected text, a Message, several, or a Reply")


def _begin(game: type, options: Mapping[str, Any], task: Task, seed: str) -> Any:
    known = {"task": task, "prompt": task.prompt[-1].content, "answer": task.answer, "seed": seed}
    takes = inspect.signature(game).parameters
    made = game(**{name: value for name, value in known.items() if name in takes}, **options)
    if not hasattr(made, "opening"):
        made.opening = task.prompt
    return made


def _opening(game: Any) -> tuple[Message, ...]:
    return _messages(game.opening, "opening")


async def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    return await in_thread(function, *arguments)


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns or raises, in a thread that does not keep the process from ending if it hangs."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def body() -> None:
        value, failure = None, None
        try:
            value = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - carried over to who waits
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(_end, future, value, failure)

    threading.Thread(target=body, name="maieutic-game", daemon=True).start()
    return await future


def _nothing(game: type) -> Callable[..., None]:
    """Takes what the class takes, and makes nothing: for a look at its options before there is a task."""

    def make(**_: Any) -> None:
        return None

    make.__signature__ = inspect.signature(game)  # type: ignore[attr-defined]
    return make
