"""Tools and chat templates: which of them a template knows, and what is done where it knows less.

    tools=    the schemas go where the template puts them; a template that shows none of them knows no tools
    role tool what a tool answered; a template that refuses the role, or silently leaves it out, is shown a message of
              the user instead, in <tool_response> tags

Both are seen by trying: templates do not say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from maieutic.types import Message

_WORD = "xyzzy"


def knows_role(tokenizer: Any) -> bool:
    """Whether the template shows a message of role "tool" after an assistant's turn."""
    said = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "tool", "content": _WORD},
    ]
    return _WORD in _rendered(tokenizer, said)


def with_tools(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int] | None:
    """Tokens of an open prompt with the tools in it; None where the template shows none of them."""
    said = [{"role": message.role, "content": message.content} for message in messages]
    text = _rendered(tokenizer, said, tools=[dict(tool) for tool in tools], add_generation_prompt=True)
    plain = _rendered(tokenizer, said, add_generation_prompt=True)
    if any(str(tool["function"]["name"]) not in text for tool in tools) or text == plain:
        return None
    ids = tokenizer.apply_chat_template(
        said, tools=[dict(tool) for tool in tools], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def as_users(messages: Sequence[Message]) -> list[Message]:
    """Answers of tools as messages of the user; several in a row are one, as many templates want turns to alternate."""
    said: list[Message] = []
    joining = False
    for message in messages:
        if message.role != "tool":
            said.append(message)
            joining = False
            continue
        text = f"<tool_response>\n{message.content}\n</tool_response>"
        if joining:
            said[-1] = Message("user", f"{said[-1].content}\n{text}")
        else:
            said.append(Message("user", text))
        joining = True
    return said


def _rendered(tokenizer: Any, said: Sequence[Mapping[str, str]], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(said, tokenize=False, **options))
    except (TemplateError, KeyError, TypeError):  # a template that wants more of a tool's message than it has
        return ""
