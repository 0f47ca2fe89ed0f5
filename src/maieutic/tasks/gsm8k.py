"""GSM8K: grade-school word problems with worked solutions (Cobbe et al. 2021, arXiv:2110.14168).

A solution carries annotations, `48/2 = <<48/2=24>>24`, and ends in a line `#### 72`, the gold answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from maieutic.calculator import Calculator, number
from maieutic.errors import DataError, UnknownName
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.files import Row, existing, read_rows, tasks_from_rows
from maieutic.tasks.hub import hub_rows
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.tasks.verify import NumberAfterMarker
from maieutic.types import Task

HUB_ID, SPLITS = "openai/gsm8k", ("train", "test")

_ANNOTATION = re.compile(r"<<([^<>]*)>>")


def gsm8k(
    split: str = "train",
    path: str | Path | None = None,
    *,
    calculator: bool = False,
    system: str | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """GSM8K: 7,473 training and 1,319 test problems, from `path` (train.jsonl, test.jsonl or their folder) or the Hub.

    `meta["solution"]` is the worked solution. `calculator=True` keeps its annotations, each with the value that the
    calculator writes (so that demonstrations are what a rollout with the tool would be), and gives the tool; otherwise
    they are left out. Called from Python, the default verifier reads the number after the only
    `####`; a config or the command line gives `AnswerVerifier`, which reads `\\boxed{}` and "answer is" as well.

    Raises UnknownName for another split, DataError for rows without a `####` or with a gold answer that is no number.
    """
    if split not in SPLITS:
        raise UnknownName("split of gsm8k", split, SPLITS)
    rows: Iterable[Row]
    if path is None:
        rows = hub_rows(HUB_ID, split, "main")
    else:
        folder = Path(path)
        rows = read_rows(existing(folder / f"{split}.jsonl" if folder.is_dir() else folder))
    name = f"gsm8k/{split}"
    tasks = tasks_from_rows(rows, name, {"prompt": "question", "answer": "answer"}, "####", system)
    for task in tasks:
        if number(task.answer or "") is None:
            raise DataError(f"{task.id}: got the gold answer {task.answer!r}; expected a number after '####'")
    chosen = tool or (Calculator.gsm8k() if calculator else None)
    return Tasks(
        name, Lazy(len(tasks), _Worked(tuple(tasks), calculator)), verifier or NumberAfterMarker(hashes=4), chosen
    )


@dataclass(frozen=True)
class _Worked:
    """Index → task with its solution in the form asked for."""

    tasks: tuple[Task, ...]
    calculator: bool

    def __call__(self, index: int) -> Task:
        task = self.tasks[index]
        solution = worked(task.meta["solution"], calculator=self.calculator)
        return replace(task, meta={**task.meta, "solution": solution})


def worked(solution: str, *, calculator: bool) -> str:
    """The solution without annotations; with `calculator`, annotations as the calculator would have completed them.

    An annotation that the calculator cannot evaluate, or whose value differs by more than 1 % from the calculator's
    (so more than by rounding), is left out: 3 of 27,998.

    >>> worked("48/2 = <<48/2=24>>24", calculator=False), worked("$<<0.5*1=0.50>>0.50", calculator=True)
    ('48/2 = 24', '$<<0.5*1=0.5>>0.50')
    """
    if not calculator:
        return _ANNOTATION.sub("", solution)
    tool = Calculator.gsm8k()

    def complete(found: re.Match[str]) -> str:
        expression, _, written = found[1].rpartition("=")
        reply = tool(f"<<{expression}=")
        meant, made = number(written), number((reply or "").removesuffix(">>"))
        if meant is None or made is None or abs(meant - made) > abs(meant) / 100:
            return ""
        return f"<<{expression}={reply}"

    return _ANNOTATION.sub(complete, solution)
