"""Decode steps over static buffers: the tokens and log-probs of ordinary decoding, whoever shares the batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import torch

from maieutic.backends.local import LocalSampler
from maieutic.backends.local.cache import Admission
from maieutic.backends.local.check import decoder_for
from maieutic.backends.local.narrow import Narrow, narrow_for
from maieutic.backends.local.replay import ReplayedDecoder, Stepper, dealt
from maieutic.backends.local.rows import draw
from maieutic.backends.local.static import (
    STEPS,
    block_size,
    columns_bucket,
    draw_static,
    rows_bucket,
    rows_fitting,
)
from maieutic.backends.local.trunk import Trunk
from maieutic.backends.local.uniform import uniforms, uniforms_on
from maieutic.clock import listening, phase
from maieutic.errors import NumericalError
from maieutic.models.causal import CausalModel
from maieutic.models.lora import LoRA
from maieutic.protocols import Completion, Sampling

Load = Callable[..., CausalModel]
PROMPTS = [tuple(range(5, 5 + length)) for length in (3, 7, 1, 20, 2)]
TEMPERATURES = (1.0, 0.7, 0.0, 1.3, 1.0)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def replayed(model: CausalModel, numbers: torch.dtype = torch.float32, **options: int) -> ReplayedDecoder:
    model.module.eval()
    trunk = Trunk(model.module)
    narrow = narrow_for(trunk, numbers)
    assert isinstance(narrow, Narrow)
    return ReplayedDecoder(trunk, narrow, next(model.module.parameters()).device, **options)


def sample(engine: LocalSampler, **options: object) -> list[Completion]:
    """Three completions of each prompt, of different lengths and temperatures, with stop tokens 3 and 4."""

    async def together() -> list[list[Completion]]:
        calls = [
            engine.sample(prompt, Sampling(12 + 5 * i, t, frozenset({3, 4}), f"task{i}", **options), 3)  # type: ignore[arg-type]
            for i, (prompt, t) in enumerate(zip(PROMPTS, TEMPERATURES, strict=True))
        ]
        return await asyncio.gather(*calls)

    return [completion for made in asyncio.run(together()) for completion in made]


def assert_same(found: list[Completion], expected: list[Completion]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.tokens, ours.mask, ours.finish) == (theirs.tokens, theirs.mask, theirs.finish)
        assert np.abs(np.array(ours.logprobs) - np.array(theirs.logprobs)).max() < 1e-5


def test_uniform_numbers_are_the_same_on_any_device() -> None:
    numbers = np.random.default_rng(0)
    keys, positions = numbers.integers(0, 2**64, 500, np.uint64), numbers.integers(0, 9000, 500)
    found = uniforms_on(torch.from_numpy(keys.view(np.int64)), torch.from_numpy(positions))
    assert np.array_equal(found.numpy(), uniforms(keys, positions))


@pytest.mark.parametrize("vocabulary", [32, 97, 400, 1187 * 8])
def test_the_draw_in_two_stages_is_the_draw(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(200, vocabulary, generator=generator)
    logits[:, 1::3] = -torch.inf
    uniform = torch.rand(200, generator=generator)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-24])
    temperatures = torch.tensor([0.0, 0.5, 1.0, 2.0]).repeat(50)
    expected, found = draw(logits, temperatures, uniform), draw_static(logits, temperatures, uniform)
    assert torch.equal(found[0], expected[0])
    assert (found[0] % 3 != 1).all()
    assert (found[1] - expected[1]).abs().max() < 1e-5


def test_blocks_divide_the_vocabulary() -> None:
    assert block_size(400) == 20
    assert block_size(151936) == 128  # 2⁷ · 1187
    assert block_size(97) == 97  # a prime is one block
    assert block_size(32) == 32


def test_steps_cover_what_is_in_use_and_little_more() -> None:
    assert [rows_bucket(n) for n in (1, 3, 9, 33, 130, 512, 513)] == [1, 4, 12, 48, 160, 512, 640]
    assert [columns_bucket(n) for n in (1, 128, 129, 1000, 1025, 2049)] == [128, 128, 256, 1024, 1280, 2560]
    for fit in (1, 7, 100, 511, 512, 700):
        assert rows_bucket(rows_fitting(fit)) <= fit


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("rows", [4, 64])
def test_tokens_and_logprobs_are_those_of_ordinary_decoding(tiny: Load, architecture: str, rows: int) -> None:
    # With 4 rows, slots are refilled while others are in the middle of their completions.
    model = tiny(architecture)
    model.module.eval()
    expected = sample(LocalSampler(model.module, decoder_for(model.module), max_rows=rows))
    assert len({len(one.tokens) for one in expected}) > 4
    assert_same(sample(LocalSampler(model.module, replayed(model), max_rows=rows)), expected)


def test_rows_that_are_asked_after_every_token_are_decoded_one_by_one(tiny: Load) -> None:
    model = tiny("llama")
    model.module.eval()
    asked = {"interject": lambda tokens: [6] if len(tokens) < 9 else [], "interject_ids": frozenset(range(5, 20))}
    expected = sample(LocalSampler(model.module, decoder_for(model.module)), **asked)
    assert any(not all(one.mask) for one in expected)
    assert_same(sample(LocalSampler(model.module, replayed(model)), **asked), expected)


def test_what_runs_ahead_is_not_counted(tiny: Load) -> None:
    model = tiny("llama")
    engine = LocalSampler(model.module, replayed(model))
    with listening() as heard:
        with phase("sampling"):
            made = sample(engine)
        told = heard.read().tokens
    # every token but each row's first, which is the prompt's
    assert told["sampling/decode"] == sum(len(one.tokens) - 1 for one in made)
    assert engine.under_way is None


def test_copies_follow_the_weights_and_stay_where_they_are(tiny: Load) -> None:
    model = tiny("llama", lora=LoRA(rank=2))
    decoder = replayed(model)
    engine = LocalSampler(model.module, decoder)
    first = sample(engine)
    place = decoder.body.layers[0].out.weight.data_ptr()
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    second = sample(engine)
    assert decoder.body.layers[0].out.weight.data_ptr() == place
    assert [one.tokens for one in first] != [one.tokens for one in second]
    assert_same(second, sample(LocalSampler(model.module, decoder_for(model.module))))


def test_a_step_is_run_where_nothing_can_be_captured(tiny: Load) -> None:
    decoder = replayed(tiny("llama"))
    with torch.no_grad():
        decoder.begin()
        decoder.admit([Admission([5, 6, 7], [0, 1], 8)], 11, 2)
        stepper = decoder.stepper()
        assert isinstance(stepper, Stepper)
        assert stepper.plainly == "there is no CUDA device"
        tokens, logprobs = stepper.launch(2, 4, STEPS).read()
    assert tokens.shape == logprobs.shape == (STEPS, 2)
    assert stepper.graphs == {}


def test_prompts_are_run_in_turns(tiny: Load) -> None:
    lengths = [
        len(one.prompt) for turn in dealt([Admission([1] * n, [0], 1) for n in (4, 5, 30, 2)], 9) for one in turn
    ]
    assert lengths == [4, 5, 30, 2]
    assert [len(turn) for turn in dealt([Admission([1] * n, [0], 1) for n in (4, 5, 30, 2)], 9)] == [2, 1, 1]
    model = tiny("qwen2")
    expected = sample(LocalSampler(model.module.eval(), decoder_for(model.module)))
    assert_same(sample(LocalSampler(model.module, replayed(model, prefill_tokens=8))), expected)


def test_coarse_copies_sample_and_say_their_own_chances(tiny: Load) -> None:
    """bfloat16 moves log-probs by rounding, and little else."""
    model = tiny("qwen2")
    decoder = replayed(model, torch.bfloat16)
    exact = replayed(model)
    for one in (decoder, exact):
        one.begin()
    with torch.no_grad():
        given = [Admission(prompt, [i], 4) for i, prompt in enumerate(PROMPTS)]
        coarse, fine = decoder.admit(given, 30, 5), exact.admit(given, 30, 5)
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - fine).abs().max() < 0.1 * fine.std()
    assert all(pair[0].dtype == torch.bfloat16 for pair in decoder.store.layers.values())
    assert len(sample(LocalSampler(model.module, decoder))) == 15


def test_logits_that_are_not_numbers_are_an_error(tiny: Load) -> None:
    model = tiny("llama")
    decoder = replayed(model)
    engine = LocalSampler(model.module, decoder)
    with torch.no_grad():
        model.module.model.layers[1].mlp.down_proj.weight.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(NumericalError, match="not finite"):
        sample(engine)


@pytest.mark.parametrize("architecture", ["gemma", "gpt2"])
def test_another_form_is_not_copied(tiny: Load, architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny(architecture)
    model.module.eval()
    assert narrow_for(Trunk(model.module), torch.float32) is None
    assert "without captured graphs" in caplog.text


@CUDA
@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16])
def test_replayed_steps_are_those_asked_for(tiny: Load, numbers: torch.dtype) -> None:
    model = tiny("qwen2")
    model.module.cuda()
    decoder, plain = replayed(model, numbers), replayed(model, numbers)
    with torch.inference_mode():
        plain.begin()
        plain.admit([Admission([0], [0], 1)], 64, 1)
        stepper = plain.stepper()
        assert stepper is not None
        stepper.plainly = "asked for by a test"
        plain.steps = stepper
    engines = [LocalSampler(model.module, each, max_rows=8) for each in (decoder, plain)]
    found, expected = (sample(engine) for engine in engines)
    assert decoder.steps is not None
    assert decoder.steps.graphs
    assert decoder.steps.plainly == ""
    same = sum(ours.tokens == theirs.tokens for ours, theirs in zip(found, expected, strict=True))
    assert same >= len(found) - 1  # a uniform number may fall within rounding of a boundary
