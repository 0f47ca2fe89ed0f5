"""docs/rewards.md: its functions give what the page says, its configs are ones, its transcript is what is told."""

from __future__ import annotations

import asyncio
import os
import re
import tomllib
from pathlib import Path

import pytest

from maieutic.cli import main
from maieutic.config import parse_config
from maieutic.rewards.adapt import FAMILIES
from maieutic.rewards.lift import PlainReward, load_reward
from maieutic.types import Finish, Message, Rollout, Task

PAGE = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text()
TASK = Task("sums/1", (Message("user", "2 + 2?"),), "4")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_functions_give_what_the_page_says(number: int, tmp_path: Path) -> None:
    code = blocks("python")[number]
    (tmp_path / "rewards.py").write_text(code)
    cases = re.findall(r'^# (\w+)\("(.*)"\) = (.+)$', code, re.M)
    assert len(cases) >= 2
    for name, text, expected in cases:
        made = load_reward(f"{tmp_path / 'rewards.py'}:{name}")
        assert isinstance(made, PlainReward)
        rollout = Rollout("t", (1, 2), (False, True), (0.0, -0.1), Finish.STOP, text)
        (score,) = asyncio.run(made(TASK, [rollout]))
        assert score.reward == (None if expected == "None" else float(expected)), (name, text, score.note)
        made.close()


def test_there_is_an_example_of_each_family(tmp_path: Path) -> None:
    seen = set()
    for code in blocks("python"):
        (tmp_path / "rewards.py").write_text(code)
        for name in dict.fromkeys(re.findall(r"^# (\w+)\(", code, re.M)):
            made = load_reward(f"{tmp_path / 'rewards.py'}:{name}")
            assert isinstance(made, PlainReward)
            seen.add(made.form.family.name)
    variants = {"verifiers group", "verl batch"}
    assert seen == {family.name for family in FAMILIES} - variants
    for family in FAMILIES:
        assert family.name.split()[0] in PAGE


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_configs_are_ones(text: str) -> None:
    made = tomllib.loads(text)
    if "stages" not in made:
        options = made.pop("reward_options")
        made = {"stages": [{"algorithm": "grpo", "steps": 1, **made, "reward_options": options}]}
    config = parse_config({"model": {"small": {}}, "tasks": {"train": {"taskset": "arithmetic"}}, **made})
    assert config.stages[0].rewards


def test_the_transcript_is_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (told,) = re.findall(r"```\n\$ maieutic reward try (.*?)\n(.*?)```", PAGE, re.S)
    (tmp_path / "rewards.py").write_text(blocks("python")[0])
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert main(["reward", "try", *told[0].split()]) == 0
    finally:
        os.chdir(before)
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    shown = [line.rstrip() for line in told[1].splitlines() if line.strip()]
    assert len(said) == len(shown)
    for one, other in zip(said, shown):
        assert one == other or (other.endswith("…") and one.startswith(other[:-1])), (one, other)
