"""Tools by name, as a config has them: `tools = ["calculator", "python", "search:papers", "mine.py:weather"]`.

calculator       exact arithmetic
python           a program's output, in the sandbox
search:FOLDER    the passages of a folder of texts that fit best
FILE.py:NAME     a function of one's own, with type hints and a docstring
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from maieutic.calculator import evaluate, show
from maieutic.environments.python_tool import python_tool
from maieutic.environments.search_tool import search_tool
from maieutic.environments.tool_functions import SECONDS, ToolFailed, ToolFunction, tool_function
from maieutic.environments.tool_use import ToolUse
from maieutic.errors import ConfigError, UnknownName
from maieutic.own_code import load_function

_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})


def calculator(expression: str) -> str:
    """Calculate the exact value of an arithmetic expression.

    Args:
        expression: numbers, + - * / and parentheses, as (12.5 + 3) * 4
    """
    value = evaluate(expression.translate(_SIGNS).strip().rstrip("="))
    if value is None:
        raise ToolFailed("no expression; expected numbers, + - * / and parentheses, and no division by zero")
    return show(value)


#: Name → tool.
BUILT_IN: Mapping[str, Callable[[], ToolFunction]] = {
    "calculator": lambda: tool_function(calculator),
    "python": python_tool,
}
#: What a name begins with → what makes the tool of the rest.
PREFIXED: Mapping[str, Callable[[str], ToolFunction]] = {"search:": search_tool}


def named_tool(name: str, seconds: float = SECONDS) -> ToolFunction:
    """The tool of that name; `seconds` bound a call of one's own function.

    Raises UnknownName, ConfigError and DataError for what there is not.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    for prefix, make in PREFIXED.items():
        if name.startswith(prefix):
            return make(name.removeprefix(prefix))
    if ".py:" not in name:
        raise UnknownName("tool", name, [*BUILT_IN, "search:FOLDER", "FILE.py:function"])
    found, path = load_function("tool", name)
    if isinstance(found, ToolFunction):
        return found
    if not callable(found):
        raise ConfigError(f"tool {name!r}: got {type(found).__name__}; expected a function of {path}")
    return tool_function(found, seconds=seconds)


def named_tools(names: Sequence[str], seconds: float = SECONDS) -> list[ToolFunction]:
    """The tools of these names; see `named_tool`."""
    return [named_tool(str(name), seconds) for name in names]


def tool_use(
    tools: Sequence[str],
    max_turns: int = 6,
    seconds: float = SECONDS,
    max_calls: int = 8,
    reply_characters: int = 4000,
    fenced: bool = True,
    describe: bool = True,
) -> ToolUse:
    """`environment = "tools"`: the tools of these names; the other options as `ToolUse` and `named_tool` have them."""
    if isinstance(tools, str):
        raise ConfigError(f'environment "tools": got tools = {tools!r}; expected a list, as ["calculator"]')
    return ToolUse(named_tools(tools, seconds), max_turns, max_calls, reply_characters, fenced, describe)
