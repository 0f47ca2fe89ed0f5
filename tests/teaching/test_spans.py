"""Where explanations and solutions stand, in tokens of a model's own and of anybody's."""

from __future__ import annotations

import random

import pytest

from maieutic.models.chat import chat_format
from maieutic.models.small import small_tokenizer
from maieutic.tasks.teaching import TAGS
from maieutic.teaching.spans import aligned, beginning, ends, find_span, read_explanation

TEXT = (
    "Ann has 10 apples, she gives 4 away: 10 - 4 = 6. Größe, naïve café, 日本語 のテキスト, 🙂🙃 and so on.\n\nThen # 6"
)
ALPHABET = "ab 1.\n-=é日本🙂<|/>_"


@pytest.fixture(scope="module")
def bpe():
    """Byte pairs: characters of several bytes are several tokens, and tags are text."""
    return chat_format(small_tokenizer(512, [TEXT * 3, *TAGS["s1"].words], tokenizer="bpe", vocabulary_size=400))


@pytest.fixture(scope="module")
def words():
    vocabulary = [*TEXT.split(), *TAGS["words"].words, "10", "-", "4", "=", "6", ";", "#"]
    return chat_format(small_tokenizer(512, vocabulary=list(dict.fromkeys(vocabulary))))


def test_spans_in_a_text_that_was_tokenised_as_a_whole(bpe):
    """1,000 random texts between tags: what is found says the text, but for a token on each side that merged."""
    tags, draw = TAGS["s1"], random.Random(0)
    end = f"{tags.thought[1]}\n\n{tags.solution[0]}# 6{tags.solution[1]}"
    opening, closing = bpe.encode(tags.thought[0]), bpe.encode(end)

    def size(tokens):  # a byte-level token has a sign for each byte
        return sum(map(len, bpe.tokenizer.convert_ids_to_tokens(list(tokens))))

    found = whole = 0
    for _ in range(1000):
        inner = "".join(draw.choice(ALPHABET) for _ in range(draw.randint(3, 24))).strip()
        tokens, wanted = bpe.encode(f"{tags.thought[0]}{inner}{end}"), bpe.encode(inner)
        place = find_span(tokens, wanted, opening, closing)
        if place is None:
            assert len(wanted) <= 3
            continue
        found += 1
        whole += len(wanted) == place.stop - place.start
        first, last = size(tokens[: place.start]), size(tokens[: place.stop])
        begin = len(tags.thought[0])
        assert begin <= first <= last <= begin + len(inner.encode())  # no byte of a tag
        assert first - begin == size(wanted[: place.left])  # what is missing is one token at the beginning ...
        assert begin + len(inner.encode()) - last <= size(wanted[-1:])  # ... and one at the end
    assert found > 980
    assert whole > 500


def test_the_last_place_is_the_solutions():
    assert find_span([1, 2, 3, 1, 2], [1, 2]) == (0, 2, 0)
    assert find_span([1, 2, 3, 1, 2], [1, 2], last=True) == (3, 5, 0)
    assert find_span([9, 2, 3, 8], [1, 2, 3, 4]) == (1, 3, 1)  # both ends merged
    assert find_span([1, 2], []) is None
    assert find_span([1, 2], [3]) is None


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_an_explanation_is_cut_where_its_tag_begins(kind, request):
    chat = request.getfixturevalue(kind)
    tags = TAGS["words"]
    said = chat.completion(tags.taught("10 - 4 = 6"))
    found = read_explanation(chat, said, tags.closing)
    assert (found.closed, found.text.strip()) == (True, "10 - 4 = 6")
    assert chat.decode(said[: found.tokens]).strip() + found.rest == "10 - 4 = 6"
    # without a tag it is all of it, but for the stop token
    cut = read_explanation(chat, (*chat.encode("10 - 4"), *chat.stop_ids), tags.closing)
    assert (cut.closed, cut.text, cut.tokens) == (False, "10 - 4", len(chat.encode("10 - 4")))
    assert read_explanation(chat, chat.encode(tags.explanation[1]), tags.closing).text.strip() == ""


def test_a_token_that_reaches_into_the_tag_is_no_token_of_the_explanation():
    merged = chat_format(small_tokenizer(64, ["so. </explanation>", "6.</explanation>"] * 50, tokenizer="bpe"))
    said = merged.encode("6.</explanation>")
    found = read_explanation(merged, said, "</explanation>")
    assert found.text == "6."
    assert merged.decode(said[: found.tokens]) + found.rest == "6."
    assert found.rest  # the point is in a token with the tag


def test_beginnings_end_between_characters(bpe):
    tokens = bpe.encode("ж語x")  # two and three bytes, of which no token was made
    assert len(bpe.encode("ж")) == 2
    assert beginning(bpe, tokens, "ж") == 2
    assert beginning(bpe, tokens, "ж語") == len(tokens) - 1
    assert beginning(bpe, tokens, "") == 0


def test_pieces_of_one_text_in_two_tokenisations(bpe, words):
    text = "10 - 4 = 6 ;"
    one, other = ends(words, words.encode(text)), ends(bpe, bpe.encode(text))
    assert one == [2, 3, 4, 5, 6, 7]  # characters without spaces, after each word
    assert one[-1] == other[-1]
    pieces = aligned(one, other)
    assert [len(range(100)[a]) for a, _ in pieces] == [1] * 6
    assert sum(len(range(100)[b]) for _, b in pieces) == len(bpe.encode(text))
    # equal tokenisations: token by token
    assert aligned(one, one) == [(slice(i, i + 1), slice(i, i + 1)) for i in range(6)]
    # long texts are read in blocks, to the same ends as at once
    long = bpe.encode(TEXT * 3)
    counted = ends(bpe, long)
    assert counted[-1] == len("".join((TEXT * 3).split()))
    assert counted == sorted(counted)
