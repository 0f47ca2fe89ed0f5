"""The calls that a model wrote in its turn, read from its text.

    <tool_call>                        ```calculator              {"name": "calculator", "arguments": {…}}
    {"name": "calculator",             3 * 4
     "arguments": {"expression":…}}    ```
    </tool_call>
    as chat templates teach it         a fence with a tool's      nothing but the call
                                       name; `tool_call`: JSON

Total: whatever the text, the answer is a list, in time linear in its length. What looks like a call and is none is a
call with a `problem`, so that the model can be told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from maieutic.thoughts import outside_thoughts

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```([\w.:-]+)")
_FORM = 'expected {"name": "…", "arguments": {…}}'


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool's name and arguments (a JSON object, or the bare text of a fence), or what is wrong with the call."""

    name: str
    arguments: Any = None
    problem: str = ""


def read_calls(text: str, names: Collection[str], fenced: bool = True) -> list[ToolCall]:
    """The calls in a turn, outside of its thoughts; tagged ones, or else fenced ones, or else a bare one.

    `names` are the tools that there are: a fence with another word is ordinary text. `fenced`: whether fences count.

    >>> read_calls("```calculator\\n3 * 4\\n```", {"calculator"})
    [ToolCall(name='calculator', arguments='3 * 4', problem='')]
    """
    said = outside_thoughts(text)
    tagged = [_of_json(found[1]) for found in _TAGGED.finditer(said)]
    if tagged:
        return tagged
    if fenced and (calls := _fences(said, names)):
        return calls
    bare = said.strip()
    if bare.startswith("{") and bare.endswith("}"):
        call = _of_json(bare)
        if not call.problem and call.name in names:
            return [call]
    return []


def _fences(text: str, names: Collection[str]) -> list[ToolCall]:
    calls: list[ToolCall] = []
    word, inside = "", False
    content: list[str] = []
    for line in text.split("\n"):
        if inside and line.strip() == "```":
            body = "\n".join(content)
            if word == "tool_call":
                calls.append(_of_json(body))
            elif word in names:
                calls.append(_of_fence(word, body))
            inside = False
        elif inside:
            content.append(line)
        elif (found := _FENCE.fullmatch(line.strip())) is not None:
            word, inside, content = found[1], True, []
    return calls


def _of_fence(name: str, body: str) -> ToolCall:
    value = _loaded(body) if body.lstrip().startswith("{") else None
    return ToolCall(name, value if isinstance(value, dict) else body)


def _of_json(text: str) -> ToolCall:
    value = _loaded(text)
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return ToolCall("", problem=f"the call is not JSON; {_FORM}" if value is None else f"no call: {_FORM}")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        inner = _loaded(arguments)
        arguments = inner if isinstance(inner, dict) else arguments
    return ToolCall(value["name"], {} if arguments is None else arguments)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
