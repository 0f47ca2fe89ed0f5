"""Guess my number: the smallest game in which a turn should heed what was said after the turns before.

    guess my number from 1 to 8 in 4 turns , I say higher or lower
    5      lower      2      higher      3        (right: the episode ends)

All text is words separated by single spaces (numbers are words), and `vocabulary` is all of them, so that a small
tokenizer can be made of the game itself. With N numbers and ⌈log₂(N + 1)⌉ turns, who heeds the answers always wins.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from maieutic.errors import ConfigError, DataError
from maieutic.protocols import Reply
from maieutic.thoughts import outside_thoughts
from maieutic.types import Message, Score, Task

_NUMBER = re.compile(r"(?<![\w.])\d{1,9}(?![\w.]*\w)")


@dataclass(frozen=True)
class Guess:
    """The game. `highest`: the largest number; `max_turns`: guesses (None: as many as who heeds the answers needs).

    `haste` is added to the reward of a win, in proportion to the turns that were left. `max_turn_length` bounds the
    tokens of a guess.
    """

    highest: int = 8
    max_turns: int = 0
    haste: float = 0.0
    max_turn_length: int | None = None
    name: str = field(default="guess", init=False)
    at_once: bool = field(default=True, init=False)
    scores: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.highest < 1 or self.max_turns < 0:
            raise ConfigError(f"guess: got highest={self.highest}, max_turns={self.max_turns}; expected 1 or more")
        if not self.max_turns:
            object.__setattr__(self, "max_turns", math.ceil(math.log2(self.highest + 1)))

    @property
    def question(self) -> str:
        """How the game is explained."""
        return f"guess my number from 1 to {self.highest} in {self.max_turns} turns , I say higher or lower"

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words of the game."""
        numbers = [str(n) for n in range(1, max(self.highest, self.max_turns) + 1)]
        return tuple(dict.fromkeys([*self.question.split(), *self.unreadable.split(), *numbers]))

    @property
    def unreadable(self) -> str:
        """What is said to a turn without a number in range."""
        return f"say a number from 1 to {self.highest}"

    async def start(self, task: Task, seed: str) -> Game:  # noqa: ARG002 - there is no chance in it
        """A game about the task's answer. Raises DataError for one that is no number in range."""
        if task.answer is None or not task.answer.isdecimal() or not 1 <= int(task.answer) <= self.highest:
            raise DataError(f"task {task.id!r}: got {task.answer!r}; expected a number from 1 to {self.highest}")
        return Game(self, task.prompt, int(task.answer))


class Game:
    """One game about one number; see `maieutic.protocols.Episode`."""

    def __init__(self, rules: Guess, opening: tuple[Message, ...], secret: int) -> None:
        self.rules, self.opening, self.secret = rules, opening, secret
        self.guesses: list[int | None] = []

    async def step(self, message: Message) -> Reply:
        """The last number of the turn, outside of thoughts, is the guess."""
        found = _NUMBER.findall(outside_thoughts(message.content))
        guess = int(found[-1]) if found and 1 <= int(found[-1]) <= self.rules.highest else None
        before = next((g for g in reversed(self.guesses) if g is not None), None)
        self.guesses.append(guess)
        if guess is None:
            return Reply((Message("user", self.rules.unreadable),), parts={"readable": 0.0})
        parts = {"readable": 1.0}
        if before is not None:
            parts["closer"] = float(abs(guess - self.secret) < abs(before - self.secret))
        if guess == self.secret:
            return Reply(done=True, parts=parts, note="right")
        return Reply((Message("user", "higher" if guess < self.secret else "lower"),), parts=parts)

    async def score(self) -> Score:
        """1 for a win, and what haste brings; 0 otherwise."""
        last = self.guesses[-1] if self.guesses else None
        won = last == self.secret
        left = (self.rules.max_turns - len(self.guesses)) / self.rules.max_turns
        reward = 1.0 + self.rules.haste * left if won else 0.0
        return Score(reward, correct=won, answer=None if last is None else str(last))

    async def close(self) -> None:
        """It holds nothing."""
