"""Documents to be summarised: a file with a text in each row, and nothing that would be the answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maieutic.errors import DataError
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.files import existing, read_rows
from maieutic.tasks.taskset import Tasks
from maieutic.types import Message, Task, Verdict

INSTRUCTION = "Summarise the text below in a few sentences. Keep what matters most, with its numbers."


def no_answer(task: Task, text: str) -> Verdict:  # noqa: ARG001  (a verifier's signature)
    """The verifier of tasks without an answer: nothing is correct, and it says why."""
    return Verdict(False, why="a document has no answer to compare with; take a judge or a quiz as reward")


def documents(
    path: str | Path,
    *,
    text: str = "text",
    instruction: str = INSTRUCTION,
    system: str | None = None,
    max_characters: int | None = None,
    name: str | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """Documents to summarise, from a .jsonl, .json, .csv or .parquet file with a `text` in each row.

    The prompt is the instruction and the text; the text itself is kept as `meta["text"]`, where the quiz reward finds
    it, other columns under their names (`solution`, a summary to imitate). `text` names another column.
    `max_characters` cuts texts that are longer, for the model and for the quiz alike. There is nothing to verify: the
    default verifier accepts nothing.

    Raises DataError, naming file and line, for a row without a text.
    """
    path = existing(Path(path))
    name = name or path.stem
    tasks, places = list[Task](), dict[str, str]()
    for index, (where, row) in enumerate(read_rows(path)):
        task = _task(row, where, f"{name}/{row.get('id', index)}", text, instruction, system, max_characters)
        if task.id in places:
            raise DataError(f"{where}: got the id {row['id']!r} again, which {places[task.id]} has; ids are unique")
        places[task.id] = where
        tasks.append(task)
    if not tasks:
        raise DataError(f"{path}: got no rows; expected at least one document")
    return Tasks(name, tasks, verifier or no_answer, tool)


def _task(
    row: Mapping[str, Any], where: str, id: str, column: str, instruction: str, system: str | None, most: int | None
) -> Task:
    found = row.get(column)
    if not isinstance(found, str) or not found.strip():
        raise DataError(
            f"{where}: no text in {column!r}; expected a document. The row has {', '.join(map(repr, row))}; "
            'text = "…" names another column'
        )
    found = found.encode("utf-8", "replace").decode().strip()[:most]
    asked = (Message("user", f"{instruction}\n\n{found}"),)
    others = {key: value for key, value in row.items() if key not in (column, "id")}
    return Task(id, (Message("system", system), *asked) if system else asked, None, {**others, "text": found})
