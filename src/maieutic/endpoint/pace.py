"""When to ask: a rate limit, and how long to wait after a failure. Seconds throughout."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


class Pace:
    """Requests at least `60 / per_minute` seconds apart, and none while the server has asked for silence.

    `clock` and `sleep` are those of a loop, or of a test.
    """

    def __init__(
        self,
        per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.interval = 0.0 if per_minute is None else 60.0 / per_minute
        self.clock = clock
        self.sleep = sleep
        self.next = 0.0

    async def turn(self) -> None:
        """Wait until a request may go out."""
        while (wait := self.next - self.clock()) > 0:  # again: the silence may have been prolonged meanwhile
            await self.sleep(wait)
        self.next = self.clock() + self.interval

    def silence(self, seconds: float) -> None:
        """No request for so long."""
        self.next = max(self.next, self.clock() + seconds)


def backoff(
    attempt: int, draw: Callable[[], float] = random.random, first: float = 0.5, longest: float = 30.0
) -> float:
    """Seconds to wait after failure number `attempt` (from 0): first · 2^attempt, at most `longest`, of which the
    second half is left to chance, so that clients which failed together do not come back together."""
    return float(min(longest, first * 2.0**attempt) * (0.5 + 0.5 * draw()))


def retry_after(header: str | None, now: datetime | None = None) -> float | None:
    """The seconds of a Retry-After header, which is a number or a date; None where it is neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            at = parsedate_to_datetime(header)
        except ValueError:
            return None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        seconds = (at - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
