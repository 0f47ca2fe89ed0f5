"""A Rubric of verifiers, by what it holds: its functions are called here, each by the names of its parameters.

Its own scoring turns whatever a function raises into 0.0; called here, a failure is a failure, and is counted.
"""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from maieutic.rewards.adapt import inner_function, rubrics_of
from maieutic.rewards.adapt_arguments import of_state, of_states
from maieutic.rewards.adapt_values import Read, as_number, read_list, read_value

#: A function with one of these judges a whole group.
PLURAL = frozenset({"states", "prompts", "completions", "answers", "tasks", "infos"})


async def rubric_reads(rubric: Any, states: Sequence[dict[str, Any]]) -> list[Read]:
    """The weighted sums of the rubric's functions, one for each state; each function's value is a part.

    Functions run one after the other, as in verifiers, because later ones may read what earlier ones left in the
    state; completions are judged at once. A value None leaves its completion unscored.
    """
    columns: dict[str, list[Read]] = {}
    weighed: list[float] = []
    for functions, weights, objects in rubrics_of(rubric):
        for function, weight in zip(functions, weights):
            name = getattr(function, "__name__", type(function).__name__)
            columns[name if name not in columns else f"{name} {len(columns) + 1}"] = await _column(
                function, objects, states
            )
            weighed.append(float(weight))
    return [_sum({name: column[i] for name, column in columns.items()}, weighed) for i in range(len(states))]


async def _column(
    function: Callable[..., Any], objects: dict[str, Any], states: Sequence[dict[str, Any]]
) -> list[Read]:
    names = set(inspect.signature(function).parameters)
    if names & PLURAL:
        value = await _called(function, {**of_states(states), **objects})
        return read_list(value, len(states))
    return list(await asyncio.gather(*(_read(function, {**of_state(state), **objects}) for state in states)))


async def _read(function: Callable[..., Any], offered: dict[str, Any]) -> Read:
    try:
        return read_value(await _called(function, offered))
    # The function is the user's: whatever it raises is the failure of this completion, not of its siblings.
    except Exception:  # noqa: BLE001
        return Read(None, wrong=traceback.format_exc(limit=-6).strip())


async def _called(function: Callable[..., Any], offered: dict[str, Any]) -> Any:
    parameters = inspect.signature(function).parameters.values()
    scope = getattr(inner_function(function), "__globals__", {})
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        value = function(**offered)
    else:
        asked = {p.name: p for p in parameters}
        missing = {n: scope[n] for n, p in asked.items() if n not in offered and p.default is p.empty and n in scope}
        value = function(**{name: offered[name] for name in asked if name in offered}, **missing)
    return await value if inspect.isawaitable(value) else value


def _sum(reads: dict[str, Read], weights: Sequence[float]) -> Read:
    wrong = next((f"{name}: {read.wrong}" for name, read in reads.items() if read.wrong), "")
    values = [read.reward for read in reads.values()]
    silent = [name for name, read in reads.items() if read.reward is None]
    if wrong or silent:
        return Read(None, note=f"no value from {', '.join(silent)}" if not wrong else "", wrong=wrong)
    total = sum(weight * (value or 0.0) for weight, value in zip(weights, values))
    parts = {name: read.reward for name, read in reads.items() if as_number(read.reward) is not None}
    return Read(total, {name: value for name, value in parts.items() if value is not None})
