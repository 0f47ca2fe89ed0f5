"""What reward functions return, read: numbers of any make, dicts of parts, lists and tensors for a group."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Parts = dict[str, float]


@dataclass(frozen=True, slots=True)
class Read:
    """A value that a function returned for one completion: the reward (None: it cannot say), its named parts, what a
    person may want to know, and what is wrong with it ("" if nothing is)."""

    reward: float | None
    parts: Parts = field(default_factory=dict)
    note: str = ""
    wrong: str = ""


def as_number(value: Any) -> float | None:
    """A float, if the value is a real number: of Python, of numpy, or in a tensor without dimensions."""
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        value = value.item()
    if not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def read_value(value: Any) -> Read:
    """One value: a number, a dict of parts that are summed, or None."""
    if value is None:
        return Read(None)
    parts = value if isinstance(value, Mapping) else {"": value}
    read: Parts = {}
    for name, part in parts.items():
        where = f"part {name!r} of a dict" if isinstance(value, Mapping) else "a value"
        made = as_number(part) if isinstance(name, str) else None
        if made is None:
            kind = type(part).__name__
            return Read(None, wrong=f"it returned {where} of type {kind}; expected float, dict of floats, or None")
        if not math.isfinite(made):
            return Read(None, wrong=f"it returned {where} that is {made}; expected a finite number, or None")
        read[name] = made
    total = sum(read.values())
    if not math.isfinite(total):
        return Read(None, wrong=f"its parts sum to {total}")
    return Read(total, read if isinstance(value, Mapping) else {})


def read_scored(value: Any) -> Read:
    """One value of verl: a number, or a dict of which `score` is the reward and other numbers are kept as parts."""
    if not isinstance(value, Mapping):
        return read_value(value)
    if "score" not in value:
        return Read(None, wrong=f"it returned a dict with {_keys(value)}; expected a dict with 'score', or a number")
    read = read_value(value["score"])
    others = {str(name): as_number(part) for name, part in value.items() if name != "score"}
    parts = {name: part for name, part in others.items() if part is not None and math.isfinite(part)}
    return read if read.wrong else Read(read.reward, {"score": read.reward, **parts} if read.reward is not None else {})


def read_list(value: Any, n: int, each: Any = read_value) -> list[Read]:
    """One value for each of `n` completions. Raises NotOneEach for another number, and for what is no list."""
    listed = as_list(value)
    if listed is None:
        raise NotOneEach(
            f"it returned {type(value).__name__}; expected a list of {n} rewards, one a completion, in order"
        )
    if len(listed) != n:
        raise NotOneEach(
            f"it returned {len(listed)} scores for {n} completions; expected exactly one a completion, in order. "
            "Remedy: return None for what cannot be scored"
        )
    return [each(one) for one in listed]


def read_logged(value: Any, n: int) -> list[Read]:
    """The values of OpenRLHF: a list or tensor, or a dict with `rewards`, and `scores` and `extra_logs` as parts."""
    if not isinstance(value, Mapping):
        return read_list(value, n)
    if "rewards" not in value:
        raise NotOneEach(f"it returned a dict with {_keys(value)}; expected a dict with 'rewards', or a list")
    reads = read_list(value["rewards"], n)
    logs = value.get("extra_logs")
    beside = {"scores": value.get("scores"), **(logs if isinstance(logs, Mapping) else {})}
    columns = {str(name): _column(logged, n) for name, logged in beside.items()}
    for i, read in enumerate(reads):
        parts = {name: column[i] for name, column in columns.items() if column}
        if read.reward is not None:
            known = {name: part for name, part in parts.items() if part is not None and math.isfinite(part)}
            reads[i] = Read(read.reward, {**read.parts, **known})
    return reads


class NotOneEach(ValueError):
    """A function for groups returned something else than one score for each completion."""


def as_list(value: Any) -> list[Any] | None:
    """The entries of a list, a tuple, or a tensor or array of one dimension (or `[n, 1]`); None for anything else."""
    shape = getattr(value, "shape", None)
    if shape is not None and callable(getattr(value, "tolist", None)):
        sizes = tuple(shape)
        if len(sizes) == 2 and sizes[1] == 1:
            return [row[0] for row in value.tolist()]
        return list(value.tolist()) if len(sizes) == 1 else None
    return list(value) if isinstance(value, list | tuple) else None


def _column(logged: Any, n: int) -> Sequence[float | None]:
    """What was logged, one entry a completion; a single number is that of all of them."""
    single = as_number(logged)
    if single is not None:
        return [single] * n
    listed = as_list(logged)
    return [as_number(one) for one in listed] if listed is not None and len(listed) == n else []


def _keys(value: Mapping[Any, Any]) -> str:
    return ", ".join(repr(key) for key in value) or "nothing"
