"""The same question asked by several at once is asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Work under way by key, in one event loop: who comes later waits for what the first one began.

    Whoever waits may be cancelled without the others noticing; the last one cancels the work.
    """

    def __init__(self) -> None:
        self._going: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Task[T]] = {}
        self._waiting: dict[asyncio.Task[T], int] = {}

    async def get(self, key: str, make: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """What `make()` gives, and whether it was made for this call."""
        place = (asyncio.get_running_loop(), key)
        task, own = self._going.get(place), False
        if task is None:
            task, own = asyncio.ensure_future(_made(make)), True
            self._going[place] = task
        self._waiting[task] = self._waiting.get(task, 0) + 1
        try:
            return await asyncio.shield(task), own
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task]:
                del self._waiting[task]
                self._going.pop(place, None)
                task.cancel()  # of no effect on one that is done


async def _made(make: Callable[[], Awaitable[T]]) -> T:
    return await make()
