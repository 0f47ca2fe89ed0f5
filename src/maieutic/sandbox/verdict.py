"""A program against tests. What was expected never enters the program's process, so the verdict cannot be forged there.

    Call     arguments go in, plain data come out            → compared here, in the trainer
    Checks   the tests run in a second process, and what the program defines is called from there, by way of the trainer
    Script   input goes in, output comes out                 → compared here

All tests of a program run in one process of its own, which keeps what the program remembers between calls. When a test
ends it (it hung, it crashed), the next test has a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maieutic.sandbox import wire
from maieutic.sandbox.asserts import Call, Checks, Script, Test, read_tests
from maieutic.sandbox.host import Clock
from maieutic.sandbox.limits import Ended, Limits
from maieutic.sandbox.pool import LONGEST_PROGRAM, Sandbox
from maieutic.sandbox.session import Session

__all__ = ["Call", "Checks", "Report", "Result", "Script", "Test", "examine", "read_tests"]

#: Questions that one test may ask of the program.
_MOST_QUESTIONS = 10_000
#: A test that is lost with its sandbox is carried out so often.
_ATTEMPTS = 3
_WHY = 300


@dataclass(frozen=True, slots=True)
class Result:
    """What one test said: passed or not, and why not."""

    passed: bool
    why: str = ""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What all tests said. With `stop_at_failure` those after the first that failed are not there."""

    results: tuple[Result, ...]
    tests: int
    """How many there are."""

    @property
    def share(self) -> float:
        """The share of the tests that passed."""
        return sum(result.passed for result in self.results) / self.tests

    @property
    def passed(self) -> bool:
        """Whether all did."""
        return self.share == 1.0

    @property
    def timed_out(self) -> bool:
        """Whether any took too long."""
        return any(result.timed_out for result in self.results)

    @property
    def why(self) -> str:
        """Why the first that failed did."""
        return next((result.why for result in self.results if not result.passed), "")


class _Failed(Exception):
    """The test is not passed."""

    def __init__(self, why: str, timed_out: bool = False) -> None:
        super().__init__(why)
        self.result = Result(False, why[:_WHY], timed_out)


class _Lost(Exception):
    """The sandbox did not answer: carry the test out again."""


@dataclass
class _Program:
    """The program's process, begun when it is first asked something and again after a test has ended it."""

    sandbox: Sandbox
    parts: Sequence[str]
    limits: Limits
    session: Session | None = None
    broken: str = ""
    """Why it cannot be defined, once that is known."""
    clock: Clock = field(default_factory=Clock)
    spent: float = 0.0

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply: a value or an exception. Raises _Failed where there is none."""
        if self.broken:
            raise _Failed(self.broken)
        self.check_time()
        if self.session is None:
            self.session = self.sandbox.open(self.limits)
            reply = self._exchange({"parts": list(self.parts)})
            if "raised" in reply:
                self.broken = _last_line(reply["raised"][1])
                raise _Failed(self.broken)
        return self._exchange(request)

    def check_time(self) -> None:
        """Raise _Failed where all tests together have taken too long."""
        self.clock.tick()
        if self.clock.passed > self.limits.total_wall_seconds or self.spent > self.limits.total_seconds:
            raise _Failed("no time is left for this test: those before it took it", timed_out=True)

    def _exchange(self, request: Mapping[str, Any]) -> dict[str, Any]:
        session = self.session
        assert session is not None
        reply = session.exchange(request)
        if reply is None:
            ended, why = session.ended, session.why
            self.close()
            if ended is Ended.LOST:
                raise _Lost
            raise _Failed(why or "it ended", timed_out=ended is Ended.TIMEOUT)
        raised = reply.get("raised")
        if isinstance(raised, list) and len(raised) == 2 and all(isinstance(each, str) for each in raised):
            return {"raised": raised}
        return {"value": reply.get("value")}

    def close(self) -> None:
        """End its process."""
        if self.session is not None:
            self.session.close()
            self.spent += float(self.session.last.get("cpu", 0.0))
            self.session = None


@dataclass
class _Examination:
    """One program and the process of its tests."""

    sandbox: Sandbox
    program: _Program
    limits: Limits
    judge: Session | None = None

    def carry_out(self, test: Test) -> Result:
        """What one test says."""
        kinds: Mapping[type, Callable[[Any], None]] = {Call: self._call, Checks: self._check, Script: self._script}
        for _ in range(_ATTEMPTS):
            try:
                kinds[type(test)](test)
            except _Failed as failed:
                return failed.result
            except _Lost:
                self.close()
                continue
            return Result(True)
        return Result(False, f"the sandbox did not answer {_ATTEMPTS} times", timed_out=True)

    def _call(self, test: Call) -> None:
        encode = wire.Encoder().encode
        given = {"args": [encode(each) for each in test.args], "kwargs": {k: encode(v) for k, v in test.kwargs.items()}}
        reply = self.program.ask({"call": test.function, **given})
        if "raised" in reply:
            raise _Failed(_last_line(reply["raised"][1]))
        value = reply["value"]
        if test.truth is not None:
            passed = wire.truth(value) is test.truth
        else:
            passed = wire.same(test.expected, value, test.rule)
        if not passed:
            shown = ", ".join([*map(repr, test.args), *(f"{k}={v!r}" for k, v in test.kwargs.items())])[:100]
            wanted = f"something {str(test.truth).lower()}" if test.truth is not None else repr(test.expected)[:80]
            raise _Failed(f"{test.function}({shown}) returned {wire.brief(value, 80)}, expected {wanted}")

    def _check(self, test: Checks) -> None:
        if self.judge is None:
            self.judge = self.sandbox.open(self.limits, judge=True)
        try:
            reply = self.judge.exchange({"setup": test.setup, "remote": list(test.remote), "test": test.source})
            for _ in range(_MOST_QUESTIONS):
                if reply is None or not isinstance(reply.get("ask"), dict):
                    break
                reply = self.judge.exchange(self.program.ask(reply["ask"]))
        except (_Failed, _Lost):
            self._dismiss()
            raise
        if reply is None:
            ended, why = self.judge.ended, self.judge.why
            self._dismiss()
            if ended is Ended.LOST:
                raise _Lost
            raise _Failed(f"the test itself: {why}", timed_out=ended is Ended.TIMEOUT)
        if reply.get("passed") is not True:
            self._dismiss() if "ask" in reply else None
            raise _Failed(_last_line(str(reply.get("why", "it asks without end"))))

    def _script(self, test: Script) -> None:
        self.program.check_time()
        self.program.close()
        outcome = self.sandbox.run_parts(self.program.parts, stdin=test.stdin, limits=self.limits)
        self.program.spent += outcome.seconds
        if not outcome.ok:
            said = outcome.why or _last_line(outcome.stderr) or f"it ended with exit code {outcome.exit_code}"
            raise _Failed(said, timed_out=outcome.ended is Ended.TIMEOUT)
        if _lines(outcome.stdout) != _lines(test.stdout):
            raise _Failed(f"it printed {outcome.stdout[:80]!r}, expected {test.stdout[:80]!r}")

    def _dismiss(self) -> None:
        if self.judge is not None:
            self.judge.close()
            self.judge = None

    def close(self) -> None:
        """End all processes."""
        self._dismiss()
        self.program.close()


def examine(
    sandbox: Sandbox,
    program: str | Sequence[str],
    tests: Sequence[Test],
    limits: Limits = Limits(),  # noqa: B008  (frozen)
    *,
    stop_at_failure: bool = False,
) -> Report:
    """Carry the tests out on a program, in order.

    >>> with shared().lend() as sandbox:
    ...     examine(sandbox, "def add(a, b): return a + b", read_tests("assert add(1, 2) == 3")).share
    1.0

    `program` may be several sources that run one after the other (trusted definitions, then the program). Whatever the
    program does becomes a result; ConfigError and RewardError as `Sandbox.open` raises them.
    """
    parts = [program] if isinstance(program, str) else list(program)
    if sum(map(len, parts)) > LONGEST_PROGRAM:
        return Report((Result(False, f"a program longer than {LONGEST_PROGRAM} characters"),) * len(tests), len(tests))
    examination = _Examination(sandbox, _Program(sandbox, parts, limits), limits)
    results: list[Result] = []
    try:
        for test in tests:
            results.append(examination.carry_out(test))
            if stop_at_failure and not results[-1].passed:
                break
    finally:
        examination.close()
    return Report(tuple(results), len(tests))


def _last_line(text: str) -> str:
    """What a traceback comes to."""
    return text.strip().rpartition("\n")[2][:_WHY]


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
