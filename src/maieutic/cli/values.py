"""From what stands on the command line to tasksets and models."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maieutic.errors import ConfigError, ModelError, UnknownName
from maieutic.protocols import Taskset
from maieutic.run.tasksets import named_taskset
from maieutic.tasks import TASKSETS, find_taskset
from maieutic.tasks.files import SUFFIXES


def settings(given: Sequence[str]) -> dict[str, Any]:
    """`["difficulty=3", "columns.prompt=question"]` as a dictionary. A value is TOML where it parses, else text.

    Raises ConfigError for what is not `key=value`, and for a key given twice.
    """
    made: dict[str, Any] = {}
    for text in given:
        key, equals, raw = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text!r}: expected option=value, for example --set difficulty=3")
        *path, last = key.strip().split(".")
        table = made
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {text!r}: {part} has a value already and cannot be a table as well")
        if last in table:
            raise ConfigError(f"--set {text!r}: {key.strip()} is given twice")
        table[last] = _value(raw)
    return made


def _value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def taskset(name: str, options: Mapping[str, Any], *, split: str | None = None) -> Taskset:
    """The taskset of that name, or of the file at that path; `split` is taken where the options leave it open.

    Raises UnknownName for what is neither, and whatever the taskset raises.
    """
    factory = find_taskset(name)
    if factory is not None:
        takes = inspect.signature(factory).parameters
        default = {"split": split} if split is not None and "split" in takes else {}
        return named_taskset(name, {**default, **options})
    if Path(name).suffix.lower() in SUFFIXES or "/" in name or Path(name).exists():
        return named_taskset("file", {"path": name, **options})
    unknown = UnknownName("taskset", name, TASKSETS)
    raise ConfigError(f"{unknown} A file of tasks is given by its path ({', '.join(SUFFIXES)}).")


def template_of(source: str) -> str:
    """The template with which the run that this model lies in was trained; "auto" for a model of no run."""
    place = Path(source).absolute()
    for folder in (place, *list(place.parents)[:4]):  # RUN/checkpoints/STAGE/STEP/model, RUN/start
        if (folder / "config.toml").is_file() and (folder / "checkpoints").is_dir():
            told = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")).get("model", {})
            return str(told.get("template", "auto"))
    return "auto"


def model_source(given: str) -> str:
    """A model folder or Hub id as it stands; for the folder of a run, the model of its newest checkpoint, or of a
    complete run, whose last stage keeps it, the best evaluated one.

    Raises ModelError for a run that has no checkpoint yet.
    """
    folder = Path(given)
    if not (folder / "config.toml").is_file() or not (folder / "checkpoints").is_dir():
        return given
    from maieutic.run.checkpoints import Checkpoints
    from maieutic.run.directory import RunDirectory

    newest = Checkpoints(folder / "checkpoints").latest()
    if newest is None:
        raise ModelError(
            f"the run {folder} has no checkpoint yet; go on with `maieutic train --run {folder} --resume`, or give a "
            "model folder"
        )
    if RunDirectory.open(folder).summary() is not None:
        newest = Checkpoints(folder / "best").latest(newest.stage) or newest
    return str(newest.path / "model")
