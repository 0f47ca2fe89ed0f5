"""Which tokens a piece of text is: of an explanation, of a solution, of the same text in two tokenisations.

Where this library builds a sequence itself it knows the spans, because it tokenises pieces and puts them together. What
a model wrote is cut by decoding its beginnings (`beginning`). `find_span` is for a text that was tokenised as a whole,
where a piece may have merged with its neighbours.

Letters: `T` tokens, `E` tokens of an explanation, `C` chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from maieutic.protocols import Chat

#: Tokens that are decoded together when the text of each is wanted, and those before them that are decoded with them.
BLOCK, BEFORE = 32, 8


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a teacher wrote: its first `tokens` tokens, whose text `rest` completes to `text`; `closed`: the tag is
    there.

    >>> Explanation(tokens=5, text="10 - 4 = 6", rest="", closed=True)

    `rest` is what a token holds that reaches into the tag (".</"), which is no token of the explanation any more.
    """

    tokens: int
    text: str
    rest: str
    closed: bool


def read_explanation(chat: Chat, completion: Sequence[int], closing: str) -> Explanation:
    """The explanation at the beginning of a completion `[T]`: what stands before the first `closing`, or all of it but
    the stop token where there is none (a missing tag is taken for one at the end)."""
    end = len(completion)
    while end and completion[end - 1] in chat.stop_ids:
        end -= 1
    text = chat.decode(completion[:end])
    before, tag, _ = text.partition(closing)
    if not tag:
        return Explanation(end, text, "", False)
    kept = beginning(chat, completion[:end], before)
    return Explanation(kept, before, before.removeprefix(chat.decode(completion[:kept])).strip(), True)


def beginning(chat: Chat, tokens: Sequence[int], text: str) -> int:
    """How many of the first tokens `[T]` say no more than `text`, with which what they say all together begins."""
    low, high = 0, len(tokens)
    while low < high:  # texts of beginnings get no shorter
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(chat.decode(tokens[:middle])) <= len(text) else (low, middle - 1)
    while low and not text.startswith(chat.decode(tokens[:low])):  # ends within a character
        low -= 1
    return low


class Place(NamedTuple):
    """Tokens `start` to `stop` of a row; the first `left` tokens of what was looked for are not among them."""

    start: int
    stop: int
    left: int


def find_span(
    tokens: Sequence[int],
    inner: Sequence[int],
    opening: Sequence[int] = (),
    closing: Sequence[int] = (),
    *,
    last: bool = False,
) -> Place | None:
    """Where `inner` stands among `tokens`; one token on each side may have merged with a neighbour and is then left
    out. The first place, or the `last` one; None where there is none.

    Tokens with which the row begins as `opening` does, and ends as `closing` does, are not searched: a short text may
    stand within a tag too. Whole matches go before trimmed ones; an empty `inner`, or one of which trimming leaves
    nothing, is nowhere.
    """
    low = _common(tokens, opening)
    high = len(tokens) - _common(tokens[low:][::-1], closing[::-1])
    for left, right in ((0, 0), (1, 0), (0, 1), (1, 1)):
        wanted = list(inner[left : len(inner) - right])
        if not wanted:
            continue
        places = range(low, high - len(wanted) + 1)
        for start in reversed(places) if last else places:
            if tokens[start] == wanted[0] and list(tokens[start : start + len(wanted)]) == wanted:
                return Place(start, start + len(wanted), left)
    return None


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens both begin."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def ends(chat: Chat, tokens: Sequence[int]) -> list[int]:
    """How many characters other than spaces are written after each token `[T]`: rising numbers."""
    found: list[int] = []
    written = 0
    for start in range(0, len(tokens), BLOCK):
        begin = max(0, start - BEFORE)
        ahead = letters(chat.decode(tokens[begin:start]))
        stops = range(start + 1, min(start + BLOCK, len(tokens)) + 1)
        block = [written + letters(chat.decode(tokens[begin:stop])) - ahead for stop in stops]
        found += block
        written = block[-1]
    return found


def letters(text: str) -> int:
    """Characters other than spaces."""
    return len("".join(text.split()))


def aligned(one: Sequence[int], other: Sequence[int]) -> list[tuple[slice, slice]]:
    """The smallest pieces at whose ends two tokenisations of one text both have an end, as tokens of each `[C]`.

    `one` and `other` are from `ends`. Tokens that write nothing (spaces) belong to the piece after them, at the end of
    all to the last one. Two equal tokenisations, none of whose tokens is of spaces, have a piece for each token.

    >>> aligned([2, 5, 9], [1, 5, 7, 9])
    [(slice(0, 2, None), slice(0, 2, None)), (slice(2, 3, None), slice(2, 4, None))]
    """
    first = [{end: i + 1 for i, end in reversed(list(enumerate(side)))} for side in (one, other)]
    common = sorted(end for end in first[0].keys() & first[1].keys() if end > 0)
    cuts = [(0, 0), *((first[0][end], first[1][end]) for end in common[:-1]), (len(one), len(other))]
    return [(slice(a, c), slice(b, d)) for (a, b), (c, d) in pairwise(cuts)] if common else []
