"""Beginnings of completions, and how they grow by steps: what beams and trees are made of.

    Prefix ─► Growth.grow ─► its children        a child is its parent's tokens and those of one step more

A step ends in the task's delimiter, as `maieutic.steps` sees it, or where it has `step_tokens`; the last one ends as a
completion does. Nothing is tokenised again, and a prefix is never changed: what grows from it is a new one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from maieutic.errors import ConfigError
from maieutic.protocols import Chat, Completion, Sampling
from maieutic.search.found import Candidate, Question, Read
from maieutic.search.spending import Ask, Purse
from maieutic.steps import DELIMITER, Delimiter, Steps, ends_step
from maieutic.types import Finish

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Prefix:
    """What is written so far. `start` is where its last step begins, `finish` how it ended (None: it can go on).

    >>> Prefix((8, 9, 4), (True,) * 3, (-0.1, -0.2, -0.3), "8 ; 4", depth=2, start=2)
    """

    tokens: tuple[int, ...] = ()
    mask: tuple[bool, ...] = ()
    logprobs: tuple[float, ...] = ()
    text: str = ""
    depth: int = 0
    start: int = 0
    finish: Finish | None = None
    version: int | None = None

    def then(self, made: Completion, chat: Chat, finish: Finish | None) -> Prefix:
        """The prefix with one step more."""
        tokens = self.tokens + made.tokens
        return Prefix(
            tokens,
            self.mask + made.mask,
            self.logprobs + made.logprobs,
            chat.decode(tokens),
            self.depth + 1,
            len(self.tokens),
            finish,
            made.version if self.version is None else min(self.version, made.version),
        )

    @property
    def step_probability(self) -> float:
        """exp of the mean log-prob of the tokens that were chosen in the last step: long steps lose nothing by it."""
        chosen = [p for p, own in zip(self.logprobs[self.start :], self.mask[self.start :], strict=True) if own]
        return math.exp(math.fsum(chosen) / len(chosen)) if chosen else 1.0

    def candidate(self, read: Read, score: float | None = None) -> Candidate:
        """It as an attempt; what could go on was cut."""
        finish = Finish.LENGTH if self.finish is None else self.finish
        made = Completion(self.tokens, self.mask, self.logprobs, finish, self.version or 0)
        return Candidate(made, self.text, read(self.text), score)


EMPTY = Prefix()


@dataclass(frozen=True)
class Growth:
    """How prefixes grow.

    delimiter     what a step ends in.
    step_tokens   tokens of a step at most (None: what is left of the completion's): a smaller number lets more steps be
                  sampled side by side, because a budget pays for each at its full length first.
    temperature   of every step (None: the question's). At 0 all siblings are the same, and one is made.

    Raises ConfigError for a delimiter that is an expression, of which only a finished text says where it matches, and
    what `Steps` raises.
    """

    chat: Chat
    delimiter: Delimiter = DELIMITER
    step_tokens: int | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.delimiter, re.Pattern):
            raise ConfigError(
                f"got the step delimiter {self.delimiter.pattern!r}, an expression; expected a piece of text, of which "
                "can be seen while it is being written where it ends"
            )
        if self.step_tokens is not None and self.step_tokens < 1:
            raise ConfigError(f"got step_tokens={self.step_tokens}; expected at least 1, or None")
        Steps(self.chat, self.delimiter)

    async def grow(
        self, purse: Purse, question: Question, wanted: Sequence[tuple[Prefix, int, str]], *, whole: bool = False
    ) -> list[list[Prefix]]:
        """For each (prefix, n, name) up to n children, fewer where the budget ends. What is drawn depends on the
        question's key and the name only. `whole`: to the end of the completion instead of a step."""
        made = await purse.sample([self._ask(question, *each, whole) for each in wanted])
        return [
            [self._child(question, prefix, each) for each in completions]
            for (prefix, _, _), completions in zip(wanted, made, strict=True)
        ]

    def _ask(self, question: Question, prefix: Prefix, n: int, name: str, whole: bool) -> Ask:
        sampling = question.sampling
        room = sampling.max_tokens - len(prefix.tokens)
        sampling = replace(
            sampling,
            max_tokens=room if whole or self.step_tokens is None else min(room, self.step_tokens),
            temperature=sampling.temperature if self.temperature is None else self.temperature,
            key=f"{sampling.key}/{name}",
            not_first=frozenset() if prefix.tokens else sampling.not_first,
        )
        sampling = going_on(sampling, prefix.tokens)
        if not whole:
            delimiter, before = str(self.delimiter), prefix.tokens
            sampling = replace(
                sampling,
                until=lambda tokens: ends_step(self.chat.decode((*before, *tokens)), delimiter),
                until_ids=self.chat.tokens_ending(delimiter),
            )
        return Ask((*question.prompt, *prefix.tokens), sampling, n)

    def _child(self, question: Question, prefix: Prefix, made: Completion) -> Prefix:
        finish: Finish | None = made.finish
        stopped = made.finish is Finish.STOP and made.mask[-1] and made.tokens[-1] in question.sampling.stop_ids
        full = len(prefix.tokens) + len(made.tokens) >= question.sampling.max_tokens
        if made.finish in (Finish.STOP, Finish.LENGTH) and not stopped:
            finish = Finish.LENGTH if full else None
        return prefix.then(made, self.chat, finish)


def going_on(sampling: Sampling, before: tuple[int, ...]) -> Sampling:
    """The same of a completion of which `before` is written already: a tool sees the whole of it."""
    given = sampling.interject
    if given is None or not before:
        return sampling
    return replace(sampling, interject=lambda tokens: given((*before, *tokens)))


def distinct(rows: Sequence[Row], of: Callable[[Row], Prefix]) -> list[Row]:
    """Without those whose prefix says what one before it says."""
    found: dict[tuple[str, bool], Row] = {}
    for row in rows:
        found.setdefault((of(row).text, of(row).finish is None), row)
    return list(found.values())


class Log:
    """A tree as JSON rows, in the order in which its nodes were made: what a search returns to be looked at.

    {"node": 3, "parent": 1, "depth": 2, "step": " 7 * 2 = 14 ;", "value": 0.7, "finished": false, "kept": true}
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, prefix: Prefix, parent: int | None, before: str = "", **more: Any) -> int:
        """A node, whose parent says `before`; its number."""
        step = prefix.text[len(before) :] if prefix.text.startswith(before) else prefix.text
        row = {"node": len(self.rows), "parent": parent, "depth": prefix.depth, "step": step}
        self.rows.append({**row, "finished": prefix.finish is not None, **more})
        return len(self.rows) - 1

    def note(self, node: int, **more: Any) -> None:
        """More of a node."""
        self.rows[node].update(more)

    def told(self) -> tuple[Mapping[str, Any], ...]:
        """The rows."""
        return tuple(self.rows)
