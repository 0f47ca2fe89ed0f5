"""The data sets of reasoning-gym as tasksets, named `reasoning_gym:NAME`: a hundred kinds of generated puzzles.

A data set is made of a seed, and its item i of seed + i. `split="test"` therefore takes seeds that are 2³¹ away: no
item of one split is made as one of the other, though small puzzles may come out alike.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Verifier
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.types import Message, Task

#: What the names of these tasksets begin with.
PREFIX = "reasoning_gym:"
#: How far apart the seeds of splits are.
SPLITS: Mapping[str, int] = {"train": 0, "test": 2**31}


def data_sets() -> Mapping[str, tuple[Any, Any]]:
    """Name → (data set class, configuration class). Raises ConfigError when reasoning-gym is not installed."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError(
            f"tasksets named {PREFIX}… need reasoning-gym ({error}); pip install 'maieutic[reasoning-gym]'"
        ) from None
    return dict(DATASETS)


def gym_taskset(name: str) -> Callable[..., Tasks]:
    """What makes the taskset of the data set `name`; its parameters are the data set's own options and ours.

    Raises UnknownName for a data set that there is not.
    """
    known = data_sets()
    if name not in known:
        raise UnknownName("data set of reasoning-gym", name, known)
    own = {field.name: field for field in dataclasses.fields(known[name][1]) if field.init}

    def make(verifier: Verifier, split: str = "train", system: str | None = None, **options: Any) -> Tasks:
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        data = _made(name, {**options, "seed": _seed(options) + SPLITS[split]})
        return Tasks(
            f"{PREFIX}{name}", Lazy(len(data), Item(data, name, f"{split}/{_seed(options)}", system)), verifier
        )

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("size", keyword, default=500, annotation="int"),
        inspect.Parameter("seed", keyword, default=0, annotation="int"),
        *(_parameter(field) for field in own.values() if field.name not in ("size", "seed")),
        inspect.Parameter("split", keyword, default="train", annotation="str"),
        inspect.Parameter("system", keyword, default=None, annotation="str | None"),
        inspect.Parameter("verifier", keyword, annotation="Verifier"),
    ]
    make.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    make.__doc__ = f"The data set {name!r} of reasoning-gym, scored as it scores itself.\n\n{_said(known[name][0])}"
    return make


@dataclasses.dataclass(frozen=True)
class Item:
    """Index → task. `meta["entry"]` is the item as its data set made it, which `score_answer` wants to see."""

    data: Any
    name: str
    where: str
    system: str | None

    def __call__(self, index: int) -> Task:
        entry = self.data[index]
        answer = entry.get("answer")
        asked = (Message("user", str(entry["question"])),)
        messages = asked if self.system is None else (Message("system", self.system), *asked)
        meta = {"entry": entry} if answer is None else {"entry": entry, "solution": f"<answer>{answer}</answer>"}
        text = None if answer is None else str(answer)
        return Task(f"{PREFIX}{self.name}/{self.where}/{index}", messages, text, meta)


def _made(name: str, options: Mapping[str, Any]) -> Any:
    from reasoning_gym import create_dataset

    try:
        return create_dataset(name, **options)
    except (AssertionError, TypeError, ValueError) as error:
        shown = ", ".join(f"{key} = {value!r}" for key, value in options.items())
        raise ConfigError(f"taskset '{PREFIX}{name}': it refuses {shown}: {error}") from error


def _seed(options: Mapping[str, Any]) -> int:
    seed = options.get("seed", 0)
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ConfigError(f"tasksets of reasoning-gym: got seed = {seed!r}; expected a whole number from 0 to 2³¹ − 1")
    return seed


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    default = inspect.Parameter.empty if default is dataclasses.MISSING else default
    kind = getattr(field.type, "__name__", str(field.type))
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _said(made: Any) -> str:
    return inspect.cleandoc(made.__doc__ or "")
