"""Question and answer as an encoder reads them: `[CLS] question [SEP] answer [SEP]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maieutic.errors import ModelError
from maieutic.types import Message


class PairFormat:
    """What a reward model needs of a chat (see `maieutic.protocols.Chat`), for a classifier of two texts.

    All messages of the prompt are the first text, joined by newlines; the completion is the second.
    """

    plain = True

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        if end is None:
            raise ModelError("the tokenizer names no token that separates two texts; expected sep_token or eos_token")
        self.end_id = int(end)
        self.stop_ids = frozenset({self.end_id})

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The first text, with the marks around it."""
        return tuple(self.tokenizer.encode("\n".join(message.content for message in messages)))

    def completion(self, text: str) -> tuple[int, ...]:
        """The second text, and the mark after it."""
        return (*self.encode(text), self.end_id)

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a text, without marks."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without marks."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
