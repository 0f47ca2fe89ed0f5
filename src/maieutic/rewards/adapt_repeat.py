"""Is a reward deterministic? The first group of a run is judged twice; a difference is said once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from maieutic.protocols import Reward
from maieutic.types import Rollout, Score, Task

logger = logging.getLogger("maieutic.rewards")


class JudgedTwice:
    """A reward that judges its first group twice, and warns when the scores differ. The first ones count.

    Groups in which something could not be scored are let through: what fails is told elsewhere.
    """

    def __init__(self, reward: Reward, name: str) -> None:
        self.reward = reward
        self.name = name
        self._looked = False

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = await self.reward(task, rollouts)
        if not self._looked and scores and all(score.reward is not None for score in scores):
            self._looked = True
            self._compare(task, scores, await self.reward(task, rollouts))
        return scores

    def _compare(self, task: Task, scores: Sequence[Score], again: Sequence[Score]) -> None:
        both = [(one.reward, two.reward) for one, two in zip(scores, again) if two.reward is not None]
        pairs = [pair for pair in both if pair[0] != pair[1]]
        if not pairs:
            return
        logger.warning(
            "reward %r is not deterministic: the same completions of task %r were judged twice, and %d of %d got "
            "another reward (%s, then %s). Advantages hold its noise, and a run that is resumed will not go on as it "
            "would have. Remedy: take randomness from the completion, keep no state between calls, ask models at "
            "temperature 0; `maieutic reward try` shows more",
            self.name,
            task.id,
            len(pairs),
            len(scores),
            *pairs[0],
        )

    def close(self) -> None:
        """As the reward's own."""
        end = getattr(self.reward, "close", None)
        if end is not None:
            end()
