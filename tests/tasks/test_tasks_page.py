"""docs/tasks.md: its programs run and hold, and its table names every taskset."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

from maieutic.tasks import TASKSETS
from maieutic.tasks.grids import encode
from maieutic.types import Task

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
GRIDS, VOTE, GAMES = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_table_names_every_taskset_that_the_page_is_about():
    named = {name for line in PAGE.splitlines() if line.startswith("| `") for name in re.findall(r"`([\w:]+)", line)}
    elsewhere = {"wordle", "guess", "episodes", "teaching"}  # pages of their own
    assert set(TASKSETS) - elsewhere - named == set()


def test_grids_and_a_vote_over_their_changed_copies(tmp_path):
    folder = tmp_path / "training"
    folder.mkdir()
    pairs = [{"input": [[k, 0]], "output": [[0, k]]} for k in (1, 2, 3)]
    (folder / "mirror.json").write_text(json.dumps({"train": pairs[:2], "test": pairs[2:]}))
    made: dict[str, Any] = {}
    exec(GRIDS.replace("ARC-AGI/data", str(tmp_path)), made)
    tasks = made["tasks"]
    assert len(tasks) == 9  # the puzzle and eight changed copies
    made["answered"] = [(task, gold(task)) for task in (tasks[i] for i in range(9))]
    exec(VOTE, made)
    assert made["ranked"] == [(((0, 3),), 9)]


def gold(task: Task) -> str:
    assert task.answer is not None
    return task.answer if task.answer.startswith("<grid>") else encode(json.loads(task.answer))


def test_the_rules_of_number_games():
    made: dict[str, Any] = {}
    *head, first, second, third, last = GAMES.strip().splitlines()
    exec("\n".join(head), made)
    assert eval(first, made)[0] == ("6 + 20 = 26 left 26", (26,))
    assert eval(second, made) == (Fraction(120),)
    solvable, chain, expressions = eval(third, made)
    assert solvable
    assert chain[-1].endswith("left 24")
    assert expressions == ["8 / (3 - 8 / 3)"]
    assert eval(last, made).correct
