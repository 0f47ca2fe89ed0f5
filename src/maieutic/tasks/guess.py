"""Tasks for the guessing game of `maieutic.environments.guess`: every number from 1 to `highest`, in a fixed order."""

from __future__ import annotations

from random import Random

from maieutic.environments.guess import Guess
from maieutic.errors import ConfigError
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.types import Message, Task, Verdict


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

    return Tasks("guess", Lazy(size, make), verifier or _last_number, tool, rules)


def _last_number(task: Task, text: str) -> Verdict:
    """Whether the last number that was said is the right one, for who judges a transcript alone."""
    numbers = [word for word in text.split() if word.isdecimal()]
    said = numbers[-1] if numbers else None
    return Verdict(said == task.answer, said)
