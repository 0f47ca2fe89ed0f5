"""Plain Python functions as tools: what a model is told of them, and how they are called with what it wrote.

    def area(width: float, height: float = 1.0) -> float:       name         the function's
        \"\"\"Area of a rectangle.                                 description  the docstring, up to `Args:`
                                                                parameters   the signature, its type hints
        Args:                                                   … described  by `Args:`
            width: in metres
        \"\"\"

What a call comes to is text, whatever happens: a failure is told to the model and counted, and never raised.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import json
import re
import threading
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from maieutic.errors import ConfigError

#: Seconds for one call of a tool that says nothing else.
SECONDS = 10.0
#: Calls of one tool that may hang at a time; a thread cannot be ended from outside.
MOST_HANGING = 16
_SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes?):\s*$")
_ARGUMENT = re.compile(r"^\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_OF_TEXT = ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True)


class ToolFailed(Exception):
    """Raised by a tool to answer with an error of its own words; any other exception is told with its name."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call came to: the text for the model, and whether it failed."""

    text: str
    failed: bool = False


@dataclass(eq=False)
class ToolFunction:
    """A function that a model may call by name; made by `tool_function`.

    `schema` is what chat templates take as one of their `tools`. `takes` reads each argument, `required` are those
    without a default. `seconds` bounds a call, None: it keeps its own time. `fresh` makes the tool of a new episode,
    where a tool remembers what was asked before.
    """

    name: str
    function: Callable[..., Any]
    schema: Mapping[str, Any]
    takes: Mapping[str, TypeAdapter[Any]]
    required: tuple[str, ...] = ()
    seconds: float | None = SECONDS
    fresh: Callable[[], ToolFunction] | None = None
    hanging: list[threading.Thread] = field(default_factory=list, repr=False)

    def for_episode(self) -> ToolFunction:
        """The tool as a new episode has it."""
        return self if self.fresh is None else self.fresh()

    @property
    def lone_argument(self) -> str | None:
        """The argument that a bare text is meant for: the one that is required, or the only one."""
        names = self.required or tuple(self.takes)
        return names[0] if len(names) == 1 else None

    async def __call__(self, arguments: Any) -> Answer:
        """Call it with a JSON object; a bare text is taken for its lone argument."""
        if isinstance(arguments, str) and self.lone_argument is not None:
            arguments = {self.lone_argument: arguments}
        try:
            given = self._read(arguments)
        except ToolFailed as failed:
            return Answer(f"error: {failed}", failed=True)
        return await (self._awaited(given) if inspect.iscoroutinefunction(self.function) else self._in_thread(given))

    def _read(self, arguments: Any) -> dict[str, Any]:
        takes = ", ".join(self.takes) or "nothing"
        if not isinstance(arguments, dict):
            raise ToolFailed(f"the arguments of {self.name} must be a JSON object; it takes {takes}")
        unknown = [str(name)[:40] for name in arguments if name not in self.takes]
        if unknown:
            raise ToolFailed(f"{self.name} has no argument {', '.join(unknown[:5])}; it takes {takes}")
        missing = [name for name in self.required if name not in arguments]
        if missing:
            raise ToolFailed(f"{self.name} needs {', '.join(missing)}; it takes {takes}")
        given = {}
        for name, value in arguments.items():
            try:
                given[name] = self.takes[name].validate_python(value)
            except (ValidationError, RecursionError) as error:
                why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "nested too deeply"
                raise ToolFailed(f"argument {name} of {self.name}: {why}") from error
        return given

    async def _awaited(self, given: dict[str, Any]) -> Answer:
        async def call() -> Answer:
            # Tools are users' functions: whatever one raises is told to the model. SystemExit would end the loop.
            try:
                return Answer(as_text(await self.function(**given)))
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001
                return Answer(in_words(error), failed=True)

        try:
            return await asyncio.wait_for(call(), self.seconds)
        except TimeoutError:
            return self._late()

    async def _in_thread(self, given: dict[str, Any]) -> Answer:
        self.hanging[:] = [thread for thread in self.hanging if thread.is_alive()]
        if len(self.hanging) >= MOST_HANGING:
            return Answer(f"error: {self.name} is busy: {MOST_HANGING} earlier calls have not come back", failed=True)
        outcome: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        outcome.set_running_or_notify_cancel()

        def call() -> None:
            # Tools are users' functions: whatever one raises is told to the model.
            try:
                answer = Answer(as_text(self.function(**given)))
            except BaseException as error:  # noqa: BLE001
                answer = Answer(in_words(error), failed=True)
            outcome.set_result(answer)

        # a daemon of its own: a call that never comes back must keep neither others nor the process waiting
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(call,), name=f"maieutic-tool-{self.name}", daemon=True)
        thread.start()
        done, _ = await asyncio.wait([asyncio.wrap_future(outcome)], timeout=self.seconds)
        if done:
            return outcome.result()
        self.hanging.append(thread)
        return self._late()

    def _late(self) -> Answer:
        return Answer(f"error: {self.name} took longer than {self.seconds:g} s", failed=True)


def tool_function(
    function: Callable[..., Any],
    name: str | None = None,
    seconds: float | None = SECONDS,
    fresh: Callable[[], ToolFunction] | None = None,
) -> ToolFunction:
    """The tool that a function is, described by its signature and docstring. Methods and `async` functions too.

    >>> tool_function(area).schema["function"]["parameters"]["required"]
    ['width']

    Raises ConfigError for a function without a docstring, a parameter that cannot be given by name, or a type hint
    that no JSON can be read as.
    """
    called = str(name or getattr(function, "__name__", type(function).__name__))
    described, about = _docstring(inspect.getdoc(function) or "")
    if not described:
        raise ConfigError(f"tool {called!r}: got no docstring; expected one, for the model to know what the tool does")
    hints = _hints(called, function)
    takes: dict[str, TypeAdapter[Any]] = {}
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                f"tool {called!r}: got parameter {parameter.name!r} ({parameter.kind.description}); expected "
                "parameters that can be given by name. Remedy: name each"
            )
        takes[parameter.name], properties[parameter.name] = _reader(called, parameter.name, hints)
        if parameter.name in about:
            properties[parameter.name]["description"] = about[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    told = {"type": "object", "properties": properties, "required": required}
    schema = {"type": "function", "function": {"name": called, "description": described, "parameters": told}}
    return ToolFunction(called, function, schema, takes, tuple(required), seconds, fresh)


def as_text(value: Any) -> str:
    """A tool's value as the model reads it: text as it is, anything else as JSON where it can be."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        return str(value)


def in_words(error: BaseException) -> str:
    """An exception as the model reads it."""
    if isinstance(error, ToolFailed):
        return f"error: {error}"
    said = str(error)
    return f"error: {type(error).__name__}: {said}" if said else f"error: {type(error).__name__}"


def _hints(tool: str, function: Callable[..., Any]) -> dict[str, Any]:
    plain = function.func if isinstance(function, functools.partial) else function
    try:
        return typing.get_type_hints(plain if inspect.isroutine(plain) else type(plain).__call__)
    except (NameError, TypeError) as error:
        raise ConfigError(
            f"tool {tool!r}: its type hints cannot be read ({error}). Remedy: define and import the types in the "
            "function's module, not within another function"
        ) from error


def _reader(tool: str, name: str, hints: Mapping[str, Any]) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    hint = hints.get(name, Any)
    try:
        adapter: TypeAdapter[Any] = _adapter(hint)
        schema = adapter.json_schema()
    except (PydanticUserError, TypeError, NameError) as error:
        raise ConfigError(
            f"tool {tool!r}: got parameter {name!r} of type {hint}, which no JSON can be read as; expected str, int, "
            f"float, bool, lists or dicts of them, Literal, or a dataclass: {str(error).splitlines()[0]}"
        ) from error
    schema.pop("title", None)
    return adapter, schema


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=_OF_TEXT)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(hint)  # a model or dataclass, which has a config of its own


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description, and what `Args:` says of each parameter."""
    description: list[str] = []
    about: dict[str, str] = {}
    section, last, depth = "", "", 0
    for line in text.splitlines():
        found = _SECTION.match(line)
        if found:
            section, last = found[1], ""
            continue
        if not section:
            description.append(line)
        elif section in ("Args", "Arguments", "Parameters") and line.strip():
            indent = len(line) - len(line.lstrip())
            named = _ARGUMENT.match(line)
            if named and (not last or indent <= depth):
                last, depth = named[1], indent
                about[last] = named[2].strip()
            elif last:
                about[last] = f"{about[last]} {line.strip()}".strip()
    return "\n".join(description).strip(), about
