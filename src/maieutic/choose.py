"""Choosing a factory by name, with options checked against its signature before it is called."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from maieutic.errors import ConfigError, UnknownName

T = TypeVar("T")


def named(kind: str, table: Mapping[str, T], name: str) -> T:
    """What is called that in the table. Raises UnknownName, with the nearest name, for what is not in it."""
    if name not in table:
        raise UnknownName(kind, name, table)
    return table[name]


def choose(
    kind: str,
    table: Mapping[str, Callable[..., T]],
    name: str,
    options: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> T:
    """`table[name](**options)`; `defaults` fill parameters of those names that the options leave open.

    >>> choose("algorithm", {"grpo": grpo}, "grpo", {"beta": 0.04})

    Raises UnknownName for a name that is not in the table, and ConfigError for an option that its factory does not
    take (with the nearest one), for one that it needs and did not get, and for a value that the factory refuses.
    """
    factory = named(kind, table, name)
    parameters = inspect.signature(factory).parameters
    for option in options:
        if option not in parameters:
            near = difflib.get_close_matches(option, parameters, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            takes = f"It takes: {', '.join(parameters)}." if parameters else "It takes none."
            raise ConfigError(f"{kind} {name!r} has no option {option!r}{hint} {takes}")
    filled = {key: value for key, value in (defaults or {}).items() if key in parameters}
    given = {**filled, **options}
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise ConfigError(f"{kind} {name!r} needs {', '.join(missing)}; it takes: {', '.join(parameters)}.")
    try:
        return factory(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind} {name!r}: {error}") from error
