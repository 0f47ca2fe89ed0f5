"""Environments of other libraries, found by their shape: in a user's file, or by a library's own ids.

    textarena     get_observation, step, reset(num_players, seed)
    gymnasium     step, reset(seed, options)
    trl           reset, no step, public methods with docstrings              `environment_factory`
    verifiers     rollout, get_model_response, rubric                         what `load_environment` returns

A class is made anew for each episode, and so is what a function returns; of an object that stands in a file each
episode has a copy. verifiers' environments are made once: their rollouts have states of their own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from maieutic.choose import choose
from maieutic.environments.adapt_gymnasium import GymnasiumEnvironment, gymnasium_environment, is_gymnasium
from maieutic.environments.adapt_textarena import TextArenaEnvironment, is_textarena, textarena_environment
from maieutic.environments.adapt_trl import FactoryEnvironment, is_factory_made
from maieutic.environments.adapt_verifiers import Judge, VerifiersEnvironment, is_verifiers, verifiers_environment
from maieutic.protocols import Environment

#: What a name begins with → what makes the environment of the rest. `judge` is filled in.
LIBRARIES: Mapping[str, Callable[..., Environment]] = {
    "gymnasium:": gymnasium_environment,
    "textarena:": textarena_environment,
    "verifiers:": verifiers_environment,
}
#: Whether it is of a kind → the environment that it makes. The first that fits is taken.
_SHAPES: tuple[tuple[Callable[[Any], bool], Callable[..., Environment]], ...] = (
    (is_textarena, TextArenaEnvironment),
    (is_gymnasium, GymnasiumEnvironment),
    (is_factory_made, FactoryEnvironment),
)


def from_library(name: str, options: Mapping[str, Any], judge: Judge) -> Environment | None:
    """The environment that a library has under an id ("gymnasium:FrozenLake-v1"); None for any other name.

    Raises ConfigError for what is not installed, an id that there is not, or an option that the adapter does not take.
    """
    for prefix, make in LIBRARIES.items():
        if name.startswith(prefix):
            known = {"where": name.removeprefix(prefix), "judge": judge}
            return choose("environment", {name: make}, name, options, known)
    return None


def adapted(found: Any, where: str, options: Mapping[str, Any], judge: Judge) -> Environment | None:
    """What a user's file holds as an environment; None for what has none of these shapes.

    The option `make` holds arguments of the class or function, the other options are the adapter's.
    """
    rest = dict(options)
    make = partial(found, **rest.pop("make", {})) if callable(found) else partial(copy.deepcopy, found)
    if isinstance(found, type) or not callable(found):
        seen = found
    elif _can_be_called(found, make.keywords):
        seen = make()
    else:
        return None
    name = where.rpartition(":")[2]
    for fits, kind in _SHAPES:
        if fits(seen):
            return choose("environment", {where: kind}, where, rest, {"make": make, "name": name})
    made = make() if isinstance(seen, type) and _is_of_verifiers(seen) else seen
    if is_verifiers(made) and not isinstance(made, type):
        known = {"made": made, "judge": judge, "name": name}
        return choose("environment", {where: VerifiersEnvironment}, where, rest, known)
    return None


def _is_of_verifiers(kind: type) -> bool:
    return any(each.__module__.split(".")[0] == "verifiers" for each in kind.__mro__)


def _can_be_called(function: Callable[..., Any], given: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(function).bind(**given)
    except (TypeError, ValueError):
        return False
    return True
