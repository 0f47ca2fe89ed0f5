"""Reward functions as rewards: `@reward`, and `load_reward("file.py:function")` for functions in users' files.

    @reward
    def short(completion: str) -> float:
        return 1.0 if len(completion) < 200 else 0.0

A plain function takes any of `prompt` (text of the last user message), `completion` (text of the rollout), `answer`
(the gold) and `task`, by these names, and is called once a rollout. Functions written for TRL, verifiers, verl,
OpenRLHF and reasoning-gym are recognised by their parameters and called as they are there; see `adapt`. A function
returns a float, a bool, a number in a tensor or of numpy; a dict of named parts, which are summed; or None where it
cannot say, which leaves the rollout unscored. Those for whole groups return a list of these.

A call that raises, takes too long, or returns something else, a number that is not finite, or more or fewer scores
than there are completions, leaves its rollouts unscored (`reward` None, `note` says why). Such failures are counted,
the first is logged with its traceback, and `FailureBudget` stops the run when they are too many: a reward that always
fails must not look like a policy that never learns.

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
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, overload

from maieutic.environments.episodes import turns_of
from maieutic.errors import ConfigError, RewardError
from maieutic.own_code import load_function
from maieutic.protocols import Reward
from maieutic.rewards import adapt
from maieutic.rewards.adapt_arguments import Attempt
from maieutic.rewards.adapt_calls import Judging, judging
from maieutic.rewards.adapt_values import Read
from maieutic.rewards.serve import Target
from maieutic.rewards.worker import Ended, Outcome, ThreadCaller, Worker
from maieutic.types import Finish, Rollout, Score, Task

logger = logging.getLogger("maieutic.rewards")

#: Seconds beyond its limit after which a call is killed that should have been cancelled at the limit.
GRACE = 1.0


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

    def check(
        self,
        name: str,
        detail: str,
        remedy: str = "repair the function (its last failure is below), let it return None for what it cannot score",
    ) -> None:
        """Raise `RewardError` with the last failure's `detail` if too many calls failed."""
        recent, bad = len(self._recent), sum(self._recent)
        never = self.max_share < 1 and self.failures == self.calls >= min(self.minimum, 4)
        if never or (recent >= self.minimum and bad > self.max_share * recent):
            raise RewardError(
                f"reward {name!r}: {bad} of the last {recent} calls failed ({bad / recent:.0%}); allowed: "
                f"{self.max_share:.0%}. Remedy: {remedy}, or allow more: max_reward_failures in a config, "
                f"FailureBudget(max_share=...) in Python.\n{detail}"
            )


class Ending(StrEnum):
    """How the judging of one rollout ended."""

    SCORED = "scored"
    UNSCORABLE = "unscorable"
    """The function returned None, or the rollout had failed before."""
    TIMED_OUT = "timed out"
    FAILED = "failed"
    """The function raised, died, or returned what is no reward."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The score of one rollout, how its judging ended, and the failure to show ("" if it is none)."""

    ending: Ending
    score: Score
    detail: str = ""


def reading(found: Any) -> Judging:
    """`found`, to be called for completions of a task. Applied on the side where it runs: only plain values travel."""
    return judging(found.function if isinstance(found, PlainReward) else found)


class PlainReward:
    """A function as a `Reward`; made by `@reward` and `load_reward`. `budget.calls` and `budget.failures` say how it
    fares, `form` how it is called.

    `timeout_seconds` bounds a call: of a function for groups that is one for the whole group. `conversational`: whether
    it wants lists of messages instead of texts, where that is not as `adapt` guesses. `at_once` groups are judged at a
    time; more than one only for what is safe in several threads, since there is one worker.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        timeout_seconds: float = 10.0,
        budget: FailureBudget | None = None,
        target: Target | None = None,
        conversational: bool | None = None,
        at_once: int = 1,
    ) -> None:
        self.function = function
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        self.form = adapt.recognise(function, self.name, conversational)
        if not (math.isfinite(timeout_seconds) and timeout_seconds > 0):
            raise ConfigError(f"reward {self.name!r}: got timeout_seconds={timeout_seconds}; expected more than 0")
        self.timeout_seconds = timeout_seconds
        self.budget = budget or FailureBudget()
        self._target = target
        self._caller: Worker | ThreadCaller | None = None
        # One thread: calls of concurrent groups queue up for the one worker, and functions need not be thread-safe.
        self._executor = ThreadPoolExecutor(at_once, thread_name_prefix=f"maieutic-reward-{self.name}")
        self._shown = False

    @property
    def killable(self) -> bool:
        """Whether calls run in a process that can be killed."""
        return self.target is not None

    @property
    def target(self) -> Target | None:
        """Where another process finds the function; None where it cannot."""
        return self._target or _importable(self.function)

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout. Raises `RewardError` when the failure budget is spent."""
        return [judgement.score for judgement in await self.judge(task, rollouts)]

    async def judge(self, task: Task, rollouts: Sequence[Rollout]) -> list[Judgement]:
        """One judgement a rollout. Raises `RewardError` when the failure budget is spent."""
        attempts = [_attempt(r) for r in rollouts if r.finish is not Finish.ERROR]
        outcomes = await self._outcomes(self._sent(task), attempts) if attempts else []
        judged = [self._judgement(outcome) for outcome in outcomes]
        self._account([judgement.detail for judgement in judged])
        judgements = iter(judged)
        return [
            Judgement(Ending.UNSCORABLE, unscorable(r)) if r.finish is Finish.ERROR else next(judgements)
            for r in rollouts
        ]

    async def _outcomes(self, task: Task, attempts: Sequence[Attempt]) -> list[Outcome]:
        future = self._executor.submit(self._run, task, attempts)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # Ctrl-C during a call that hangs: the interpreter would wait for it before it exits. Groups that were
            # cancelled together with this one take their calls out of the queue first, or the next one would hang.
            if future.running():
                await asyncio.sleep(0)
                self.close()
            raise

    def _run(self, task: Task, attempts: Sequence[Attempt]) -> list[Outcome]:
        alone = [[attempt] for attempt in attempts]
        if not (self.form.family.group or self.form.concurrent):
            return self._called(task, alone)[0]
        outcomes, ended = self._called(task, [attempts])
        if self.form.concurrent and len(attempts) > 1 and ended[0] in (Ended.TIMEOUT, Ended.DIED):
            outcomes, _ = self._called(task, alone)  # one of them took the others with it: find out which
        return outcomes

    def _called(self, task: Task, batches: Sequence[Sequence[Attempt]]) -> tuple[list[Outcome], list[Ended]]:
        """An outcome for each completion of the batches, and how the call for each batch ended."""
        if self._caller is None:
            target = self.target
            limit = self.timeout_seconds + (GRACE if self.form.asynchronous else 0.0)
            self._caller = (
                ThreadCaller(reading(self.function), timeout_seconds=limit)
                if target is None
                else Worker(target, timeout_seconds=limit)
            )
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            ((task, batch, self.timeout_seconds, self.form.conversational), {}) for batch in batches
        ]
        made = [self._explained(call) for call in self._caller.call_each(calls)]
        outcomes = [
            outcome
            for call, batch in zip(made, batches)
            for outcome in (call.value if call.ended is Ended.RETURNED else [call] * len(batch))
        ]
        return outcomes, [call.ended for call in made]

    def _explained(self, call: Outcome) -> Outcome:
        if call.ended is not Ended.TIMEOUT or not self.form.asynchronous:
            return call
        why = "it is async and yet never waits, so it could not be cancelled; its process was killed"
        return replace(call, detail=f"no result within {self.timeout_seconds:g} s: {why}")

    def _sent(self, task: Task) -> Task:
        # `meta` may be a read-only view, which cannot travel to another process, and large.
        needless = self.form.family is adapt.PLAIN and "task" not in self.form.parameters
        return replace(task, meta={} if needless else dict(task.meta))

    def _judgement(self, outcome: Outcome) -> Judgement:
        if outcome.ended is not Ended.RETURNED:
            last = outcome.detail.strip().rpartition("\n")[2]
            ending = Ending.TIMED_OUT if outcome.ended is Ended.TIMEOUT else Ending.FAILED
            return Judgement(ending, Score(None, note=f"{self.name}: {outcome.ended.value}: {last}"), outcome.detail)
        read: Read = outcome.value
        if read.wrong:
            last = read.wrong.rpartition("\n")[2]
            return Judgement(Ending.FAILED, Score(None, note=f"{self.name}: {last}"), read.wrong)
        if read.reward is None:
            note = "; ".join(filter(None, (f"{self.name}: returned None", read.note)))
            return Judgement(Ending.UNSCORABLE, Score(None, note=note))
        return Judgement(Ending.SCORED, Score(read.reward, parts=read.parts, note=read.note))

    def _account(self, outcomes: list[str]) -> None:
        details = [detail for detail in outcomes if detail]
        group = self.form.family.group
        self.budget.record([bool(details)] * bool(outcomes) if group else [bool(detail) for detail in outcomes])
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


def _attempt(rollout: Rollout) -> Attempt:
    chosen = tuple(token for token, mine in zip(rollout.tokens, rollout.mask) if mine)
    several = any(span.role == "environment" for span in rollout.spans)
    turns = tuple((m.role, m.content) for m in turns_of(rollout)) if several else ()
    opening = tuple((m.role, m.content) for span in rollout.spans[:1] for m in span.messages)
    return Attempt(rollout.text, chosen, rollout.finish is Finish.LENGTH, turns, opening)


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
    *,
    name: str | None = None,
    timeout_seconds: float = 10.0,
    budget: FailureBudget | None = None,
    conversational: bool | None = None,
) -> Callable[[Callable[..., Any]], PlainReward]: ...
def reward(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout_seconds: float = 10.0,
    budget: FailureBudget | None = None,
    conversational: bool | None = None,
) -> PlainReward | Callable[[Callable[..., Any]], PlainReward]:
    """Lift a function into a `Reward`; see the top of this file. Also `@reward(timeout_seconds=2)`.

    Raises `ConfigError` for parameters that fit no family of `adapt`. `.function` is what was lifted.
    """

    def lift(plain: Callable[..., Any]) -> PlainReward:
        return PlainReward(
            plain, name=name, timeout_seconds=timeout_seconds, budget=budget, conversational=conversational
        )

    return lift if function is None else lift(function)


def load_reward(
    where: str,
    *,
    timeout_seconds: float | None = None,
    budget: FailureBudget | None = None,
    conversational: bool | None = None,
) -> PlainReward | Reward:
    """The reward `"path/to/file.py:function"`: a function of any family, one lifted by `@reward`, an object that
    `adapt` knows, or an async `Reward`.

    Raises `ConfigError` if the file or the name is not there, or fits no family; `DataError` if the file cannot be run.
    """
    found, path = load_function("reward", where)
    name = where.rpartition(":")[2]
    if is_reward(found):
        return found
    limit = timeout_seconds
    if isinstance(found, PlainReward):
        limit, budget = limit or found.timeout_seconds, budget or found.budget
        conversational = found.form.conversational if conversational is None else conversational
    return PlainReward(
        found.function if isinstance(found, PlainReward) else found,
        name=found.name if isinstance(found, PlainReward) else name,
        timeout_seconds=10.0 if limit is None else limit,
        budget=budget,
        target=Target(name, path=str(path), adapt=f"{__name__}:reading"),
        conversational=conversational,
    )


def is_reward(found: Any) -> bool:
    """Whether it is a `Reward` as it stands: an async function of a task and its rollouts."""
    if not inspect.iscoroutinefunction(found):
        return False
    names = list(inspect.signature(found).parameters)
    return len(names) == 2 and names[0] == "task" and names[1] not in adapt.KNOWN[adapt.VERIFIERS]
