"""Curriculum: which tasks are worth another attempt.

A task that the policy always solves, or never, teaches nothing: all its rollouts have the same reward. `Curriculum`
leaves such tasks out for some epochs, by what was last seen of them, and then looks again, because a policy that
learns makes hard tasks possible and one that forgets makes easy ones hard. It is dynamic sampling's cheaper half: that
one (`until`) draws again after a group turned out useless, this one does not sample it. They work together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maieutic.errors import ConfigError
from maieutic.types import Group


class Curriculum:
    """Keep tasks whose last solve rate was above `low` and below `high`; look at the others again after `skip` epochs.

    The solve rate is the share of a group's rollouts that were correct, among those of which it is known; a task that
    was never seen, or of which nothing is known, is kept.

    >>> Sampled(tasks, roller, prompts=8, num_generations=8, curriculum=Curriculum(low=0.0, high=1.0))

    A task seen in epoch e is left out of epochs e + 1 … e + skip. Given the groups that it has seen, everything is a
    function of the visit number, so a resumed run leaves out the same tasks.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, skip: int = 2) -> None:
        if not 0.0 <= low < high <= 1.0 or skip < 1:
            raise ConfigError(
                f"Curriculum: got low={low}, high={high}, skip={skip}; expected 0 ≤ low < high ≤ 1 and skip ≥ 1"
            )
        self.low, self.high, self.skip = low, high, skip
        self._until: dict[str, int] = {}

    def keeps(self, task_id: str, visit: int) -> bool:
        """Whether the task is worth sampling at that visit."""
        return visit >= self._until.get(task_id, 0)

    def see(self, groups: Sequence[Group], size: int) -> None:
        """Learn from groups of one step, whose ids are visit numbers over `size` tasks."""
        for group in groups:
            known = [score.correct for score in group.scores if score.correct is not None]
            if not known:
                continue
            self._until.pop(group.task.id, None)
            if not self.low < sum(known) / len(known) < self.high:
                self._until[group.task.id] = (group.id // size + 1 + self.skip) * size

    def state(self) -> dict[str, Any]:
        """The tasks that are left out, and until which visit."""
        return {"until": dict(self._until)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with these left out."""
        self._until = {str(task): int(visit) for task, visit in state["until"].items()}
