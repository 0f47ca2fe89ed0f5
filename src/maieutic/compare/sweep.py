"""Sweeps: one algorithm over a grid of hyper-parameters, with at least three seeds: how sensitive is it?

    seeds, [model], [tasks], [[start]], [evaluation]       as in a comparison
    [stage]                                                the algorithm and its settings, with steps or a budget
    [grid]                                                 "optimiser.learning_rate" = [1e-4, 3e-4], …
    design = "one_at_a_time"                               each key by itself around [stage]; default: the full grid

A setting is an arm of a plan, and is carried out like one. What comes of it: `compare.sensitivity`.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from maieutic.compare.plan import ENOUGH_SEEDS, Arm, Plan, Study, resolved, start_stages
from maieutic.config import StageConfig, parse_table, read_tables
from maieutic.errors import ConfigError
from maieutic.own_code import load_function

#: Settings beyond which a sweep is surely a slip.
MOST_SETTINGS = 1000


class SweepConfig(Study):
    """A sweep file."""

    name: str = "sweep"
    design: Literal["grid", "one_at_a_time"] = "grid"
    grid: dict[str, list[Any]] = Field(min_length=1)
    margin: float = Field(0.02, ge=0, description="a final pass@1 so far below the start's has diverged")

    @field_validator("grid")
    @classmethod
    def _values(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, choices in grid.items():
            if len(choices) < 2 or any(choices.count(choice) > 1 for choice in choices):
                raise ValueError(f"{key!r}: got {choices}; expected at least two values, each once")
        return grid


@dataclass(frozen=True)
class Sweep:
    """A sweep with its settings resolved: arm → the values of the grid's keys.

    `around_centre`: the first setting is the centre, and every other one differs from it in one key.
    """

    plan: Plan
    settings: Mapping[str, Mapping[str, Any]]
    margin: float
    around_centre: bool = False


def read_sweep(path: str | Path, overrides: tuple[str, ...] = ()) -> Sweep:
    """The sweep in a file. Raises ConfigError, as `read_config` does."""
    data = read_tables(path, overrides, "seeds, [model], [tasks.train], [stage] and [grid]")
    return sweep(parse_table(SweepConfig, data, str(path)), str(path))


def sweep(config: SweepConfig, where: str = "sweep") -> Sweep:
    """The settings of a sweep, each checked. Raises ConfigError."""
    if len(config.seeds) < ENOUGH_SEEDS:
        raise ConfigError(
            f"{where}: got {len(config.seeds)} seeds; expected at least {ENOUGH_SEEDS}: with fewer, a setting cannot "
            "be told from its luck (seeds = [1, 2, 3])"
        )
    points = _points(config, where)
    if len(points) > MOST_SETTINGS:
        raise ConfigError(
            f"{where}: got {len(points):,} settings, {len(points) * len(config.seeds):,} runs; expected at most "
            f'{MOST_SETTINGS:,} settings: fewer values, or design = "one_at_a_time"'
        )
    arms, settings = [], {}
    for number, point in enumerate(points):
        name = f"s{number:03d}"
        words = ", ".join(f"{key} = {choice!r}" for key, choice in point.items())
        arms.append(Arm(name, resolved(config.stage, _nested(point, where), f"{where}, setting {words}")))
        settings[name] = point
    plan = Plan(config, tuple(arms), start_stages(config, where))
    return Sweep(plan, settings, config.margin, around_centre=config.design == "one_at_a_time")


def _points(config: SweepConfig, where: str) -> list[dict[str, Any]]:
    """The settings, as values by key."""
    keys = list(config.grid)
    if config.design == "grid":
        return [dict(zip(keys, choice)) for choice in itertools.product(*config.grid.values())]
    base = resolved(config.stage, {}, where)
    centre = {key: _present(base, key, where) for key in keys}
    found = [centre]
    for key, choices in config.grid.items():
        found += [{**centre, key: choice} for choice in choices if choice != centre[key]]
    return found


def _present(stage: StageConfig, key: str, where: str) -> Any:
    """What a stage has for a dotted key: its own value, or the default of its algorithm."""
    first, _, rest = key.partition(".")
    if first == "options":
        from maieutic.algorithms import ALGORITHMS

        name = stage.algorithm
        factory = load_function("algorithm", name)[0] if ":" in name else ALGORITHMS[name]
        known = inspect.signature(factory).parameters
        if rest not in known:
            raise ConfigError(f"{where}: grid: {stage.algorithm} has no option {rest!r}; it takes {', '.join(known)}")
        return stage.options.get(rest, known[rest].default)
    target: Any = stage
    for part in key.split("."):
        if part not in type(target).model_fields:
            raise ConfigError(f"{where}: grid: a stage has no {key!r}; did you mean optimiser.{key} or options.{key}?")
        target = getattr(target, part)
    return target


def _nested(point: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`{"optimiser.learning_rate": x}` as tables."""
    tables: dict[str, Any] = {}
    for key, choice in point.items():
        first, dot, rest = key.partition(".")
        if "." in rest:
            raise ConfigError(f"{where}: grid: got {key!r}; expected a key of a stage, options.KEY or optimiser.KEY")
        if dot:
            tables.setdefault(first, {})[rest] = choice
        else:
            tables[first] = choice
    return tables
