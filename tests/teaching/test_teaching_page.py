"""docs/teaching.md: its lessons are a table of tasks, and its weights and options are those of the code."""

from __future__ import annotations

import re
import tomllib
from inspect import signature
from pathlib import Path

from maieutic.config import parse_config
from maieutic.core import exams
from maieutic.run.tasksets import Tasksets
from maieutic.run.teaching import teaching_reward

PAGE = (Path(__file__).parents[2] / "docs" / "teaching.md").read_text()


def test_its_lessons_are_tasks(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "two and two?", "solution": "4", "reasoning_trace": "count to four"}\n')
    [text] = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    tables = tomllib.loads(text)["tasks"] | {"train": {"taskset": "file", "path": str(rows)}}
    stage = {"algorithm": "sft", "tasks": "lessons", "steps": 1}
    config = parse_config({"model": {"path": "m"}, "tasks": tables, "stages": [stage]})
    lesson = Tasksets(config)["lessons"][0]
    assert "two and two?" in lesson.prompt[-1].content or any("two and two?" in m.content for m in lesson.prompt)


def test_its_weights_and_options_are_those_of_the_reward():
    known = signature(teaching_reward).parameters
    mean, least = known["solution"].default
    assert f"| × {mean:g}, × {least:g} |" in PAGE
    mean, most = known["kl"].default
    assert f"| × −{mean:g}, × −{most:g} |" in PAGE
    assert f"an empty explanation counts as a divergence of 1 everywhere and costs {mean + most:g}" in PAGE.lower()
    options = PAGE.partition("Options of the reward: ")[2].partition("\n\n")[0]
    assert {name for name in re.findall(r"`(\w+)", options) if name != "text"} <= set(known)
    assert [rule for rule in exams.RULES if f"`{rule}`" not in PAGE] == []
