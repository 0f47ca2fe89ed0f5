"""When to ask: the arithmetic of waiting, by a clock that the test turns."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from maieutic.endpoint.pace import Pace, backoff, retry_after


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_waits_double_and_half_of_each_is_chance() -> None:
    assert [backoff(i, lambda: 1.0) for i in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [backoff(i, lambda: 0.0) for i in range(3)] == [0.25, 0.5, 1.0]


def test_requests_are_apart_and_silence_is_kept() -> None:
    clock, times = Clock(), []
    pace = Pace(120.0, clock=clock, sleep=clock.sleep)  # 60 / 120 = 0.5 s

    async def go() -> None:
        for i in range(4):
            if i == 2:
                pace.silence(10.0)
            await pace.turn()
            times.append(clock.now)

    asyncio.run(go())
    # the first at once, the second 0.5 later; 10 s of silence begin at 100.5
    assert times == [100.0, 100.5, 110.5, 111.0]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None), ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("inf", None), ("nan", None), ("", None),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0), ("Wed, 21 Oct 2026 07:27:00 GMT", 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, datetime(2026, 10, 21, 7, 28, tzinfo=UTC)) == seconds
