"""Guards in a run: they are told of each step, their alarms are stored and said, and what is to follow follows.

    step ─► measure (metrics `guards/…`, stored with the step) ─► look ─► alarm? ─► event in run.db, a line in the log
                                                                             └─ pause: checkpoint, then `Paused`
                                                                             └─ stop: checkpoint, the stage ends

What guards know is what the store holds of the steps, so a stage that is resumed is told again what it was told before,
and raises the alarms that the thresholds of now would have raised.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maieutic.config import Config, StageConfig, read_config
from maieutic.errors import ConfigError, RunError, UnknownName
from maieutic.guards import Alarm, Guards, Rule, Truth, chosen_rules, held_out_truth, measures, showing
from maieutic.types import Group, Step

if TYPE_CHECKING:
    from maieutic.protocols import Taskset
    from maieutic.run.records import StoredRollout
    from maieutic.run.store import Store
    from maieutic.run.validation import Validation

log = logging.getLogger(__name__)

#: Kinds of events: an alarm, and that somebody has seen it and wants to go on.
ALARM, ACKNOWLEDGED = "alarm", "acknowledged"

#: What is said to acknowledge every alarm.
ALL = "all"

#: The reward whose verdicts are those of the taskset's verifier: beside it, nothing is held out.
ANSWER = "answer"

#: Characters of a rollout that the log shows, and rollouts of a step that are read again when it is looked at later.
EXCERPT, READ = 160, 4096


class Paused(RunError):
    """A guard asked for a pause; everything up to here is saved."""

    exit_code = 8


def rules_of(config: Config, stage: StageConfig) -> tuple[Rule, ...]:
    """The guards of a stage: the run's table, and the stage's own over it.

    Raises UnknownName for a guard that there is not, ConfigError for a threshold or a window that cannot be.
    """
    tables = [{name: each.told for name, each in (table or {}).items()} for table in (config.guards, stage.guards)]
    return chosen_rules(*tables)


def truth_of(stage: StageConfig, taskset: Taskset) -> Truth | None:
    """Who says what is right: the taskset's verifier where the stage's reward does not ask it, else the scores."""
    return None if ANSWER in stage.rewards else held_out_truth(taskset.verifier)


def changes_only_guards(config: Config, folder: Path) -> bool:
    """Whether the run in a folder was begun with the same config but for its guards, which change nothing in it."""
    try:
        before = read_config(folder / "config.toml")
    except ConfigError:
        return False
    return _unguarded(before) == _unguarded(config)


def _unguarded(config: Config) -> Config:
    stages = [stage.model_copy(update={"guards": None}) for stage in config.stages]
    return config.model_copy(update={"guards": None, "stages": stages})


@dataclass
class Guarding:
    """The guards of one stage while it runs.

    `rules` are empty for a stage that samples nothing. Made, it is told what the store holds of the stage.
    """

    stage: StageConfig
    store: Store
    rules: Sequence[Rule]
    truth: Truth | None
    validation: Validation
    problems: int = 0

    def __post_init__(self) -> None:
        self.guards = Guards(self.rules)
        self.acknowledged: set[str] = set()
        if self.rules:
            self._replay()

    @property
    def halting(self) -> Alarm | None:
        """The first alarm that is not acknowledged and asks for more than a note."""
        alarms = self.guards.alarms.values()
        return next((a for a in alarms if a.action != "note" and a.guard not in self.acknowledged), None)

    @property
    def stopped(self) -> bool:
        """Whether a guard has ended the stage."""
        return self.halting is not None and self.halting.action == "stop"

    def measure(self, step: Step) -> Step:
        """The step with what guards want to know of it among its metrics."""
        shown = any(len(group.rollouts) > 1 for group in step.groups) or self.stage.num_generations == 1
        if not self.rules or not shown:  # steps of demonstrations, in a stage that has such too
            return step
        found = measures(step.groups, self.truth, self.stage.rewards)
        return replace(step, metrics={**step.metrics, **found})

    def look(self, step: Step) -> None:
        """Ask the guards about a step that is stored, and store and say what they answer."""
        if self.rules:
            self._tell_validation(step.index)
            for alarm in self.guards.add(step.index, step.metrics):
                self._raise(alarm, step.groups)

    def check(self, folder: Path) -> None:
        """Raise Paused where a guard wants a pause that nobody has acknowledged."""
        alarm = self.halting
        if alarm is not None and alarm.action == "pause":
            raise Paused(
                f"paused after step {alarm.step + 1} of stage {self.stage.name!r} by the guard {alarm.guard!r}: "
                f"{alarm.text}. Remedy: {alarm.remedy}. Everything is saved. Look at it with `maieutic show {folder}`; "
                f"go on with `maieutic train --run {folder} --resume --acknowledge {alarm.guard}`, or with another "
                f"threshold: --set guards.{alarm.guard}.threshold={_more(alarm):.3g} in its place"
            )

    def acknowledge(self, names: Sequence[str], step: int) -> None:
        """Go on past these alarms ("all": past every one). Raises UnknownName for one that was not raised."""
        alarms = list(self.guards.alarms)
        for name in names:
            if name != ALL and name not in alarms:
                raise UnknownName(f"alarm of stage {self.stage.name!r}", name, alarms or ["(none was raised)"])
        for name in alarms if ALL in names else names:
            if name not in self.acknowledged:
                self.acknowledged.add(name)
                self.store.write_event(
                    self.stage.name, step, ACKNOWLEDGED, f"went on past the alarm {name}", {"guard": name}
                )

    def _replay(self) -> None:
        """Tell the guards what the store holds; store the alarms that it does not have, the thresholds being others."""
        name = self.stage.name
        curves = {each: dict(self.store.metrics(name, each)) for each in Guards.names()}
        events = self.store.events(name)
        known = {event.data["guard"] for event in events if event.kind == ALARM}
        self.acknowledged |= {event.data["guard"] for event in events if event.kind == ACKNOWLEDGED}
        for stored in self.store.steps(name):
            self._tell_validation(stored.step)
            said = {each: curve[stored.step] for each, curve in curves.items() if stored.step in curve}
            for alarm in self.guards.add(stored.step, said):
                if alarm.guard not in known:
                    self._raise(alarm, stored_groups(self.store, name, stored.step))

    def _tell_validation(self, before: int) -> None:
        """What validations have measured after the step before this one."""
        known = [(step, share) for step, share in self.validation.values() if step < before and math.isfinite(share)]
        for step, share in known[-1:]:
            self.guards.note_validation(step, share, self.problems)

    def _raise(self, alarm: Alarm, groups: Sequence[Group]) -> None:
        shown = showing(alarm.guard, groups)
        data: Mapping[str, Any] = {**alarm.to_dict(), "rollouts": [list(each) for each in shown]}
        self.store.write_event(self.stage.name, alarm.step, ALARM, alarm.text, data)
        texts = {(g.id, r.sibling): (r.text, s) for g in groups for r, s in zip(g.rollouts, g.scores)}
        lines = [f"  reward {score.reward}: {_excerpt(text)}" for text, score in (texts[each] for each in shown)]
        log.warning(
            "guard %s, step %d of stage %r: %s. %s\n%s",
            alarm.guard, alarm.step, self.stage.name, alarm.text, f"Remedy: {alarm.remedy}.", "\n".join(lines),
        )  # fmt: skip


def stored_groups(store: Store, stage: str, step: int) -> list[Group]:
    """The groups of a step as they are stored."""
    found: dict[int, list[StoredRollout]] = {}
    for row in store.rollouts(stage, step, limit=READ):
        found.setdefault(row.group, []).append(row)
    return [
        Group(each[0].task, tuple(r.rollout for r in each), tuple(r.score for r in each), number)
        for number, each in found.items()
    ]


def _excerpt(text: str) -> str:
    shown = repr(text[:EXCERPT])
    return f"{shown} …" if len(text) > EXCERPT else shown


def _more(alarm: Alarm) -> float:
    """A threshold that this alarm would not have reached."""
    return alarm.value * (0.5 if alarm.guard == "alignment" else 1.5)
