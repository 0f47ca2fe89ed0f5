"""Two tokenisations of one text, and the smallest spans whose boundaries both share.

    text      M   a   r   y   ␣   h   a   d
    ours     |─────────|──────────|─────────|        ends 3 5 8 … where each token's text is written
    theirs   |─────────────|──────|─────────|
    spans    |────────────────────|─────────|        common ends: what is between two of them is a span

Summed over a span, log-probs of models of different tokens speak of the same text; summed over all spans they are those
of the whole. Where both tokenise alike, every token is a span. A token that ends within a character ends no span, and
one that writes nothing belongs to the span before it (or, at the beginning, to the first).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: Characters that are written when a token is; None where that is within a character.
Ends = Sequence[int | None]
#: (first and last + 1 of ours, first and last + 1 of theirs).
Span = tuple[int, int, int, int]


def shared_spans(ours: Ends, theirs: Ends) -> list[Span]:
    """The smallest spans, in order; together they have all tokens of both. Empty where neither has any.

    >>> shared_spans([3, 5, 8], [4, 5, 8])
    [(0, 2, 0, 2), (2, 3, 2, 3)]

    What is not known to end where the other does (different texts, or tokens on one side only) is one span at the end.
    """
    ours_at, theirs_at = _last_at(ours), _last_at(theirs)
    found: list[Span] = []
    i = j = 0
    for end in sorted(ours_at.keys() & theirs_at.keys() - {0}):
        found.append((i, ours_at[end], j, theirs_at[end]))
        i, j = ours_at[end], theirs_at[end]
    if i < len(ours) or j < len(theirs):
        found.append((i, len(ours), j, len(theirs)))
    return found


def _last_at(ends: Ends) -> dict[int, int]:
    """End → how many tokens there are up to it, those that write nothing more included."""
    return {end: i for i, end in enumerate(ends, 1) if end is not None}


def piece_ends(decode: Callable[[Sequence[int]], str], tokens: Sequence[int], text: str) -> list[int | None]:
    """Of each token how many characters of `text`, which `decode` makes of all of them, are written when it is.

    Tokens are decoded beside the ones before them, since many tokenizers write the first of a text otherwise. Where
    the pieces do not add up to the text, nothing is known but where it ends.
    """
    ends: list[int | None] = []
    start = done = written = 0  # pieces begin at `start`; those before `done` are `before`
    before = ""
    for i in range(1, len(tokens) + 1):
        now = decode(tokens[start:i])
        fresh = now[len(before) :]
        if not now.startswith(before) or not text.startswith(fresh, written):
            ends.append(None)
            continue
        written += len(fresh)
        ends.append(written)
        if fresh:
            start, done = done, i
            before = decode(tokens[start:done])
    if written != len(text) or (ends and ends[-1] is None):
        return [*[None] * (len(tokens) - 1), len(text)] if tokens else []
    return ends
