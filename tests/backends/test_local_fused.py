"""Compiled decode steps give the numbers of the operations that they stand for; where they do not, they stay out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from maieutic.backends.local import LocalSampler, fused, rows
from maieutic.backends.local.bags import WIDTH, BagStore
from maieutic.backends.local.cache import Admission
from maieutic.backends.local.decoder import SlotDecoder
from maieutic.backends.local.fused import Fused, fused_for
from maieutic.backends.local.lean import lean_for
from maieutic.backends.local.products import available
from maieutic.backends.local.trunk import Trunk
from maieutic.models.causal import CausalModel
from maieutic.protocols import Completion, Sampling

pytest.importorskip("numba", reason="compiled decode steps need numba (pip install 'maieutic[fast]')")
from maieutic.backends.local import kernels as found_kernels
from maieutic.backends.local.compiled import decoding as kernels
from maieutic.backends.local.compiled import parts

Load = Callable[..., CausalModel]


def model(kind: str, size: int = 8, heads: int = 4, keys: int = 2, **settings: Any) -> torch.nn.Module:
    """A random decoder of two layers, 60 tokens and heads of that size; no weight is a trivial one."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, num_hidden_layers=2, hidden_size=32, num_attention_heads=heads, num_key_value_heads=keys, head_dim=size,
        intermediate_size=48, vocab_size=60, max_position_embeddings=256, tie_word_embeddings=True, **settings,
    )  # fmt: skip
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return module


def decoder_of(module: torch.nn.Module, on: bool = True) -> SlotDecoder:
    made = SlotDecoder(Trunk(module), torch.device("cpu"))
    assert made.fused is None  # too small for it to be worth while
    if on:
        made.fused = fused_for(made.lean, kernels)
    return made


def sampled(module: torch.nn.Module, on: bool, prompts: list[list[int]], tokens: int = 40, **options: Any):
    """Three siblings of each prompt and two of a further one, in 6 slots: rows are refilled and moved together."""
    engine = LocalSampler(module, decoder_of(module, on), max_rows=6)

    async def every() -> list[list[Completion]]:
        calls = [
            engine.sample(prompt, Sampling(tokens - 4 * i, stop_ids=frozenset({3}), key=str(i), **options), 3 - i // 2)
            for i, prompt in enumerate(prompts)
        ]
        return await asyncio.gather(*calls)

    return [each for made in asyncio.run(every()) for each in made]


PROMPTS = [[5 + i % 20 for i in range(n)] for n in (40, 33, 7)]


@pytest.mark.parametrize(
    ("kind", "size", "heads", "keys"),
    [("llama", 8, 4, 2), ("llama", 104, 2, 1), ("qwen2", 16, 6, 2), ("qwen3", 64, 3, 3), ("qwen3", 40, 5, 1)],
)
def test_samples_are_those_of_the_ordinary_steps(kind: str, size: int, heads: int, keys: int) -> None:
    """Own columns cross a page, prompts are shared or not; widths of 104 = 64 + 32 + 8 take every tile."""
    module = model(kind, size, heads, keys)
    assert (decoder_of(module).fused is not None) is available()
    found, expected = sampled(module, True, PROMPTS), sampled(module, False, PROMPTS)
    assert len(found) == 8
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    for own, ordinary in zip(found, expected, strict=True):
        assert np.abs(np.subtract(own.logprobs, ordinary.logprobs)).max() < 1e-5


def test_a_model_of_some_size_is_served_without_being_asked() -> None:
    module = model("llama", size=64, heads=4, keys=4)
    assert sum(weight.numel() for weight in module.model.parameters()) < found_kernels.SMALLEST
    assert SlotDecoder(Trunk(module), torch.device("cpu")).fused is None
    module = model("llama", size=256, heads=4, keys=4)
    assert (SlotDecoder(Trunk(module), torch.device("cpu")).fused is not None) is available()


def test_a_row_is_the_same_alone_and_twice() -> None:
    module = model("qwen3")
    together = sampled(module, True, PROMPTS)
    assert together == sampled(module, True, PROMPTS)  # to the bit
    alone = sampled(module, True, PROMPTS[:1])
    assert [each.tokens for each in alone] == [each.tokens for each in together[:3]]
    for own, other in zip(alone, together[:3], strict=True):
        assert np.abs(np.subtract(own.logprobs, other.logprobs)).max() < 1e-5


def test_the_store_and_the_copies_of_weights_are_given_back_after_a_batch() -> None:
    """What comes next, an update, wants their memory: nothing of the kernels' may keep them."""
    decoder = decoder_of(model("llama"))
    engine = LocalSampler(decoder.trunk.module, decoder, max_rows=6)
    asyncio.run(engine.sample(PROMPTS[0], Sampling(4, key="0"), 3))
    kept = decoder.fused
    assert kept is not None
    assert kept.plan is None
    assert not kept.layers
    assert not kept.served


class Numbers:
    """Random queries, keys and values of rows in a store, and the dense attention that they should give."""

    def __init__(self, heads: int, keys: int, size: int) -> None:
        self.draw = np.random.default_rng(0)
        self.heads, self.keys, self.size = heads, keys, size
        self.store = BagStore()
        self.seen: dict[int, list[np.ndarray]] = {}

    def normal(self, *shape: int) -> np.ndarray:
        return self.draw.standard_normal(shape, np.float32)

    def admit(self, admission: Admission) -> None:
        pair = self.normal(2, len(admission.prompt), self.keys, self.size)
        self.store.put(self.store.place(admission), 0, *torch.from_numpy(pair))
        for slot in admission.slots:
            self.seen[slot] = list(pair)

    def step(self, alive: list[bool]) -> tuple[np.ndarray, np.ndarray]:
        """What the kernel and the dense attention read for the live rows, `[live, H, D]`: positions turn by 0."""
        rows_, size = len(alive), self.size
        at = np.array([len(self.seen[row][0]) for row in range(rows_)])
        mixed = self.normal(rows_, (self.heads + 2 * self.keys) * size)
        layout: Any = self.store.decode(at, np.array(alive))
        still = np.stack([np.ones((at.max() + 1, size // 2)), np.zeros((at.max() + 1, size // 2))]).astype(np.float32)
        parts = SimpleNamespace(heads=self.heads, keys=self.keys)
        layer: Any = SimpleNamespace(
            layer=parts, size=size, scales=(np.zeros(0, np.float32),) * 2, epsilon=np.float32(0),
            scaling=np.float32(size**-0.5), nothing=[np.zeros((1, self.keys, *s), np.float32) for s in
            ((size, WIDTH), (WIDTH, size))],
        )  # fmt: skip
        served: Any = SimpleNamespace(plan=fused._Plan(layout), kernels=kernels, turns=still)
        read = np.full((rows_, self.heads * size), np.nan, np.float32)
        Fused._attend(served, 0, layer, torch.from_numpy(mixed), at, layout, read)
        whole = mixed.reshape(rows_, -1, size)
        expected = []
        for row in np.flatnonzero(alive):
            queries, key, value = np.split(whole[row], [self.heads, self.heads + self.keys])
            self.seen[row] = [np.concatenate([old, new[None]]) for old, new in zip(self.seen[row], (key, value))]
            keys, values = (np.repeat(each, self.heads // self.keys, 1) for each in self.seen[row])
            scores = np.exp(np.einsum("hd,chd->hc", queries, keys).astype(np.float64) * size**-0.5)
            expected.append(np.einsum("hc,chd->hd", scores / scores.sum(1, keepdims=True), values))
        return read.reshape(rows_, self.heads, size)[np.array(alive)], np.array(expected)


@pytest.mark.parametrize(("heads", "keys", "size"), [(2, 2, 8), (6, 2, 24), (7, 1, 72)])
def test_attention_is_the_dense_one(heads: int, keys: int, size: int) -> None:
    """11 siblings (two units) and 3 of another shelf, two rows alone; two of them are dead."""
    numbers = Numbers(heads, keys, size)
    numbers.store.reserve(17, 96)
    numbers.admit(Admission([0] * 45, list(range(11)), 40, siblings=11))
    numbers.admit(Admission([0] * 20, [11, 13, 15], 40, siblings=3))
    numbers.admit(Admission([0] * (WIDTH - 1), [12], 40))
    numbers.admit(Admission([0], [14, 16], 40, siblings=2))
    alive = [row not in (4, 13) for row in range(17)]
    for _ in range(3):
        found, expected = numbers.step(alive)
        assert np.abs(found - expected).max() < 2e-6


def test_exp_is_right_to_two_units_in_the_last_place() -> None:
    x = np.concatenate([-np.linspace(0, 87, 20001), [0.0, -87.5, -np.inf, np.nan]]).astype(np.float32)
    found, expected = np.array([parts.exp(each) for each in x]), np.exp(x.astype(np.float64))
    assert np.abs(found[:20001] - expected[:20001]).max() <= 1.2e-7
    assert (np.abs(found[:20001] - expected[:20001]) <= 2 * np.spacing(expected[:20001].astype(np.float32))).all()
    assert found[20001] == 1
    assert found[20002:20004].tolist() == [0, 0]
    assert np.isnan(found[20004])


def test_draws_are_those_of_torch() -> None:
    """Vocabularies within, at and beyond a block; temperatures; barred tokens; the ends of the interval."""
    generator = torch.Generator().manual_seed(1)
    for vocabulary in (5, 64, 65, 1000):
        logits = 2 * torch.randn(40, vocabulary, generator=generator)
        logits[:, 1::3] = -torch.inf
        temperatures = torch.tensor([0.0, 0.5, 1.0, 2.0]).repeat(10)
        uniform = torch.rand(40, generator=generator)
        uniform[:8], uniform[8:16] = 0.0, 1 - 2.0**-24
        found, expected = (f(logits, temperatures, uniform) for f in (fused.draw, rows.draw))
        assert torch.equal(found[0], expected[0])
        assert (found[1] - expected[1]).abs().max() < 1e-5
        assert torch.isfinite(found[1]).all()  # nothing barred was drawn


def test_logits_that_are_no_numbers_give_log_probs_that_are_none() -> None:
    logits = torch.zeros(3, 70)
    logits[0, 69], logits[1, 3] = torch.nan, torch.inf
    _, logprobs = fused.draw(logits, torch.ones(3), torch.tensor([0.5, 0.01, 0.5]))
    assert torch.isfinite(logprobs).tolist() == [False, False, True]


def test_what_the_kernels_cannot_serve_stays_as_it_is(tiny: Load) -> None:
    for module in (tiny("gpt2").module, tiny("gemma").module, model("llama", size=12)):  # 12 is no multiple of 8
        assert fused_for(lean_for(Trunk(module.eval())), kernels) is None


def test_kernels_that_give_other_numbers_are_refused_once(caplog: pytest.LogCaptureFixture) -> None:
    if not available():
        pytest.skip("this build of torch has no products with weights laid out beforehand")
    lean = lean_for(Trunk(model("llama")))
    assert fused_for(lean, kernels) is not None

    def forgetful(states: Any, weight: Any, epsilon: Any, out: Any) -> None:
        kernels.rms_norm(states, np.ones_like(weight), epsilon, out)

    with caplog.at_level(logging.WARNING):
        assert fused_for(lean, SimpleNamespace(**{**vars(kernels), "rms_norm": forgetful})) is None
    assert len(caplog.records) == 1
    assert "differ by" in caplog.text


def test_a_function_without_a_folder_is_compiled_all_the_same() -> None:
    """What is installed where nothing can be written has no place on disk for compiled code."""
    made: dict[str, Any] = {}
    exec(compile("def twice(x):\n    return 2 * x\n", "<nowhere>", "exec"), made)
    assert parts.compiled(made["twice"])(21) == 42
