"""Tasks for the guessing game of `maieutic.environments.guess`: every number from 1 to `highest`, in a fixed order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from maieutic.environments.guess import Guess
from maieutic.errors import ConfigError
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.thoughts import outside_thoughts
from maieutic.types import Message, Task, Verdict

#: What the game says between two turns (`Guess.unreadable` for any `highest`).
_REPLY = re.compile(r"\b(?:higher|lower|say a number from 1 to [0-9]{1,9})\b")
#: A turn that is a guess and nothing else; chat templates name who speaks, on a line before what is said.
_TURN = re.compile(r"\s*(?:(?:assistant|model)\s+)?([0-9]{1,9})\s*")


def guess(
    highest: int = 8,
    size: int = 1000,
    seed: int = 0,
    max_turns: int = 0,
    haste: float = 0.0,
    max_turn_length: int | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """A game of several turns: guess a number, and be told higher or lower.

    The numbers come by turns, so that every stretch of `highest` tasks has each of them once. `meta["solution"]` is a
    guess at random, which shows the form of a turn and nothing else. `max_turns`: 0 for as many as who heeds the
    answers needs; `haste` and `max_turn_length` as in `Guess`.

    Raises ConfigError for a game without numbers or tasks.
    """
    if size < 1:
        raise ConfigError(f"guess: got size={size}; expected at least 1")
    rules = Guess(highest, max_turns, haste, max_turn_length)

    def make(index: int) -> Task:
        stretch, at = divmod(index, highest)
        secret = Random(f"{seed}/guess/{stretch}").sample(range(1, highest + 1), highest)[at]
        shown = Random(f"{seed}/guess/shown/{index}").randint(1, highest)
        prompt = (Message("user", rules.question),)
        return Task(f"guess/{index}", prompt, str(secret), {"solution": str(shown)})

    return Tasks("guess", Lazy(size, make), verifier or LastGuess(), tool, rules)


@dataclass(frozen=True)
class LastGuess:
    """Correct when the last turn of a transcript, outside of thoughts, is the secret number and nothing else.

    A turn begins after the last reply of the game. The game itself is milder with a turn that says more, and takes the
    last number of it; a transcript does not show who said what, so only a number alone is sure to be a guess.
    """

    def __call__(self, task: Task, text: str) -> Verdict:
        said = outside_thoughts(text)
        replies = [reply.end() for reply in _REPLY.finditer(said)]
        turn = _TURN.fullmatch(said, replies[-1] if replies else 0)
        if turn is None:
            return Verdict(False, None, "the last turn is no number alone")
        right = turn[1] == task.answer
        return Verdict(right, turn[1], "" if right else f"expected {task.answer}")
