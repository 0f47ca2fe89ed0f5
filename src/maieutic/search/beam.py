"""Beams of steps: the beginnings that look best go on.

    SBS(B₁, B₂)   each of B₁ beams ─► B₂ sampled steps ─► the best B₁ of all go on, by the value of what is then written

AlphaMath, arXiv 2405.03553, §3.3: nothing is backed up. A beam that ends becomes a candidate, and the width shrinks by
one. The first step is sampled B₁ · B₂ times, so that the width is there from the start, and beams that say the same are
one. SBS(1, 1) is a chain of sampled steps; values that are right never lose a solution that is among the steps.

Whoever keeps the highest of many values keeps those that are too high. Two options are for judges that err:

    apart   B₁ beams of their own, SBS(1, B₂) each: a child competes with its siblings only, so that what fools the
            judge once does not fill all beams (diverse verifier tree search: Beeching, Tunstall and Rush, "Scaling
            test-time compute with open models", 2024)
    vote    the answer with the largest sum of scores among what ended, instead of the one with the highest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.protocols import Chat, Sampler
from maieutic.rewards.aggregate import AGGREGATES, aggregate
from maieutic.search.found import Cost, Found, Question, Read
from maieutic.search.judges import Judge, judged
from maieutic.search.prefix import EMPTY, Growth, Log, Prefix, distinct
from maieutic.search.spending import Purse
from maieutic.search.vote import elected
from maieutic.steps import DELIMITER, Delimiter


@dataclass(frozen=True)
class Beam:
    """`beams` (B₁) of which each has `children` (B₂) steps, at most `depth` of them; `values` says how good a beginning
    is, finished ones included. The candidate with the highest score is chosen; one that did not end only where none
    did. `apart` and `vote`: see the top.

    aggregate   how the values along a candidate's path become its score, a name of `rewards.aggregate`. "last" is the
                value of the whole, as AlphaMath chooses; "prod" and "min" remember a step that was doubtful, whatever
                was thought of those after it. What goes on is kept by its last value.
    `delimiter`, `step_tokens`, `temperature`: see `Growth`.

    Raises UnknownName for another aggregate; DataError, while it searches, for a value below 0 where values are
    multiplied or vote.
    """

    sampler: Sampler
    chat: Chat
    read: Read
    values: Judge = field(kw_only=True)
    beams: int = field(default=3, kw_only=True)
    children: int = field(default=5, kw_only=True)
    depth: int = field(default=32, kw_only=True)
    aggregate: str = field(default="last", kw_only=True)
    apart: bool = field(default=False, kw_only=True)
    vote: bool = field(default=False, kw_only=True)
    delimiter: Delimiter = field(default=DELIMITER, kw_only=True)
    step_tokens: int | None = field(default=None, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "beam"

    def __post_init__(self) -> None:
        if min(self.beams, self.children, self.depth) < 1:
            raise ConfigError(
                f"beam: got beams={self.beams}, children={self.children}, depth={self.depth}; expected at least 1 each"
            )
        if self.aggregate not in AGGREGATES:
            raise UnknownName("aggregate of values along a path", self.aggregate, AGGREGATES)

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`."""
        growth = Growth(self.chat, self.delimiter, self.step_tokens, self.temperature)
        purse, log = Purse(self.sampler, budget), Log()
        live, ended = [_Beam(EMPTY)], list[_Beam]()
        for level in range(self.depth):
            n = self.children if level else self.beams * self.children
            grown = await growth.grow(
                purse, question, [(each.prefix, n, f"{level}/{i}") for i, each in enumerate(live)]
            )
            families = self._families(live, grown)
            pairs = [pair for each in families.values() for pair in each]
            if not pairs:
                break
            values = await judged(self.values, question.prompt, [child.tokens for child, _ in pairs])
            purse.cost += Cost(judged=len(pairs))
            valued = iter(values)
            best = list[_Beam]()
            for family, each_of in families.items():
                made = [_Beam(*pair, (*pair[1].values, next(valued)), family).logged(log) for pair in each_of]
                width = 1 if self.apart else self.beams - len(ended)
                best += sorted(made, key=lambda each: -each.value)[:width]
            for each in best:
                log.note(each.node, kept=True)
            ended += [each for each in best if each.prefix.finish is not None]
            live = [each for each in best if each.prefix.finish is None]
            if not live or not purse.rest:
                break
        return self._found([*(ended or live), *(live if ended else ())], len(ended or live), purse.cost, log)

    def _families(
        self, live: Sequence[_Beam], grown: Sequence[Sequence[Prefix]]
    ) -> dict[int, list[tuple[Prefix, _Beam]]]:
        """Children that compete with one another, the different ones of each family, with their parents."""
        families: dict[int, list[tuple[Prefix, _Beam]]] = {}
        for parent, children in zip(live, grown, strict=True):
            for i, child in enumerate(children):
                first = parent.parent is None
                family = 0 if not self.apart else i // self.children if first else parent.family
                families.setdefault(family, []).append((child, parent))
        return {family: distinct(pairs, lambda pair: pair[0]) for family, pairs in families.items()}

    def _found(self, able: Sequence[_Beam], over: int, cost: Cost, log: Log) -> Found:
        """The candidates, of which the first `over` may be chosen."""
        scores = [self._score(each.values) for each in able]
        found = tuple(each.prefix.candidate(self.read, score) for each, score in zip(able, scores, strict=True))
        chosen = elected(found[:over], scores[:over]) if self.vote else max(range(over), key=lambda i: scores[i])
        return Found(found, chosen, cost, log.told())

    def _score(self, values: Sequence[float]) -> float:
        if self.aggregate == "prod" and min(values, default=0.0) < 0:
            raise DataError(
                f"beam: got the value {min(values):g} of a beginning; expected none below 0 where values are "
                'multiplied (aggregate = "min" or "last" takes any)'
            )
        return aggregate(self.aggregate, values)


@dataclass
class _Beam:
    """A prefix and the values along its path, its own last; the family that it competes in, its number in the log."""

    prefix: Prefix
    parent: _Beam | None = None
    values: tuple[float, ...] = ()
    family: int = 0
    node: int = -1

    @property
    def value(self) -> float:
        """Its own."""
        return self.values[-1]

    def logged(self, log: Log) -> _Beam:
        """It, in the log."""
        assert self.parent is not None, "the empty beginning is no node"
        above = None if self.parent.parent is None else self.parent.node
        self.node = log.add(self.prefix, above, self.parent.prefix.text, value=self.value, kept=False)
        return self
