"""Every error that maieutic raises on purpose.

    MaieuticError
    ├── ConfigError          a setting is unknown, impossible, or contradicts another one
    │   └── UnknownName      a name that is not in a table, with the nearest known one
    ├── DataError            a file, row or task that cannot be used as it stands
    │   └── PromptTooLong    a prompt that leaves no room for a completion in the model's context
    ├── ModelError           a model, tokenizer or chat template that cannot be used as it stands
    ├── MissingColumn        a function reads a batch column that nobody filled
    ├── RewardError          too many rewards failed: the run must not go on
    ├── NumericalError       a loss or gradient that is not finite, again and again
    └── RunError             a run directory that cannot be created, read or resumed

A message says what was got, what was expected, and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MaieuticError(Exception):
    """The root: `except MaieuticError` catches everything that maieutic raises on purpose."""

    exit_code = 1


class ConfigError(MaieuticError):
    """A setting is unknown, impossible, or contradicts another one."""

    exit_code = 2


class UnknownName(ConfigError):
    """A name that is not in a table.

    >>> raise UnknownName("algorithm", "gpro", ["grpo", "sft"])
    Traceback (most recent call last):
    ...
    maieutic.errors.UnknownName: unknown algorithm 'gpro'; did you mean 'grpo'? Known: grpo, sft.
    """

    def __init__(self, kind: str, got: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(got, names, n=3, cutoff=0.5)
        near.sort(key=lambda name: sorted(name) != sorted(got))  # letters out of order are the likeliest slip
        hint = f"; did you mean {near[0]!r}?" if near else "."
        super().__init__(f"unknown {kind} {got!r}{hint} Known: {', '.join(names)}.")


class DataError(MaieuticError):
    """A file, row or task that cannot be used as it stands."""

    exit_code = 3


class PromptTooLong(DataError):
    """A prompt that leaves no room for a completion in the model's context."""


class ModelError(MaieuticError):
    """A model, tokenizer or chat template that cannot be used as it stands."""

    exit_code = 4


class MissingColumn(MaieuticError):
    """A function reads a batch column that nobody filled."""


class RewardError(MaieuticError):
    """Too many rewards failed: the run must not go on."""

    exit_code = 5


class NumericalError(MaieuticError):
    """A loss or gradient that is not finite, again and again."""

    exit_code = 6


class RunError(MaieuticError):
    """A run directory that cannot be created, read or resumed."""

    exit_code = 7
