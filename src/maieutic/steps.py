"""Steps of a completion, and labels before them: where a step ends in tokens, and what a label is in tokens.

    [GOOD] 10 - 4 = 6 ; [BAD] 6 / 2 = 4 ; [GOOD] # 4 <eos>         delimiter " ;"
    └──────── step ───┘└─────── step ───┘└───── step ────┘         what follows the last delimiter is a step too

A step ends at the first token after which the text ends in the delimiter, whoever wrote it. That can be seen while the
text is being written, so a label that is inserted at inference stands exactly where training had it. A delimiter after
nothing but blanks ends no step: the second newline of two belongs to what follows. Nor does one in the middle of a
token: what was chosen at once is one choice.

A delimiter may also be a regular expression, of which only the finished text says where it matches: steps then end with
the tokens in which its matches end, and no labels can be inserted there while a text is being written.

Letters: `T` tokens of a completion, `K` its steps.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from maieutic.errors import ConfigError, ModelError
from maieutic.protocols import Chat
from maieutic.types import Message, Rollout

DELIMITER = "\n"

#: What ends a step: a piece of text, or what a regular expression matches.
Delimiter = str | re.Pattern[str]


def ends_step(text: str, delimiter: str) -> bool:
    """Whether a step ends where `text` ends: in the delimiter, with something said since the one before."""
    if not text.endswith(delimiter):
        return False
    before = text.rfind(delimiter, 0, len(text) - 1)
    said = text[before + len(delimiter) if before >= 0 else 0 :].strip()
    return said not in ("", delimiter.strip())


def split_steps(text: str, delimiter: Delimiter = DELIMITER) -> list[str]:
    """The steps of a text, delimiters included; joined they are the text.

    >>> split_steps("3 + 4 = 7 ; 7 * 2 = 14 ; # 14", " ;")
    ['3 + 4 = 7 ;', ' 7 * 2 = 14 ;', ' # 14']
    >>> split_steps("First. Then: so. Done", re.compile(r"[.:] "))
    ['First. ', 'Then: ', 'so. ', 'Done']
    """
    cuts = [0, *_cuts(text, delimiter)]
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True) if a < b]


def _cuts(text: str, delimiter: Delimiter) -> Iterator[int]:
    """One past the last character of each step that a delimiter ends, rising."""
    if isinstance(delimiter, str):
        found = text.find(delimiter)
        while found >= 0:
            end = found + len(delimiter)
            if ends_step(text[:end], delimiter):
                yield end
            found = text.find(delimiter, found + 1)
        return
    start = 0
    for match in delimiter.finditer(text):
        if match.end() > match.start() and text[start : match.start()].strip():
            start = match.end()
            yield start


@dataclass(frozen=True)
class Steps:
    """Cuts completions into steps, in tokens. `labels` are token sequences that are no part of any step's text.

    Raises ConfigError for a delimiter that no text could end in, ModelError for one that this model cannot write.
    """

    chat: Chat
    delimiter: Delimiter = DELIMITER
    labels: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.delimiter, re.Pattern):
            if self.delimiter.match(""):
                raise ConfigError(
                    f"got the step delimiter {self.delimiter.pattern!r}, which matches where nothing stands; expected "
                    "an expression that takes at least one character"
                )
            return
        if not self.delimiter or (self.delimiter.strip() and self.delimiter.endswith(" ")):
            raise ConfigError(
                f"got the step delimiter {self.delimiter!r}; expected text without a space at its end, because "
                f"tokenizers put a space before the next word. Try {self.delimiter.rstrip(' ') or DELIMITER!r}"
            )
        if not self.chat.tokens_ending(self.delimiter):
            raise ModelError(
                f"no token of this model can end in the step delimiter {self.delimiter!r}, so every completion would "
                'be one step; set `delimiter` to what it does write between steps, such as " ;"'
            )

    def ends(self, tokens: Sequence[int], mask: Sequence[bool]) -> tuple[int, ...]:
        """One past the last token of each step, `[K]`, of a completion's tokens and mask `[T]`: rising, the last is T.

        Steps are the stretches between, so that none is empty and joined they are the completion. A label belongs to
        the step after it. A step ends after a token that the model chose, or at the end of what was inserted there.
        """
        kept = without(tokens, self.labels)
        written, chosen = [tokens[i] for i in kept], [mask[i] for i in kept]
        if isinstance(self.delimiter, re.Pattern):
            places = self._matched(written, self.delimiter)
            found = [kept[i] + 1 for i in places if chosen[i] or chosen[i + 1]]
            return (*found, len(tokens)) if tokens else ()
        ending = self.chat.tokens_ending(self.delimiter)
        found = []
        for i, token in enumerate(written[:-1]):
            possible = token in ending if chosen[i] else chosen[i + 1]
            if possible and ends_step(self.chat.decode(written[: i + 1]), self.delimiter):
                found.append(kept[i] + 1)
        return (*found, len(tokens)) if tokens else ()

    def _matched(self, written: Sequence[int], delimiter: re.Pattern[str]) -> list[int]:
        """Indices of the tokens in which a match ends, rising, the last token left out."""
        text = self.chat.decode(written)

        # by halving: decoding every beginning of a long text would take a time that grows with its square
        def place(before: str) -> int:
            return bisect_left(
                range(len(written)), True, key=lambda i: self.chat.decode(written[: i + 1]).startswith(before)
            )

        places = {place(text[:cut]) for cut in _cuts(text, delimiter)}
        return sorted(at for at in places if at < len(written) - 1)

    def of(self, rollout: Rollout) -> tuple[tuple[int, int], ...]:
        """The steps of a rollout, `[K]` pairs (start, stop) of token indices; the prompt is no part of them."""
        start = prompt_end(rollout)
        ends = self.ends(rollout.tokens[start:], rollout.mask[start:])
        stops = [start + end for end in ends]
        return tuple(zip([start, *stops], stops))


def prompt_end(rollout: Rollout) -> int:
    """One past the last token of the prompt: as the rollout's spans say, else where the first chosen token is."""
    first = rollout.spans[0] if rollout.spans else None
    return first.stop if first is not None and first.start == 0 else rollout.prompt_length


def without(tokens: Sequence[int], labels: Sequence[Sequence[int]]) -> list[int]:
    """Indices of the tokens that are no part of an occurrence of a label, rising."""
    kept, i = [], 0
    while i < len(tokens):
        found = next((label for label in labels if tuple(tokens[i : i + len(label)]) == tuple(label)), ())
        if not found:
            kept.append(i)
        i += len(found) or 1
    return kept


class Unlabelled:
    """A chat that reads no labels: `decode` leaves them out, so verifiers, tools and people see what was said.

    Everything else is as in `chat`.
    """

    def __init__(self, chat: Chat, labels: Sequence[Sequence[int]]) -> None:
        self.chat, self.labels, self.stop_ids = chat, tuple(labels), chat.stop_ids

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the conversation up to where the assistant is to write."""
        return self.chat.prompt(messages)

    def completion(self, text: str) -> tuple[int, ...]:
        """Tokens of a finished assistant turn."""
        return self.chat.completion(text)

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a piece of text in the middle of a turn."""
        return self.chat.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, labels and special tokens left out."""
        return self.chat.decode([tokens[i] for i in without(tokens, self.labels)])

    def tokens_ending(self, trigger: str) -> frozenset[int]:
        """The ids of tokens after which a text can end in `trigger`."""
        return self.chat.tokens_ending(trigger)


@dataclass(frozen=True)
class Labels:
    """How steps are labelled, in words: `Labels("[GOOD]", "[BAD]", delimiter=" ;")`."""

    good: str = "[GOOD]"
    bad: str = "[BAD]"
    delimiter: str = DELIMITER

    def bind(self, chat: Chat) -> LabelTokens:
        """The same in a model's tokens. Raises ModelError for labels that its tokenizer cannot write and read back,
        ConfigError for two labels that are the same, and what `Steps` raises."""
        plain = chat.chat if isinstance(chat, Unlabelled) else chat
        good, bad = _written(self.good, plain), _written(self.bad, plain)
        if good == bad:
            raise ConfigError(f"got the label {self.good!r} for good and for bad steps; expected two different ones")
        steps = Steps(Unlabelled(plain, (good, bad)), self.delimiter, (good, bad))
        return LabelTokens(self, good, bad, steps)


@dataclass(frozen=True)
class LabelTokens:
    """`Labels` in a model's tokens, made by `Labels.bind`. `steps.chat` reads no labels."""

    words: Labels
    good: tuple[int, ...]
    bad: tuple[int, ...]
    steps: Steps


def _written(label: str, chat: Chat) -> tuple[int, ...]:
    try:
        tokens = chat.encode(label)
        read = chat.decode(tokens)
    except KeyError:  # of a vocabulary that has no word for the unknown
        tokens, read = (), "nothing"
    if not label.strip() or read.strip() != label.strip():
        raise ModelError(
            f"the label {label!r} is not in this model's vocabulary: it reads back as {read!r}. Take labels that its "
            "tokenizer knows, or give a model that is built from scratch the words: "
            f"[model.small] extra_words = [{label.strip()!r}, …]"
        )
    return tokens
