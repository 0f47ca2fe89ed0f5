"""Games of TextArena as episodes of several turns: alone, or against opponents that are functions.

    reset(num_players, seed) ─► get_observation() ─► (whose turn it is, what they see) ─► step(action) ─► (done, info)
    close() ─► ({player: reward}, {player: about the game})

Observations that repeat all that was said before are shown without what the model has seen already. TextArena draws
from Python's global `random`: each episode has a state of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from maieutic.environments.foreign import Dice, acted, library, own_function, seed_of
from maieutic.environments.openings import followed_by
from maieutic.errors import ConfigError
from maieutic.protocols import Reply
from maieutic.types import Message, Score, Task

#: The extra that brings it.
EXTRA = "maieutic[environments]"
#: Turns of opponents in a row, before a game counts as stuck.
_MOST_IN_A_ROW = 100


class TextArenaEnvironment:
    """A game of TextArena's kind.

    make         makes a fresh game.
    max_turns    turns of the model, whatever the game's own limit.
    opponent     (observation) → action for every other player, a function or "file.py:function"; or actions, which are
                 played one after the other, from the front again at their end. None: a game for one.
    players      how many there are; default: 2 with an opponent, else 1.
    player       the model's number; "each": each of them in some episodes, as the seed says.
    unfinished   the reward where the model's turns ended before the game did; default: 0, and −1 against opponents,
                 so that stalling does not pay.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        name: str = "textarena",
        max_turns: int = 20,
        opponent: Callable[[str], Any] | Sequence[str] | str | None = None,
        players: int | None = None,
        player: int | str = 0,
        unfinished: float | None = None,
    ) -> None:
        self.name, self.max_turns, self.scores = name, max_turns, True
        self.make = make
        listed = isinstance(opponent, Sequence) and not isinstance(opponent, str)
        self.script = tuple(map(str, opponent)) if listed else ()  # type: ignore[arg-type]
        self.opponent = None if listed else own_function("opponent", opponent)
        self.players = players or (2 if self.has_opponent else 1)
        self.player = player
        self.unfinished = unfinished if unfinished is not None else (-1.0 if self.players > 1 else 0.0)
        if self.players > 1 and not self.has_opponent:
            raise ConfigError(
                f"environment {name!r}: got players = {self.players} without an opponent; expected "
                'opponent = "file.py:function", or a list of actions'
            )
        if player != "each" and player not in range(self.players):
            raise ConfigError(
                f"environment {name!r}: got player = {player!r} of {self.players}; expected a number from 0 to "
                f'{self.players - 1}, or "each"'
            )

    @property
    def has_opponent(self) -> bool:
        """Whether anybody plays beside the model."""
        return self.opponent is not None or bool(self.script)

    async def start(self, task: Task, seed: str) -> TextArenaEpisode:
        """A fresh game, up to the model's first turn."""
        number = seed_of(task, seed)
        player = self.player if isinstance(self.player, int) else number % self.players
        episode = TextArenaEpisode(self, task, number, player)
        await episode.begin(number)
        return episode


class TextArenaEpisode:
    """One game."""

    def __init__(self, environment: TextArenaEnvironment, task: Task, seed: int, player: int) -> None:
        self.environment, self.player = environment, player
        self.dice = Dice(seed)
        self.opening = task.prompt
        self.seen = ""
        self.moves = 0
        self.result: tuple[float, dict[str, Any]] | None = None
        with self.dice.thrown():
            self.game = environment.make()

    async def begin(self, seed: int) -> None:
        """Reset it, and let those play who are before the model."""
        with self.dice.thrown():
            self.game.reset(num_players=self.environment.players, seed=seed)
        text, done = await self._until_mine()
        if done:
            raise RuntimeError("the game was over before the model's first turn")
        self.opening = followed_by(self.opening, text)

    async def step(self, message: Message) -> Reply:
        """The model's move, and those of the others up to its next one."""
        action = acted(message.content)
        if self._moved(action):
            return Reply(done=True, note=self._reason())
        text, done = await self._until_mine(action)
        return Reply(done=True, note=self._reason()) if done else Reply((Message("user", text),))

    def _moved(self, action: str) -> bool:
        with self.dice.thrown():
            done, _ = self.game.step(action=action)
        if done:
            self._end()
        return bool(done)

    async def _until_mine(self, action: str = "") -> tuple[str, bool]:
        for _ in range(_MOST_IN_A_ROW):
            with self.dice.thrown():
                player, observation = self.game.get_observation()
            if player == self.player:
                return self._news(as_words(observation, self.game), action), False
            if self._moved(await self._others(as_words(observation, self.game))):
                return "", True
        raise RuntimeError(f"the model had no turn after {_MOST_IN_A_ROW} of the others'")

    async def _others(self, observation: str) -> str:
        script, self.moves = self.environment.script, self.moves + 1
        if script:
            return script[(self.moves - 1) % len(script)]
        assert self.environment.opponent is not None
        with self.dice.thrown():
            move = self.environment.opponent(observation)
        return str(await move if inspect.isawaitable(move) else move)

    def _news(self, observation: str, action: str) -> str:
        """What the model has not seen yet; its own move is not said again."""
        fresh = observation.removeprefix(self.seen) if self.seen else observation
        self.seen = observation
        first, _, rest = fresh.strip().partition("\n")
        own = bool(action) and first.startswith("[") and first.endswith(f"] {action}")
        return (rest if own else fresh).strip()

    def _end(self) -> None:
        rewards, info = self.game.close()
        known = (rewards or {}).get(self.player)
        about = (info or {}).get(self.player) or {}
        if known is not None:
            self.result = (float(known), dict(about))

    def _reason(self) -> str:
        return str(self.result[1].get("reason") or "") if self.result is not None else ""

    async def score(self) -> Score:
        """The game's reward for the model's player; more than 0 is a right answer."""
        if self.result is None:
            return Score(self.environment.unfinished, False, {"finished": 0.0}, note="the game was not over")
        reward, about = self.result
        invalid = float(bool(about.get("invalid_move")))
        return Score(reward, reward > 0, {"finished": 1.0, "invalid_move": invalid})

    async def close(self) -> None:
        """Nothing is held: a game's own `close` says how it ended."""


def as_words(observation: Any, game: Any) -> str:
    """What a player sees: text as wrappers make it, or the messages of a game without one."""
    if isinstance(observation, str):
        return observation
    roles = getattr(getattr(game, "state", None), "role_mapping", None) or {}
    return "\n".join(f"[{roles.get(sender, 'GAME')}] {str(said).strip()}" for sender, said, *_ in observation)


def textarena_environment(
    where: str,
    make: dict[str, Any] | None = None,
    max_turns: int = 20,
    opponent: Callable[[str], Any] | Sequence[str] | str | None = None,
    players: int | None = None,
    player: int | str = 0,
    unfinished: float | None = None,
) -> TextArenaEnvironment:
    """`environment = "textarena:ID"`: `textarena.make(ID, **make)`. Raises ConfigError for an id that there is not."""
    textarena = library("textarena", "textarena:", EXTRA)
    options = dict(make or {})

    def made() -> Any:
        return textarena.make(env_id=where, **options)

    try:
        made()
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"environment 'textarena:{where}': {error}") from error
    return TextArenaEnvironment(made, f"textarena:{where}", max_turns, opponent, players, player, unfinished)


def is_textarena(found: Any) -> bool:
    """Whether a class or an object is of this kind: `get_observation`, `step`, and a `reset` with `num_players`."""
    if not all(callable(getattr(found, name, None)) for name in ("get_observation", "step", "reset")):
        return False
    return "num_players" in inspect.signature(found.reset).parameters
