"""A budget and what was bought with it: the one door through which a search samples.

    asks ─► Purse.sample ─► completions        never more chosen tokens than the budget, whatever is asked at once

What is asked together is sampled together, so that the engine batches it. What may be written is reserved first: as
many samples begin as the rest of the budget pays for at their full length; when they end, what they left unused pays
for the next. Where not even one fits, one begins whose `max_tokens` is that rest; where nothing is left, none does. The
order depends on lengths only, never on which sample ends first, so that a search with the same seed is the same search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from maieutic.errors import ConfigError
from maieutic.protocols import Completion, Prefill, Sampler, Sampling
from maieutic.search.found import Cost
from maieutic.search.together import together


@dataclass(frozen=True, slots=True)
class Ask:
    """`n` samples that go on from `tokens`: the prompt, and what is written already of a completion.

    `keep`: something may go on from the samples in turn, so the engine is to keep what it has read.
    """

    tokens: tuple[int, ...]
    sampling: Sampling
    n: int = 1
    keep: bool = True


class Purse:
    """So many tokens, and a sampler to spend them on. `cost` is what was spent so far.

    At temperature 0 the samples of an ask would be all the same: one is made. Raises ConfigError for a budget below 1.
    """

    def __init__(self, sampler: Sampler, budget: int) -> None:
        if budget < 1:
            raise ConfigError(f"got a budget of {budget} tokens; expected at least 1")
        self.sampler = sampler
        self.budget = budget
        self.cost = Cost()

    @property
    def rest(self) -> int:
        """Tokens that may still be chosen."""
        return self.budget - self.cost.generated

    async def sample(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        """For each ask its samples, fewer where the budget ends."""
        wanted = [min(1, ask.n) if ask.sampling.temperature == 0 else ask.n for ask in asks]
        made: list[list[Completion]] = [[] for _ in asks]
        while plan := self._affordable(asks, [all_ - len(has) for all_, has in zip(wanted, made, strict=True)]):
            calls = [self._call(asks[i], n, room, len(made[i])) for i, n, room in plan]
            for (i, _, _), completions in zip(plan, await together(calls), strict=True):
                made[i] += completions
        return made

    def _affordable(self, asks: Sequence[Ask], missing: Sequence[int]) -> list[tuple[int, int, int]]:
        """The calls to begin now: (ask, samples, tokens that each may have)."""
        plan: list[tuple[int, int, int]] = []
        left = self.rest
        for i, (ask, wanted) in enumerate(zip(asks, missing, strict=True)):
            room = ask.sampling.max_tokens
            if wanted < 1 or left < 1:
                continue
            n = min(wanted, left // room)
            if n:
                plan.append((i, n, room))
                left -= n * room
            elif not plan:
                return [(i, 1, left)]
            if n < wanted:
                break
        return plan

    async def _call(self, ask: Ask, n: int, room: int, first: int) -> list[Completion]:
        sampling = ask.sampling
        if first:  # siblings are numbered from 0 in each call: another key gives other samples
            sampling = replace(sampling, key=f"{sampling.key}/from {first}")
        seen = Prefill(keep=ask.keep)
        made = await self.sampler.sample(ask.tokens, replace(sampling, max_tokens=room, prefill=seen), n)
        written = sum(len(each.mask) for each in made)
        chosen = sum(sum(each.mask) for each in made)
        read = seen.computed if seen.computed or seen.reused else len(ask.tokens)  # of samplers that do not count
        self.cost += Cost(generated=chosen, prefilled=read + written - chosen, reused=seen.reused, calls=1)
        return made
