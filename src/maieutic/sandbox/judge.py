"""Tests that are more than a call and a value: they run here, in a process of their own, and the program in another.

What the program defines is a `Remote` here: calling it sends plain arguments to the program's process, and plain data
come back. An object that is not plain data stays where it is and is another `Remote`, which can be called, given back,
measured, indexed and iterated, and nothing else: it equals nothing, and it is neither true nor false, so no object can
pass a test by saying of itself that it does.

The tests are inside a boundary too, but no line of the program's ever runs in this process.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any, NoReturn

from maieutic.sandbox import wire
from maieutic.sandbox.program import Program, error_text, read_request, send

#: Exceptions that would end a loop or the process instead of failing the test.
_NEVER_RAISED = ("StopIteration", "StopAsyncIteration", "GeneratorExit")


class CandidateError(Exception):
    """An exception of the program's that is none of Python's own."""


class Remote:
    """Something of the program's: a name that it defines, or an object that it returned."""

    __slots__ = ("_target",)

    def __init__(self, target: str | int) -> None:
        object.__setattr__(self, "_target", target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = {"args": [_encode(each) for each in args], "kwargs": {k: _encode(v) for k, v in kwargs.items()}}
        return _ask({"call": self._target, **given})

    def __getattr__(self, name: str) -> Any:
        return _ask({"get": self._target, "name": name})

    def __setattr__(self, name: str, value: Any) -> None:
        _ask({"set": self._target, "name": name, "value": _encode(value)})

    def __getitem__(self, index: Any) -> Any:
        return _ask({"item": self._target, "args": [_encode(index)]})

    def __len__(self) -> int:
        return int(_ask({"len": self._target}))

    def __iter__(self) -> Iterator[Any]:
        return iter(_ask({"list": self._target}))

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("the program returned an object that is not plain data; it compares with nothing")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = _refuse


class _Asking:
    """How often the test has asked the program for something."""

    count = 0


def _encode(value: Any) -> wire.Wire:
    def keep(each: Any) -> int:
        if isinstance(each, Remote) and isinstance(each._target, int):
            return each._target
        raise TypeError(f"a test gave the program a {type(each).__name__}; it can give plain data and what came back")

    return wire.Encoder(keep).encode(value)


def _ask(question: dict[str, Any]) -> Any:
    _Asking.count += 1
    send({"ask": question})
    reply = read_request()
    if reply is None:
        raise SystemExit
    if "raised" not in reply:
        return wire.decode(reply["value"], lambda number, _name: Remote(number))
    name, text = (str(each) for each in reply["raised"])
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or name in _NEVER_RAISED:
        kind = CandidateError
    try:
        error = kind(text)
    except TypeError:  # UnicodeDecodeError and its like want more than a text
        error = CandidateError(f"{name}: {text}")
    raise error


def _verdict(request: dict[str, Any]) -> dict[str, Any]:
    _Asking.count = 0
    judge = Program("test")
    try:
        judge.module.__dict__.update({name: Remote(name) for name in request["remote"]})
        judge.define([request["setup"], request["test"]])
    # A failed assertion, or whatever else the program brings a test to raise: the test is not passed.
    except BaseException as error:  # noqa: BLE001
        return {"passed": False, "why": error_text(error)}
    return {"passed": _Asking.count > 0, "why": "" if _Asking.count else "the test never called the program"}


def serve(first: dict[str, Any]) -> None:
    """Carry tests out until there are no more: {"setup", "remote": names, "test"} → {"passed", "why"}."""
    request: dict[str, Any] | None = first
    while request is not None:
        send(_verdict(request))
        request = read_request()
