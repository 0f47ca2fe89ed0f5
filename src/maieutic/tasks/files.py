"""Tasks from a file of your own: JSON lines, JSON, CSV or Parquet, one task a row.

    {"prompt": "What is 2 + 2?", "answer": "4"}
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}], "answer": 4}

Columns that are read, the first of each list that the row has:

    prompt      prompt | question | problem             text, or a list of messages
    answer      answer | ground_truth | solution        text or a number; `reward_model.ground_truth` for nested rows
    solution    solution | completion                   a worked solution, kept as `meta["solution"]`
    id          id                                      else the row's number
    chosen      chosen                                  a completion, text or messages, that was preferred to …
    rejected    rejected                                … this one; a row with both needs no answer

Where `chosen` and `rejected` are whole conversations, what precedes their last messages is the prompt.

`columns={"prompt": "question", "answer": "gold"}` names others; a dot looks inside a nested row. Everything else in the
row is kept in `meta`. What cannot be used is said at load time with file, line, what was expected and the remedy.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from maieutic.calculator import number, show
from maieutic.errors import ConfigError, DataError
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.taskset import Tasks
from maieutic.tasks.verify import AnswerAfterMarker
from maieutic.types import Message, Task

#: What a row is made of, and where it is looked for, in order.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "problem"),
    "answer": ("answer", "ground_truth", "reward_model.ground_truth", "solution"),
    "solution": ("solution", "completion"),
    "id": ("id",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
}
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

Row = tuple[str, Mapping[str, Any]]
"""Where a row comes from (`tasks.jsonl:7`), and the row."""


def file(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    gold_after: str | None = None,
    system: str | None = None,
    name: str | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """Your own tasks from a .jsonl, .json, .csv or .parquet file with a prompt and an answer in each row.

    `gold_after="####"` takes what follows the last such mark as the answer and the whole as the solution. `system` is
    put before prompts that have no system message. Called from Python, the default verifier reads what follows the only
    `#`; a config or the command line gives `AnswerVerifier`, which reads `####`, `\\boxed{}` and "answer is".

    Raises DataError, naming file and line, for anything in the file that cannot be used; ConfigError for columns that
    are not prompt, answer, solution, id, chosen or rejected.
    """
    path = existing(Path(path))
    name = name or path.stem
    tasks = tasks_from_rows(read_rows(path), name, columns, gold_after, system)
    if not tasks:
        raise DataError(f"{path}: got no rows; expected at least one task")
    return Tasks(name, tasks, verifier or AnswerAfterMarker(), tool)


def existing(path: Path) -> Path:
    """The path, if it is a file; else DataError with the nearest name that exists."""
    if path.is_file():
        return path
    if path.is_dir():
        found = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        listing = f"; it has {', '.join(found[:10])}" if found else " and has none that could be read"
        raise DataError(f"{path} is a folder; expected a file{listing}")
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    wanted = path.relative_to(folder).parts[0]
    near = difflib.get_close_matches(wanted, sorted(p.name for p in folder.iterdir()), n=1, cutoff=0.5)
    hint = f"did you mean {folder / near[0]}?" if near else f"nothing in {folder} has a similar name."
    raise DataError(f"no file {path}; {hint}")


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte-order mark; DataError with the line of the first byte that is not."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: got byte 0x{content[error.start]:02x}, which is not UTF-8; "
            "save the file as UTF-8 (for example: iconv -f latin1 -t utf-8)"
        ) from None


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, by its suffix."""
    readers = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        raise DataError(
            f"{path}: got a file of type {path.suffix or '(none)'!r}; expected one of {', '.join(SUFFIXES)}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; expected at least one task")
    return list(readers[path.suffix.lower()](path))


def _json_lines(path: Path) -> Iterator[Row]:
    # Split at \n alone: `splitlines` also cuts at separators that JSON strings may contain.
    for index, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}:{index}", _object(json.loads(line), f"{path}:{index}")
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}:{index}: not JSON at column {error.colno} ({error.msg}); expected one object a line"
                ) from None


def _json_list(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON at column {error.colno} ({error.msg}); expected a list of objects "
            "(name the file .jsonl if it has one object a line)"
        ) from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: got {type(rows).__name__}; expected a list of objects")
    for index, row in enumerate(rows, 1):
        yield f"{path}: row {index}", _object(row, f"{path}: row {index}")


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f'{where}: got {type(row).__name__}; expected an object such as {{"prompt": …, "answer": …}}')
    return row


def _csv_rows(path: Path) -> Iterator[Row]:
    lines = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for row in lines:
            where = f"{path}:{lines.line_num}"
            if None in row or None in row.values():
                expected = len(lines.fieldnames or ())
                raise DataError(
                    f"{where}: the row has not {expected} fields as the header; quote text with commas in it"
                )
            yield where, row
    except csv.Error as error:
        raise DataError(f"{path}:{lines.line_num}: not CSV ({error})") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install 'maieutic[parquet]'") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    for index, row in enumerate(rows, 1):
        yield f"{path}: row {index}", row


def tasks_from_rows(
    rows: Iterable[Row],
    name: str,
    columns: Mapping[str, str] | None = None,
    gold_after: str | None = None,
    system: str | None = None,
) -> list[Task]:
    """Rows as tasks (see the top of the file). Pure: the rows may come from anywhere."""
    wanted = _columns(columns)
    tasks, places = [], dict[str, str]()
    for index, (where, row) in enumerate(rows):
        task = _task(row, where, name, index, wanted, gold_after, system)
        if task.id in places:
            raise DataError(
                f"{where}: got the id {row_id(task, name)!r} again, which {places[task.id]} has; ids are unique"
            )
        places[task.id] = where
        tasks.append(task)
    return tasks


def row_id(task: Task, name: str) -> str:
    """The id as the row gave it, without the taskset's name."""
    return task.id.removeprefix(f"{name}/")


def _columns(given: Mapping[str, str] | None) -> dict[str, tuple[str, ...]]:
    for field in given or {}:
        if field not in COLUMNS:
            near = difflib.get_close_matches(field, COLUMNS, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(
                f"columns: got {field!r}{hint} The keys are {', '.join(COLUMNS)}; the values are columns of the file"
            )
    return {**COLUMNS, **{field: (column,) for field, column in (given or {}).items()}}


def _task(
    row: Mapping[str, Any], where: str, name: str, index: int,
    columns: Mapping[str, tuple[str, ...]], gold_after: str | None, system: str | None,
) -> Task:  # fmt: skip
    used, prompt = _first(row, columns["prompt"])
    answer_column, answer = _first(row, columns["answer"])
    solution_column, solution = _first(row, columns["solution"])
    before, preference = _preference(row, where, columns, optional=answer is not None or solution is not None)
    prompt = before or prompt
    if prompt is None or prompt == "" or prompt == []:
        raise DataError(f"{where}: no prompt; expected text or messages in {_either(columns['prompt'])}.{_has(row)}")
    if answer is None and solution is None and not preference:
        raise DataError(f"{where}: no answer; expected one in {_either(columns['answer'])}.{_has(row)}")
    messages = messages_of(prompt, where)
    if system and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    text = None if answer is None else _answer(answer, where)
    if gold_after and text is not None:
        _, mark, gold = text.rpartition(gold_after)
        if not mark:
            raise DataError(f"{where}: no {gold_after!r} in the answer; expected the gold answer after it")
        solution, text = text, gold.strip()
        text = text if number(text) is None else text.replace(",", "")
    _, own = _first(row, columns["id"])
    taken = {column.partition(".")[0] for column in (used, answer_column, solution_column, *columns["id"])}
    meta = {column: value for column, value in row.items() if column not in taken}
    if solution is not None and (solution_column != answer_column or gold_after):
        meta["solution"] = messages_of(solution, where)[-1].content
    return Task(f"{name}/{index if own is None else own}", messages, text, {**meta, **preference})


def _preference(
    row: Mapping[str, Any], where: str, columns: Mapping[str, tuple[str, ...]], optional: bool
) -> tuple[list[Any], dict[str, str]]:
    """The conversation before both sides, where they hold it, and the sides as texts; nothing for a row without any.

    `optional`: the row has something else to learn from, so columns of these names may hold anything.
    """
    sides = {side: _first(row, columns[side])[1] for side in ("chosen", "rejected")}
    given = [side for side, value in sides.items() if isinstance(value, str | list) and value]
    if len(given) < 2 and (optional or all(value is None for value in sides.values())):
        return [], {}
    for side, value in sides.items():
        if side not in given:
            got = "none" if value is None else f"one of type {type(value).__name__}"
            raise DataError(
                f"{where}: expected a {side} completion, text or messages, in {_either(columns[side])}; got {got}."
                f"{_has(row)}"
            )
    before = {side: value[:-1] if isinstance(value, list) else [] for side, value in sides.items()}
    if before["chosen"] != before["rejected"]:
        raise DataError(
            f"{where}: the chosen and the rejected conversation differ before their last messages; expected the same "
            "conversation with two different endings"
        )
    return before["chosen"], {side: _ending(value, where, side) for side, value in sides.items()}


def _ending(value: Any, where: str, side: str) -> str:
    """What the assistant says last."""
    last = messages_of(value, where)[-1]
    if isinstance(value, list) and last.role != "assistant":
        raise DataError(f"{where}: the {side} conversation ends with {last.role!r}; expected the assistant's message")
    return last.content


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, Any]:
    """The first of the columns that the row has, and its value; a dot looks inside."""
    for column in columns:
        value: Any = row
        for part in (column,) if column in row else column.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and value != "":
            return column, value
    return "", None


def _either(columns: Sequence[str]) -> str:
    return " or ".join(repr(column) for column in columns)


def _has(row: Mapping[str, Any]) -> str:
    return (
        f' The row has {", ".join(map(repr, row)) or "no columns"}; columns={{"prompt": …, "answer": …}} names others.'
    )


def messages_of(prompt: Any, where: str) -> tuple[Message, ...]:
    """Text or a list of messages as messages. Raises DataError, which begins with `where`, for anything else."""
    if isinstance(prompt, str):
        return (Message("user", _unicode(prompt, where)),)
    expected = 'expected text or [{"role": "user", "content": "…"}, …]'
    if not isinstance(prompt, list):
        raise DataError(f"{where}: got a prompt of type {type(prompt).__name__}; {expected}")
    messages = []
    for turn in prompt:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if not (isinstance(role, str) and role and isinstance(content, str)):
            raise DataError(f"{where}: got the message {turn!r}; {expected}")
        messages.append(Message(role, _unicode(content, where)))
    return tuple(messages)


def _unicode(text: str, where: str) -> str:
    r"""The text, unless it holds half of a character: JSON may, as `"\ud83d"`, and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = ascii(text[max(0, error.start - 20) : error.end])
        raise DataError(
            f"{where}: got half of a character at the end of {near}; expected whole ones. The text was probably cut in "
            "the middle of an emoji: cut it elsewhere, or leave the row out"
        ) from None
    return text


def _answer(answer: Any, where: str) -> str:
    if isinstance(answer, str):
        return _unicode(answer, where)
    if isinstance(answer, int):
        return str(answer)
    if isinstance(answer, float) and abs(answer) < float("inf"):
        return show(Fraction(str(answer)))
    raise DataError(f"{where}: got an answer of type {type(answer).__name__} ({answer!r}); expected text or a number")
