"""A completion that is written in several calls, with tokens taken away and inserted between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maieutic.protocols import Chat, Completion
from maieutic.types import Finish


def vocabulary_size(chat: Any) -> int | None:
    """How many ids the chat's tokenizer knows; None where there is none to ask."""
    tokenizer = getattr(getattr(chat, "chat", chat), "tokenizer", None)
    return None if tokenizer is None else len(tokenizer)


class Draft:
    """What was written so far after `prompt`: tokens, mask and log-probs as in a `Completion`.

    `calls` says how often the model went on, `inserted` how many of the tokens that are still there were inserted by a
    search. A token whose id is not below `vocabulary` is dropped when it is added: a tokenizer cannot read it, and fed
    back it would be another one's meaning.
    """

    def __init__(self, chat: Chat, prompt: Sequence[int], vocabulary: int | None = None) -> None:
        self.chat, self.prompt, self.vocabulary = chat, tuple(prompt), vocabulary
        self.tokens: list[int] = []
        self.mask: list[bool] = []
        self.logprobs: list[float] = []
        self.finish = Finish.LENGTH
        self.calls = self.inserted = 0
        self.version: int | None = None

    @property
    def text(self) -> str:
        """The tokens, decoded."""
        return self.chat.decode(self.tokens)

    @property
    def unchosen(self) -> int:
        """Tokens that a search or a tool inserted."""
        return self.mask.count(False)

    def add(self, made: Completion) -> Completion:
        """What the model wrote next; the same completion, for the caller to look at how it ended."""
        for token, chosen, logprob in zip(made.tokens, made.mask, made.logprobs, strict=True):
            if self.vocabulary is None or token < self.vocabulary:
                self._append(token, chosen, logprob)
        self.finish, self.calls = made.finish, self.calls + 1
        self.version = made.version if self.version is None else min(self.version, made.version)
        return made

    def insert(self, tokens: Sequence[int]) -> None:
        """Tokens that nobody chose."""
        for token in tokens:
            self._append(token, False, 0.0)
        self.inserted += len(tokens)

    def cut(self, length: int) -> None:
        """Keep the first `length` tokens."""
        del self.tokens[length:], self.mask[length:], self.logprobs[length:]

    def cut_text(self, end: str) -> None:
        """Take `end` away from the end of the text. What else stood in the tokens that go is inserted again."""
        text = self.text
        kept = text[: len(text) - len(end)]
        length = len(self.tokens) - 1
        while length > 0 and not kept.startswith(self.chat.decode(self.tokens[:length])):
            length -= 1
        self.cut(length)
        rest = kept[len(self.text) :]
        if rest.strip(" "):
            self.insert(self.chat.encode(rest))

    def completion(self) -> Completion:
        """All of it."""
        return Completion(tuple(self.tokens), tuple(self.mask), tuple(self.logprobs), self.finish, self.version or 0)

    def _append(self, token: int, chosen: bool, logprob: float) -> None:
        self.tokens.append(token)
        self.mask.append(chosen)
        self.logprobs.append(logprob)
