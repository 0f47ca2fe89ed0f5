"""Calls of a reward function, whatever its family: `judging(function)` takes a task and completions and gives an
outcome for each. It runs where the function runs, usually in the worker process; only plain values leave it.

Calls of an async function are made at once, on one event loop that lives as long as the process, so that clients and
locks which the function keeps stay usable; each has the time limit. Whatever a function raises is an outcome.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from maieutic.rewards import adapt
from maieutic.rewards.adapt import Form, inner_function
from maieutic.rewards.adapt_arguments import (
    Attempt,
    MissingColumnOfTask,
    for_gym,
    for_one,
    for_openrlhf,
    for_trl,
    for_verl,
    of_state,
    of_states,
    state_of,
)  # fmt: skip
from maieutic.rewards.adapt_rubric import rubric_reads
from maieutic.rewards.adapt_values import NotOneEach, Read, as_number, read_list, read_logged, read_scored, read_value
from maieutic.rewards.worker import Ended, Outcome
from maieutic.types import Task

#: (task, completions, seconds that a call may take, conversational) → an outcome for each completion, in order.
Judging = Callable[[Task, Sequence[Attempt], float, bool], list[Outcome]]


def judging(found: Any, name: str = "") -> Judging:
    """`found`, a reward of any family, to be called for completions of a task. Raises ConfigError as `recognise`."""
    form = adapt.recognise(found, name or getattr(found, "__name__", type(found).__name__))
    calls = Calls(found, form)
    return calls.judge


class Calls:
    """One reward function of a known form, and the event loop of its coroutines."""

    def __init__(self, found: Any, form: Form) -> None:
        self.found = found
        self.form = form
        self._loop: asyncio.AbstractEventLoop | None = None

    def judge(self, task: Task, attempts: Sequence[Attempt], limit: float, conversational: bool) -> list[Outcome]:
        """An outcome for each completion; raises what a call for the whole group raises."""
        if self.form.family.group:
            return self._whole(task, attempts, limit, conversational)
        if self.form.asynchronous:
            return self._wait(self._together(task, attempts, limit, conversational), math.inf)
        return [self._alone(task, attempt, limit, conversational) for attempt in attempts]

    def _whole(self, task: Task, attempts: Sequence[Attempt], limit: float, conversational: bool) -> list[Outcome]:
        start = time.monotonic()
        try:
            made = self._group(task, attempts, conversational)
            reads = self._wait(made, limit) if inspect.isawaitable(made) else made
        except TimeoutError:
            if time.monotonic() - start < limit:  # the function's own
                raise
            return [Outcome(Ended.TIMEOUT, detail=_late(limit))] * len(attempts)
        except NotOneEach as error:
            reads = [Read(None, wrong=str(error))] * len(attempts)
        return [Outcome(Ended.RETURNED, read) for read in reads]

    def _alone(self, task: Task, attempt: Attempt, limit: float, conversational: bool) -> Outcome:
        try:
            value = self._one(task, attempt, conversational)
            value = self._wait(value, limit) if inspect.isawaitable(value) else value
            return Outcome(Ended.RETURNED, self._read(value))
        # The function is the user's: whatever it raises is a result to report.
        except BaseException:  # noqa: BLE001
            return Outcome(Ended.RAISED, detail=traceback.format_exc(limit=-12))

    async def _together(
        self, task: Task, attempts: Sequence[Attempt], limit: float, conversational: bool
    ) -> list[Outcome]:
        async def one(attempt: Attempt) -> Outcome:
            try:
                value = await asyncio.wait_for(self._one(task, attempt, conversational), limit)
            except TimeoutError:
                return Outcome(Ended.TIMEOUT, detail=_late(limit))
            # The function is the user's: whatever it raises is a result to report.
            except BaseException:  # noqa: BLE001
                return Outcome(Ended.RAISED, detail=traceback.format_exc(limit=-12))
            return Outcome(Ended.RETURNED, self._read(value))

        return list(await asyncio.gather(*map(one, attempts)))

    def _wait(self, made: Awaitable[Any], limit: float) -> Any:
        loop = self._loop
        if loop is None or loop.is_closed() or loop.is_running():  # running: in a thread that was left behind
            loop = self._loop = asyncio.new_event_loop()
        return loop.run_until_complete(asyncio.wait_for(made, None if math.isinf(limit) else limit))

    def _asked(self, offered: dict[str, Any]) -> dict[str, Any]:
        return _asked(self.found, self.form, offered)

    def _one(self, task: Task, attempt: Attempt, conversational: bool) -> Any:
        """What the function returns for one completion (a coroutine, where it is async)."""
        family = self.form.family
        if family is adapt.GYM:
            score = getattr(self.found, "score_answer", self.found)
            return score(**for_gym(task, attempt))
        if family is adapt.VERL:
            return self.found(**self._asked(for_verl(task, attempt)))
        if family is adapt.VERIFIERS:
            return self.found(**self._asked(of_state(state_of(task, attempt, conversational))))
        return self.found(**self._asked(for_one(task, attempt, conversational)))

    def _read(self, value: Any) -> Read:
        return read_scored(value) if self.form.family is adapt.VERL else read_value(value)

    def _group(self, task: Task, attempts: Sequence[Attempt], conversational: bool) -> Any:
        """What is read of one call for the whole group (or a coroutine for it)."""
        family, n = self.form.family, len(attempts)
        if family is adapt.RUBRIC:
            return rubric_reads(self.found, [state_of(task, attempt, conversational) for attempt in attempts])
        if family is adapt.TRL:
            return self._trl(task, attempts, conversational)
        if family is adapt.OPENRLHF:
            return _then(self.found(**self._asked(for_openrlhf(task, attempts))), lambda value: read_logged(value, n))
        if family is adapt.VERL_BATCH:
            single = [for_verl(task, attempt) for attempt in attempts]
            lists = {f"{name}s": [each[name] for each in single] for name in single[0]}
            return _then(self.found(**self._asked(lists)), lambda value: read_list(value, n, read_scored))
        states = [state_of(task, attempt, conversational) for attempt in attempts]
        return _then(self.found(**self._asked(of_states(states))), lambda value: read_list(value, n))

    def _trl(self, task: Task, attempts: Sequence[Attempt], conversational: bool) -> Any:
        """A call as TRL makes it: whatever the function logs is kept beside the rewards."""
        metrics: dict[str, float] = {}
        extra: dict[str, list[Any]] = {}

        def log_metric(name: str, value: Any) -> None:
            number = as_number(value)
            if number is not None and math.isfinite(number):
                metrics[name] = number

        offered = {
            **for_trl(task, attempts, conversational),
            "log_metric": log_metric,
            "log_extra": lambda column, values: extra.update({column: list(values)}),
        }

        def read(value: Any) -> list[Read]:
            reads = read_list(value, len(attempts))
            for i, one in enumerate(reads):
                said = [f"{name}: {values[i]}" for name, values in extra.items() if i < len(values)]
                parts = {**one.parts, **metrics} if one.reward is not None else one.parts
                reads[i] = Read(one.reward, parts, "; ".join(said), one.wrong)
            return reads

        return _then(self.found(**self._asked(offered)), read)


def _late(limit: float) -> str:
    return f"no result within {limit:g} s; the call was cancelled"


def _asked(found: Any, form: Form, offered: dict[str, Any]) -> dict[str, Any]:
    """Of what is offered, what the function names, or all of it if it takes any keywords.

    Functions of verifiers find what nobody offers beside them, in their module: a judge, a parser. A column that the
    task lacks raises `MissingColumnOfTask`, unless the parameter has a default.
    """
    chosen = dict(offered) if form.rest else {name: offered[name] for name in form.parameters if name in offered}
    if form.family in (adapt.VERIFIERS, adapt.VERIFIERS_GROUP):
        scope = getattr(inner_function(found), "__globals__", {})
        missing = [name for name in form.parameters if name not in offered or name == "parser"]
        return {**chosen, **{name: scope[name] for name in missing if name in scope}}
    if form.family is adapt.TRL:
        for name, parameter in inspect.signature(found).parameters.items():
            needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
            if needed and name not in offered:
                raise MissingColumnOfTask(name, offered)
    return chosen


def _then(value: Any, read: Callable[[Any], list[Read]]) -> Any:
    """`read(value)`, or a coroutine for it where the value must be awaited."""
    if not inspect.isawaitable(value):
        return read(value)

    async def awaited() -> list[Read]:
        return read(await value)

    return awaited()
