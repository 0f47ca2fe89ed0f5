"""All guards of a stage, asked after each step; a guard speaks once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from maieutic.errors import ConfigError, UnknownName
from maieutic.guards.rules import GUARDS
from maieutic.guards.trend import History
from maieutic.types import Group

#: What may follow from an alarm: nothing at all, a note, a pause until somebody says go on, the end of the stage.
ACTIONS = ("off", "note", "pause", "stop")

#: Steps of a stretch, unless told otherwise.
WINDOW = 6

#: Rollouts that are shown with an alarm.
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """A guard as a run wants it: `Rule("copied", "pause", threshold=0.4)`; None: the guard's own threshold."""

    guard: str
    action: str = "note"
    threshold: float | None = None
    window: int = WINDOW

    def __post_init__(self) -> None:
        if self.guard not in GUARDS:
            raise UnknownName("guard", self.guard, GUARDS)
        if self.action not in ACTIONS:
            raise UnknownName("action of a guard", self.action, ACTIONS)
        if self.window < 4 or not math.isfinite(self.least):
            raise ConfigError(
                f"guard {self.guard!r}: got threshold={self.threshold}, window={self.window}; expected a finite "
                "threshold and a window of at least 4 steps"
            )

    @property
    def least(self) -> float:
        """The threshold that holds."""
        return GUARDS[self.guard].threshold if self.threshold is None else self.threshold


def chosen_rules(*tables: Mapping[str, Mapping[str, Any]]) -> tuple[Rule, ...]:
    """A rule for every guard that is not off: notes by default, then what each table says, the later over the earlier.

    >>> chosen_rules({"copied": {"action": "pause"}})

    Raises UnknownName and ConfigError as `Rule` does.
    """
    rules = {name: Rule(name) for name in GUARDS}
    for table in tables:
        for name, told in table.items():
            rules[name] = replace(rules[name], **told) if name in rules else Rule(name, **told)
    return tuple(rule for rule in rules.values() if rule.action != "off")


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a guard says after a step: `Alarm("copied", "pause", step=41, onset=33, value=0.5, threshold=0.25, …)`.

    `value` is in the units of the threshold; `text` has the numbers, `remedy` what to do.
    """

    guard: str
    action: str
    step: int
    onset: int
    value: float
    threshold: float
    text: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Guards:
    """The guards of one stage. `add` the numbers of each step; what they say is a function of these numbers alone."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.history = History()
        self.alarms: dict[str, Alarm] = {}

    def add(self, step: int, measures: Mapping[str, float]) -> list[Alarm]:
        """The alarms that are raised after this step, each guard's first."""
        self.history.add(step, measures)
        raised = [alarm for rule in self.rules if (alarm := self._ask(rule, step)) is not None]
        self.alarms |= {alarm.guard: alarm for alarm in raised}
        return raised

    def note_validation(self, step: int, share: float, problems: int) -> None:
        """What the validation after that step measured, of so many problems; heard at the next step."""
        self.history.note(step, "guards/validation", share)
        self.history.note(step, "guards/validation_problems", float(problems))

    def _ask(self, rule: Rule, step: int) -> Alarm | None:
        if rule.guard in self.alarms:
            return None
        guard = GUARDS[rule.guard]
        found = guard.find(self.history, rule.least, rule.window)
        if found is None:
            return None
        return Alarm(
            rule.guard, rule.action, step, found.onset, found.value, rule.least, guard.text(found), guard.remedy
        )

    @staticmethod
    def names() -> tuple[str, ...]:
        """The numbers that guards read: those of `measures`, and four that a step has anyway."""
        own = ("truth", "paid", "scale", "alignment", "pass", "uniform", "copied", "repeated", "foreign", "several",
               "diversity", "unscorable")  # fmt: skip
        beside = ("completions/mean_length", "completions/clipped_ratio", "policy/entropy", "kl/reference")
        return (*(f"guards/{name}" for name in own), *beside)


def showing(guard: str, groups: Sequence[Group], most: int = SHOWN) -> list[tuple[int, int]]:
    """(group id, sibling) of the rollouts of a step that show best what a guard says, of different groups if it can."""
    shows = GUARDS[guard].shows
    ranked = sorted(
        (
            (-shows(group.task, rollout, score), group.id, rollout.sibling)
            for group in groups
            if not group.hinted
            for rollout, score in zip(group.rollouts, group.scores)
        ),
    )
    first: dict[int, tuple[float, int, int]] = {}
    for each in ranked:
        first.setdefault(each[1], each)
    chosen = [*first.values(), *(each for each in ranked if first[each[1]] is not each)][:most]
    return [(group, sibling) for _, group, sibling in chosen]
