"""Random decoders of three sizes: what is measured of them is speed, so nothing need have been learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models
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

    @property
    def settings(self) -> dict[str, Any]:
        """As transformers calls them."""
        return {
            "num_hidden_layers": self.layers, "hidden_size": self.width, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.width // self.heads,
            "intermediate_size": self.mlp, "vocab_size": self.vocabulary, "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        }  # fmt: skip


#: By the number of weights, embeddings included once. "tiny" is for trying whether everything runs.
SIZES: Mapping[str, Size] = {
    "tiny": Size("llama", 2, 32, 4, 2, 64, 64, 8),
    "0.4M": Size("llama", 2, 128, 4, 2, 344, 96),
    "4M": Size("qwen2", 4, 256, 4, 2, 896, 2048),
    "110M": Size("qwen2", 12, 768, 12, 12, 2048, 32768, 16),
}


def random_module(size: Size, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The Hugging Face module of that shape, as it is sampled from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(size.kind, **size.settings), dtype=dtype)
    return module.to(device).eval()


def random_model(size: Size, *, device: str = "cpu") -> CausalModel:
    """The same in float32 with a tokenizer of numbered words, as a learner wants it."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size.vocabulary)}, unk_token="w1"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", unk_token="w1")
    return CausalModel(random_module(size, device=device), tokenizer, chat_format(tokenizer, "plain"), "random")
