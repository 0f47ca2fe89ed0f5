"""Reading a config: TOML, overrides, and what to say when something in it is wrong."""

from __future__ import annotations

import difflib
import inspect
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from maieutic.config.tables import Config
from maieutic.errors import ConfigError

T = TypeVar("T", bound=BaseModel)


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config in a TOML file, with overrides such as `"stages.0.steps=10"` or `"model.path=folder"`.

    Raises ConfigError for a missing file, broken TOML, an unknown key (with the nearest known one) or a wrong value.
    """
    return parse_config(read_tables(path, overrides, "[model], [tasks.train] and [[stages]]"), str(path))


def read_tables(path: str | Path, overrides: Sequence[str] = (), least: str = "a table") -> dict[str, Any]:
    """The tables of a TOML file, with overrides; `least` names what must be in it. Raises ConfigError."""
    file = Path(path)
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; expected a TOML file")
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        beside = [p.name for p in file.parent.glob("*.toml")] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, beside, n=1, cutoff=0.4)
        hint = f" Did you mean {file.parent / near[0]}?" if near else ""
        raise ConfigError(f"no config at {file}; expected a TOML file.{hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    if not data:
        raise ConfigError(f"{file} is empty; expected at least {least}")
    for override in overrides:
        data = _override(data, override)
    return data


def parse_config(data: Mapping[str, Any], where: str = "config") -> Config:
    """The config in a dictionary, checked."""
    return parse_table(Config, data, where)


def parse_table(table: type[T], data: Mapping[str, Any], where: str) -> T:
    """Any table in a dictionary, checked; `where` begins the message of the ConfigError that is raised."""
    try:
        return table.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, where, table)) from error


def _override(data: dict[str, Any], override: str) -> dict[str, Any]:
    """`a.b=c` applied to nested tables; the value is TOML where it parses, text where it does not."""
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: expected key=value, for example --set stages.0.steps=10")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    path = key.strip().split(".")
    data = _copied(data)
    target: Any = data
    for i, part in enumerate(path):
        last = i == len(path) - 1
        if isinstance(target, list):
            if not part.isdigit() or int(part) >= len(target):
                raise ConfigError(
                    f"--set {override!r}: got {part!r} where a number below {len(target)} was expected "
                    f"({'.'.join(path[:i])} is a list)"
                )
            index: Any = int(part)
        elif isinstance(target, dict):
            index = part
            if not last:
                target.setdefault(part, {})
        else:
            raise ConfigError(f"--set {override!r}: {'.'.join(path[:i])} is a value, not a table")
        if last:
            target[index] = value
        else:
            target = target[index]
    return data


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def _explain(error: ValidationError, where: str, table: type[BaseModel]) -> str:
    """One line a problem: where, what was got, what was expected."""
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(_unknown_key(problem["loc"], table))
        elif problem["type"] == "missing":
            lines.append(f"{place} is missing")
        elif problem["type"] == "value_error":
            lines.append(f"{place or 'the config'}: {problem['ctx']['error']}")
        else:
            lines.append(f"{place}: got {problem['input']!r}; {problem['msg'][0].lower()}{problem['msg'][1:]}")
    return f"{where}: " + "; ".join(lines)


def _unknown_key(location: tuple[int | str, ...], table: type[BaseModel]) -> str:
    """`stages.0.epsilom is not a key; did you mean 'epsilon'?`, walking the models along the location."""
    model: type[BaseModel] | None = table
    for part in location[:-1]:
        if model is not None and part in model.model_fields:
            model = _table_of(model.model_fields[str(part)].annotation)
    known = list(model.model_fields) if model is not None else []
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown key {'.'.join(map(str, location))!r}{hint} Known here: {', '.join(known)}"


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """The config table inside an annotation such as `list[StageConfig]` or `LoraConfig | None`."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _table_of(inner)
        if found is not None:
            return found
    return None


def write_toml(config: BaseModel) -> str:
    """The resolved config as TOML, every default written out; reading it again gives the same config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
