"""Beams of steps: the beginnings that look best go on.

    SBS(B₁, B₂)   each of B₁ beams ─► B₂ sampled steps ─► the best B₁ of all go on, by the value of what is then written

AlphaMath, arXiv 2405.03553, §3.3: nothing is backed up. A beam that ends becomes a candidate, and the width shrinks by
one. The first step is sampled B₁ · B₂ times, so that the width is there from the start, and beams that say the same are
one. SBS(1, 1) is a chain of sampled steps; values that are right never lose a solution that is among the steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from maieutic.errors import ConfigError
from maieutic.protocols import Chat, Sampler
from maieutic.search.found import Cost, Found, Question, Read
from maieutic.search.judges import Judge, judged
from maieutic.search.prefix import EMPTY, Growth, Log, Prefix, distinct
from maieutic.search.spending import Purse
from maieutic.steps import DELIMITER, Delimiter


@dataclass(frozen=True)
class Beam:
    """`beams` (B₁) of which each has `children` (B₂) steps, at most `depth` of them; `values` says how good a beginning
    is, finished ones included. The candidate with the highest value is chosen; one that did not end only where none
    did. `delimiter`, `step_tokens`, `temperature`: see `Growth`."""

    sampler: Sampler
    chat: Chat
    read: Read
    values: Judge = field(kw_only=True)
    beams: int = field(default=3, kw_only=True)
    children: int = field(default=5, kw_only=True)
    depth: int = field(default=32, kw_only=True)
    delimiter: Delimiter = field(default=DELIMITER, kw_only=True)
    step_tokens: int | None = field(default=None, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "beam"

    def __post_init__(self) -> None:
        if min(self.beams, self.children, self.depth) < 1:
            raise ConfigError(
                f"beam: got beams={self.beams}, children={self.children}, depth={self.depth}; expected at least 1 each"
            )

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
            pairs = [(child, parent) for parent, family in zip(live, grown, strict=True) for child in family]
            pairs = distinct(pairs, lambda pair: pair[0])
            if not pairs:
                break
            values = await judged(self.values, question.prompt, [child.tokens for child, _ in pairs])
            purse.cost += Cost(judged=len(pairs))
            made = [_Beam(*pair, value).logged(log) for pair, value in zip(pairs, values, strict=True)]
            best = sorted(made, key=lambda each: -each.value)[: self.beams - len(ended)]
            for each in best:
                log.note(each.node, kept=True)
            ended += [each for each in best if each.prefix.finish is not None]
            live = [each for each in best if each.prefix.finish is None]
            if not live or not purse.rest:
                break
        able = [*(ended or live), *(live if ended else ())]
        chosen = max(range(len(ended or live)), key=lambda i: able[i].value)
        return Found(
            tuple(each.prefix.candidate(self.read, each.value) for each in able), chosen, purse.cost, log.told()
        )


@dataclass
class _Beam:
    """A prefix and its value; its number in the log."""

    prefix: Prefix
    parent: _Beam | None = None
    value: float = 0.0
    node: int = -1

    def logged(self, log: Log) -> _Beam:
        """It, in the log."""
        assert self.parent is not None, "the empty beginning is no node"
        above = None if self.parent.parent is None else self.parent.node
        self.node = log.add(self.prefix, above, self.parent.prefix.text, value=self.value, kept=False)
        return self
