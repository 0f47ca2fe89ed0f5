"""What the guards of a run said: each alarm with its numbers, where it began, and rollouts that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maieutic.guards import Alarm
from maieutic.run.guarding import ACKNOWLEDGED, ALARM, READ
from maieutic.run.records import StoredRollout
from maieutic.run.store import Store


@dataclass(frozen=True, slots=True)
class SeenAlarm:
    """An alarm of a stage, whether somebody went on past it, and the rollouts that show it."""

    stage: str
    alarm: Alarm
    acknowledged: bool
    rollouts: tuple[StoredRollout, ...]

    @property
    def heading(self) -> str:
        """`copied at step 41 of stage rl (pause, acknowledged)`."""
        told = [self.alarm.action, *(["acknowledged"] if self.acknowledged else [])]
        return f"{self.alarm.guard} at step {self.alarm.step} of stage {self.stage} ({', '.join(told)})"

    @property
    def sentence(self) -> str:
        """What was found, and what to do."""
        return f"{self.alarm.text}. Remedy: {self.alarm.remedy}."

    def to_dict(self) -> dict[str, Any]:
        """As JSON, rollouts by their id."""
        return {
            "stage": self.stage, **self.alarm.to_dict(), "acknowledged": self.acknowledged,
            "rollouts": [each.id for each in self.rollouts],
        }  # fmt: skip


def read_alarms(store: Store, stages: Sequence[str]) -> tuple[SeenAlarm, ...]:
    """Every alarm, in the order of stages and steps."""
    found = []
    for stage in stages:
        events = store.events(stage)
        passed = {event.data["guard"] for event in events if event.kind == ACKNOWLEDGED}
        for event in reversed(events):
            if event.kind == ALARM:
                data = dict(event.data)
                shown = [tuple(each) for each in data.pop("rollouts")]
                alarm = Alarm(**data)
                found.append(SeenAlarm(stage, alarm, alarm.guard in passed, _rollouts(store, stage, alarm.step, shown)))
    return tuple(found)


def _rollouts(store: Store, stage: str, step: int, wanted: Sequence[tuple[int, ...]]) -> tuple[StoredRollout, ...]:
    """The rollouts of a step by (group, sibling), in the order of `wanted`."""
    known = {(each.group, each.rollout.sibling): each for each in store.rollouts(stage, step, limit=READ)}
    return tuple(known[each] for each in wanted if each in known)
