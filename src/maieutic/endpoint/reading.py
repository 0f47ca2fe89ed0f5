"""What a server's JSON says. Servers differ; what is not there as expected is NOT_UNDERSTOOD, never guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maieutic.endpoint.reply import Bill, Outcome, Read, Reply, TokenLogprob

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


def read_judged(data: Any, tokens: Sequence[int], top: int | None) -> Reply:
    """What is said of tokens that were given, as vLLM says it: `choices[0].prompt_logprobs`, for each token a table
    { id = { logprob, rank, decoded_token } } of that token and the `top` likeliest (None: of all)."""
    choice = _choice(data)
    told = choice.get("prompt_logprobs")
    if not isinstance(told, list):
        raise NotUnderstood("expected `choices[0].prompt_logprobs`, which vLLM gives; this server says nothing of ids")
    given = choice.get("prompt_token_ids")
    if len(told) != len(tokens) or (given is not None and list(given) != list(tokens)):
        raise NotUnderstood(f"{len(tokens)} tokens were given, and {len(given or told)} others were read")
    found = [Read(tokens[0])]
    for token, table in zip(tokens[1:], told[1:]):
        entries = _entries(table)
        if token not in entries:
            raise NotUnderstood(f"expected each table to hold the token that was given; {token} is missing")
        likely = sorted(entries, key=lambda each: -entries[each][0])[:top]
        value, text = entries[token]
        found.append(Read(token, value, tuple(likely), tuple(entries[each][0] for each in likely), text))
    return Reply(Outcome.ANSWERED, read=tuple(found))


def _entries(table: Any) -> dict[int, tuple[float, str | None]]:
    """id → its log-prob and text."""
    if not isinstance(table, Mapping):
        raise NotUnderstood("expected a table of log-probs for each token but the first")
    found = {}
    for name, entry in table.items():
        value = entry.get("logprob") if isinstance(entry, Mapping) else None
        if not str(name).isdecimal() or not isinstance(value, int | float) or not value < 1e-3:
            raise NotUnderstood("expected tables from ids to log-probs")
        text = entry.get("decoded_token")
        found[int(name)] = (float(value), text if isinstance(text, str) else None)
    return found


def read_detokenized(data: Any) -> Reply:
    """The text of token ids."""
    text = data.get("prompt") if isinstance(data, Mapping) else None
    if not isinstance(text, str):
        raise NotUnderstood("expected `prompt` to be text")
    return Reply(Outcome.ANSWERED, text)


def read_limit(data: Any) -> Reply:
    """How many tokens a model can read, which vLLM says when it cuts a text into tokens."""
    limit = data.get("max_model_len") if isinstance(data, Mapping) else None
    if not isinstance(limit, int):
        raise NotUnderstood("expected `max_model_len` to be a number")
    return Reply(Outcome.ANSWERED, limit=limit)


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
