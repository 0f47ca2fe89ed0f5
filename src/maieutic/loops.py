"""Event loops: asynchronous work called from ordinary code, scripts and notebooks alike."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from maieutic.clock import handed_over

T = TypeVar("T")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from ordinary code, also where an event loop is already running (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread below
            failure.append(error)

    thread = threading.Thread(target=handed_over(body), name="maieutic-async")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once; when one fails, none is left running behind the error."""
    jobs = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*jobs)
    finally:
        for job in jobs:
            if not job.cancelling():  # a second time would cut short what it still closes
                job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)


class LoopThread:
    """An event loop in a thread of its own, for work that must go on while the caller's loop is busy, or after it has
    ended: a time limit is kept beside a sampler that computes, connections outlive the loop of one step.

    Started by the first `run`, in each process anew; it does not keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._lock = threading.Lock()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises, done over there; cancelled there when it is cancelled here."""
        return await asyncio.wrap_future(self.begin(work))

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have it done over there; the future may be asked from any thread."""
        return asyncio.run_coroutine_threadsafe(work, self._running())

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._process != os.getpid():
                self._loop, self._process = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name=self.name, daemon=True).start()
            return self._loop

    def close(self) -> None:
        """End the loop's thread; what is going on there is cancelled. `run` would start another one."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and self._process == os.getpid():
            asyncio.run_coroutine_threadsafe(_cancel_and_stop(loop), loop)


async def _cancel_and_stop(loop: asyncio.AbstractEventLoop) -> None:
    going = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in going:
        task.cancel()
    if going:
        await asyncio.wait(going, timeout=5.0)  # connections are closed on the way, and callers told
    loop.stop()
