"""Labels of steps without people: how often continuations from each step's end reach the right answer (Math-Shepherd,
arXiv 2312.08935).

    S₁ ▏ S₂ ▏ S₃ ▏ S₄      N continuations from a prefix ▏, c of which are right:   soft label c/N, hard label c > 0
     8/8  3/8  0/8  wrong   the last step has the verdict

    all       every prefix: (K − 1) · N continuations
    first     one after the other, until none of N is right: what comes after the first error is not asked (the last
              step has its verdict all the same)
    halving   bisection for that first prefix, as a wrong step can hardly be mended (arXiv 2406.06592): log₂ K prefixes
              of a wrong solution, none of a right one, which itself has reached the answer from all of its prefixes

A hard label says "right" with probability 1 − (1 − q)ᴺ, where q is what a soft one estimates: .57 for q = .1 and N = 8.
It is the more generous the larger N is.

Letters: `K` steps of a solution, `N` continuations of a prefix, `c` of them right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from maieutic.core.cost import Spent
from maieutic.environments.inline import interjection
from maieutic.errors import ConfigError
from maieutic.protocols import Completion, Sampling, Taskset
from maieutic.step_rewards import MonteCarlo
from maieutic.steps import Steps
from maieutic.types import Finish, Task

#: What a search asks next (numbers of steps, from 0), what it is told (their shares c/N), and what it ends with: the
#: share at the end of each step, None where it was not asked, and the first step that is wrong (None: none is).
Search = Generator[list[int], list[float], tuple[list[float | None], int | None]]


def every(steps: int, right: bool) -> Search:
    """Ask all prefixes at once."""
    found: list[float | None] = [*(yield list(range(steps - 1))), float(right)]
    return found, next((k for k, share in enumerate(found) if share == 0), None)


def until_first(steps: int, right: bool) -> Search:
    """Ask one prefix after the other, and none after the first from which nothing right was reached."""
    found: list[float | None] = [None] * steps
    found[-1] = float(right)
    for k in range(steps - 1):
        (found[k],) = yield [k]
        if found[k] == 0:
            return found, k
    return found, None if right else steps - 1


def halving(steps: int, right: bool) -> Search:
    """Bisection: after the first wrong step all are taken to be wrong, before it all to be right."""
    found: list[float | None] = [None] * steps
    found[-1] = float(right)
    if right:
        return found, None
    low, high = 0, steps - 1  # the first wrong step lies in low..high
    while low < high:
        middle = (low + high) // 2
        (found[middle],) = yield [middle]
        low, high = (low, middle) if found[middle] == 0 else (middle + 1, high)
    return found, high


#: Name → how the prefixes of a solution of so many steps are asked.
SEARCHES: Mapping[str, Callable[[int, bool], Search]] = {"all": every, "first": until_first, "halving": halving}


def soft_labels(shares: Sequence[float | None], first: int | None, *, after: float | None = 0.0) -> list[float | None]:
    """The shares c/N; where nothing was asked None before the first wrong step, and `after` (0, or None) behind it."""
    return _filled(shares, first, None, after)


def hard_labels(shares: Sequence[float | None], first: int | None, *, after: float | None = 0.0) -> list[float | None]:
    """1 where c > 0; where nothing was asked 1 before the first wrong step, and `after` (0, or None) behind it."""
    known = [None if share is None else float(share > 0) for share in shares]
    return _filled(known, first, 1.0, after)


def _filled(
    labels: Sequence[float | None], first: int | None, before: float | None, after: float | None
) -> list[float | None]:
    behind = len(labels) if first is None else first
    return [z if z is not None else before if k < behind else after for k, z in enumerate(labels)]


@dataclass(frozen=True)
class Labelled:
    """A solution in steps with what was found: `soft` and `hard` labels, and the first wrong step, from 0."""

    steps: tuple[str, ...]
    soft: tuple[float | None, ...]
    hard: tuple[float | None, ...]
    first: int | None
    correct: bool
    finished: bool

    def to_row(self, task: Task, hard: bool) -> dict[str, Any]:
        """In the layout "steps" of `maieutic.tasks.judged`, with both kinds of labels beside those that are learned."""
        return {
            "task": task.id,
            "prompt": [{"role": message.role, "content": message.content} for message in task.prompt],
            "steps": list(self.steps),
            "labels": list(self.hard if hard else self.soft),
            "label": float(self.correct),
            "finished": self.finished,
            "soft": list(self.soft),
            "hard": list(self.hard),
            "first_error": self.first,
        }


NOTHING = Spent()


@dataclass
class Cost:
    """What was spent so far: tokens written and read for solutions and for their labels; prefixes asked, of how many
    there are."""

    solutions: Spent = NOTHING
    labels: Spent = NOTHING
    asked: int = 0
    prefixes: int = 0

    def to_dict(self) -> dict[str, int]:
        """As JSON."""
        return {
            "solution_tokens": self.solutions.generated,
            "label_tokens": self.labels.generated,
            "read_tokens": self.solutions.read + self.labels.read,
            "prefixes_asked": self.asked,
            "prefixes": self.prefixes,
        }


@dataclass
class Labeller:
    """Samples solutions of tasks and labels their steps.

    samples     solutions of a task; those that say the same are labelled once.
    search      a name of `SEARCHES`.
    after       the label behind the first error: 0, or None for no label.

    What is drawn depends on the estimate's seed, the task and the prefix only. `cost` adds up.
    """

    taskset: Taskset
    estimate: MonteCarlo
    steps: Steps
    samples: int = 4
    search: str = "all"
    after: float | None = 0.0
    cost: Cost = field(default_factory=Cost, init=False)

    def __post_init__(self) -> None:
        if self.search not in SEARCHES or self.samples < 1:
            raise ConfigError(
                f"got search={self.search!r}, samples={self.samples}; expected one of {', '.join(SEARCHES)}, and at "
                "least one solution a task"
            )

    async def __call__(self, task: Task) -> list[Labelled]:
        """The task's solutions that are unlike each other, labelled. What failed, or is empty, is left out."""
        chat, made = self.estimate.chat, await self._solutions(task)
        texts = await asyncio.to_thread(self._judged, task, made)
        return await self.label(task, tuple(chat.prompt(task.prompt)), list(texts.values()))

    async def label(
        self, task: Task, prompt: tuple[int, ...], solutions: Sequence[tuple[Completion, bool]]
    ) -> list[Labelled]:
        """Labels for these completions, each with its verdict. A prefix that several share is asked once."""
        ends = [self.steps.ends(made.tokens, made.mask) for made, _ in solutions]
        searches = [SEARCHES[self.search](len(e), right) for e, (_, right) in zip(ends, solutions)]
        known: dict[tuple[int, ...], float] = {}
        found: list[tuple[list[float | None], int | None] | None] = [None] * len(solutions)
        answers: list[list[float] | None] = [None] * len(solutions)
        while any(each is None for each in found):
            wanted: dict[int, list[tuple[int, ...]]] = {}
            for i, search in enumerate(searches):
                if found[i] is None:
                    try:
                        asked = search.send(answers[i])  # type: ignore[arg-type]
                    except StopIteration as ending:
                        found[i] = ending.value
                    else:
                        wanted[i] = [solutions[i][0].tokens[: ends[i][k]] for k in asked]
            new = list(dict.fromkeys(p for prefixes in wanted.values() for p in prefixes if p not in known))
            if new:
                shares, spent = await self.estimate(task, prompt, new)
                known.update(zip(new, shares, strict=True))
                self.cost.labels = self.cost.labels.plus(spent)
            for i, prefixes in wanted.items():
                answers[i] = [known[prefix] for prefix in prefixes]
        self.cost.asked += len(known)
        self.cost.prefixes += len({m.tokens[:end] for (m, _), e in zip(solutions, ends) for end in e[:-1]})
        return [self._labelled(made, e, f) for made, e, f in zip(solutions, ends, found) if f is not None]

    def _labelled(
        self, solution: tuple[Completion, bool], ends: Sequence[int], found: tuple[list[float | None], int | None]
    ) -> Labelled:
        made, right = solution
        texts = ["", *(self.estimate.chat.decode(made.tokens[:end]) for end in ends)]
        return Labelled(
            tuple(after.removeprefix(before) for before, after in pairwise(texts)),
            tuple(soft_labels(*found, after=self.after)),
            tuple(hard_labels(*found, after=self.after)),
            found[1],
            right,
            made.finish is not Finish.LENGTH,
        )

    async def _solutions(self, task: Task) -> list[Completion]:
        estimate = self.estimate
        interject, ids = interjection(estimate.chat, estimate.tool)
        sampling = Sampling(
            estimate.max_completion_length,
            estimate.temperature,
            estimate.chat.stop_ids,
            f"{estimate.seed}/solve/{task.id}",
            interject,
            ids,
        )
        prompt = estimate.chat.prompt(task.prompt)
        made = await estimate.sampler.sample(prompt, sampling, self.samples)
        written, chosen = sum(len(each.mask) for each in made), sum(sum(each.mask) for each in made)
        self.cost.solutions = self.cost.solutions.plus(Spent(chosen, self.samples * len(prompt) + written - chosen))
        return made

    def _judged(self, task: Task, made: Sequence[Completion]) -> dict[str, tuple[Completion, bool]]:
        found: dict[str, tuple[Completion, bool]] = {}
        for completion in made:
            text = self.estimate.chat.decode(completion.tokens)
            if text and completion.finish is not Finish.ERROR and text not in found:
                found[text] = (completion, self.taskset.verifier(task, text).correct)
        return found
