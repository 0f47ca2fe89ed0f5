"""What a model is asked when it thinks in a tree: for next steps, for a verdict on a state, for the best of several.

    Plain       any problem whose solution is written in steps
    GameOf24    numbers and a target (`maieutic.tasks.countdown`): a state is moves, one a line

Everything is text; a state is the solution so far.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Protocol

from maieutic.tasks.countdown import GAME_OF_24, Numbers, Rules, after, finished, state

#: What the words of a verdict count for, in the repository of Tree of Thoughts (arXiv 2305.10601).
VERDICTS: Mapping[str, float] = MappingProxyType({"impossible": 0.001, "likely": 1.0, "sure": 20.0})

_MARK = re.compile(r"^\s*(?:[-*•]|\(?\d+[.)])\s+")
_NUMBER = re.compile(r"\d+")


class Thinking(Protocol):
    """The words for a kind of problem, and how replies are read."""

    def proposing(self, problem: str, state: str) -> str:
        """Asks for next steps."""
        ...

    def proposed(self, problem: str, state: str, reply: str) -> list[str]:
        """The states to which the proposed steps lead."""
        ...

    def valuing(self, problem: str, state: str) -> str:
        """Asks for a verdict on a state."""
        ...

    def valued(self, replies: Sequence[str]) -> float:
        """What the verdicts on one state come to."""
        ...

    def voting(self, problem: str, states: Sequence[str]) -> str:
        """Asks which state is best."""
        ...

    def voted(self, reply: str, count: int) -> int | None:
        """For which of `count` states a reply votes, from 0; None for none."""
        ...

    def over(self, problem: str, state: str) -> bool:
        """Whether a state that was proposed is a whole solution."""
        ...


@dataclass(frozen=True)
class Plain:
    """Words for any problem. A proposed step that begins with `end` is the last one."""

    propose: str = "{problem}\n\nSolution so far:\n{state}\nPossible next steps, one a line:"
    value: str = (
        "{problem}\n\nSolution so far:\n{state}\nCan this still lead to the right answer? "
        "End with one word: sure, likely or impossible."
    )
    vote: str = "{problem}\n\n{choices}\nWhich choice is the most promising? End with its number alone."
    verdicts: Mapping[str, float] = field(default_factory=lambda: VERDICTS)
    end: str = "Answer:"

    def proposing(self, problem: str, state: str) -> str:
        """See `Thinking`."""
        return self.propose.format(problem=problem, state=state)

    def proposed(self, problem: str, state: str, reply: str) -> list[str]:  # noqa: ARG002
        """See `Thinking`: a step a line, marks of a list left out."""
        return [f"{state}{step}\n" for step in lines(reply)]

    def valuing(self, problem: str, state: str) -> str:
        """See `Thinking`."""
        return self.value.format(problem=problem, state=state)

    def valued(self, replies: Sequence[str]) -> float:
        """See `Thinking`: the sum over replies of what the last of the known words in each counts for."""
        total = 0.0
        for reply in replies:
            said = [word for word in re.findall(r"\w+", reply.casefold()) if word in self.verdicts]
            total += self.verdicts[said[-1]] if said else 0.0
        return total

    def voting(self, problem: str, states: Sequence[str]) -> str:
        """See `Thinking`."""
        choices = "".join(f"Choice {i}:\n{each}\n" for i, each in enumerate(states, 1))
        return self.vote.format(problem=problem, choices=choices)

    def voted(self, reply: str, count: int) -> int | None:
        """See `Thinking`: the last number."""
        said = _NUMBER.findall(reply)
        return int(said[-1]) - 1 if said and 1 <= int(said[-1]) <= count else None

    def over(self, problem: str, state: str) -> bool:  # noqa: ARG002
        """See `Thinking`."""
        written = state.rstrip().splitlines()
        return bool(written) and written[-1].lstrip().casefold().startswith(self.end.casefold())


@dataclass(frozen=True)
class GameOf24:
    """The game of 24 as in Tree of Thoughts: moves are proposed, states judged by the numbers that are left.

    Of what is proposed only legal moves count (the paper leaves these to the judge). The problem's last numbers are
    taken for the given ones, and the target where it says `make …`. The whole chain of moves is the answer.
    """

    rules: Rules = GAME_OF_24
    plain: Plain = field(
        default_factory=lambda: Plain(
            propose="{problem}\nLeft: {state}\nPossible next moves, one a line, such as 8 + 12 = 20 left 6 6 20 :",
            value="Can {problem} be made of all of these: {state} ?\nEnd with one word: sure, likely or impossible.",
        )
    )

    def given(self, problem: str) -> tuple[Numbers, Fraction]:
        """The numbers and the target.

        >>> GameOf24().given("make 24 from 4 6 6 8 , each once")[1]
        Fraction(24, 1)
        """
        said = re.search(r"make\s+(\d+)\s+from((?:\s+\d+)+)", problem)
        if said is not None:
            return state(said[2].split()), Fraction(said[1])
        return state(_NUMBER.findall(problem.strip().splitlines()[-1])), Fraction(24)

    def left(self, problem: str, moves: str) -> Numbers | None:
        """What is left after these moves; None where one is not legal."""
        now: Numbers | None = self.given(problem)[0]
        for line in lines(moves):
            now = None if now is None else after(line, now, self.rules)
        return now

    def proposing(self, problem: str, state: str) -> str:
        """See `Thinking`."""
        return self.plain.proposing(problem, self._numbers(problem, state))

    def proposed(self, problem: str, state: str, reply: str) -> list[str]:
        """See `Thinking`: the legal moves."""
        found = self.plain.proposed(problem, state, reply)
        return [each for each in found if self.left(problem, each) is not None]

    def valuing(self, problem: str, state: str) -> str:
        """See `Thinking`."""
        return self.plain.valuing(f"{self.given(problem)[1]}", self._numbers(problem, state))

    def valued(self, replies: Sequence[str]) -> float:
        """See `Thinking`."""
        return self.plain.valued(replies)

    def voting(self, problem: str, states: Sequence[str]) -> str:
        """See `Thinking`."""
        return self.plain.voting(problem, states)

    def voted(self, reply: str, count: int) -> int | None:
        """See `Thinking`."""
        return self.plain.voted(reply, count)

    def over(self, problem: str, state: str) -> bool:
        """See `Thinking`: the target is made, or a single number is left."""
        numbers = self.left(problem, state)
        if numbers is None:
            return True
        return len(numbers) == 1 or finished(numbers, self.given(problem)[1], self.rules)

    def _numbers(self, problem: str, moves: str) -> str:
        return " ".join(map(str, self.left(problem, moves) or ()))


def lines(text: str) -> list[str]:
    """The lines of a text that say something, without marks of a list."""
    return [said for line in text.splitlines() if (said := _MARK.sub("", line).strip())]
