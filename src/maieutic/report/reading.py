"""A run's folder as one value: `read_run(path) ─► RunView`.

The database is read while the run may be writing it; each answer is of a moment a little later than the one before.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from maieutic.config import Config, StageConfig, parse_config, read_config
from maieutic.errors import ConfigError, UnknownName
from maieutic.report.alarms import SeenAlarm, read_alarms
from maieutic.report.bottleneck import bottleneck
from maieutic.report.curves import Points, read_curves, telling
from maieutic.report.health import Note, health
from maieutic.report.measured import Change, Measured, by_name, changes, read_measured, trained_on
from maieutic.report.waterfall import Waterfall, waterfall
from maieutic.run.checkpoints import Checkpoints
from maieutic.run.directory import RunDirectory
from maieutic.run.lock import alive
from maieutic.run.records import StoredRollout
from maieutic.run.store import Store


class State(StrEnum):
    """Where a run is."""

    COMPLETE = "complete"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    NOT_BEGUN = "not begun"


class Order(StrEnum):
    """Which rollouts come first."""

    BEST = "best"
    WORST = "worst"


#: Rollouts that are read for each one shown, so that the siblings of one task do not fill the page.
SIBLINGS = 16


@dataclass(frozen=True, slots=True)
class StageView:
    """How far a stage came: `StageView("rl", "grpo", "train", done=40, total=100, seconds=512.0, rollouts=10240)`.

    `total` is None where the config says epochs and the stage is not at its end.
    """

    name: str
    algorithm: str
    tasks: str
    done: int
    total: int | None
    seconds: float
    rollouts: int

    @property
    def progress(self) -> str:
        """`step 40 of 100`."""
        return f"step {self.done:,}" + ("" if self.total is None else f" of {self.total:,}")


@dataclass(frozen=True)
class RunView:
    """Everything of a run but its rollouts, which are read when they are shown."""

    path: Path
    config: Config
    state: State
    stages: tuple[StageView, ...]
    curves: Mapping[str, Mapping[str, Points]]
    measured: tuple[Measured, ...]
    warnings: tuple[str, ...]
    """What of the config and the evaluations is not as it should be, as sentences."""
    checkpoint: tuple[str, int] | None
    """(stage, step) of the newest checkpoint."""
    alarms: tuple[SeenAlarm, ...] = ()
    """What the guards said."""

    @cached_property
    def changes(self) -> tuple[list[Change], list[str]]:
        """What changed from evaluation to evaluation; see `measured.changes`."""
        return changes(self.measured)

    @property
    def at(self) -> StageView:
        """The last stage that did anything; the first where none did."""
        begun = [stage for stage in self.stages if stage.done]
        return begun[-1] if begun else self.stages[0]

    @property
    def resume(self) -> str:
        """The command that goes on with the run."""
        return f"maieutic train --run {shlex.quote(str(self.path))} --resume"

    @property
    def told(self) -> dict[str, dict[str, Points]]:
        """The curves that say something of their stage; see `curves.telling`."""
        return {s.name: telling(self.curves[s.name], s.rollouts > 0) for s in self.stages if s.name in self.curves}

    @property
    def notes(self) -> list[Note]:
        """What the curves say of the run's health."""
        return health(self.curves, [stage.name for stage in self.stages if stage.rollouts])

    @cached_property
    def waterfalls(self) -> dict[str, Waterfall]:
        """Where the seconds of a step go, for each stage that says so, with its bottleneck."""
        found = ((stage, waterfall(self.curves.get(stage.name, {}))) for stage in self.config.stages)
        return {
            stage.name: replace(each, bottleneck=bottleneck(each, self.config, stage))
            for stage, each in found
            if each is not None
        }

    def stage(self, name: str) -> StageView:
        """The stage of that name. Raises UnknownName."""
        for each in self.stages:
            if each.name == name:
                return each
        raise UnknownName("stage", name, [each.name for each in self.stages])


def read_run(path: Path | str) -> RunView:
    """Read a run's folder. Raises RunError when there is none, or its database is damaged."""
    directory = RunDirectory.open(path)
    config, warnings = read_known(directory.config)
    summary = directory.summary()
    if not has_database(directory):
        stages = tuple(_stage(stage, 0, 0.0, 0, False) for stage in config.stages)
        state = State.RUNNING if is_held(directory) else State.NOT_BEGUN
        return RunView(directory.path, config, state, stages, {}, (), warnings, None)
    with Store.open_reader(directory.database) as store:
        stages = _stages(store, config, summary is not None)
        curves = {stage.name: read_curves(store, stage.name) for stage in stages}
        measured, unread = read_measured(store, config.evaluation.k if config.evaluation else None)
        warnings += unread + trained_on(store, measured)
        alarms = read_alarms(store, [stage.name for stage in stages])
    newest = Checkpoints(directory.checkpoints).all()[:1]
    return RunView(
        directory.path, config, _state(directory, summary, stages, measured), stages, curves, measured, warnings,
        (newest[0].stage, newest[0].step) if newest else None, alarms,
    )  # fmt: skip


def read_known(path: Path) -> tuple[Config, tuple[str, ...]]:
    """A run's config without the keys that this version of maieutic does not know, and a sentence that names those.

    To go on with a run its config must be understood whole; to look at one, what is understood will do.
    Raises ConfigError for anything else that is wrong with it.
    """
    try:
        return read_config(path), ()
    except ConfigError as error:
        cause = error.__cause__
        if not isinstance(cause, ValidationError) or {e["type"] for e in cause.errors()} != {"extra_forbidden"}:
            raise
        unknown = [problem["loc"] for problem in cause.errors()]
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    for *inside, key in unknown:
        table: Any = data
        for part in inside:
            table = table[part]
        del table[key]
    names = ", ".join(sorted(".".join(map(str, location)) for location in unknown))
    told = f"the config was written for another version of maieutic; keys that this one does not know: {names}"
    return parse_config(data, str(path)), (told,)


def only(view: RunView, stage: str) -> RunView:
    """The view with one stage's curves and what was measured just before and after it. Raises UnknownName."""
    kept = view.stage(stage)
    measured = tuple(
        each
        for made in by_name(view.measured).values()
        for i, each in enumerate(made)
        if stage in [near.stage for near in made[i : i + 2]]
    )
    curves = {stage: view.curves[stage]} if view.curves else {}
    alarms = tuple(each for each in view.alarms if each.stage == stage)
    return replace(view, stages=(kept,), curves=curves, measured=measured, alarms=alarms)


def read_rollouts(
    path: Path | str, order: Order, count: int, *, stage: str | None = None, step: int | None = None
) -> list[StoredRollout]:
    """The `count` rollouts of a run with the highest or lowest reward, of different tasks as far as there are any."""
    directory = RunDirectory.open(path)
    if count < 1 or not has_database(directory):
        return []
    with Store.open_reader(directory.database) as store:
        page = store.best if order is Order.BEST else store.worst
        found = page(count * SIBLINGS, stage=stage, step=step)
    first = {each.task.id: each for each in reversed(found)}
    return sorted(found, key=lambda each: first[each.task.id] is not each)[:count]


def read_step(path: Path | str, stage: str, step: int, most: int) -> list[StoredRollout]:
    """At most `most` rollouts of one step, as they were written."""
    directory = RunDirectory.open(path)
    if not has_database(directory):
        return []
    with Store.open_reader(directory.database) as store:
        return store.rollouts(stage, step, limit=most)


def has_database(directory: RunDirectory) -> bool:
    """Whether the run came so far as to write its database."""
    return directory.database.is_file() and directory.database.stat().st_size > 0


def is_held(directory: RunDirectory) -> bool:
    """Whether a process is writing the run, as its lock file says. The lock itself is not touched."""
    try:
        holder: Any = json.loads((directory.path / "run.lock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(holder, dict) and alive(holder)


def _state(
    directory: RunDirectory, summary: Mapping[str, Any] | None, stages: tuple[StageView, ...], measured: tuple[Any, ...]
) -> State:
    if summary is not None:
        return State.COMPLETE
    if is_held(directory):
        return State.RUNNING
    return State.INTERRUPTED if measured or any(stage.done for stage in stages) else State.NOT_BEGUN


def _stages(store: Store, config: Config, complete: bool) -> tuple[StageView, ...]:
    done = [store.last_step(stage.name) for stage in config.stages]
    steps = [0 if last is None else last + 1 for last in done]
    return tuple(
        _stage(
            stage,
            steps[i],
            store.seconds(stage.name),
            store.count_rollouts(stage.name),
            complete or any(steps[i + 1 :]),
        )
        for i, stage in enumerate(config.stages)
    )


def _stage(stage: StageConfig, done: int, seconds: float, rollouts: int, finished: bool) -> StageView:
    total = done if finished else stage.steps  # a validation that is flat ends a stage before its last step
    return StageView(stage.name, stage.algorithm, stage.tasks, done, total, seconds, rollouts)
