"""Are two LaTeX expressions the same? Asked of math-verify, in a process that can be killed.

math-verify runs sympy on what a model wrote, and `9^{9^{9^9}}` never returns. Its own time-outs use `signal.alarm`,
which works on the main thread only and elsewhere makes every answer wrong; they are switched off here.
"""

from __future__ import annotations

import itertools
import threading
from enum import Enum

from maieutic.rewards.numbers import LONGEST_ANSWER
from maieutic.rewards.serve import Target
from maieutic.rewards.worker import Ended, Worker

_MEMORY_BYTES = 4 * 2**30

#: Braces within braces; the parser takes time exponential in their depth, and no answer needs more.
_DEEPEST = 16


class Equivalence(Enum):
    """What is known of two expressions."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNPARSABLE = "unparsable"
    TIMEOUT = "timeout"


class LatexComparer:
    """`comparer(gold, given)` → `Equivalence`, with a wall-clock limit. The worker process is started once.

    A worker that dies (killed, out of memory) says nothing about the expressions: they are asked once more, and then
    called unparsable.
    """

    def __init__(self, timeout_seconds: float = 5.0) -> None:
        self.worker = Worker(
            Target("compare", module="maieutic.rewards.latex_worker"),
            timeout_seconds=timeout_seconds,
            memory_bytes=_MEMORY_BYTES,
        )

    def __call__(self, gold: str, given: str, *, timeout_seconds: float | None = None) -> Equivalence:
        """Compare; the order matters only for what counts as an answer (math-verify judges `given` against `gold`)."""
        if max(len(gold), len(given)) > LONGEST_ANSWER or max(_depth(gold), _depth(given)) > _DEEPEST:
            return Equivalence.UNPARSABLE
        for _ in range(2):
            outcome = self.worker.call(gold, given, timeout_seconds=timeout_seconds)
            if outcome.ended is Ended.RETURNED:
                return Equivalence(outcome.value)
            if outcome.ended is Ended.TIMEOUT:
                return Equivalence.TIMEOUT
            if outcome.ended is Ended.RAISED:
                return Equivalence.UNPARSABLE
        return Equivalence.UNPARSABLE

    def close(self) -> None:
        """End the worker process (done at exit by itself)."""
        self.worker.close()


def _depth(text: str) -> int:
    steps = ((character == "{") - (character == "}") for character in text)
    return max(itertools.accumulate(steps), default=0)


_lock = threading.Lock()
_shared: list[LatexComparer] = []


def compare(gold: str, given: str, *, timeout_seconds: float = 5.0) -> Equivalence:
    """`LatexComparer` on a worker that the whole process shares."""
    with _lock:
        if not _shared:
            _shared.append(LatexComparer())
    return _shared[0](gold, given, timeout_seconds=timeout_seconds)
