"""Self-refinement: draft, feedback on it, revision, until nothing is found to be wrong or the rounds are over.

    prompt ─► draft ─► "check it" ─► feedback ─► "write it again" ─► revision ─► "check it" ─► …
                                     └ "no issue": stop

Self-Refine (arXiv 2303.17651), one conversation with one model. Each attempt is a candidate, in order, whose completion
is what was written in its turn: an answer to the prompt, though sampled after all that was said before it. What ends it
tells three methods apart, and only the first can be had for nothing:

    refine            the model's own feedback says so                          (or nothing does: `feedback=""`)
    refine_verified   a judge's score of the attempt is at least `threshold`    a reward model, tests that can be run
    refine_oracle     the attempt is right                                      for studies: no answer is known at test

Without an outside word revising breaks about as much as it mends (arXiv 2310.01798): `core.transitions` has the tables,
and a vote of as many tokens is what to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from maieutic.environments.episodes import Dialogue, dialogue
from maieutic.errors import ConfigError, PromptTooLong
from maieutic.protocols import Chat, Completion, Sampler, Taskset, Verifier
from maieutic.search.found import Candidate, Cost, Found, Question, Read
from maieutic.search.judges import Judge, judged
from maieutic.search.spending import Ask, Purse
from maieutic.types import Finish, Message, Task

CHECK = (
    "Check this solution step by step. If every step is right, say only: no issue. Otherwise say which step is wrong, "
    "and why; do not solve the problem."
)
REVISE = "Now write the whole solution again, with what is wrong put right."
#: Where there is no feedback.
AGAIN = "There may be a mistake in this solution. If there is one, put it right. Write the whole solution again."
FINE = "no issue"


@dataclass(frozen=True)
class Refine:
    """At most `rounds` revisions. The model is told `check`, and when its feedback holds `fine` the attempt stands;
    `check=""` asks for no feedback, and says `again` instead of `revise`.

    What the budget cuts short is no attempt: the one before it stands.
    """

    sampler: Sampler
    chat: Chat
    read: Read
    rounds: int = field(default=3, kw_only=True)
    check: str = field(default=CHECK, kw_only=True)
    revise: str = field(default=REVISE, kw_only=True)
    again: str = field(default=AGAIN, kw_only=True)
    fine: str = field(default=FINE, kw_only=True)
    name: ClassVar[str] = "refine"

    def __post_init__(self) -> None:
        dialogue(self.chat)
        if self.rounds < 1:
            raise ConfigError(f"{self.name}: got rounds={self.rounds}; expected at least 1 (for none take greedy)")

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`."""
        talk = _Talk(dialogue(self.chat), question, Purse(self.sampler, budget))
        made: list[Candidate] = []
        log: list[dict[str, Any]] = []
        while True:
            attempt = await talk.says(f"{len(made)}/attempt")
            if attempt is None or (made and talk.cut(attempt)):
                log.append({"round": len(made), "ended": "budget"})
                break
            text = self.chat.decode(attempt.tokens)
            made.append(Candidate(attempt, text, self.read(text)))
            log.append(
                {"round": len(made) - 1, "answer": _plain(made[-1].answer), "generated": talk.purse.cost.generated}
            )
            if await self.stands(question, attempt, talk):
                log[-1]["ended"] = "accepted"
                break
            if len(made) > self.rounds or not await self._told(talk, len(made) - 1, log[-1]):
                log[-1].setdefault("ended", "rounds" if len(made) > self.rounds else "budget")
                break
        cost = talk.purse.cost + Cost(inserted=talk.inserted, judged=talk.judged)
        return Found(tuple(made), len(made) - 1, cost, tuple(log))

    async def stands(self, question: Question, attempt: Completion, talk: _Talk) -> bool:  # noqa: ARG002
        """Whether somebody else than the model says that the attempt is right."""
        return False

    async def _told(self, talk: _Talk, number: int, row: dict[str, Any]) -> bool:
        """Ask for the next attempt; False where the model finds that there need be none, or cannot be asked."""
        if not self.check:
            talk.hears(self.again)
            return True
        talk.hears(self.check)
        feedback = await talk.says(f"{number}/feedback")
        if feedback is None:
            return False
        row["feedback"] = self.chat.decode(feedback.tokens)
        if self.fine.casefold() in row["feedback"].casefold():
            row["ended"] = "no issue"
            return False
        talk.hears(self.revise)
        return True


@dataclass(frozen=True)
class RefineVerified(Refine):
    """`Refine` that stops where `score` says at least `threshold` of an attempt; by default without feedback of the
    model's own."""

    score: Judge = field(kw_only=True)
    threshold: float = field(default=0.5, kw_only=True)
    check: str = field(default="", kw_only=True)
    name: ClassVar[str] = "refine_verified"

    async def stands(self, question: Question, attempt: Completion, talk: _Talk) -> bool:
        """What the judge says."""
        talk.judged += 1
        [said] = await judged(self.score, question.prompt, [attempt.tokens])
        return said >= self.threshold


@dataclass(frozen=True)
class RefineOracle(Refine):
    """`Refine` that stops at the first attempt that is right, as `truth` knows. It measures what stopping is worth."""

    truth: Judge = field(kw_only=True)
    check: str = field(default="", kw_only=True)
    name: ClassVar[str] = "refine_oracle"

    async def stands(self, question: Question, attempt: Completion, talk: _Talk) -> bool:  # noqa: ARG002
        """What the answer says."""
        [said] = await judged(self.truth, question.prompt, [attempt.tokens])
        return said > 0.5


def oracle(chat: Chat, tasks: Taskset | Sequence[Task], verifier: Verifier) -> Judge:
    """A judge that knows the answers of these tasks: 1 for what the verifier accepts, else 0."""
    known: Mapping[tuple[int, ...], Task] = {chat.prompt(tasks[i].prompt): tasks[i] for i in range(len(tasks))}

    def give(prompt: tuple[int, ...], rows: Sequence[tuple[int, ...]]) -> list[float]:
        if prompt not in known:
            raise ConfigError("oracle: got a prompt that is none of its tasks'; expected the tasks that are searched")
        return [float(verifier(known[prompt], chat.decode(row)).correct) for row in rows]

    return give


class _Talk:
    """The conversation so far, in tokens."""

    def __init__(self, chat: Dialogue, question: Question, purse: Purse) -> None:
        self.chat, self.question, self.purse = chat, question, purse
        self.tokens = list(question.prompt)
        self.inserted = self.judged = 0
        self.ended = True

    async def says(self, key: str) -> Completion | None:
        """The model's next turn; None where the budget or its context leaves no room for one."""
        own = self.question.sampling
        sampling = own if len(self.tokens) == len(self.question.prompt) else replace(own, key=f"{own.key}/{key}")
        try:
            [made] = await self.purse.sample([Ask(tuple(self.tokens), sampling)])
        except PromptTooLong:
            if len(self.tokens) == len(self.question.prompt):
                raise
            return None
        if not made:
            return None
        self.tokens += made[0].tokens
        self.ended = made[0].finish is Finish.STOP
        return made[0]

    def cut(self, made: Completion) -> bool:
        """Whether the budget cut it, rather than its own limit."""
        return made.finish is Finish.LENGTH and len(made.tokens) < self.question.sampling.max_tokens

    def hears(self, text: str) -> None:
        """What is said to the model between two turns."""
        between = self.chat.continuation((Message("user", text),))
        if not self.ended:  # a turn that the limit cut has no end
            between = (*self.chat.completion(""), *between)
        self.tokens += between
        self.inserted += len(between)


def _plain(answer: object) -> str | None:
    return None if answer is None else str(answer)
