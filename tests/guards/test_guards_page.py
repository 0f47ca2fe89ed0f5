"""docs/guards.md: its table is that of the guards, its configs are ones, its example holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from maieutic.config import parse_config
from maieutic.guards import GUARDS
from maieutic.rewards.hacks import HACKS
from maieutic.rewards.penalties import PENALTIES
from maieutic.rewards.shaping import SHAPING
from maieutic.run.guarding import rules_of

PAGE = (Path(__file__).parents[2] / "docs" / "guards.md").read_text()
BASE = {"model": {"small": {}}, "tasks": {"train": {"taskset": "arithmetic"}}}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_table_is_that_of_the_guards():
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) (.*?) \| ", PAGE, re.M)
    assert rows == [(name, f"{guard.threshold:g}", guard.about) for name, guard in GUARDS.items()]


def test_its_configs_are_ones():
    guards, rewards = map(tomllib.loads, blocks("toml"))
    config = parse_config({**BASE, **guards, "stages": [{"algorithm": "grpo", "steps": 1, **rewards}]})
    rules = {rule.guard: rule for rule in rules_of(config, config.stages[0])}
    assert (rules["proxy"].action, rules["longer"].window, "entropy" in rules) == ("pause", 10, False)


def test_its_example_holds_and_it_names_every_penalty():
    exec(blocks("python")[0], {})
    for name in {**SHAPING, **PENALTIES}:
        assert f"`{name}`" in PAGE
    assert len(HACKS) == 57
    assert "fifty-seven ways" in PAGE
