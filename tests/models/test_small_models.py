"""Models from scratch are ordinary Hugging Face folders, and their tokenizers lose nothing."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from maieutic.errors import ConfigError, DataError, ModelError, UnknownName
from maieutic.models.causal import load_causal, load_tokenizer, token_logprobs
from maieutic.models.chat import ChatFormat
from maieutic.models.small import ARCHITECTURES, MARKS, SmallModel, build_small, tiny_folder
from maieutic.types import Message

CORPUS = ["ann has 12 apples .", "ann buys 3 apples .", "how many ?"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="module")
def bpe(folders: Path) -> Path:
    spec = SmallModel(layers=1, width=32)
    return build_small(folders / "bpe", spec, ["Ann has 1234 apples.\n", "How much is 3.50 €?"] * 4, tokenizer="bpe")


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "qwen2"])
def test_the_folder_is_read_by_the_auto_classes_as_by_us(architecture: str, folders: Path) -> None:
    folder = tiny_folder(architecture, folders)
    ours, text = load_causal(folder), "what is 3 + 4 ?"
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == type(ours.module).__name__
    assert tokenizer.encode(text, add_special_tokens=False) == list(ours.chat.encode(text))
    tokens = torch.tensor([ours.chat.prompt([Message("user", text)])])
    ours.module.eval()
    assert torch.equal(theirs.eval()(tokens).logits, ours.module(tokens).logits)


def test_qwen2_folder_keeps_its_own_tokenizer(folders: Path) -> None:
    # transformers 5 would use Qwen's pre-tokenizer for this model type and drop the unknown words.
    tokenizer = load_tokenizer(tiny_folder("qwen2", folders))
    assert tokenizer.decode(tokenizer.encode("what is 3 + 4 ?", add_special_tokens=False)) == "what is 3 + 4 ?"


def test_words_are_counted_and_ordered(folders: Path) -> None:
    # ann 2, apples 2, "." 2; once: 12, 3, ?, buys, has, how, many
    tokenizer = load_tokenizer(build_small(folders / "words", SmallModel(layers=1, width=32), CORPUS))
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == [
        *MARKS, ".", "ann", "apples", "12", "3", "?", "buys", "has", "how", "many",
    ]  # fmt: skip
    twice = build_small(folders / "twice", SmallModel(layers=1, width=32), CORPUS, min_count=2)
    assert load_tokenizer(twice).decode(load_tokenizer(twice)("ann buys apples .").input_ids[1:]) == (
        "ann <unk> apples ."
    )


@given(st.lists(st.sampled_from(["ann", "12", "apples", ".", "buys", "3", "?"]), max_size=12), st.data())
def test_word_tokenizer_gives_text_back_up_to_whitespace(folders: Path, words: list[str], data: st.DataObject) -> None:
    folder = folders / "roundtrip"
    if not folder.exists():
        build_small(folder, SmallModel(layers=1, width=32), CORPUS)
    gaps = st.sampled_from([" ", "  ", "\n", "\t "])
    text = "".join(word + data.draw(gaps) for word in words)
    chat = _chat(folder)
    assert chat.decode(chat.encode(text)) == " ".join(words)


@functools.cache
def _chat(folder: Path) -> ChatFormat:
    return load_causal(folder).chat


@given(st.text(max_size=40).filter(lambda text: not any(mark in text for mark in MARKS)))
def test_byte_pairs_give_any_text_back_exactly(bpe: Path, text: str) -> None:
    chat = _chat(bpe)
    assert chat.decode(chat.encode(text)) == text


def test_each_digit_is_a_token(bpe: Path) -> None:
    chat = _chat(bpe)
    assert [chat.decode([token]) for token in chat.encode("1234")] == ["1", "2", "3", "4"]


def test_conversation_is_rendered_without_stray_tokens(folders: Path) -> None:
    tokenizer = load_tokenizer(tiny_folder("llama", folders / "rendered"))
    turns = [("system", "what is"), ("user", "3 + 4 ?"), ("assistant", "7"), ("user", "8 ?")]
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], tokenize=False, add_generation_prompt=True
    )
    assert text == "<bos>what is<sep>3 + 4 ?<sep>7<eos><sep>8 ?<sep>"
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
    assert " ".join(pieces) == "<bos> what is <sep> 3 + 4 ? <sep> 7 <eos> <sep> 8 ? <sep>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_size_of_the_recipe_model(folders: Path) -> None:
    # vocabulary 75 = 5 marks + 70 words, width 128, 4 heads of 32, 2 key-value heads, mlp 8 * ceil(128 / 3) = 344:
    # embedding 75 * 128 = 9600 (tied); a layer: q and o 2 * 128^2 = 32768, k and v 2 * 128 * 64 = 16384,
    # mlp 3 * 128 * 344 = 132096, two norms 256: 181504; two layers and the last norm: 9600 + 363008 + 128 = 372736
    folder = build_small(folders / "recipe", SmallModel(), vocabulary=[f"w{i}" for i in range(70)])
    assert sum(p.numel() for p in load_causal(folder).module.parameters()) == 372_736


def test_seed_fixes_the_weights_and_leaves_other_randomness_alone(folders: Path) -> None:
    before = torch.get_rng_state()
    first, again, other = (
        load_causal(build_small(folders / name, SmallModel(layers=1, width=32), CORPUS, seed=seed)).module.state_dict()
        for name, seed in (("s1", 1), ("s1-again", 1), ("s2", 2))
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_random_model_knows_nothing_yet(folders: Path) -> None:
    # The loss of an untrained model is near log V, the loss of a uniform guess.
    folder = build_small(folders / "fresh", SmallModel(), vocabulary=[f"w{i}" for i in range(95)])
    model = load_causal(folder)
    tokens = torch.randint(5, 100, (4, 32), generator=torch.Generator().manual_seed(0))
    loss = -token_logprobs(model.module(tokens).logits, tokens)[:, 1:].mean().item()
    assert loss == pytest.approx(math.log(100), abs=0.6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'llama'"):
        SmallModel("lama")
    with pytest.raises(ConfigError, match="multiple of 8"):
        SmallModel(width=100, heads=4)
    with pytest.raises(ConfigError, match="kv_heads to divide heads"):
        SmallModel(heads=4, kv_heads=3)
    with pytest.raises(ConfigError, match="at least 1"):
        SmallModel(layers=0)


def test_a_model_is_never_overwritten_and_never_made_of_nothing(folders: Path) -> None:
    spec = SmallModel(layers=1, width=32)
    build_small(folders / "kept", spec, CORPUS)
    with pytest.raises(ModelError, match="already holds a model"):
        build_small(folders / "kept", spec, CORPUS)
    with pytest.raises(DataError, match="no words"):
        build_small(folders / "none", spec, CORPUS, min_count=3)
    with pytest.raises(DataError, match="empty corpus"):
        build_small(folders / "none", spec, [], tokenizer="bpe")
    with pytest.raises(DataError, match="'two words'"):
        build_small(folders / "none", spec, vocabulary=["two words"])
    with pytest.raises(UnknownName, match="did you mean 'word'"):
        build_small(folders / "none", spec, CORPUS, tokenizer="words")
    with pytest.raises(ConfigError, match="vocabulary of words"):
        build_small(folders / "none", spec, vocabulary=["a"], tokenizer="bpe")
    assert not (folders / "none").exists()
