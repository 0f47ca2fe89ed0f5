"""A respondent that says what a function says: for tests, for documentation, for rules dressed up as a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maieutic.endpoint.reply import WITH_TEXT, Bill, Outcome, Reply
from maieutic.types import Message


class ScriptedRespondent:
    """Answers `script(messages, sample)`: a text, or a whole reply. `asked` holds every conversation it was shown.

    >>> judge = ScriptedRespondent(lambda messages, sample: "Fine. <score>8</score>")
    """

    def __init__(self, script: Callable[[Sequence[Message], int], str | Reply], name: str = "scripted") -> None:
        self.script = script
        self.name = name
        self.asked: list[tuple[Message, ...]] = []

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 1024,  # noqa: ARG002  (a respondent's signature)
        temperature: float = 0.0,  # noqa: ARG002
        sample: int = 0,
        schema: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> Reply:
        """The script's answer; its words are counted as tokens."""
        self.asked.append(tuple(messages))
        said = self.script(messages, sample)
        if isinstance(said, Reply):
            failed = int(said.outcome not in WITH_TEXT)
            return said if said.bill != Bill() else Reply(said.outcome, said.text, said.note, said.logprobs,
                                                          Bill(requests=1, failures=failed))  # fmt: skip
        words = sum(len(message.content.split()) for message in messages)
        bill = Bill(requests=1, prompt_tokens=words, completion_tokens=len(said.split()))
        return Reply(Outcome.ANSWERED, said, bill=bill)
