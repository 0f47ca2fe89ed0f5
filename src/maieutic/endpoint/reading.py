"""What a server's JSON says. Servers differ; what is not there as expected is NOT_UNDERSTOOD, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maieutic.endpoint.reply import Bill, Outcome, Reply, TokenLogprob

#: finish_reason → outcome. One that is not here counts as an answer: servers have names of their own for stops.
_FINISH = {"length": Outcome.CUT, "content_filter": Outcome.REFUSED}


class NotUnderstood(Exception):
    """JSON of another kind than was asked for."""


def _choice(data: Any) -> Mapping[str, Any]:
    choices = data.get("choices") if isinstance(data, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise NotUnderstood("expected an answer with `choices`")
    return choices[0]


def read_chat(data: Any) -> Reply:
    """The message of a chat completion."""
    choice = _choice(data)
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(text, str):
        raise NotUnderstood("expected `choices[0].message.content` to be text")
    return _finished(choice, text)


def read_completion(data: Any, with_logprobs: bool) -> Reply:
    """The text of a completion, and its log-probs where they were asked for."""
    choice = _choice(data)
    text = choice.get("text")
    if not isinstance(text, str):
        raise NotUnderstood("expected `choices[0].text` to be text")
    return _finished(choice, text, _logprobs(choice.get("logprobs")) if with_logprobs else ())


def _finished(choice: Mapping[str, Any], text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> Reply:
    outcome = _FINISH.get(str(choice.get("finish_reason")), Outcome.ANSWERED)
    note = "" if outcome is Outcome.ANSWERED else f"finish_reason {choice.get('finish_reason')!r}"
    text = text.encode("utf-8", "replace").decode()  # JSON may hold half a character, which no file takes
    return Reply(outcome, "" if outcome is Outcome.REFUSED else text, note, logprobs)


def _logprobs(told: Any) -> tuple[TokenLogprob, ...]:
    given = told if isinstance(told, Mapping) else {}
    tokens, values, top = (given.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(values, list):
        raise NotUnderstood("log-probs were asked for and the server gave none")
    top = top if isinstance(top, list) else [None] * len(tokens)
    if not len(tokens) == len(values) == len(top):
        raise NotUnderstood("expected one log-prob a token")
    made = []
    for token, value, likely in zip(tokens, values, top):
        if not isinstance(token, str) or not isinstance(value, int | float | None):
            raise NotUnderstood("expected tokens to be text and log-probs numbers")
        made.append(TokenLogprob(token, value, dict(likely) if isinstance(likely, Mapping) else {}))
    return tuple(made)


def tokens_of(data: Any) -> Bill:
    """What the answer says it took; nothing where it does not say."""
    usage = data.get("usage") if isinstance(data, Mapping) else None
    usage = usage if isinstance(usage, Mapping) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    read, written = (count if isinstance(count, int) and count >= 0 else 0 for count in counts)
    return Bill(prompt_tokens=read, completion_tokens=written)
