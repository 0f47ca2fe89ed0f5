"""Asking a model for a reward's sake, with an account of it: failures in a budget, the first one logged, all costs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from maieutic.endpoint import Bill, Outcome, Reply, Respondent
from maieutic.endpoint.reply import special_tokens_of
from maieutic.rewards.lift import FailureBudget
from maieutic.rewards.showing import harmless
from maieutic.types import Message, Score

logger = logging.getLogger("maieutic.rewards")

#: What helps where a judge fails, which is no function of the user's to repair.
REMEDY = (
    "see from the last failure, below, whether the judge cannot be reached, is too slow (timeout_seconds), is cut off "
    "(max_tokens), or does not end in the form that its prompt asks for (another model, another template)"
)


class Inquiry:
    """What a reward asks of a respondent. `name` is the reward's, for messages and for metrics `asked/<name>/…`.

    A failure leaves a rollout unscored, or with `zero_on_failure` gives it 0; it is counted either way.
    """

    def __init__(
        self,
        respondent: Respondent,
        name: str,
        *,
        max_tokens: int = 1024,
        budget: FailureBudget | None = None,
        zero_on_failure: bool = False,
    ) -> None:
        self.respondent = respondent
        self.name = name
        self.max_tokens = max_tokens
        self.budget = budget or FailureBudget()
        self.zero_on_failure = zero_on_failure
        self._shown = False

    async def ask(
        self, prompt: str, *, temperature: float = 0.0, sample: int = 0, schema: Mapping[str, Any] | None = None
    ) -> Reply:
        """The answer to one message."""
        return await self.respondent.chat(
            [Message("user", prompt)],
            max_tokens=self.max_tokens,
            temperature=temperature,
            sample=sample,
            schema=schema,
        )

    def harmless(self, text: str, max_characters: int | None = None) -> str:
        """A text that was not written here, for a prompt: see `showing.harmless`."""
        return harmless(text, special_tokens_of(self.respondent), max_characters)

    def account(self, failures: Sequence[str]) -> None:
        """Count judgements, "" for each that was made, else what went wrong. Raises RewardError when the failure
        budget is spent."""
        self.budget.record([bool(failure) for failure in failures])
        failed = [failure for failure in failures if failure]
        if not failed:
            return
        if not self._shown:
            self._shown = True
            logger.warning(
                "reward %r failed; %s. Further failures are counted, not shown.\n%s",
                self.name, "the rollout gets 0" if self.zero_on_failure else "the rollout is left unscored", failed[0],
            )  # fmt: skip
        self.budget.check(self.name, failed[-1], REMEDY)

    def failed(self, why: str, bill: Bill) -> Score:
        """The score of a rollout that could not be judged."""
        reward = 0.0 if self.zero_on_failure else None
        return Score(reward, note=f"{self.name}: {why}", asked=self.costs(bill))

    def costs(self, bill: Bill) -> dict[str, float]:
        """A bill as counts of a score."""
        return {f"{self.name}/{item}": float(value) for item, value in bill._asdict().items() if value}


def total(replies: Sequence[Reply]) -> Bill:
    """What several replies cost together."""
    bill = Bill()
    for reply in replies:
        bill = bill.plus(reply.bill)
    return bill


def failure_of(reply: Reply) -> str:
    """Why a reply is no use; "" where it is a whole text."""
    if reply.outcome is Outcome.CUT:
        return "its answer was cut by the token limit before its end; give it more (max_tokens)"
    return "" if reply.answered else reply.why
