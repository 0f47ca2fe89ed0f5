"""Random decoders of several sizes: what is measured of them is speed, so nothing need have been learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from maieutic.models.causal import CausalModel
from maieutic.models.chat import chat_format

#: Positions of every model: room for a completion of 8,192 tokens.
CONTEXT = 8704


@dataclass(frozen=True, slots=True)
class Size:
    """A decoder's shape, and how long the completions of a sweep over rows are: large models are given shorter ones."""

    kind: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    completion: int = 128
    tied: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        """As transformers calls them."""
        return {
            "num_hidden_layers": self.layers, "hidden_size": self.width, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.width // self.heads,
            "intermediate_size": self.mlp, "vocab_size": self.vocabulary, "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": self.tied, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        }  # fmt: skip


#: By the number of weights, embeddings included once. "tiny" is for trying whether everything runs.
SIZES: Mapping[str, Size] = {
    "tiny": Size("llama", 2, 32, 4, 2, 64, 64, 8),
    "0.4M": Size("llama", 2, 128, 4, 2, 344, 96),
    "4M": Size("qwen2", 4, 256, 4, 2, 896, 2048),
    "110M": Size("qwen2", 12, 768, 12, 12, 2048, 32768, 16),
}


#: Shapes of Qwen2.5 models, by their names: for a GPU.
LARGE: Mapping[str, Size] = {
    "0.5B": Size("qwen2", 24, 896, 14, 2, 4864, 151936),
    "1.5B": Size("qwen2", 28, 1536, 12, 2, 8960, 151936),
    "7B": Size("qwen2", 28, 3584, 28, 4, 18944, 152064, tied=False),
}


def random_module(size: Size, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The Hugging Face module of that shape, as it is sampled from; made where it will be."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        module: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(size.kind, **size.settings), dtype=dtype)
    return module.to(device).eval()


def random_model(size: Size, *, device: str = "cpu") -> CausalModel:
    """The same in float32 with a tokenizer of numbered words, as a learner wants it."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size.vocabulary)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", unk_token="w1")
    return CausalModel(random_module(size, device=device), tokenizer, chat_format(tokenizer, "plain"), "random")
