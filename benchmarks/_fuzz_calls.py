"""What the fuzz asks of a verifier, a reward and a game on any text, beside that they do not raise."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any, TypeVar

from benchmarks._fuzz_texts import task
from maieutic.protocols import Environment, Reward
from maieutic.types import Finish, Message, Rollout, Task, Verdict

T = TypeVar("T")
Judge = Callable[[Task, str], Any]

#: Characters of a text that become tokens of its rollout.
TOKENS = 2000


def verified(verifier: Callable[[Task, str], Verdict]) -> Judge:
    """Whether the text is accepted. A verdict says yes or no; its share is from 0 to 1, and 1 of what is right."""

    def judge(asked: Task, said: str) -> bool:
        found = verifier(asked, said)
        if not isinstance(found, Verdict) or not isinstance(found.correct, bool):
            raise TypeError(f"got {found!r}; expected a verdict")
        if found.share is not None and (not 0 <= found.share <= 1 or (found.share == 1) is not found.correct):
            raise ValueError(f"got the share {found.share} of what is {found.correct}; expected 1 of what is right")
        return found.correct

    return judge


def rewarded(judge: Reward, low: float, high: float) -> Judge:
    """Whether the text earns `high`; it earns something from `low` to there."""

    def call(asked: Task, said: str) -> bool:
        (score,) = finished(judge(asked, [rollout(said)]))
        if score.reward is None or not low <= score.reward <= high:
            raise ValueError(f"got the reward {score.reward}; expected one from {low} to {high}")
        return score.reward == high

    return call


def played(environment: Environment, low: float = 0.0, high: float = 1.0) -> Judge:
    """Whether a game is won of which the text is the first turn and the second; it earns something from low to high."""

    def call(asked: Task, said: str) -> bool:
        game = finished(environment.start(asked, ""))
        for _ in range(min(environment.max_turns, 2)):
            reply = finished(game.step(Message("assistant", said)))
            if not all(math.isfinite(part) for part in reply.parts.values()):
                raise ValueError(f"got the parts {reply.parts}; expected finite numbers")
            if reply.done:
                break
        score = finished(game.score())
        if score is None or score.reward is None or not low <= score.reward <= high:
            raise ValueError(f"got {score}; expected a reward from {low} to {high}")
        return bool(score.correct)

    return call


def finished(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that waits for nothing, without a loop: asking the system takes longer than scoring."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise TypeError("this waits for something")


@lru_cache(maxsize=1)
def rollout(said: str) -> Rollout:
    """The text as a rollout: a token a character, of the first so many."""
    prompt = [ord(character) for character in task(0).prompt[-1].content]
    own = [ord(character) for character in said[:TOKENS]] or [0]
    mask = (False,) * len(prompt) + (True,) * len(own)
    return Rollout("fuzz", (*prompt, *own), mask, (0.0,) * len(mask), Finish.STOP, said)
