"""Calls to an environment: in an event loop of its own, with a time limit that is kept, failures told in words.

Environments are written by others. Whatever one raises, or does not answer in time, ends its episode only
(`EpisodeFailed`); a ConfigError goes through, since what is not installed or not allowed fails in every episode.

The loop lives in a thread that lasts as long as the process, so that an environment may keep connections open, and
answers while the sampler computes. A call that never waits cannot be cancelled: its thread is left behind, and later
calls go to another one. An environment that says `at_once = True` of itself neither waits nor computes for long, as a
game of words; it is called where the sampler runs, which is quicker, and without a limit.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import TypeVar

from maieutic.clock import beside
from maieutic.errors import ConfigError
from maieutic.loops import LoopThread

T = TypeVar("T")
log = logging.getLogger("maieutic.environments")

#: Seconds for one call where the environment says nothing (its attribute `timeout_seconds`).
TIMEOUT = 30.0
#: Seconds beyond the limit after which a call is given up that could not be cancelled.
GRACE = 1.0

_CALLS = LoopThread("maieutic-environments")
_shown: set[str] = set()


class EpisodeFailed(Exception):
    """An environment failed: `str(error)` says how, in one line."""


async def ask(what: str, call: Callable[[], Awaitable[T]], seconds: float | None) -> T:
    """What the call returns. Raises EpisodeFailed when it raises or takes longer than `seconds`; with None it is made
    right here, for what answers at once.

    `what` names it for people: "guess.step". The first failure of each name is logged with its traceback.
    """
    with beside("environment"):
        try:
            return await (call() if seconds is None else _in_time(call, seconds))
        except ConfigError:
            raise
        except _Late as error:
            raise _failed(what, f"no answer within {seconds:g} s", error) from error
        # The environment is somebody else's: whatever it raises ends this episode, and is told.
        except Exception as error:
            raise _failed(what, f"{type(error).__name__}: {error}", error) from error


async def _in_time(call: Callable[[], Awaitable[T]], seconds: float) -> T:
    loop = asyncio.get_running_loop()
    made = _CALLS.begin(_limited(call, seconds))
    result = asyncio.wrap_future(made)

    def give_up() -> None:
        if not made.done():  # it never waits: the thread is its own now
            _CALLS.close()
            if not result.done():
                result.set_exception(_Late())

    watch = loop.call_later(seconds + GRACE, give_up)
    try:
        return await result
    finally:
        watch.cancel()


async def _limited(call: Callable[[], Awaitable[T]], seconds: float) -> T:
    async def made() -> T:
        return await call()

    inner = asyncio.ensure_future(made())
    try:
        done, _ = await asyncio.wait([inner], timeout=seconds)
    finally:
        inner.cancel()
    if not done:
        raise _Late
    return inner.result()


class _Late(Exception):
    """It took longer than it may."""


def _failed(what: str, how: str, error: BaseException) -> EpisodeFailed:
    if what not in _shown:
        _shown.add(what)
        trace = "".join(traceback.format_exception(error, limit=-12))
        log.warning(
            "%s failed; the episode ends without a reward. Further failures are counted, not shown.\n%s", what, trace
        )
    return EpisodeFailed(f"{what}: {how}")
