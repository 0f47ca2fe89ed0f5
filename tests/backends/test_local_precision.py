"""bfloat16 products on float32 weights: what is rounded, what is not, and who says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from maieutic.algorithms import grpo
from maieutic.backends.local import LocalLearner, LocalSampler, Optimiser
from maieutic.backends.local.check import forward_for
from maieutic.backends.local.evaluate import PackedForward, PaddedForward
from maieutic.backends.local.narrow import narrow_for
from maieutic.backends.local.replay import ReplayedDecoder
from maieutic.backends.local.trunk import Trunk
from maieutic.errors import UnknownName
from maieutic.models.causal import CausalModel, load_causal
from maieutic.models.lora import LoRA
from maieutic.models.precision import computed_in, computing, numbers_of, wide, wide_head
from maieutic.protocols import Sampling
from maieutic.types import Batch

Load = Callable[..., CausalModel]
CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def batch_of(rows: int = 8, prompt: int = 6, longest: int = 40) -> Batch:
    """Two groups of rows of different lengths, with advantages and weights."""
    draw = torch.Generator().manual_seed(3)
    lengths = torch.tensor([prompt + 2 + (longest - 2) * i // (rows - 1) for i in range(rows)])
    place = torch.arange(int(lengths.max()))[None]
    mask = (place >= prompt) & (place < lengths[:, None])
    groups = torch.arange(rows) % 2
    tokens = torch.randint(5, 30, mask.shape, generator=draw)
    tokens[:, :prompt] = tokens[groups, :prompt]
    zeros = torch.zeros(mask.shape)
    made = Batch(
        tokens * (place < lengths[:, None]), mask, lengths, -mask.float(), torch.ones(rows), zeros,
        torch.ones(rows, dtype=torch.bool), groups, torch.arange(rows),
    )  # fmt: skip
    made = made.with_(advantages=torch.randn(rows, 1, generator=draw) * mask)
    return made.with_(weights=grpo().weigh(made))


def gradient(model: CausalModel, **options: object) -> dict[str, Tensor]:
    learner = LocalLearner(model, Optimiser(), **options)  # type: ignore[arg-type]
    loss = grpo().loss
    learner.accumulate(batch_of(), loss.terms, needs=loss.needs)
    return {name: weight.grad.detach().cpu() for name, weight in learner.weights().items() if weight.grad is not None}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], apart: float) -> None:
    assert found.keys() == expected.keys()
    joined = [torch.cat([each[name].flatten().double() for name in expected]) for each in (found, expected)]
    difference = float((joined[0] - joined[1]).norm() / joined[1].norm())
    assert 0 < difference < apart, difference
    assert all(each.dtype == torch.float32 for each in found.values())


def test_what_is_computed_in() -> None:
    assert numbers_of("auto", CPU) == numbers_of("float32", CPU) == torch.float32
    assert numbers_of("bfloat16", CPU) == torch.bfloat16
    coarse = torch.zeros(1, dtype=torch.bfloat16)
    assert computed_in("float32", coarse) == torch.bfloat16  # weights that are coarse already stay what they are
    with pytest.raises(UnknownName, match="did you mean 'float32'"):
        numbers_of("float23", CPU)


def test_a_precision_is_checked_before_the_model_is_read() -> None:
    with pytest.raises(UnknownName, match="precision"):
        load_causal("no/such/model", precision="int8")


def test_products_are_narrow_where_asked_and_only_within() -> None:
    layer, rows = torch.nn.Linear(8, 8), torch.randn(3, 8)
    with computing(layer.weight, torch.bfloat16):
        assert layer(rows).dtype == torch.bfloat16
    assert layer(rows).dtype == torch.float32
    with computing(layer.weight, torch.float32):
        assert layer(rows).dtype == torch.float32


def test_the_head_rounds_what_goes_in_and_not_its_logits() -> None:
    draw = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 40, bias=False)
    states = torch.randn(7, 16, generator=draw, requires_grad=True)
    with torch.no_grad():
        head.weight.copy_(30 * torch.randn(40, 16, generator=draw))
    made = wide_head(head, torch.bfloat16)
    assert made is not None
    logits = made(states)
    rounded = [each.detach().bfloat16().double() for each in (states, head.weight)]
    exact = rounded[0] @ rounded[1].T
    assert logits.dtype == torch.float32
    assert (logits.double() - exact).abs().max() < 1e-3  # logits of some 100; in bfloat16 they would be off by 0.25
    slope = torch.randn(7, 40, generator=draw).bfloat16().float()
    logits.backward(slope)
    assert states.grad is not None
    assert head.weight.grad is not None
    assert torch.allclose(states.grad.double(), slope.double() @ rounded[1], atol=1e-3)
    assert torch.allclose(head.weight.grad.double(), slope.double().T @ rounded[0], atol=1e-4)
    assert wide_head(torch.nn.Linear(4, 4), torch.bfloat16) is None  # has a bias


def test_a_product_of_coarse_numbers_is_summed_up_finely() -> None:
    ones = torch.ones(1, 1001, dtype=torch.bfloat16)
    assert wide(ones, ones.T).item() == 1001  # in bfloat16 it would be 1000


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "gpt2", "mistral_sliding"])
def test_gradients_are_those_of_float32_but_for_rounding(tiny: Load, architecture: str) -> None:
    expected = gradient(tiny(architecture))
    assert_near(gradient(replace(tiny(architecture), precision="bfloat16")), expected, 0.03)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_adapters_and_of_layers_that_are_run_again(tiny: Load, recompute: bool) -> None:
    def made(precision: str) -> CausalModel:
        model = replace(tiny("qwen2", lora=LoRA(rank=4)), precision=precision)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, weight in model.module.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        return model

    expected = gradient(made("float32"))
    assert_near(gradient(made("bfloat16"), gradient_checkpointing=recompute), expected, 0.1)


def test_logits_in_pieces_and_made_again_are_the_same(tiny: Load) -> None:
    model = tiny("llama")
    batch = batch_of()
    whole = forward_for(model.module, precision="bfloat16")
    assert isinstance(whole, PackedForward)
    pieces = PackedForward(whole.trunk, held=32 * 20, numbers=torch.bfloat16)
    found = [each.outputs(batch, entropy=True) for each in (whole, pieces)]
    assert (found[0].logprobs - found[1].logprobs).abs().max() < 1e-5
    slopes = []
    for out in found:
        model.module.zero_grad()
        (out.logprobs * batch.weights).sum().backward()
        slopes.append(model.module.model.embed_tokens.weight.grad.clone())  # type: ignore[union-attr]
    assert (slopes[0] - slopes[1]).norm() < 1e-2 * slopes[0].norm()


def test_scores_stay_near_those_of_float32(tiny: Load) -> None:
    batch = batch_of()
    for kind in (PackedForward, PaddedForward):
        model = tiny("llama")
        made = forward_for(model.module, precision="bfloat16")
        forward = made if kind is PackedForward else PaddedForward(model.module, numbers=torch.bfloat16)
        assert isinstance(forward, kind)
        with torch.no_grad():
            exact = forward_for(model.module).outputs(batch, entropy=False).logprobs
            coarse = forward.outputs(batch, entropy=False).logprobs
        assert 0 < (exact - coarse)[batch.mask].abs().mean() < 0.02


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # Qwen3's own norms of heads round once more
def test_sampler_and_learner_round_alike(tiny: Load, architecture: str) -> None:
    """In bfloat16 both round at the same places: what is left between them is the order of sums."""
    model = tiny(architecture)
    model.module.eval()
    trunk = Trunk(model.module)
    body = narrow_for(trunk, torch.bfloat16)
    assert body is not None
    engine = LocalSampler(model.module, ReplayedDecoder(trunk, body, CPU))
    made = asyncio.run(engine.sample(range(5, 15), Sampling(40, key="x"), 16))
    tokens = torch.tensor([[*range(5, 15), *one.tokens] for one in made])
    mask = (torch.arange(50) >= 10).expand(16, -1)
    said = torch.zeros(16, 50)
    said[:, 10:] = torch.tensor([one.logprobs for one in made])
    batch = replace(batch_of(16, 10, 42), tokens=tokens, mask=mask, lengths=torch.full((16,), 50))
    coarse, fine = (PackedForward(trunk, numbers=numbers) for numbers in (torch.bfloat16, torch.float32))
    coarse.lean = None  # the module's own layers under autocast, as on a GPU
    with torch.no_grad():
        near, far = (each.outputs(batch, False).logprobs.sub(said)[mask].abs() for each in (coarse, fine))
    assert near.mean() < 1e-4 < 1e-3 < far.mean()


@CUDA
def test_the_device_computes_in_bfloat16_unless_it_is_told_not_to(tiny: Load) -> None:
    exact = gradient(tiny("qwen2"))
    there = partial(tiny, "qwen2")
    fine, coarse = replace(there(), precision="float32"), there()
    for model in (fine, coarse):
        model.module.cuda()
    found = gradient(fine)
    worst = max(float((found[name] - exact[name]).norm() / exact[name].norm()) for name in exact)
    assert worst < 1e-4
    assert_near(gradient(coarse), exact, 0.05)
