"""Tiny models of one vocabulary, a batch of theirs, and a server of one of them."""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from maieutic.models.causal import CausalModel, load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.types import Batch

sys.path.insert(0, str(Path(__file__).parent))

from standin import StandIn

WORDS = [*"0123456789", *"+-*/=;#?.", "what", "is", "the", "answer", "apples", "buys", "<think>", "</think>"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CausalModel]:
    """`models(seed)` is a model of 32 tokens; `words` and shapes give another one."""
    root = tmp_path_factory.mktemp("models")

    def make(seed: int, words: list[str] | None = None, **shape: int) -> CausalModel:
        spec = SmallModel("llama", layers=1, width=24, heads=2, kv_heads=2, **{"context": 128, **shape})
        folder = root / f"{seed}-{zlib.crc32(' '.join(words or WORDS).encode())}-{'-'.join(map(str, shape.values()))}"
        if not folder.exists():
            build_small(folder, spec, vocabulary=words or WORDS, seed=seed)
            sharpen(folder)
        return load_causal(folder, dtype="float32", device="cpu")

    return make


def sharpen(folder: Path) -> None:
    """Untrained models find all tokens about equally likely; these have opinions."""
    model = load_causal(folder, dtype="float32", device="cpu")
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.mul_(2.5)
    model.module.save_pretrained(folder)


@pytest.fixture
def batch() -> Batch:
    """Five rows of two prompts, 14 tokens at most, a tool's tokens in one of them; the last two rows are equal."""
    draw = random.Random(0)
    lengths, prompts = [14, 9, 12, 6, 6], [4, 4, 4, 2, 2]
    tokens = torch.zeros(5, 14, dtype=torch.long)
    mask = torch.zeros(5, 14, dtype=torch.bool)
    for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        tokens[row, :length] = torch.tensor([draw.randrange(5, 32) for _ in range(length)])
        tokens[row, :prompt] = 7 + prompt
        mask[row, prompt:length] = True
    mask[0, 6:8] = False
    tokens[4] = tokens[3]
    return Batch(
        tokens=tokens, mask=mask, lengths=torch.tensor(lengths), sampler_logprobs=torch.zeros(5, 14),
        rewards=torch.zeros(5), token_rewards=torch.zeros(5, 14), terminated=torch.ones(5, dtype=torch.bool),
        groups=torch.tensor([0, 0, 0, 1, 1]), units=torch.arange(5), temperature=1.0,
        columns={"weights": mask / mask.sum()}, task_ids=("a/1", "a/1", "a/1", "b/7", "b/7"),
    )  # fmt: skip


@pytest.fixture
def served(models: Callable[..., CausalModel]) -> Iterator[StandIn]:
    made = StandIn(models(1))
    yield made
    made.close()
