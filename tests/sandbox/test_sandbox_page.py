"""docs/sandbox.md: its programs give what it says, its config is one, its limits are the defaults."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from maieutic.config import parse_config
from maieutic.sandbox import Limits

PAGE = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text()


def test_its_programs_run():
    one, several = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    made: dict[str, Any] = {}
    exec(one, made)
    outcome = made["outcome"]
    assert (outcome.ok, outcome.stdout, outcome.ended.value) == (True, "desserts\n", "finished")
    exec(several, made)
    assert made["report"].passed
    assert made["report"].share == 1.0


def test_its_config_is_one(tmp_path):
    [text] = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    given = tomllib.loads(text)
    stage = {**given["stages"][0], "tasks": "train", "steps": 1}
    config = parse_config({**given, "model": {"path": "m"}, "stages": [stage]})
    assert config.tasks["train"].options["reward"] == "share"


def test_its_limits_are_the_defaults():
    units = {"MiB": 2**20, "": 1}
    told = {}
    for names, values in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", PAGE, re.M):
        for name, value in zip(names.split(", "), values.split(", "), strict=True):
            number, _, unit = value.strip().partition(" ")
            told[name.strip("`")] = float(number) * units[unit]
    assert told == {field.name: getattr(Limits(), field.name) for field in fields(Limits)}
