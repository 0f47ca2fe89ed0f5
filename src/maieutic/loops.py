"""Event loops: asynchronous work called from ordinary code, scripts and notebooks alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
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
