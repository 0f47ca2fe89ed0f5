"""Steps: where they end, in text and in tokens, and that nothing is lost between them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.backends.toy import ToyChat
from maieutic.errors import ConfigError, ModelError
from maieutic.models.causal import load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.steps import Labels, Steps, Unlabelled, ends_step, split_steps, without
from maieutic.types import Finish, Rollout, Span

WORDS = ToyChat(["a", "b", ";", "[GOOD]", "[BAD]", "so"])
A, B, SEMI, GOOD, BAD, SO = 1, 2, 3, 4, 5, 6


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory):
    """The chat of a byte-pair tokenizer, in which pieces of words and newlines are tokens."""
    corpus = ["10 - 4 = 6\n6 / 2 = 3\n# 3", "so we\nhave\n\nhalf of them ;\n"] * 4
    folder = tmp_path_factory.mktemp("bpe") / "model"
    build_small(folder, SmallModel(layers=1, width=16, heads=2, kv_heads=1), corpus, tokenizer="bpe")
    return load_causal(folder).chat


@pytest.mark.parametrize(
    ("text", "delimiter", "steps"),
    [
        ("3 + 4 = 7 ; 7 * 2 = 14 ; # 14", " ;", ["3 + 4 = 7 ;", " 7 * 2 = 14 ;", " # 14"]),
        ("a\nb\n", "\n", ["a\n", "b\n"]),
        ("a\n\nb", "\n", ["a\n", "\nb"]),  # the second newline says nothing: it belongs to what follows
        ("\n\na\nb", "\n", ["\n\na\n", "b"]),
        ("a ; ; b", " ;", ["a ;", " ; b"]),
        ("one step", "\n", ["one step"]),
        ("a\n\nb\n\n\nc", "\n\n", ["a\n\n", "b\n\n", "\nc"]),
        ("", "\n", []),
    ],
)
def test_steps_of_a_text(text, delimiter, steps):
    assert split_steps(text, delimiter) == steps


@given(
    st.text(alphabet="ab;\n é日", max_size=30),
    st.sampled_from(["\n", " ;", ";", "\n\n", re.compile(r"\n+"), re.compile(r";\s*|日")]),
)
def test_steps_of_any_text_join_to_it(text, delimiter):
    steps = split_steps(text, delimiter)
    assert "".join(steps) == text
    assert all(steps)
    alone = "" if isinstance(delimiter, re.Pattern) else delimiter.strip()
    assert all(step.strip() not in ("", alone) for step in steps[:-1])


@pytest.mark.parametrize(
    ("text", "pattern", "steps"),
    [
        ("First. Then: so. Done", r"[.:] ", ["First. ", "Then: ", "so. ", "Done"]),
        ("a\n\n\nb\n", r"\n+", ["a\n\n\n", "b\n"]),
        ("\n\na\n", r"\n", ["\n\na\n"]),  # what has only blanks before it ends nothing
        ("Step 1: a Step 12: b", r"Step \d+:", ["Step 1: a Step 12:", " b"]),  # a delimiter belongs to what it ends
        ("ab", r"(?=b)", ["ab"]),  # where it takes no character, it ends nothing
    ],
)
def test_a_delimiter_may_be_a_regular_expression(text, pattern, steps):
    assert split_steps(text, re.compile(pattern)) == steps


DELIMITERS = st.sampled_from(["\n", "\n\n", "é", re.compile(r"\n+"), re.compile(r"[.;]\s?"), re.compile("日?\\n")])


class Bytes:
    """A chat whose tokens are bytes, so that a character may be cut in its middle."""

    def encode(self, text):
        """The bytes of the text."""
        return tuple(text.encode())

    def decode(self, tokens):
        """The text, with a mark for what is no character (yet)."""
        return bytes(tokens).decode(errors="replace")

    def tokens_ending(self, trigger):
        """The last byte of the trigger."""
        return frozenset(trigger.encode()[-1:])


class Pieces(Bytes):
    """A chat whose tokens are pieces of text, some of which go on beyond a delimiter or hold several."""

    words = ("a", "b", "\n", "\n\n", "b\n", "\nb", ".\na\n", "\n日", "é\n\n\nb", ". ", "; a", " ")

    def decode(self, tokens):
        """The pieces, joined."""
        return "".join(self.words[token] for token in tokens)

    def tokens_ending(self, trigger):
        """Pieces that end as the trigger does."""
        return frozenset(i for i, word in enumerate(self.words) if word[-1] == trigger[-1])


def stretches(tokens, ends):
    return [list(tokens[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def joined(parts):
    return [token for part in parts for token in part]


@given(data=st.data(), delimiter=DELIMITERS)
def test_whatever_the_tokens_the_stretches_join_to_the_completion(data, delimiter):
    """Pieces that straddle delimiters, written by the model or by its environment, cut anywhere."""
    tokens = data.draw(st.lists(st.integers(0, len(Pieces.words) - 1), max_size=20))
    mask = data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    delimiter = delimiter if isinstance(delimiter, re.Pattern) or Pieces().tokens_ending(delimiter) else "\n"
    ends = Steps(Pieces(), delimiter).ends(tokens, mask)
    assert joined(stretches(tokens, ends)) == tokens
    assert all(stretches(tokens, ends))
    for end in ends[:-1]:  # after a choice, or where what was inserted ends
        assert mask[end - 1] or mask[end]


@given(st.text(alphabet="ab.;\n é日😀", max_size=24), st.integers(0, 8), DELIMITERS)
def test_characters_of_several_tokens(text, missing, delimiter):
    """The steps of bytes are those of the text; one that ends in the middle of a character loses none of its bytes."""
    tokens = Bytes().encode(text)
    ends = Steps(Bytes(), delimiter).ends(tokens, [True] * len(tokens))
    assert [bytes(step).decode() for step in stretches(tokens, ends)] == split_steps(text, delimiter)
    cut = tokens[: len(tokens) - missing]
    ends = Steps(Bytes(), delimiter).ends(cut, [True] * len(cut))
    assert joined(stretches(cut, ends)) == list(cut)


def test_a_token_that_goes_on_beyond_a_delimiter():
    # a | \nb | \n | a : as text, a step ends after the first newline; its token is chosen as a whole with the b
    tokens = [Pieces.words.index(word) for word in ("a", "\nb", "\n", "a")]
    assert Steps(Pieces(), "\n").ends(tokens, [True] * 4) == (3, 4)  # not seen while it is written: one step
    assert Steps(Pieces(), re.compile("\n")).ends(tokens, [True] * 4) == (2, 3, 4)  # seen in the finished text


@given(st.lists(st.tuples(st.sampled_from([A, B, SEMI, SO, 0]), st.booleans()), max_size=20))
def test_tokens_are_neither_lost_nor_doubled(written):
    tokens, mask = [t for t, _ in written], [m for _, m in written]
    ends = Steps(WORDS, " ;").ends(tokens, mask)
    starts = [0, *ends][:-1]
    assert [t for a, b in zip(starts, ends, strict=True) for t in tokens[a:b]] == tokens
    assert all(a < b for a, b in zip(starts, ends, strict=True))


@given(st.lists(st.sampled_from([A, B, SEMI, SO]), max_size=20))
def test_tokens_and_text_are_cut_alike(tokens):
    ends = Steps(WORDS, " ;").ends(tokens, [True] * len(tokens))
    texts = [WORDS.decode(tokens[:end]) for end in ends]
    assert texts == ["".join(split_steps(WORDS.decode(tokens), " ;")[: k + 1]) for k in range(len(ends))]


def test_what_a_tool_writes_ends_a_step_at_its_end_only():
    # the model: a    the tool: b ; so    the model: a; the tool's own delimiter in its middle ends nothing
    tokens = [A, B, SEMI, SO, A]
    assert Steps(WORDS, " ;").ends(tokens, [True, False, False, False, True]) == (5,)
    # the tool: b ;
    assert Steps(WORDS, " ;").ends([A, B, SEMI, A], [True, False, False, True]) == (3, 4)


def test_a_label_belongs_to_the_step_after_it():
    # [GOOD] a ; [BAD] b ; [GOOD] <stop>, and with the delimiter written by a tool, so that it touches the label
    labels = Labels(delimiter=" ;").bind(WORDS)
    tokens = [GOOD, A, SEMI, BAD, B, SEMI, GOOD, 0]
    for chosen in (True, False):
        mask = [False, True, chosen, False, True, chosen, False, True]
        assert labels.steps.ends(tokens, mask) == (3, 6, 8)


def test_the_steps_of_a_rollout_begin_where_its_prompt_ends():
    mask = (False, False, False, True, True, True, True)
    made = Rollout("t", (A, A, GOOD, A, SEMI, B, 0), mask, (0.0,) * 7, Finish.STOP)
    steps = Labels(delimiter=" ;").bind(WORDS).steps
    assert steps.of(made) == ((3, 5), (5, 7))  # nobody said so: the prompt ends where the first chosen token is
    told = Rollout("t", made.tokens, mask, (0.0,) * 7, Finish.STOP, spans=(Span("prompt", 0, 2), Span("tool", 2, 3)))
    assert steps.of(told) == ((2, 5), (5, 7))


@given(text=st.text(alphabet="10-4=6\n ", max_size=30))
def test_pieces_of_words(byte_pairs, text):
    tokens = byte_pairs.encode(text)
    ends = Steps(byte_pairs, "\n").ends(tokens, [True] * len(tokens))
    assert ends[-1:] == ((len(tokens),) if tokens else ())
    assert list(ends) == sorted(set(ends))
    for end in ends[:-1]:
        assert ends_step(byte_pairs.decode(tokens[:end]), "\n")


def test_a_delimiter_that_cannot_be_written_is_refused():
    with pytest.raises(ModelError, match="no token of this model can end in the step delimiter '\\\\n'"):
        Steps(WORDS, "\n")
    with pytest.raises(ConfigError, match=r"got the step delimiter ' ; '.* Try ' ;'"):
        Steps(WORDS, " ; ")
    with pytest.raises(ConfigError, match="got the step delimiter ''"):
        Steps(WORDS, "")
    with pytest.raises(ConfigError, match="which matches where nothing stands"):
        Steps(WORDS, re.compile(r"\n*"))


def test_labels_that_the_vocabulary_lacks_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"the label '\[WRONG\]' is not in this model's vocabulary.*extra_words"):
        Labels(bad="[WRONG]", delimiter=" ;").bind(WORDS)
    build_small(tmp_path / "w", SmallModel(layers=1, width=16, heads=2, kv_heads=1), vocabulary=["a", ";"])
    chat = load_causal(tmp_path / "w").chat
    with pytest.raises(ModelError, match=r"reads back as '<unk>'.*extra_words = \['\[GOOD\]', …\]"):
        Labels(delimiter=" ;").bind(chat)
    with pytest.raises(ConfigError, match="expected two different ones"):
        Labels("a", "a", delimiter=" ;").bind(chat)


def test_labels_in_pieces_are_found_and_left_out(byte_pairs):
    labels = Labels().bind(byte_pairs)
    assert len(labels.good) > 1  # no token of its own
    tokens = (*labels.good, *byte_pairs.encode("10 - 4 = 6\n"), *labels.bad, *byte_pairs.encode("# 3"))
    chat = Unlabelled(byte_pairs, (labels.good, labels.bad))
    assert chat.decode(tokens) == labels.steps.chat.decode(tokens) == "10 - 4 = 6\n# 3"
    assert byte_pairs.decode(tokens) == "[GOOD]10 - 4 = 6\n[BAD]# 3"
    assert [tokens[i] for i in without(tokens, ())] == list(tokens)
    assert Labels().bind(chat).bad == labels.bad  # in a chat that reads no labels, those of the chat behind it
