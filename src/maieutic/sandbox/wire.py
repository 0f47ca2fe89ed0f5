"""Plain data over a pipe: how values leave a program, and how they are compared with what was expected.

    None, True, 7, 0.5, "a"     as in JSON                      [1, (2,)]   ["list", 1, ["tuple", 2]]
    2**80                       ["int", "100000000000000000000"]  {1: "a"}    ["dict", 1, "a"]
    nan, 1j, b"a"               ["float", "nan"] ["complex", 0.0, 1.0] ["bytes", "61"]
    anything else               ["object", number, "its type's name"]

Whatever arrives is material of the program's making and is never unpickled, evaluated, or asked how it compares:
`same` walks the *expected* value and looks the other up in what arrived, so that it takes time in proportion to what
was expected, however the program chose its values (numbers whose hashes collide, for example). A subclass travels as
the plain type that it extends.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: More of a value than this does not travel.
DEEPEST, MOST_PARTS = 64, 200_000
_LARGEST_KEY = 1000
_EXACT_IN_JSON = 2**53
_SEQUENCES = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_LENGTH = struct.Struct("<I")

Wire = Any
"""A value as it travels: what `json.loads` returns."""


class NotPlain(ValueError):
    """A value that is too deep or too large to travel, or what arrived is none."""


def frame(message: Any) -> bytes:
    """A message as it goes over a pipe: its length, then JSON in ASCII."""
    body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii")
    return _LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """The length of the frame that begins with these bytes."""
    return int(_LENGTH.unpack_from(head)[0])


HEAD = _LENGTH.size


def parse(body: bytes) -> dict[str, Any]:
    """The message of a frame; `NotPlain` for whatever is none (the sender may be hostile)."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotPlain(f"not a message: {type(error).__name__}") from None
    if not isinstance(message, dict):
        raise NotPlain("not a message")
    return message


@dataclass
class Encoder:
    """Values to the wire. `keep` gives an object that is no plain data the number by which it can be spoken of."""

    keep: Callable[[Any], int] = lambda _value: 0
    parts: int = 0

    def encode(self, value: Any, depth: int = 0) -> Wire:
        """The value as it travels. Raises NotPlain where it is too deep or too large."""
        self.parts += 1
        if depth > DEEPEST or self.parts > MOST_PARTS:
            raise NotPlain(f"a value deeper than {DEEPEST} or of more than {MOST_PARTS} parts")
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if isinstance(value, int):
            return int(value) if abs(value) <= _EXACT_IN_JSON else ["int", format(int(value), "x")]
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else ["float", repr(float(value))]
        if isinstance(value, complex):
            return ["complex", self.encode(value.real, depth + 1), self.encode(value.imag, depth + 1)]
        if isinstance(value, bytes | bytearray):
            return ["bytes", value.hex()]
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, dict):
            flat = (part for pair in dict.items(value) for part in pair)
            return ["dict", *(self.encode(part, depth + 1) for part in flat)]
        for base, tag in _SEQUENCES.items():
            if isinstance(value, base):
                return [tag, *(self.encode(part, depth + 1) for part in base.__iter__(value))]
        return ["object", self.keep(value), kind.__name__]


def decode(wire: Wire, remote: Callable[[int, str], Any] | None = None, depth: int = 0) -> Any:
    """The value that arrived, of built-in types only; objects are what `remote(number, name)` makes of them.

    Raises NotPlain for what is no value. Sets and dicts are built, which a hostile choice of keys makes slow: in the
    trainer use `same` and `truth` instead.
    """
    if wire is None or isinstance(wire, bool | int | float | str):
        return wire
    if depth > DEEPEST or not isinstance(wire, list) or not wire:
        raise NotPlain("not a value")
    tag, *parts = wire
    if tag in _SCALARS:
        return _scalar(tag, parts)
    if tag == "object" and remote is not None and len(parts) == 2:
        return remote(int(parts[0]), str(parts[1]))
    made = [decode(part, remote, depth + 1) for part in parts]
    try:
        if tag == "dict" and len(made) % 2 == 0:
            return dict(zip(made[::2], made[1::2]))
        return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[tag](made)
    except (KeyError, TypeError) as error:
        raise NotPlain(f"not a value: {error}") from None


_SCALARS = ("int", "float", "complex", "bytes")


def _scalar(tag: str, parts: list[Any]) -> Any:
    try:
        if tag == "complex":
            real, imaginary = (_scalar(*_split(part)) if isinstance(part, list) else float(part) for part in parts)
            return complex(real, imaginary)
        (text,) = parts
        if not isinstance(text, str):
            raise NotPlain("not a value")
        return {"int": lambda: int(text, 16), "float": lambda: float(text), "bytes": lambda: bytes.fromhex(text)}[tag]()
    except (ValueError, TypeError, KeyError) as error:
        raise NotPlain(f"not a value: {error}") from None


def _split(part: list[Any]) -> tuple[str, list[Any]]:
    return str(part[0]), part[1:]


@dataclass(frozen=True, slots=True)
class Rule:
    """When a value is the expected one. As in Python: `1 == 1.0 == True`, `[1] != (1,)`, `nan != nan`.

    `exact_numbers`: True, 1 and 1.0 differ. `tuples_as_lists`: for what was expected in JSON, which has no tuples.
    """

    exact_numbers: bool = False
    tuples_as_lists: bool = False


AS_IN_PYTHON = Rule()
AS_IN_JSON = Rule(exact_numbers=True, tuples_as_lists=True)


def same(expected: Any, wire: Wire, rule: Rule = AS_IN_PYTHON) -> bool:
    """Whether what arrived is the expected value, which is trusted, of built-in types. Never raises on what arrived."""
    try:
        return _same(expected, wire, rule)
    except NotPlain:
        return False


def _same(expected: Any, wire: Wire, rule: Rule) -> bool:
    tag = wire[0] if isinstance(wire, list) and wire else ""
    if isinstance(expected, list | tuple):
        wanted = ("list", "tuple") if rule.tuples_as_lists else (_SEQUENCES[type(expected)],)
        parts = wire[1:] if tag in wanted else None
        return parts is not None and len(parts) == len(expected) and all(map(_with(rule), expected, parts))
    if isinstance(expected, set | frozenset):
        parts = wire[1:] if tag in ("set", "frozenset") else None
        if parts is None or len(parts) != len(expected):
            return False
        return {_key(part) for part in parts} == expected
    if isinstance(expected, dict):
        if tag != "dict" or len(wire) != 2 * len(expected) + 1:
            return False
        found = {_key(key): value for key, value in zip(wire[1::2], wire[2::2])}
        return found.keys() == expected.keys() and all(_same(expected[key], found[key], rule) for key in expected)
    if tag and tag not in _SCALARS:
        return False
    value = decode(wire)
    return bool(value == expected) and (not rule.exact_numbers or type(value) is type(expected))


def _with(rule: Rule) -> Callable[[Any, Wire], bool]:
    return lambda expected, wire: _same(expected, wire, rule)


def _key(wire: Wire) -> Any:
    if _parts(wire) > _LARGEST_KEY:  # sets inside could take long to build
        raise NotPlain("a key of too many parts")
    key = decode(wire)
    try:
        hash(key)
    except TypeError:
        raise NotPlain("a key that cannot be one") from None
    return key


def _parts(wire: Wire) -> int:
    """How many parts a value has, counted no further than `_LARGEST_KEY`."""
    waiting, count = [wire], 0
    while waiting and count <= _LARGEST_KEY:
        each = waiting.pop()
        count += 1
        if isinstance(each, list):
            waiting += each[: _LARGEST_KEY + 1]
    return count


def truth(wire: Wire) -> bool | None:
    """Whether what arrived is true in Python; None for an object, which may say of itself what it likes."""
    if isinstance(wire, list):
        if not wire or wire[0] == "object":
            return None
        if wire[0] in _SCALARS:
            try:
                return bool(decode(wire))
            except NotPlain:
                return None
        return len(wire) > 1
    return bool(wire)


def brief(wire: Wire, most: int = 200) -> str:
    """What arrived, as text for people: never more than about `most` characters of it."""
    if isinstance(wire, list) and wire:
        tag, *parts = wire
        if tag == "object":
            return f"<{str(parts[-1])[:60] if parts else 'object'}>"
        if tag in _SCALARS:
            return f"{tag} {str(parts)[:most]}"
        said = ", ".join(brief(part, 40) for part in parts[:8])
        return f"{tag}({said}{', …' if len(parts) > 8 else ''})"[:most]
    if isinstance(wire, int) and not isinstance(wire, bool) and abs(wire) > _EXACT_IN_JSON:
        return "a large number"
    return repr(wire[:most] if isinstance(wire, str) else wire)
