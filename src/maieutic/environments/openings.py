"""How an episode opens: the task's prompt, what the game says first, and what the model is told of its tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from maieutic.environments.tool_use import described
from maieutic.errors import ModelError
from maieutic.protocols import Chat
from maieutic.types import Message


class Opening(NamedTuple):
    """How an episode opens: tokens up to where the model is to write, and the messages that they say; None where the
    chat template says more than messages do."""

    tokens: tuple[int, ...]
    messages: tuple[Message, ...] | None


def opening_tokens(chat: Chat, messages: Sequence[Message], episode: Any) -> tuple[int, ...]:
    """The tokens of `opening_of`."""
    return opening_of(chat, messages, episode).tokens


def opening_of(chat: Chat, messages: Sequence[Message], episode: Any) -> Opening:
    """How an episode opens, for this model.

    An episode with `tools` (schemas) has them told: by the model's chat template where it takes tools, else in a system
    message, else, where the template knows no system role, at the head of the first message.
    """
    tools = tuple(getattr(episode, "tools", ()))
    if not tools:
        return _said(chat, messages)
    by_template = getattr(chat, "prompt_with_tools", None)
    tokens = None if by_template is None else by_template(messages, tools)
    if tokens is not None:
        return Opening(tuple(tokens), None)
    words = described(tools)
    try:
        return _said(chat, with_system(messages, words))
    except ModelError:
        if messages and messages[0].role == "system":
            raise
        return _said(chat, at_head(messages, words))


def _said(chat: Chat, messages: Sequence[Message]) -> Opening:
    return Opening(tuple(chat.prompt(messages)), tuple(messages))


def with_system(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The messages with a text for the system: after the system message that there is, or in one of its own."""
    if messages and messages[0].role == "system":
        return (Message("system", f"{messages[0].content}\n\n{text}"), *messages[1:])
    return (Message("system", text), *messages)


def at_head(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The messages with a text before the first one's own."""
    if not messages:
        return (Message("user", text),)
    return (Message(messages[0].role, f"{text}\n\n{messages[0].content}"), *messages[1:])


def followed_by(messages: Sequence[Message], text: str, between: str = "\n\n") -> tuple[Message, ...]:
    """The messages with a text for the user at their end: templates want turns to alternate, so a last message of the
    user goes on with it.

    >>> followed_by((Message("user", "Find the number."),), "It is between 1 and 9.", " ")
    (Message(role='user', content='Find the number. It is between 1 and 9.'),)
    """
    if not text:
        return tuple(messages)
    if messages and messages[-1].role == "user":
        last = messages[-1].content
        return (*messages[:-1], Message("user", f"{last}{between}{text}" if last else text))
    return (*messages, Message("user", text))
