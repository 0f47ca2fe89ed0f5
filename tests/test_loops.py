"""Coroutines from ordinary code, whether an event loop is running or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from maieutic.loops import run_async


async def work(stop: type[BaseException] | None) -> int:
    await asyncio.sleep(0)
    if stop is not None:
        raise stop("enough")
    return 3


def plainly(stop: type[BaseException] | None) -> int:
    return run_async(work(stop))


def within_a_loop(stop: type[BaseException] | None) -> int:
    """As in a notebook."""

    async def cell() -> int:
        return run_async(work(stop))

    return asyncio.run(cell())


@pytest.mark.parametrize("run", [plainly, within_a_loop])
def test_what_it_returns_and_raises_reaches_who_asked(run: Callable[[type[BaseException] | None], int]) -> None:
    assert run(None) == 3
    for stop in (ZeroDivisionError, KeyboardInterrupt, SystemExit):
        with pytest.raises(stop, match="enough"):
            run(stop)
