"""Small models from scratch: a real Hugging Face decoder with random weights and a tokenizer made from the task's text.

    folder = build_small("models/tiny", SmallModel(layers=2, width=128), corpus, tokenizer="word", seed=0)
    AutoModelForCausalLM.from_pretrained(folder); AutoTokenizer.from_pretrained(folder)      or load_causal(folder)

Nothing here is special to maieutic: the folder holds config, safetensors weights, tokenizer, chat template and
generation config, as a downloaded model's folder does. With the defaults and a vocabulary of 75 words such a model has
0.37 M parameters, which one CPU core trains in minutes. (One exception: transformers 5 gives every model of type
"qwen2" Qwen's own tokenizer, whatever its folder says. `load_causal` believes the folder.)

A conversation is rendered as

    <bos> system <sep> question <sep> answer <eos> <sep> next question <sep> next answer <eos>

with `<sep>` between messages and `<eos>` after each of the assistant's. The marks are single tokens, so no message can
run into its neighbour and the rendering of a conversation always begins with the rendering of its beginning.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from maieutic.errors import ConfigError, DataError, ModelError, UnknownName
from maieutic.models.progress import no_progress_bars

PAD, BOS, EOS, UNK, SEP = "<pad>", "<bos>", "<eos>", "<unk>", "<sep>"
MARKS = (PAD, BOS, EOS, UNK, SEP)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if not loop.first or message['role'] == 'assistant' %}" + SEP + "{% endif %}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + SEP + "{% endif %}"
)


@dataclass(frozen=True)
class SmallModel:
    """The shape of a decoder. `SmallModel()` is the 0.4 M parameter Llama of the recipes.

    `width` is the residual stream's, `heads` share `kv_heads` keys and values, `mlp` is the feed-forward width (None:
    8/3 of the width, rounded up to a multiple of 8), `context` the longest sequence in tokens, `tied` whether input and
    output embeddings are one matrix, `window` the attention window of architectures that slide one (tokens).

    Raises `UnknownName` for an architecture that is not in `ARCHITECTURES`, `ConfigError` for sizes that do not fit.
    """

    architecture: str = "llama"
    layers: int = 2
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    mlp: int | None = None
    context: int = 512
    tied: bool = True
    window: int = 16

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UnknownName("small architecture", self.architecture, ARCHITECTURES)
        sizes = (self.layers, self.width, self.heads, self.kv_heads, self.context, self.window, self.feed_forward)
        if min(sizes) < 1:
            raise ConfigError(f"got {self}; expected every size to be at least 1")
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"got width {self.width} for {self.heads} heads; expected a multiple of {2 * self.heads}, because "
                f"rotary embeddings turn pairs of each head's coordinates; try width={2 * self.heads * 16}"
            )
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"got {self.heads} heads and {self.kv_heads} kv_heads; expected kv_heads to divide heads; "
                f"try kv_heads={self.heads}"
            )

    @property
    def feed_forward(self) -> int:
        """Width of the feed-forward layer."""
        return self.mlp if self.mlp is not None else 8 * math.ceil(self.width / 3)

    @property
    def head_width(self) -> int:
        """Coordinates of one head."""
        return self.width // self.heads


def _decoder(spec: SmallModel) -> dict[str, Any]:
    """The settings by which Llama and its descendants are configured."""
    return {
        "hidden_size": spec.width,
        "intermediate_size": spec.feed_forward,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_width,
        "max_position_embeddings": spec.context,
    }


def _gpt2(spec: SmallModel) -> dict[str, Any]:
    return {
        "n_embd": spec.width,
        "n_inner": spec.feed_forward,
        "n_layer": spec.layers,
        "n_head": spec.heads,
        "n_positions": spec.context,
    }


def _sliding(spec: SmallModel) -> dict[str, Any]:
    return {**_decoder(spec), "sliding_window": spec.window}


def _gemma_sliding(spec: SmallModel) -> dict[str, Any]:
    # One sliding and one full layer at least where there are two, so that both kinds are exercised.
    kinds = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(spec.layers)]
    return {**_sliding(spec), "layer_types": kinds, "query_pre_attn_scalar": spec.head_width}


#: name → (Hugging Face model type, its settings)
ARCHITECTURES: dict[str, tuple[str, Callable[[SmallModel], dict[str, Any]]]] = {
    "llama": ("llama", _decoder),
    "qwen2": ("qwen2", _decoder),
    "qwen3": ("qwen3", _decoder),
    "gemma": ("gemma", _decoder),
    "gemma2": ("gemma2", _gemma_sliding),
    "gemma3_text": ("gemma3_text", _gemma_sliding),
    "mistral_sliding": ("mistral", _sliding),
    "gpt2": ("gpt2", _gpt2),
}


def build_small(
    folder: str | Path,
    spec: SmallModel,
    corpus: Iterable[str] = (),
    *,
    vocabulary: Sequence[str] | None = None,
    tokenizer: str = "word",
    min_count: int = 1,
    vocabulary_size: int = 1024,
    extra_words: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Make a tokenizer and a randomly initialised model, write them to `folder`, and return it.

    tokenizer    "word": the corpus's whitespace-separated words that occur at least `min_count` times, or exactly the
                 words of `vocabulary`; other words read as `<unk>`. `decode(encode(text))` is `text` up to whitespace.
                 "bpe": byte-level byte-pair encoding learned from the corpus, `vocabulary_size` tokens at most (never
                 less than 256 bytes and 5 marks), each digit a token. `decode(encode(text))` is `text` exactly.
    extra_words  words that get a token of their own beside what the text has: labels (`[GOOD]`), tags, …
    seed         of the weights. Matrices are normal with standard deviation sqrt(2 / (5 width)) (arXiv 1910.05895):
                 the customary 0.02 is meant for wider models and learns slowly here.

    Raises `ModelError` when the folder already holds a model, `DataError` when there is no text to learn from.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise ModelError(f"{folder} already holds a model; choose another folder, or remove it first")
    wrapped = small_tokenizer(
        spec.context,
        corpus,
        vocabulary=vocabulary,
        tokenizer=tokenizer,
        min_count=min_count,
        vocabulary_size=vocabulary_size,
        extra_words=extra_words,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with no_progress_bars():
        _random_model(spec, wrapped, seed).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


def small_tokenizer(
    context: int,
    corpus: Iterable[str] = (),
    *,
    vocabulary: Sequence[str] | None = None,
    tokenizer: str = "word",
    min_count: int = 1,
    vocabulary_size: int = 1024,
    extra_words: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """The tokenizer alone, of a model that reads `context` tokens; the rest is as in `build_small`."""
    if tokenizer not in TOKENIZERS:
        raise UnknownName("tokenizer", tokenizer, TOKENIZERS)
    if vocabulary is not None and tokenizer != "word":
        raise ConfigError(
            f"got a vocabulary of words for a {tokenizer!r} tokenizer; give a corpus, or tokenizer='word'"
        )
    if tokenizer == "word":
        words = list(vocabulary) if vocabulary is not None else _words(corpus, min_count)
        raw = _word_tokenizer([*words, *extra_words])
    else:
        raw = _bpe_tokenizer(list(corpus), vocabulary_size)
        raw.add_tokens(_unbroken(extra_words))
    return _wrap(raw, context)


#: Kinds of tokenizer that `build_small` makes.
TOKENIZERS = ("word", "bpe")


def tiny_folder(architecture: str, folder: str | Path, *, seed: int = 0, layers: int = 2, width: int = 32) -> Path:
    """A model of a few thousand parameters for tests: digits, signs and some words; `folder/<architecture>`.

    Weights are random, so its log-probs are meaningless but exercise the whole architecture.
    """
    words = [*"0123456789", *"+-*/=;#?.", "what", "is", "the", "answer", "apples", "buys", "<think>", "</think>"]
    spec = SmallModel(architecture, layers=layers, width=width, heads=4, kv_heads=2, context=128)
    return build_small(Path(folder) / architecture, spec, vocabulary=words, seed=seed)


def _words(corpus: Iterable[str], min_count: int) -> list[str]:
    split = pre_tokenizers.WhitespaceSplit()
    counts = Counter(word for text in corpus for word, _ in split.pre_tokenize_str(text))
    kept = [word for word, count in counts.items() if count >= min_count]
    return sorted(kept, key=lambda word: (-counts[word], word))


def _word_tokenizer(words: Sequence[str]) -> Tokenizer:
    if not words:
        raise DataError("got no words; expected a corpus with text or a vocabulary (is min_count too high?)")
    entries = dict.fromkeys([*MARKS, *_unbroken(words)])
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(entries)}, unk_token=UNK))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return raw


def _unbroken(words: Sequence[str]) -> list[str]:
    broken = [word for word in words if word.split() != [word]]
    if broken:
        raise DataError(f"got vocabulary entries with whitespace, such as {broken[0]!r}; expected single words")
    return list(words)


def _bpe_tokenizer(corpus: Sequence[str], size: int) -> Tokenizer:
    if not any(corpus):
        raise DataError("got an empty corpus; expected text to learn byte pairs from")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=max(size, len(alphabet) + len(MARKS)),
        special_tokens=list(MARKS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    raw.train_from_iterator(corpus, trainer)
    return raw


def _wrap(raw: Tokenizer, context: int) -> PreTrainedTokenizerFast:
    raw.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, raw.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        sep_token=SEP,
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def small_config(spec: SmallModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The transformers config of a small model that reads this tokenizer's tokens."""
    kind, settings = ARCHITECTURES[spec.architecture]
    return AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        tie_word_embeddings=spec.tied,
        initializer_range=math.sqrt(2 / (5 * spec.width)),
        **settings(spec),
        **_marks(tokenizer),
    )


def _marks(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _random_model(spec: SmallModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
    config = small_config(spec, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(**_marks(tokenizer))
    return model
