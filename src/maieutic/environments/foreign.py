"""What the adapters of other libraries' environments share: chance, what a turn says, and what an episode came to."""

from __future__ import annotations

import hashlib
import importlib
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from maieutic.errors import ConfigError, DataError
from maieutic.own_code import load_function
from maieutic.thoughts import outside_thoughts
from maieutic.types import Task

_TAGGED = re.compile(r"<(action|move|guess|answer)>(.*?)</\1>", re.DOTALL)


def library(name: str, prefix: str, extra: str) -> ModuleType:
    """A library that is not required. Raises ConfigError that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f'environment "{prefix}…" needs {name}, which cannot be imported ({error}). Remedy: pip install {extra}'
        ) from error


def own_function(what: str, given: Any) -> Callable[..., Any] | None:
    """A function, or the one that "file.py:name" names; None for None. Raises ConfigError for anything else."""
    if given is None or callable(given):
        return given
    if isinstance(given, str) and ".py:" in given:
        found, _ = load_function(what, given)
        if callable(found):
            return found
    raise ConfigError(f'{what}: got {given!r}; expected a function, or "file.py:function"')


def seed_of(task: Task, seed: str) -> int:
    """The number that an episode's chance depends on: the task's own, or one made of the episode's seed."""
    own = task.meta.get("seed")
    if isinstance(own, int):
        return own
    return int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=4).digest(), "big") >> 1


def acted(text: str) -> str:
    """What a turn does: the last `<action>` (or move, guess, answer), or all that is said outside of thoughts."""
    said = outside_thoughts(text)
    found = list(_TAGGED.finditer(said))
    return (found[-1][2] if found else said).strip()


class Dice:
    """The state of `random` (and of numpy's global generator) for one episode of a library that draws from them.

    Episodes take turns in one process: each call swaps the episode's own state in and out again, so that what one
    draws depends neither on its neighbours nor on who else uses these generators.
    """

    def __init__(self, seed: int) -> None:
        self._own = random.Random(seed).getstate()
        self._numpy: Any = None
        self._seed = seed

    @contextmanager
    def thrown(self) -> Iterator[None]:
        """Within it, chance is the episode's."""
        outer = random.getstate()
        random.setstate(self._own)
        arrays: Any = sys.modules.get("numpy")
        beside = None if arrays is None else arrays.random.get_state()
        if arrays is not None:
            if self._numpy is None:
                arrays.random.seed(self._seed)
            else:
                arrays.random.set_state(self._numpy)
        try:
            yield
        finally:
            self._own = random.getstate()
            random.setstate(outer)
            if arrays is not None:
                self._numpy = arrays.random.get_state()
                arrays.random.set_state(beside)


def row_number(task: Task, count: int) -> int:
    """Which row of a data set of `count` an episode is about. Raises DataError for a task that does not say."""
    number = task.meta.get("number")
    if not isinstance(number, int) or count < 1:
        raise DataError(
            f"task {task.id!r}: got number {number!r} and {count} rows; expected a task of the taskset 'episodes' and "
            "a data set with rows"
        )
    return number % count
