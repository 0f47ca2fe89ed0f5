"""Inside the boundary: define a program, then answer calls of it. Nothing that comes out of here is trusted.

Requests arrive on one pipe and replies leave on another, a frame each (`wire.frame`):

    {"parts": [source, …], "main": false}          → {"value": null}                 the program is defined
    {"call": target, "args": […], "kwargs": {…}}   → {"value": wire} | {"raised": [type, text]}
    {"get": target, "name": "x"}, {"set": …, "value": …}, {"item": target, "args": [index]}, {"len": …}, {"list": …}

A target is a name of the program, or the number of an object that was returned before. With `main` the process is the
program, as `python file.py` would be: it reads and writes what it likes and ends with an exit code.
"""

from __future__ import annotations

import atexit
import linecache
import os
import sys
import threading
import traceback
import types
from typing import Any

from maieutic.sandbox import wire

REQUESTS, REPLIES = 3, 4
FILE = "<program>"
_LONGEST_ERROR = 4000


def read_request() -> dict[str, Any] | None:
    """The next request; None when there will be none."""
    head = _read(wire.HEAD)
    return wire.parse(_read(wire.length_of(head))) if len(head) == wire.HEAD else None


def _read(size: int) -> bytes:
    parts = []
    while size > 0 and (part := os.read(REQUESTS, min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def send(message: dict[str, Any]) -> None:
    """A reply."""
    send_frame(wire.frame(message))


def send_frame(content: bytes) -> None:
    """A reply that is a frame already."""
    body = memoryview(content)
    while body:
        body = body[os.write(REPLIES, body) :]


def error_text(error: BaseException) -> str:
    """The traceback, from the program's first line on."""
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<"):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace, limit=-8))[-_LONGEST_ERROR:]


class Program:
    """The names that a program's source defines, and the objects that its calls have returned."""

    def __init__(self, name: str) -> None:
        # a module of its own, where dataclasses and pickling look the program's classes up
        self.module = types.ModuleType(name)
        sys.modules[name] = self.module
        self.kept: list[Any] = []

    def define(self, parts: list[str]) -> None:
        """Run the parts of the source, one after the other, in one namespace."""
        for number, source in enumerate(parts):
            file = FILE if number == len(parts) - 1 else f"<part {number}>"
            linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
            exec(compile(source, file, "exec", dont_inherit=True), self.module.__dict__)

    def answer(self, request: dict[str, Any]) -> Any:
        """Do what a request asks and return its value."""
        what = next(key for key in ("call", "get", "set", "item", "len", "list") if key in request)
        target = self._target(request[what])
        given = [self._value(each) for each in request.get("args", ())]
        if what == "call":
            return target(*given, **{name: self._value(each) for name, each in request.get("kwargs", {}).items()})
        if what == "get":
            return getattr(target, request["name"])
        if what == "set":
            return setattr(target, request["name"], self._value(request["value"]))
        return {"item": lambda: target[given[0]], "len": lambda: len(target), "list": lambda: list(target)}[what]()

    def _target(self, target: Any) -> Any:
        if isinstance(target, int):
            return self.kept[target]
        if target not in self.module.__dict__:
            raise NameError(f"the program defines no {target!r}")
        return self.module.__dict__[target]

    def _value(self, each: Any) -> Any:
        return wire.decode(each, lambda number, _name: self.kept[number])

    def keep(self, value: Any) -> int:
        """The number of an object, by which a later request can speak of it."""
        for number, known in enumerate(self.kept):
            if known is value:
                return number
        self.kept.append(value)
        return len(self.kept) - 1

    def reply(self, request: dict[str, Any]) -> bytes:
        """The reply to a request, whatever the program does, as a frame."""
        try:
            if "parts" in request:
                self.define(request["parts"])
                return wire.frame({"value": None})
            return wire.frame({"value": wire.Encoder(self.keep).encode(self.answer(request))})
        # The program is a stranger's: whatever it raises is a result (SystemExit and KeyboardInterrupt too).
        except BaseException as error:  # noqa: BLE001
            return wire.frame({"raised": [type(error).__name__, error_text(error)]})


def serve(first: dict[str, Any]) -> None:
    """Define the program and answer requests until there are no more."""
    program = Program("solution")
    send_frame(program.reply(first))
    while (request := read_request()) is not None:
        send_frame(program.reply(request))


def run_main(parts: list[str]) -> int:
    """Be the program; the exit code."""
    os.close(REQUESTS)
    os.close(REPLIES)
    sys.argv = ["program.py"]
    program = Program("__main__")
    code = 0
    try:
        program.define(parts)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    # The program is a stranger's: whatever it raises ends it, with the traceback where Python shows it.
    except BaseException as error:  # noqa: BLE001
        print(error_text(error), file=sys.stderr, end="")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does at its end
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code & 0xFF
