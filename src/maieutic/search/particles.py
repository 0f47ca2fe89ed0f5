"""Particles: beginnings that are sampled on, judged, and drawn again in proportion to what they are worth.

    n particles ─► a step each ─► weight by value now / value when last drawn ─► draw n again ─► … ─► weighted vote

Sequential Monte Carlo, twisted by a judge of steps (arXiv 2410.01920; with weights made otherwise, arXiv 2502.01618).
Were values V the chances that a beginning ends right, the particles would be samples of the policy given that they are
right; where all values are equal they are independent samples, and the search is the vote. A beam keeps what looks
best, and so what its judge is most wrong about; particles keep what looks good as often as it looks good.

They are drawn again (systematic resampling) only where weights are uneven: where (Σw)² / Σw², their effective number,
is below `uneven` · n. Weights telescope: of what was never drawn again the weight is V of its end, and the search is
the weighted vote of n samples.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import ClassVar

from maieutic.errors import ConfigError, DataError
from maieutic.protocols import Chat, Sampler
from maieutic.search.found import Cost, Found, Question, Read
from maieutic.search.judges import Judge, judged
from maieutic.search.prefix import EMPTY, Growth, Log, Prefix
from maieutic.search.spending import Purse
from maieutic.search.vote import elected
from maieutic.steps import DELIMITER, Delimiter


@dataclass(frozen=True)
class Particles:
    """`particles` beginnings side by side, of `depth` steps at most; `values` says how good each is, 0 or more.

    uneven   the share of all particles below which their effective number asks for a new draw: 0 never, 1 always.
    `delimiter`, `step_tokens`, `temperature`: see `Growth`. At temperature 0 there is one particle.

    The answer is that with the largest sum of weights among what ended. Raises DataError for a value below 0.
    """

    sampler: Sampler
    chat: Chat
    read: Read
    values: Judge = field(kw_only=True)
    particles: int = field(default=16, kw_only=True)
    uneven: float = field(default=0.5, kw_only=True)
    depth: int = field(default=32, kw_only=True)
    delimiter: Delimiter = field(default=DELIMITER, kw_only=True)
    step_tokens: int | None = field(default=None, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "particles"

    def __post_init__(self) -> None:
        if min(self.particles, self.depth) < 1 or not 0 <= self.uneven <= 1:
            raise ConfigError(
                f"particles: got particles={self.particles}, depth={self.depth}, uneven={self.uneven:g}; expected at "
                "least 1 each, and uneven from 0 to 1"
            )

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`."""
        growth = Growth(self.chat, self.delimiter, self.step_tokens, self.temperature)
        purse, log = Purse(self.sampler, budget), Log()
        draw = random.Random(f"{question.sampling.key}/draws")
        temperature = question.sampling.temperature if self.temperature is None else self.temperature
        pool = [Particle(EMPTY)] * (self.particles if temperature else 1)
        for level in range(self.depth):
            pool = await self._moved(growth, purse, question, pool, level)
            pool = [each.logged(log) for each in pool]
            if not purse.rest or all(each.prefix.finish is not None for each in pool):
                break
            pool = drawn_again(pool, self.uneven, draw)
        over = [each for each in pool if each.prefix.finish is not None] or pool
        found = tuple(each.prefix.candidate(self.read, each.weight) for each in over)
        return Found(found, elected(found, [each.weight for each in over]), purse.cost, log.told())

    async def _moved(
        self, growth: Growth, purse: Purse, question: Question, pool: Sequence[Particle], level: int
    ) -> list[Particle]:
        """Each that can go on a step further and judged; copies of one go on together, each in its own way. What the
        budget leaves no step for stays where it is."""
        places: dict[tuple[int, ...], list[int]] = {}
        for i, each in enumerate(pool):
            if each.prefix.finish is None:
                places.setdefault(each.prefix.tokens, []).append(i)
        wanted = [(pool[same[0]].prefix, len(same), f"{level}/{same[0]}") for same in places.values()]
        grown = await growth.grow(purse, question, wanted)
        pairs = [
            (i, child)
            for same, family in zip(places.values(), grown, strict=True)
            for i, child in zip(same, family, strict=False)
        ]
        values = await judged(self.values, question.prompt, [child.tokens for _, child in pairs])
        purse.cost += Cost(judged=len(pairs))
        if any(value < 0 for value in values):
            raise DataError(f"particles: got the value {min(values):g} of a beginning; expected 0 or more, as a chance")
        moved = list(pool)
        for (i, child), value in zip(pairs, values, strict=True):
            moved[i] = Particle(child, pool[i], value, pool[i].drawn_at)
        return moved


@dataclass(frozen=True)
class Particle:
    """A prefix, its value, and what its value was when it was drawn last; its number in the log."""

    prefix: Prefix
    parent: Particle | None = None
    value: float = 1.0
    drawn_at: float = 1.0
    node: int | None = None

    @property
    def weight(self) -> float:
        """Value now / value when last drawn."""
        return self.value / self.drawn_at

    def logged(self, log: Log) -> Particle:
        """It, in the log, once."""
        if self.node is not None or self.parent is None:
            return self
        parent = self.parent
        return replace(self, node=log.add(self.prefix, parent.node, parent.prefix.text, value=self.value))


def drawn_again(pool: Sequence[Particle], uneven: float, draw: random.Random) -> list[Particle]:
    """As many particles, each about as often as its share of the weights says: k of n for a share between k / n and
    (k + 1) / n, or one more. The same where weights are even enough, or all are 0."""
    weights = [each.weight for each in pool]
    total, n = sum(weights), len(pool)
    if total == 0 or total**2 >= uneven * n * sum(weight**2 for weight in weights):
        return list(pool)
    ends, start, found = list(accumulate(weights)), draw.random(), list[Particle]()
    place = 0
    for i in range(n):
        while place < n - 1 and ends[place] <= (i + start) / n * total:
            place += 1
        found.append(replace(pool[place], drawn_at=pool[place].value))
    return found
