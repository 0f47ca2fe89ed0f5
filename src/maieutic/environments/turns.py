"""Turns taken together: everybody who plays at the same time writes the next turn at the same time.

An engine that writes many rows at once rounds a little differently for every set of rows, so what is learned would
depend on how long each environment took to answer. Here nobody begins a turn before all others who still play are
ready for theirs, and they begin in a fixed order: a run is a function of its config, however slow an environment is.
An engine that prefills many prompts at once is also the faster for it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

#: Who: (visit of the task, sibling). Turns begin in this order.
Place = tuple[int, int]


class Turns:
    """Where those who play meet before each turn.

    playing   how many seats are taken.
    waiting   who is ready for the next turn.
    """

    def __init__(self) -> None:
        self.playing = 0
        self.waiting: dict[Place, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def seats(self, count: int) -> Iterator[Seats]:
        """So many will play: the others wait for them. Those who do not get up by themselves do so at the end."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # an earlier one may have ended in the middle of a game
            self._loop, self.playing, self.waiting = loop, 0, {}
        self.playing += count
        seats = Seats(self, count)
        try:
            yield seats
        finally:
            seats.leave(seats.taken)

    def number(self) -> int:
        """A number of its own for who asks: the first of a place, where there are no visits."""
        return next(self._numbers)

    async def turn(self, place: Place) -> None:
        """Wait until everybody who plays is ready."""
        future = asyncio.get_running_loop().create_future()
        self.waiting[place] = future
        self.go()
        try:
            await future
        finally:
            if self.waiting.get(place) is future:
                del self.waiting[place]

    def go(self) -> None:
        """Let all begin, if nobody is missing."""
        if not self.waiting or len(self.waiting) < self.playing:
            return
        ready, self.waiting = self.waiting, {}
        for place in sorted(ready):
            if not ready[place].done():
                ready[place].set_result(None)


class Seats:
    """The seats of one group; `taken` of them still are."""

    def __init__(self, turns: Turns, taken: int) -> None:
        self.turns, self.taken = turns, taken

    def leave(self, count: int = 1) -> None:
        """So many have ended their game."""
        self.taken -= count
        self.turns.playing -= count
        self.turns.go()
