"""Tasks from any data set of the Hugging Face Hub, or from a local folder that `datasets` can load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from maieutic.errors import DataError
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.files import Row, tasks_from_rows
from maieutic.tasks.taskset import Tasks
from maieutic.tasks.verify import AnswerAfterMarker


def hub(
    id: str,
    split: str = "train",
    *,
    config: str | None = None,
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
    gold_after: str | None = None,
    system: str | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """Any data set of the Hugging Face Hub by id, with its columns named as in `maieutic.tasks.files`.

        hub("openai/gsm8k", split="test", config="main", columns={"prompt": "question"}, gold_after="####")

    `revision` (a commit) makes a run repeatable. `id` may be a local folder. The verifier is that of `file`. Needs
    `maieutic[hub]`; raises DataError when that is missing, when there is no such data set, configuration or split, and
    for rows that cannot be used.
    """
    name = f"{id}/{split}"
    tasks = tasks_from_rows(hub_rows(id, split, config, revision), name, columns, gold_after, system)
    if not tasks:
        raise DataError(f"{id}, split {split!r}: got no rows; expected at least one task")
    return Tasks(name, tasks, verifier or AnswerAfterMarker(), tool)


def hub_rows(id: str, split: str, config: str | None = None, revision: str | None = None) -> Iterator[Row]:
    """The rows of one split, each with where it comes from."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"data set {id!r}: loading it needs the package datasets; pip install 'maieutic[hub]'"
        ) from None
    try:
        rows: Any = datasets.load_dataset(id, config, split=split, revision=revision)
    # Not found (FileNotFoundError) and offline are OSErrors; a wrong configuration or split is a ValueError.
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"data set {id!r}, config {config!r}, split {split!r}: {reason}; "
            "check the id, the config and the split on its page, and the network"
        ) from error
    for index in range(len(rows)):
        yield f"{id}/{split}: row {index}", rows[index]
