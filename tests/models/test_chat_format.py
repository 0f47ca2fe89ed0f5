"""Messages become the tokens that the model was trained on: one BOS, its own end of turn, and an exact mask."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.errors import ModelError
from maieutic.models.causal import load_tokenizer
from maieutic.models.chat import ChatFormat, chat_format, lint
from maieutic.models.small import SmallModel, build_small, tiny_folder
from maieutic.types import Message, Span

SYSTEM, ASKED = Message("system", "be brief"), Message("user", "what is 3 + 4 ?")
ANSWERED, ASKED_ON, ANSWERED_ON = Message("assistant", "7"), Message("user", "and 5 + 6 ?"), Message("assistant", "11")
CONVERSATION = [SYSTEM, ASKED, ANSWERED, ASKED_ON, ANSWERED_ON]

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Deletes the thoughts of every assistant turn that is not the last message, as reasoning models' templates do.
FORGETFUL = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("chat")
    corpus = ["what is 3 + 4 ?\nuser assistant system", "x = 12 ; y == 7"] * 3
    build_small(place / "bpe", SmallModel(layers=1, width=32), corpus, tokenizer="bpe", vocabulary_size=320)
    tiny_folder("llama", place)
    return place


def _tokenizer(folder: Path, template: str | None = CHATML) -> Any:
    """A byte-level tokenizer with ChatML's marks; it puts BOS before text, as Llama's does."""
    tokenizer = load_tokenizer(folder / "bpe")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]})
    tokenizer.chat_template = template
    return tokenizer


def _text(chat: ChatFormat, tokens: Any) -> str:
    """Tokens as text, every special token shown."""
    return chat.tokenizer.decode(list(tokens), skip_special_tokens=False)


# ---- prompts and completions ---------------------------------------------------------------------------------------


def test_prompt_has_one_bos_and_opens_the_assistants_turn(folder: Path) -> None:
    """A19: exactly one BOS, whoever adds it: template or tokenizer."""
    chat = chat_format(_tokenizer(folder))
    assert _text(chat, chat.prompt([ASKED])) == (
        "<bos><|im_start|>user\nwhat is 3 + 4 ?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.prompt([ASKED]).count(chat.tokenizer.bos_token_id) == 1
    plain = chat_format(_tokenizer(folder), "plain")
    assert _text(plain, plain.prompt([SYSTEM, ASKED])) == "<bos>be brief\nwhat is 3 + 4 ?"


def test_completion_ends_as_the_models_turns_end(folder: Path) -> None:
    chat = chat_format(_tokenizer(folder))
    assert _text(chat, chat.completion("7")) == "7<|im_end|>"
    plain = chat_format(_tokenizer(folder), "plain")
    assert _text(plain, plain.completion("7")) == "7<eos>"


def test_stop_ids_are_a_set_from_three_sources(folder: Path) -> None:
    """A16: what ends a completion is a set of ids, as many chat models have several."""
    tokenizer = _tokenizer(folder)
    end, eos, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<eos>", "<pad>"])
    chat = chat_format(tokenizer, generation_config=SimpleNamespace(eos_token_id=[eos, pad]))
    assert chat.stop_ids == {end, eos, pad}  # template, tokenizer, generation config
    assert chat.end_id == end
    assert chat_format(tokenizer, generation_config=SimpleNamespace(eos_token_id=eos)).stop_ids == {end, eos}
    assert chat_format(tokenizer, "plain").stop_ids == {eos}


def test_a_tokenizer_without_template_asks_for_a_decision(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match='no chat template; choose template = "plain"'):
        chat_format(_tokenizer(folder, template=None))
    path = tmp_path / "chatml.jinja"
    path.write_text(CHATML)
    chat = chat_format(_tokenizer(folder, template=None), path)
    assert chat.prompt([ASKED]) == chat_format(_tokenizer(folder)).prompt([ASKED])
    assert chat.tokenizer.chat_template == CHATML  # a saved model keeps it
    with pytest.raises(ModelError, match="a readable file"):
        chat_format(_tokenizer(folder), tmp_path / "none.jinja")


def test_a_model_that_could_never_stop_is_refused(folder: Path) -> None:
    tokenizer = _tokenizer(folder)
    tokenizer.eos_token = None
    assert chat_format(tokenizer).stop_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    with pytest.raises(ModelError, match="no token ends a turn"):
        chat_format(tokenizer, "plain")


def test_a_template_that_refuses_a_role_says_so(folder: Path) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    chat = chat_format(_tokenizer(folder, template))
    with pytest.raises(ModelError, match=r"\[system, user\]: no system role"):
        chat.prompt([SYSTEM, ASKED])
    assert chat.prompt([ASKED]) == chat_format(_tokenizer(folder)).prompt([ASKED])


def test_an_empty_plain_prompt_needs_a_bos(folder: Path) -> None:
    tokenizer = _tokenizer(folder, None)
    assert chat_format(tokenizer, "plain").prompt([Message("user", "")]) == (tokenizer.bos_token_id,)
    tokenizer.bos_token = None
    with pytest.raises(ModelError, match="no token to start from"):
        chat_format(tokenizer, "plain").prompt([Message("user", "")])


# ---- whole conversations -------------------------------------------------------------------------------------------


def test_mask_is_exactly_the_assistants_words_and_end_tokens(folder: Path) -> None:
    chat = chat_format(_tokenizer(folder))
    tokens, spans, mask = chat.render(CONVERSATION)
    assert len(mask) == len(tokens)
    assert _text(chat, [token for token, chosen in zip(tokens, mask) if chosen]) == "7<|im_end|>11<|im_end|>"
    assert [(span.role, _text(chat, tokens[span.start : span.stop])) for span in spans] == [
        ("prompt", "<bos><|im_start|>system\nbe brief<|im_end|>\n"),
        ("prompt", "<|im_start|>user\nwhat is 3 + 4 ?<|im_end|>\n<|im_start|>assistant\n"),
        ("assistant", "7<|im_end|>"),
        ("prompt", "\n<|im_start|>user\nand 5 + 6 ?<|im_end|>\n<|im_start|>assistant\n"),
        ("assistant", "11<|im_end|>"),
        ("prompt", "\n"),  # what the template writes after the end token is nobody's choice
    ]


def test_tool_messages_have_spans_of_their_role(folder: Path) -> None:
    chat = chat_format(_tokenizer(folder))
    tokens, spans, _ = chat.render([ASKED, ANSWERED, Message("tool", "8"), ANSWERED_ON])
    tool = [span for span in spans if span.role == "tool"]
    assert [_text(chat, tokens[span.start : span.stop]) for span in tool] == [
        "\n<|im_start|>tool\n8<|im_end|>\n<|im_start|>assistant\n"
    ]


@pytest.mark.parametrize("kind", ["chatml", "plain", "word"])
def test_pieces_are_the_whole(kind: str, folder: Path) -> None:
    # prompt + completion + what the environment says + completion = the rendered conversation, token for token
    chat = {
        "chatml": lambda: chat_format(_tokenizer(folder)),
        "plain": lambda: chat_format(_tokenizer(folder), "plain"),
        "word": lambda: chat_format(load_tokenizer(folder / "llama")),
    }[kind]()
    pieces = (
        *chat.prompt([SYSTEM, ASKED]),
        *chat.completion("7"),
        *chat.continuation([ASKED_ON]),
        *chat.completion("11"),
    )
    tokens, spans, mask = chat.render(CONVERSATION)
    assert pieces == tokens[: len(pieces)]
    assert not any(mask[len(pieces) :])
    assert pieces[: -len(chat.completion("11"))] == chat.prompt(CONVERSATION[:-1])
    assert sum(mask) == len(chat.completion("7")) + len(chat.completion("11"))
    assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]
    assert (spans[0].start, spans[-1].stop) == (0, len(tokens))


def test_end_of_turn_is_in_the_mask_even_where_it_is_also_the_padding(folder: Path) -> None:
    """A16: the token that ends a turn is an action, also where padding has its id: masks go by length, never by id."""
    tokenizer = load_tokenizer(folder / "llama")
    tokenizer.pad_token = tokenizer.eos_token
    chat = chat_format(tokenizer)
    tokens, spans, mask = chat.render([ASKED, ANSWERED])
    assert spans[-1] == Span("assistant", len(tokens) - 2, len(tokens))  # "7" and "<eos>"
    assert tokens[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert mask[-1]
    assert any("told by length" in warning for warning in lint(chat))


def test_a_template_that_ignores_the_generation_prompt_still_works(folder: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    chat = chat_format(_tokenizer(folder, template))
    assert _text(chat, chat.prompt([ASKED])) == "<bos>what is 3 + 4 ?<|im_end|>"
    tokens, _, mask = chat.render([ASKED, ANSWERED])
    assert _text(chat, [token for token, chosen in zip(tokens, mask) if chosen]) == "7<|im_end|>"


def test_a_template_that_refuses_a_lone_system_message_still_renders(folder: Path) -> None:
    template = "{% if messages[-1].role == 'system' %}{{ raise_exception('nothing asked') }}{% endif %}" + CHATML
    chat = chat_format(_tokenizer(folder, template))
    tokens, spans, _ = chat.render([SYSTEM, ASKED, ANSWERED])
    assert tokens == chat_format(_tokenizer(folder)).render([SYSTEM, ASKED, ANSWERED]).tokens
    assert [span.role for span in spans] == ["prompt", "assistant", "prompt"]  # system and user share a span


def test_a_template_that_rewrites_earlier_turns_is_refused(folder: Path) -> None:
    """A18: a template that changes earlier turns (strips thoughts) would make other tokens than were sampled."""
    chat = chat_format(_tokenizer(folder, FORGETFUL))
    thought = Message("assistant", "<think>3 + 4</think>7")
    assert chat.render([ASKED, thought]).tokens  # one turn is no problem
    with pytest.raises(ModelError, match=r"expected '<think>.* got '7<\|im_end\|>.*one row an assistant turn"):
        chat.render([ASKED, thought, ASKED_ON, ANSWERED_ON])
    assert any("rewrites earlier turns" in warning for warning in lint(chat))


def test_lint_sees_two_bos_a_missing_bos_and_open_turns(folder: Path) -> None:
    """A19: two BOS tokens, or none, are found and said."""
    assert lint(chat_format(_tokenizer(folder))) == []
    assert lint(chat_format(load_tokenizer(folder / "llama"))) == []
    assert lint(chat_format(_tokenizer(folder, "{{ bos_token }}" + CHATML))) == [
        "a prompt holds 2 BOS tokens; a template should write one"
    ]
    assert lint(chat_format(_tokenizer(folder, CHATML.replace("{{ bos_token }}", "")))) == [
        "the tokenizer adds a BOS token to text, but the chat template writes none"
    ]
    open_turns = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    closed = chat_format(_tokenizer(folder, open_turns))
    assert lint(closed) == ["the template closes no assistant turn; a model trained on it never learns to stop"]


# ---- text ----------------------------------------------------------------------------------------------------------


def test_decode_hides_control_tokens_and_keeps_tags_and_unknown_words(folder: Path) -> None:
    chat = chat_format(_tokenizer(folder))
    tokens = chat.encode("<|im_start|><think>3 + 4</think>7<|im_end|><pad>")
    assert chat.tokenizer.convert_tokens_to_ids("<think>") in tokens  # a special token, yet text
    assert chat.decode(tokens) == "<think>3 + 4</think>7"
    assert ChatFormat(chat.tokenizer, kept=()).decode(tokens) == "3 + 47"
    words = chat_format(load_tokenizer(folder / "llama"))
    assert words.decode(words.encode("what is 3 zyzzyva ?")) == "what is 3 <unk> ?"
    assert words.decode(()) == ""


@functools.cache
def _shared(folder: Path, kind: str) -> ChatFormat:
    return chat_format(_tokenizer(folder) if kind == "bpe" else load_tokenizer(folder / "llama"))


@pytest.mark.parametrize("kind", ["bpe", "word"])
@given(text=st.text("34+= ;x€", max_size=12), trigger=st.sampled_from(["=", " =", "= ", "4 =", "==", "€", "= €"]))
def test_a_text_that_ends_in_a_trigger_ends_in_one_of_its_tokens(
    folder: Path, kind: str, text: str, trigger: str
) -> None:
    chat = _shared(folder, kind)
    tokens = chat.encode(text + trigger)
    if chat.decode(tokens).endswith(trigger):  # a word tokenizer never ends in a space, and does not know €
        assert tokens[-1] in chat.tokens_ending(trigger)


def test_tokens_ending_leaves_most_tokens_out(folder: Path) -> None:
    words = _shared(folder, "word")
    assert [words.decode([token]) for token in words.tokens_ending("=")] == ["="]
    assert [words.decode([token]) for token in words.tokens_ending("4 =")] == ["="]
    pairs = _shared(folder, "bpe")
    endings = {pairs.decode([token]) for token in pairs.tokens_ending("=")}
    assert "=" in endings
    assert all(text.endswith("=") for text in endings)
    with pytest.raises(ValueError, match="empty trigger"):
        words.tokens_ending("")
