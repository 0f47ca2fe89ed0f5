"""Two tokenisations of one text: the smallest spans that both share, by hand and for any two of them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as some

from maieutic.core.alignment import piece_ends, shared_spans


def ends(*pieces: str) -> list[int]:
    return list(itertools.accumulate(map(len, pieces)))


def test_spans_by_hand():
    # "Mary had a lamb": 3 7 8 | 10 | 12 15 against 4 8 | 10 | 11 15
    ours, theirs = ends("Mar", "y ha", "d", " a", " l", "amb"), ends("Mary", " had", " a", " ", "lamb")
    assert (ours, theirs) == ([3, 7, 8, 10, 12, 15], [4, 8, 10, 11, 15])
    assert shared_spans(ours, theirs) == [(0, 3, 0, 2), (3, 4, 2, 3), (4, 6, 3, 5)]
    assert shared_spans(theirs, ours) == [(0, 2, 0, 3), (2, 3, 3, 4), (3, 5, 4, 6)]


def test_the_same_tokens_are_spans_of_one():
    same = ends("12", " +", " 3")
    assert shared_spans(same, same) == [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]


def test_tokens_that_end_within_a_character_or_write_nothing():
    # a character of three bytes, a token each, is one of theirs
    assert shared_spans([1, None, None, 2, 3], [1, 2, 3]) == [(0, 1, 0, 1), (1, 4, 1, 2), (4, 5, 2, 3)]
    # what writes nothing belongs to what is before it, and at the beginning to the first
    assert shared_spans([0, 2, 2, 3], [2, 3]) == [(0, 3, 0, 1), (3, 4, 1, 2)]
    # nothing on one side, and on both
    assert shared_spans([], [2]) == [(0, 0, 0, 1)]
    assert shared_spans([], []) == []
    # ends that never meet: one span of all that is left
    assert shared_spans([1, 3], [1, 4]) == [(0, 1, 0, 1), (1, 2, 1, 2)]


pieces = some.lists(some.sampled_from([1, 2, 3, 5]), min_size=1, max_size=12)


@given(pieces, pieces)
def test_spans_are_whole_shared_and_as_small_as_can_be(a, b):
    """Both sides written to the same length; whatever the spans are, nothing is lost and none could be cut."""
    lengths = sum(a), sum(b)
    ours = list(itertools.accumulate([*a, *[max(lengths) - lengths[0]] * (lengths[0] < max(lengths))]))
    theirs = list(itertools.accumulate([*b, *[max(lengths) - lengths[1]] * (lengths[1] < max(lengths))]))
    found = shared_spans(ours, theirs)
    assert [i for first, stop, _, _ in found for i in range(first, stop)] == list(range(len(ours)))
    assert [j for _, _, first, stop in found for j in range(first, stop)] == list(range(len(theirs)))
    for first, stop, their_first, their_stop in found:
        assert ours[stop - 1] == theirs[their_stop - 1]
        assert not set(ours[first : stop - 1]) & set(theirs[their_first : their_stop - 1])


WORDS = ["", "12", "+", "3", "="]


def spaced(tokens) -> str:
    """As tokenizers of words decode: a space before every word but the first; token 0 is hidden."""
    return " ".join(WORDS[token] for token in tokens if token)


def byted(tokens) -> str:
    """As tokenizers of bytes decode."""
    return bytes(tokens).decode("utf-8", errors="replace")


def test_where_pieces_end():
    assert piece_ends(spaced, [1, 2, 3, 4], "12 + 3 =") == [2, 4, 6, 8]
    assert piece_ends(spaced, [1, 0, 2, 0], "12 +") == [2, 2, 4, 4]  # hidden ones write nothing
    assert piece_ends(byted, list("aé€".encode()), "aé€") == [1, None, 2, None, None, 3]
    assert piece_ends(spaced, [], "") == []


def test_where_pieces_do_not_add_up_only_the_end_is_known():
    assert piece_ends(lambda tokens: str(len(tokens)), [7, 7, 7], "abc") == [None, None, 3]
    cut = list("é".encode())[:1]  # half a character at the end is written as a mark
    assert piece_ends(byted, [97, *cut], byted([97, *cut])) == [1, 2]
