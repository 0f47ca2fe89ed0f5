"""Tools that a model may use while it writes, by name.

A tool is anything with a `trigger` and a call from the text so far to what it inserts (`maieutic.protocols.Tool`). The
calculator itself lies lower, beside the exact arithmetic that tasksets also need.
"""

from __future__ import annotations

from collections.abc import Callable

from maieutic.calculator import Calculator
from maieutic.errors import UnknownName
from maieutic.protocols import Tool

#: Name → factory.
TOOLS: dict[str, Callable[[], Tool]] = {
    "calculator": Calculator,
    "gsm8k_calculator": Calculator.gsm8k,
}


def make_tool(name: str) -> Tool:
    """The tool of this name; raises UnknownName with the nearest known one."""
    if name not in TOOLS:
        raise UnknownName("tool", name, TOOLS)
    return TOOLS[name]()


__all__ = ["TOOLS", "Calculator", "make_tool"]
