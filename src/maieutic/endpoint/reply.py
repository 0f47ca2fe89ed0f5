"""What comes back from a model that was asked: a `Reply`, whatever happened, with what it cost.

A server that is away, slow, busy or confused is no exception here: its reply says so by its outcome, and whoever asked
decides what follows. Only a client that cannot be made as it is told raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from maieutic.types import Message


class Outcome(StrEnum):
    """How asking ended."""

    ANSWERED = "answered"
    CUT = "cut by the token limit"
    """There is a text, and its end is missing."""
    UNREACHABLE = "unreachable"
    """No connection, or one that broke before an answer began."""
    TIMED_OUT = "timed out"
    BUSY = "busy"
    """Too many requests (429)."""
    SERVER_ERROR = "server error"
    HALF = "half an answer"
    """The connection broke off within the answer, or its JSON did."""
    REFUSED = "refused"
    """The server will not answer this request (400, 401, 404, …, a content filter); asking again would not help."""
    NOT_UNDERSTOOD = "not understood"
    """A whole answer, of another kind than was asked for: a web page, JSON without a message."""


#: Outcomes with a text.
WITH_TEXT = frozenset({Outcome.ANSWERED, Outcome.CUT})
#: Outcomes after which asking again may help.
PASSING = frozenset({Outcome.UNREACHABLE, Outcome.TIMED_OUT, Outcome.BUSY, Outcome.SERVER_ERROR, Outcome.HALF})


class Bill(NamedTuple):
    """What asking cost. `cached` counts answers that cost nothing, `failures` questions without an answer in the end;
    `seconds` are those between question and answer, added up over questions that waited side by side.

    `price` is in the currency of the prices that were given, 0 where none were.
    """

    requests: int = 0
    retries: int = 0
    cached: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    price: float = 0.0

    def plus(self, other: Bill) -> Bill:
        """Both together."""
        return Bill._make(a + b for a, b in zip(self, other))


class TokenLogprob(NamedTuple):
    """A token as the server writes it, its log-prob in nats (None for the first of a prompt), and the likeliest ones
    in its place."""

    token: str
    logprob: float | None
    top: Mapping[str, float] = {}


class Read(NamedTuple):
    """What a server says of a token that it was given: its id, its log-prob in nats after those before it (None for the
    first), and the likeliest tokens in its place, by id, with theirs; likeliest first. `text` is how it writes the
    token, where it says so."""

    token: int
    logprob: float | None = None
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or why there is none.

    >>> Reply(Outcome.ANSWERED, "It is right. <score>9</score>", bill=Bill(requests=1, prompt_tokens=210))
    >>> Reply(Outcome.TIMED_OUT, note="http://127.0.0.1:8000/v1: no answer within 60 s")
    """

    outcome: Outcome
    text: str = ""
    note: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    bill: Bill = field(default=Bill())
    read: tuple[Read, ...] = ()
    """Of tokens that were given to be judged (`Endpoint.judge`), one each."""
    limit: int | None = None
    """Tokens that the model can read, where the server says so (`Endpoint.reads`)."""

    @property
    def answered(self) -> bool:
        """Whether the text is there, and whole."""
        return self.outcome is Outcome.ANSWERED

    @property
    def why(self) -> str:
        """Why there is no whole text, in words."""
        return f"{self.outcome.value}: {self.note}" if self.note else self.outcome.value


class Respondent(Protocol):
    """Answers a conversation. Never raises for what goes wrong while it does: the reply says it.

    `sample` tells apart several answers to the same question; with `temperature` 0 they may be all alike. `schema` is
    a JSON schema for the answer, which a server may not know or keep to: read what comes with care. One that knows the
    special tokens of its tokenizer says so by an attribute `special_tokens` (`special_tokens_of`).
    """

    @property
    def name(self) -> str:
        """Who it is, whatever else changes its answers included; no secrets."""
        ...

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        sample: int = 0,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply: ...


def special_tokens_of(respondent: Respondent) -> tuple[str, ...]:
    """Texts that the respondent's tokenizer would take for tokens of its own, as far as they are known here."""
    return tuple(getattr(respondent, "special_tokens", ()))
