"""Plain functions as rewards: `@reward`, and `load_reward("file.py:function")` for functions in users' files.

    @reward
    def short(completion: str) -> float:
        return 1.0 if len(completion) < 200 else 0.0

A function takes any of `prompt` (text of the last user message), `completion` (text of the rollout), `answer` (the
gold) and `task`, by these names. It returns a float; a dict of named parts, which are summed; or None where it cannot
say, which leaves the rollout unscored. It is called once a rollout, with a time limit.

A call that raises, takes too long, or returns something else or a number that is not finite leaves its rollout
unscored (`reward` None, `note` says why). Such failures are counted, the first is logged with its traceback, and
`FailureBudget` stops the run when they are too many: a reward that always fails must not look like a policy that
never learns.

A function at the top of an importable module (or of a file given to `load_reward`) runs in a process of its own,
which is killed at the time limit. Closures, lambdas and functions of the script that is being run cannot be imported
elsewhere; they run in a thread, which can be left behind but not killed. The process imports the module: one that is
heavy to import is better split.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import numbers
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, overload

from maieutic.errors import ConfigError, RewardError
from maieutic.own_code import load_function
from maieutic.protocols import Reward
from maieutic.rewards.serve import Target
from maieutic.rewards.worker import Ended, Outcome, ThreadCaller, Worker
from maieutic.types import Finish, Rollout, Score, Task

logger = logging.getLogger("maieutic.rewards")

PARAMETERS = ("prompt", "completion", "answer", "task")

Parts = dict[str, float]


class FailureBudget:
    """How many failed calls a run may have.

    The run stops with `RewardError` when, of the last `window` calls and once there are `minimum` of them, more than
    `max_share` failed; and at once when the first four calls (or `minimum`, if less) all failed, because a function
    that has never worked is broken, also in a run that is too short to reach `minimum`.
    """

    def __init__(self, max_share: float = 0.1, minimum: int = 20, window: int = 500) -> None:
        if not 0 <= max_share <= 1 or minimum < 1 or window < minimum:
            raise ConfigError(
                f"FailureBudget: got max_share={max_share}, minimum={minimum}, window={window}; expected a share "
                "between 0 and 1 and 1 <= minimum <= window"
            )
        self.max_share = max_share
        self.minimum = minimum
        self.calls = 0
        self.failures = 0
        self._recent: deque[bool] = deque(maxlen=window)

    def record(self, failed: Sequence[bool]) -> None:
        """Count calls, each failed or not."""
        self.calls += len(failed)
        self.failures += sum(failed)
        self._recent.extend(failed)

    def check(self, name: str, detail: str) -> None:
        """Raise `RewardError` with the last failure's `detail` if too many calls failed."""
        recent, bad = len(self._recent), sum(self._recent)
        never = self.max_share < 1 and self.failures == self.calls >= min(self.minimum, 4)
        if never or (recent >= self.minimum and bad > self.max_share * recent):
            raise RewardError(
                f"reward {name!r}: {bad} of the last {recent} calls failed ({bad / recent:.0%}); allowed: "
                f"{self.max_share:.0%}. Remedy: repair the function (its last failure is below), let it return None "
                "for what it cannot score, or allow more: max_reward_failures in a config, FailureBudget(max_share=...)"
                f" in Python.\n{detail}"
            )


def read_value(value: Any) -> tuple[float | None, Parts, str]:
    """What a reward function returned, as (reward, parts, what is wrong with it)."""
    if value is None:
        return None, {}, ""
    parts = value if isinstance(value, dict) else {"": value}
    read: Parts = {}
    for name, part in parts.items():
        where = f"part {name!r} of a dict" if isinstance(value, dict) else "a value"
        if not isinstance(part, numbers.Real) or not isinstance(name, str):
            return (
                None,
                {},
                f"it returned {where} of type {type(part).__name__}; expected float, dict of floats, or None",
            )
        try:
            read[name] = float(part)
        except OverflowError:
            read[name] = math.inf
        if not math.isfinite(read[name]):
            return None, {}, f"it returned {where} that is {read[name]}; expected a finite number, or None"
    total = sum(read.values())
    return total, read if isinstance(value, dict) else {}, "" if math.isfinite(total) else f"its parts sum to {total}"


def reading(function: Any) -> Callable[..., tuple[float | None, Parts, str]]:
    """`function`, its values read. Applied on the side where the function runs: only plain floats travel."""
    plain = function.function if isinstance(function, PlainReward) else function

    def call(**arguments: Any) -> tuple[float | None, Parts, str]:
        return read_value(plain(**arguments))

    return call


class PlainReward:
    """A plain function as a `Reward`; made by `@reward`. `budget.calls` and `budget.failures` say how it fares."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        timeout_seconds: float = 10.0,
        budget: FailureBudget | None = None,
        target: Target | None = None,
    ) -> None:
        self.function = function
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        self.parameters = _parameters(function, self.name)
        if not (math.isfinite(timeout_seconds) and timeout_seconds > 0):
            raise ConfigError(f"reward {self.name!r}: got timeout_seconds={timeout_seconds}; expected more than 0")
        self.timeout_seconds = timeout_seconds
        self.budget = budget or FailureBudget()
        self._target = target
        self._caller: Worker | ThreadCaller | None = None
        # One thread: calls of concurrent groups queue up for the one worker, and functions need not be thread-safe.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"maieutic-reward-{self.name}")
        self._shown = False

    @property
    def killable(self) -> bool:
        """Whether calls run in a process that can be killed."""
        return (self._target or _importable(self.function)) is not None

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout. Raises `RewardError` when the failure budget is spent."""
        calls = [((), self._arguments(task, r)) for r in rollouts if r.finish is not Finish.ERROR]
        outcomes = await self._outcomes(calls) if calls else []
        judged = [self._score(outcome) for outcome in outcomes]
        self._account([detail for _, detail in judged])
        scores = iter([score for score, _ in judged])
        return [unscorable(r) if r.finish is Finish.ERROR else next(scores) for r in rollouts]

    async def _outcomes(self, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Outcome]:
        future = self._executor.submit(self._run, calls)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # Ctrl-C during a call that hangs: the interpreter would wait for it before it exits. Groups that were
            # cancelled together with this one take their calls out of the queue first, or the next one would hang.
            if future.running():
                await asyncio.sleep(0)
                self.close()
            raise

    def _run(self, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Outcome]:
        if self._caller is None:
            target = self._target or _importable(self.function)
            self._caller = (
                ThreadCaller(reading(self.function), timeout_seconds=self.timeout_seconds)
                if target is None
                else Worker(target, timeout_seconds=self.timeout_seconds)
            )
        return self._caller.call_each(calls)

    def _arguments(self, task: Task, rollout: Rollout) -> dict[str, Any]:
        questions = [message.content for message in task.prompt if message.role == "user"]
        # `meta` may be a read-only view, which cannot travel to another process.
        known = {
            "prompt": questions[-1] if questions else "",
            "completion": rollout.text,
            "answer": task.answer,
            "task": replace(task, meta=dict(task.meta)),
        }
        return {name: known[name] for name in self.parameters}

    def _score(self, outcome: Outcome) -> tuple[Score, str]:
        """The score that an outcome makes, and the failure to show ("" if it is none)."""
        if outcome.ended is not Ended.RETURNED:
            last = outcome.detail.strip().rpartition("\n")[2]
            return Score(None, note=f"{self.name}: {outcome.ended.value}: {last}"), outcome.detail
        value, parts, wrong = outcome.value
        if wrong:
            return Score(None, note=f"{self.name}: {wrong}"), wrong
        return Score(value, parts=parts, note="" if value is not None else f"{self.name}: returned None"), ""

    def _account(self, outcomes: list[str]) -> None:
        self.budget.record([bool(detail) for detail in outcomes])
        details = [detail for detail in outcomes if detail]
        if not details:
            return
        if not self._shown:
            self._shown = True
            logger.warning(
                "reward %r failed; the rollout is left unscored. Further failures are counted, not shown.\n%s",
                self.name,
                details[0],
            )
        self.budget.check(self.name, details[-1])

    def close(self) -> None:
        """End calls in flight, and the worker process if there is one (done at exit by itself)."""
        if self._caller is not None:
            self._caller.close()


def unscorable(rollout: Rollout) -> Score:
    """The score of a rollout that failed while it was made: none."""
    return Score(None, note=f"the rollout failed: {rollout.note or 'no reason given'}")


def _parameters(function: Callable[..., Any], name: str) -> tuple[str, ...]:
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise ConfigError(
            f"reward {name!r}: got {type(function).__name__}, expected a plain function. Remedy: an async function of "
            "(task, rollouts) that returns one Score a rollout is a reward already, without @reward"
        )
    try:
        signature = inspect.signature(function)
    except ValueError as error:
        raise ConfigError(f"reward {name!r}: its parameters cannot be read. Remedy: wrap it in a function") from error
    for parameter in signature.parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if not named or parameter.name not in PARAMETERS:
            raise ConfigError(
                f"reward {name!r}: got parameter {str(parameter)!r}; expected any of {', '.join(PARAMETERS)}. "
                "Remedy: rename it, or close over what else the function needs"
            )
    return tuple(signature.parameters)


def _importable(function: Callable[..., Any]) -> Target | None:
    """Where another process finds the function by name; None for closures, lambdas and the running script.

    The script is left out because importing it elsewhere would run it again.
    """
    module_name, name = getattr(function, "__module__", None) or "", getattr(function, "__qualname__", "<")
    module = sys.modules.get(module_name)
    if module is None or module_name == "__main__" or "<" in name:
        return None
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, PlainReward):
        found = found.function
    if found is not function:
        return None
    return Target(name, module=module_name, path=getattr(module, "__file__", None) or "", adapt=f"{__name__}:reading")


@overload
def reward(function: Callable[..., Any], /) -> PlainReward: ...
@overload
def reward(
    *, name: str | None = None, timeout_seconds: float = 10.0, budget: FailureBudget | None = None
) -> Callable[[Callable[..., Any]], PlainReward]: ...
def reward(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout_seconds: float = 10.0,
    budget: FailureBudget | None = None,
) -> PlainReward | Callable[[Callable[..., Any]], PlainReward]:
    """Lift a plain function into a `Reward`; see the top of this file. Also `@reward(timeout_seconds=2)`.

    Raises `ConfigError` for parameters other than prompt, completion, answer and task. `.function` is what was lifted.
    """

    def lift(plain: Callable[..., Any]) -> PlainReward:
        return PlainReward(plain, name=name, timeout_seconds=timeout_seconds, budget=budget)

    return lift if function is None else lift(function)


def load_reward(
    where: str, *, timeout_seconds: float | None = None, budget: FailureBudget | None = None
) -> PlainReward | Reward:
    """The reward `"path/to/file.py:function"`: a plain function, one lifted by `@reward`, or an async `Reward`.

    Raises `ConfigError` if the file or the name is not there, `DataError` if the file cannot be run.
    """
    found, path = load_function("reward", where)
    name = where.rpartition(":")[2]
    if inspect.iscoroutinefunction(found):
        return found
    limit = timeout_seconds
    if isinstance(found, PlainReward):
        limit, budget = limit or found.timeout_seconds, budget or found.budget
    plain = found.function if isinstance(found, PlainReward) else found
    return PlainReward(
        plain,
        name=found.name if isinstance(found, PlainReward) else name,
        timeout_seconds=10.0 if limit is None else limit,
        budget=budget,
        target=Target(name, path=str(path), adapt=f"{__name__}:reading"),
    )
