"""docs/environments.md: its game is the example's, its table of tasks is one, its defaults are the library's."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from maieutic.config import parse_config
from maieutic.environments.asking import TIMEOUT
from maieutic.own_environment import MAX_TURNS
from maieutic.run.build import describe
from maieutic.run.rewards import make_reward
from maieutic.run.tasksets import Tasksets, named_taskset

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "environments.md").read_text()


def block(language: str, number: int) -> str:
    return PAGE.split(f"```{language}\n")[number + 1].split("```")[0]


def code(text: str) -> str:
    """A program without comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            del body[0]
    return ast.unparse(tree)


def test_its_game_is_the_examples() -> None:
    assert code(block("python", 0)) == code((ROOT / "examples" / "own_environment.py").read_text())


def test_its_table_of_tasks_is_one(tmp_path: Path) -> None:
    (tmp_path / "my_game.py").write_text(block("python", 0))
    (tmp_path / "numbers.jsonl").write_text('{"question": "guess", "answer": "3"}\n')
    options = tomllib.loads(block("toml", 0))["tasks"]["train"]
    options["path"] = str(tmp_path / options["path"])
    options["environment"] = f"{tmp_path}/{options['environment']}"
    tasks = named_taskset(options.pop("taskset"), options)
    assert (tasks.environment.name, tasks.environment.max_turns, tasks.environment.max_turn_length) == ("Guess", 6, 32)
    assert f"{MAX_TURNS}, none, {TIMEOUT:g}" in PAGE


def test_its_mixture_of_rewards_is_one() -> None:
    tables = tomllib.loads(block("toml", 1))
    config = parse_config({"model": {"small": {"layers": 1, "width": 16, "context": 300}}, **tables})
    assert "played in 'guess'" in describe(config, Tasksets(config))
    assert make_reward(config.stages[0], Tasksets(config)["train"])
