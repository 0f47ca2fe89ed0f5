"""The clock: what the seconds of a step go to, for whoever listens. Unheard, a phase costs about a microsecond.

    with phase("update"): …                          where a phase begins and ends; phases nest: "update/backward"
    with beside("reward"): scores = await judge(…)   what goes on while something else does
    count(tokens)                                    so many tokens went through a model, in the phase that is open

    with listening() as heard:
        for step in train(…):
            print(heard.read().seconds)              {"sampling": 0.02, "sampling/decode": 1.31, "update/backward": 0.8}

A second belongs to one phase only, the innermost that is open, so a reading's seconds and its `other` add up to the
time that passed. What goes on beside a phase is busy while the processor may be at something else: it owns a second
only where the phase that it was begun in is itself the innermost one, that is, where everything waits for it; the rest
of its busy time is hidden behind phases further in (rewards behind decoding).

A phase must not hold an `await`: the task that runs meanwhile would be counted as part of it. `beside` may.
Only the thread that listens is heard, and one that it waits for (`handed_over`).

An accelerator works on while Python goes on, so a phase's seconds are those of asking, and the waiting falls to the
phase that first reads a result: decoding does so at every token, an update at the end of each micro-batch (its parts
mean little then, its whole is right). `listening(finish=torch.cuda.synchronize)` waits at the ends of all phases,
which makes every second exact and a step a little slower.

A backend tells of its parts: `phase("prefill")`, `phase("decode")`, `phase("forward")`, `phase("backward")`,
`phase("optimiser")`, and `count`s its tokens where they run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import get_ident
from types import TracebackType

Numbers = dict[str, float]


@dataclass
class Reading:
    """What was heard between two readings, by the path of a phase.

    >>> Reading(2.0, seconds={"sampling": 0.1, "sampling/decode": 1.2}, tokens={"sampling/decode": 600.0}).other
    0.7

    total        seconds that passed.
    seconds      of them, those that a phase owns itself, those of the phases within it left out.
    busy         seconds in which something beside was going on, hidden or not.
    tokens       counted in a phase itself.
    operations   floating-point operations that these took.
    """

    total: float = 0.0
    seconds: Numbers = field(default_factory=dict)
    busy: Numbers = field(default_factory=dict)
    tokens: Numbers = field(default_factory=dict)
    operations: Numbers = field(default_factory=dict)

    @property
    def other(self) -> float:
        """Seconds outside of every phase."""
        return max(0.0, round(self.total - sum(self.seconds.values()), 9))

    def plus(self, more: Reading) -> Reading:
        """Both together."""
        columns = ("seconds", "busy", "tokens", "operations")
        return Reading(self.total + more.total, *(_sum(getattr(self, c), getattr(more, c)) for c in columns))


def _sum(a: Numbers, b: Numbers) -> Numbers:
    return {name: a.get(name, 0.0) + b.get(name, 0.0) for name in [*a, *(n for n in b if n not in a)]}


def within(numbers: Numbers, path: str) -> float:
    """The sum over a phase and the phases within it."""
    return sum(value for name, value in numbers.items() if name == path or name.startswith(f"{path}/"))


class Listener:
    """Hears the phases of one thread. Made by `listening`.

    clock        seconds, rising.
    operations   floating-point operations that a token takes now; see `costing`.
    finish       waits for an accelerator, at the ends of phases.
    """

    def __init__(self, clock: Callable[[], float], operations: float, finish: Callable[[], object] | None) -> None:
        self.clock = clock
        self.operations = operations
        self.finish = finish
        self.thread = get_ident()
        self.open: list[Phase] = []
        self.spans: dict[tuple[str, Phase | None], int] = {}
        self.last = clock()
        self.heard = Reading()

    def read(self) -> Reading:
        """What was heard since the last reading; what is open goes on."""
        self.tick()
        heard, self.heard = self.heard, Reading()
        return heard

    @property
    def inmost(self) -> Phase | None:
        """The phase that owns the present second, unless everything waits for something beside it."""
        return self.open[-1] if self.open else None

    def tick(self) -> None:
        """Give the seconds since the last tick to whom they belong."""
        if self.finish is not None:
            self.finish()
        now, heard = self.clock(), self.heard
        passed, self.last = now - self.last, now
        owner = self.inmost
        path = "" if owner is None else owner.path
        if self.spans:
            for name in {name for name, _ in self.spans}:
                heard.busy[name] = heard.busy.get(name, 0.0) + passed
            for name, host in self.spans:
                path = name if host is owner else path  # the one that was begun last
        heard.total += passed
        if path:
            heard.seconds[path] = heard.seconds.get(path, 0.0) + passed

    def count(self, tokens: int) -> None:
        """Tokens went through a model."""
        path = "" if self.inmost is None else self.inmost.path
        for column, value in ((self.heard.tokens, tokens), (self.heard.operations, self.operations * tokens)):
            column[path] = column.get(path, 0.0) + value


class Phase:
    """A phase of a listener while it is open; one within a phase of the same name is that phase."""

    def __init__(self, listener: Listener, name: str) -> None:
        self.listener = listener
        self.path = self.name = name

    def __enter__(self) -> None:
        self.listener.tick()
        outer = self.listener.inmost
        if outer is not None:
            self.path = outer.path if outer.name == self.name else f"{outer.path}/{self.name}"
        self.listener.open.append(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.listener.tick()
        self.listener.open.remove(self)


class Span:
    """Something that goes on beside the phase in which it was begun, and is named beside it."""

    def __init__(self, listener: Listener, name: str) -> None:
        self.listener = listener
        host = listener.inmost
        around = "" if host is None else host.path.rpartition("/")[0]
        self.key = (f"{around}/{name}" if around else name, host)

    def __enter__(self) -> None:
        self.listener.tick()
        spans = self.listener.spans
        spans[self.key] = spans.get(self.key, 0) + 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.listener.tick()
        spans = self.listener.spans
        spans[self.key] -= 1
        if not spans[self.key]:
            del spans[self.key]


class _Silence:
    """What a phase is when nobody listens."""

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


_SILENCE = _Silence()
_LISTENER: ContextVar[Listener | None] = ContextVar("maieutic.clock", default=None)


def _listener() -> Listener | None:
    """Who listens to this thread, if anyone does."""
    listener = _LISTENER.get()
    return None if listener is None or listener.thread != get_ident() else listener


def phase(name: str) -> AbstractContextManager[None]:
    """`with phase("update"):` what is done in it takes the seconds of the phase, but for the phases within."""
    listener = _listener()
    return _SILENCE if listener is None else Phase(listener, name)


def beside(name: str) -> AbstractContextManager[None]:
    """`with beside("reward"):` this goes on while other things may; several of one name count once."""
    listener = _listener()
    return _SILENCE if listener is None else Span(listener, name)


def count(tokens: int) -> None:
    """So many tokens went through a model, in the phase that is open."""
    listener = _listener()
    if listener is not None:
        listener.count(tokens)


@contextmanager
def costing(operations: float) -> Iterator[None]:
    """Meanwhile a token that is counted takes so many floating-point operations: 2·N forwards, 6·N with gradients."""
    listener = _listener()
    if listener is None:
        yield
        return
    before, listener.operations = listener.operations, operations
    try:
        yield
    finally:
        listener.operations = before


@contextmanager
def listening(
    operations: float = 0.0,
    *,
    clock: Callable[[], float] = time.perf_counter,
    finish: Callable[[], object] | None = None,
) -> Iterator[Listener]:
    """Hear the phases of what this thread does meanwhile; `read` what was heard whenever you like.

    `operations`: what a token takes where nobody says otherwise (`costing`), 2·N for a policy that samples. `finish`
    waits for an accelerator, see above. A second listener within hears in place of the first.
    """
    listener = Listener(clock, operations, finish)
    token = _LISTENER.set(listener)
    try:
        yield listener
    finally:
        _LISTENER.reset(token)


def handed_over(work: Callable[[], None]) -> Callable[[], None]:
    """`work`, for another thread that this one waits for: what it does is heard as if it were done here."""
    listener = _listener()
    if listener is None:
        return work

    def heard() -> None:
        own, listener.thread = listener.thread, get_ident()
        _LISTENER.set(listener)  # of a thread that ends with the work
        try:
            work()
        finally:
            listener.thread = own

    return heard
