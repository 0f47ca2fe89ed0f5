"""Answers scored by reasoning-gym's own data sets, in a process that is killed when a score takes too long.

Some data sets evaluate what a model wrote as an expression; nothing of that happens in the process that trains.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from maieutic.errors import ConfigError
from maieutic.protocols import Reward, Verifier
from maieutic.rewards.adapt_arguments import Attempt, for_gym, given_answer
from maieutic.rewards.adapt_values import as_number
from maieutic.rewards.lift import unscorable
from maieutic.rewards.serve import Target
from maieutic.rewards.worker import Ended, Worker
from maieutic.types import Finish, Rollout, Score, Task, Verdict

#: A score from here on is a right answer.
RIGHT = 1.0 - 1e-9


class GymVerifier:
    """Right is what the data set `name` scores with 1. `score` gives the score itself, which may lie between.

    The answer is what `given_answer` finds in a text. A score that raises or takes too long is none.
    """

    def __init__(self, name: str, options: Mapping[str, Any] | None = None, timeout_seconds: float = 10.0) -> None:
        self.name = name
        self.options = json.dumps(dict(options or {}), sort_keys=True)
        self.timeout_seconds = timeout_seconds

    def __call__(self, task: Task, text: str) -> Verdict:
        value, why = self.score(task, text)
        right = value is not None and value >= RIGHT
        return Verdict(right, given_answer(text) or None, "" if right else why)

    def score(self, task: Task, text: str) -> tuple[float | None, str]:
        """The data set's score of the answer in the text, and what is to be said of it."""
        asked = for_gym(task, Attempt(text))
        outcome = _scorer(self.timeout_seconds).call(self.name, self.options, asked["answer"], asked["entry"])
        if outcome.ended is not Ended.RETURNED:
            last = outcome.detail.strip().rpartition("\n")[2]
            return None, f"no score ({outcome.ended.value}: {last})"
        return float(outcome.value), f"scored {outcome.value:g}; expected {task.answer}"


@functools.lru_cache(maxsize=4)
def _scorer(timeout_seconds: float) -> Worker:
    """One process for all data sets: importing reasoning-gym takes seconds."""
    return Worker(Target("score_entry", module=__name__), timeout_seconds=timeout_seconds)


@functools.lru_cache(maxsize=8)
def _data_set(name: str, options: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, **json.loads(options))


def score_entry(name: str, options: str, answer: str, entry: dict[str, Any]) -> float:
    """The data set's score of an answer to its own entry. Raises ValueError for what is no finite number."""
    value = as_number(_data_set(name, options).score_answer(answer=answer, entry=entry))
    if value is None or not math.isfinite(value):
        raise ValueError(f"score_answer of {name!r} returned {value}")
    return value


def gym_reward(verifier: Verifier) -> Reward:
    """The score of reasoning-gym's data set, which may lie between wrong and right (`answer` gives 0 or 1)."""
    if not isinstance(verifier, GymVerifier):
        raise ConfigError(
            "reward 'reasoning_gym' scores the tasks of a taskset 'reasoning_gym:NAME'; these are verified otherwise. "
            "Remedy: reward 'answer', or such a taskset without `verifier`"
        )

    def one(task: Task, rollout: Rollout) -> Score:
        if rollout.finish is Finish.ERROR:
            return unscorable(rollout)
        value, why = verifier.score(task, rollout.text)
        correct = value is not None and value >= RIGHT
        return Score(value, correct, note=why if value is None else "", answer=given_answer(rollout.text) or None)

    async def scores(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        return await asyncio.to_thread(lambda: [one(task, rollout) for rollout in rollouts])

    return scores
