"""docs/tools-and-games.md: its configs make environments, its programs hold, its tables name every option."""

from __future__ import annotations

import importlib.util
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from maieutic.config import parse_config
from maieutic.environments.adapt import LIBRARIES
from maieutic.environments.adapt_gymnasium import gymnasium_environment
from maieutic.environments.adapt_textarena import textarena_environment
from maieutic.environments.toolbox import BUILT_IN, PREFIXED, tool_use
from maieutic.run.tasksets import Tasksets

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tools-and-games.md").read_text(encoding="utf-8")
BASE = {"model": {"small": {}}, "stages": [{"algorithm": "grpo", "steps": 1}]}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def tasksets(text: str) -> Tasksets:
    placed = re.sub(r"(?<=[\":])(examples/|docs\")", lambda found: f"{ROOT}/{found[1]}", text)
    return Tasksets(parse_config({**BASE, **tomllib.loads(placed)}))


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_its_programs_hold(number):
    program = compile(blocks("python")[number], "page", "exec", dont_inherit=True)
    assert "\nassert " in blocks("python")[number]  # each says what it comes to, and is held to it here
    exec(program, {"__name__": "page"})


def test_tools_as_the_page_configures_them():
    tasks = tasksets(blocks("toml")[0])["train"]
    assert tasks.environment.max_turns == 6
    names = [tool.name for tool in tasks.environment.environment.tools]
    assert names == ["calculator", "python", "search", "convert"]


def test_games_as_the_page_configures_them():
    made = tasksets(blocks("toml")[1])
    for name, library in (("train", "gymnasium"), ("test", "textarena")):
        if importlib.util.find_spec(library) is not None:
            assert made[name].environment.name.startswith(f"{library}:")
            assert len(made[name]) == {"train": 1000, "test": 200}[name]


def test_every_tool_and_option_is_told_of():
    for name in [*BUILT_IN, *(f"{prefix}FOLDER" for prefix in PREFIXED), *LIBRARIES]:
        assert name in PAGE
    for factory in (tool_use, gymnasium_environment, textarena_environment):
        for option in set(inspect.signature(factory).parameters) - {"where", "tools"}:
            assert f"`{option}`" in PAGE or f"{option} = " in PAGE, option
