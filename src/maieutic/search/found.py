"""What a search is asked, what it finds, and what that cost.

    Question ─► Search.solve(question, budget) ─► Found(answer, candidates, log, cost)

Every search has the same budget, tokens that models choose for one problem, and keeps to it; searches are compared at
equal tokens only. `Searched` turns a search into a Sampler, so that evaluation and training ask it as they ask a model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from maieutic.errors import ConfigError
from maieutic.protocols import Completion, Sampler, Sampling
from maieutic.search.together import together
from maieutic.types import Message

#: Text of a completion → the answer that it gives in canonical spelling; None where it gives none.
Read = Callable[[str], Hashable | None]


@dataclass(frozen=True, slots=True)
class Question:
    """One problem as a search sees it: tokens to continue, and how to sample. It never holds the right answer.

    >>> Question(prompt=(5, 6, 7), sampling=Sampling(max_tokens=64, temperature=0.7, key="seed/task"))

    `sampling.max_tokens` limits one completion; what all of them together may take is the budget. `messages` is the
    conversation that the prompt was made of, where that is known: for searches that write prompts of their own.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """What was spent. Sums with `+`.

    `generated`  tokens that a policy chose, those of thrown-away branches too: the currency of every comparison.
    `inserted`   tokens that the search wrote into a completion ("Wait", a request to revise).
    `prefilled`  tokens that were read and not chosen: prompts and prefixes, each time they were computed.
    `reused`     tokens of prefixes whose keys and values were still at hand and were not computed again.
    `calls`      requests to a policy; `judged` texts or prefixes that a reward model or a value looked at.
    """

    generated: int = 0
    inserted: int = 0
    prefilled: int = 0
    reused: int = 0
    calls: int = 0
    judged: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished attempt that the search considered. `score` is the search's own: a vote's weight, a value, a reward.

    >>> Candidate(Completion((8, 9), (True, True), (-0.1, -0.2), Finish.STOP), text="8", answer="8", score=0.7)
    """

    completion: Completion
    text: str
    answer: Hashable | None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: the answer it settles on, and the index of a candidate that gives it.

    `log` holds JSON rows that tell how (nodes of a tree, rounds of a refinement), for people and for training data.
    """

    candidates: tuple[Candidate, ...]
    chosen: int
    cost: Cost
    log: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def best(self) -> Candidate:
        """The candidate that the search answers with."""
        return self.candidates[self.chosen]

    @property
    def answer(self) -> Hashable | None:
        """What it answers."""
        return self.best.answer


class Search(Protocol):
    """A way of spending tokens on one problem."""

    @property
    def name(self) -> str: ...

    async def solve(self, question: Question, budget: int) -> Found:
        """Search until the method ends or `budget` tokens were chosen, whichever is first. Never exceeds the budget."""
        ...


class Searched:
    """A search as a Sampler: `n` independent searches, the completion that each settles on.

    `found` is called with each (sampling key, Found), so that costs and trees are not lost. They run side by side, and
    are the same however many there are. `asked` says of a prompt's tokens which conversation they are, where a search
    writes prompts of its own about the problem.
    """

    def __init__(
        self,
        search: Search,
        budget: int,
        found: Callable[[str, Found], None] = lambda *_: None,
        asked: Callable[[tuple[int, ...]], tuple[Message, ...]] = lambda _: (),
    ) -> None:
        if budget < 1:
            raise ConfigError(f"{search.name}: got a budget of {budget} tokens; expected at least 1")
        self.search, self.budget, self.found, self.asked = search, budget, found, asked

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]:
        """`n` completions; see `maieutic.protocols.Sampler`."""
        prompt = tuple(prompt_tokens)
        keys = [f"{params.key}/{sibling}" for sibling in range(n)]
        questions = [Question(prompt, replace(params, key=key), self.asked(prompt)) for key in keys]
        made = await together([self.search.solve(question, self.budget) for question in questions])
        for key, one in zip(keys, made, strict=True):
            self.found(key, one)
        return [one.best.completion for one in made]


def sampler_of(search: Search, budget: int) -> Sampler:
    """The search as a Sampler with so many tokens a completion."""
    return Searched(search, budget)
