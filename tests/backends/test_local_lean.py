"""The trunk in fewer calls: taken where the module has the common form and the numbers agree, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from maieutic.backends.local.decoder import SlotDecoder
from maieutic.backends.local.lean import Lean, lean_for
from maieutic.backends.local.packing import Piece, lay_out
from maieutic.backends.local.products import Product, available, laid_out, trained
from maieutic.backends.local.trunk import Trunk
from maieutic.models.adapters import active
from maieutic.models.causal import BASE, CausalModel
from maieutic.models.lora import LoRA

Load = Callable[..., CausalModel]


def trunk_of(model: CausalModel) -> Trunk:
    model.module.eval()
    return Trunk(model.module)


def forward(body: Trunk | Lean) -> torch.Tensor:
    """Logits of two prompts of 11 and 6 tokens, packed."""
    pieces = [Piece(np.arange(5, 16), 0, 0), Piece(np.arange(9, 15), 0, 1)]
    layout, starts, _ = lay_out(pieces, [])
    order = np.argsort(starts)
    tokens = np.concatenate([pieces[i].tokens for i in order])
    positions = np.concatenate([np.arange(len(pieces[i].tokens)) for i in order])
    with torch.no_grad():
        return body.logits(body.hidden(torch.from_numpy(tokens), torch.from_numpy(positions), layout))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_common_form_is_run_in_fewer_calls_with_the_same_numbers(tiny: Load, architecture: str) -> None:
    trunk = trunk_of(tiny(architecture))
    lean = lean_for(trunk)
    assert lean is not None
    expected = forward(trunk)
    assert (forward(lean) - expected).abs().max() < 1e-5
    lean.begin()
    assert (forward(lean) - expected).abs().max() < 1e-5
    lean.end()
    assert (forward(lean) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", ["gemma", "gpt2"])
def test_another_form_stays_with_its_module(tiny: Load, architecture: str) -> None:
    # Gemma has the parts, but scales embeddings and multiplies by 1 + weight in its norms: the numbers tell.
    assert lean_for(trunk_of(tiny(architecture))) is None


def test_coarse_weights_stay_with_their_module(tiny: Load) -> None:
    assert lean_for(trunk_of(tiny("llama", dtype="bfloat16"))) is None


def test_a_module_that_somebody_listens_to_is_run_as_it_is(tiny: Load) -> None:
    model = tiny("llama")
    model.module.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert lean_for(trunk_of(model)) is None


@pytest.mark.parametrize("rank", [4, 40])
def test_an_adapter_is_laid_out_with_its_weight(tiny: Load, rank: int) -> None:
    """W + (alpha / rank) B A in the copies: the base itself stays, to the bit, and is what is laid out without it."""
    model = tiny("llama", lora=LoRA(rank=rank))
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    trunk = trunk_of(model)
    lean = lean_for(trunk)
    assert lean is not None
    kept = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}
    expected = forward(trunk)
    assert (forward(lean) - expected).abs().max() < 1e-5
    lean.begin()
    assert (lean.head is not None) is available()
    assert (forward(lean) - expected).abs().max() < 1e-5
    lean.end()
    with active(model.module, BASE):
        lean.begin()
    assert (forward(lean) - forward(trunk_of(tiny("llama")))).abs().max() < 1e-5
    lean.end()
    assert all(torch.equal(weight, kept[name]) for name, weight in model.module.named_parameters())


def test_an_adapter_that_is_more_than_its_weight_is_run_as_the_module_that_it_is(tiny: Load) -> None:
    import peft

    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=True)
    trunk = trunk_of(replace(tiny("llama"), module=peft.get_peft_model(tiny("llama").module, settings)))
    lean = lean_for(trunk)
    assert lean is not None
    lean.begin()
    assert lean.head is None
    assert (forward(lean) - forward(trunk)).abs().max() < 1e-5


def test_what_is_laid_out_is_a_copy_until_the_end(tiny: Load) -> None:
    if not available():
        pytest.skip("this build of torch has no products with weights laid out beforehand")
    trunk = trunk_of(tiny("llama"))
    lean = lean_for(trunk)
    assert lean is not None
    lean.begin()
    before = forward(lean)
    with torch.no_grad():
        for weight in trunk.body.parameters():
            weight.mul_(1.5)
    assert lean.head is not None
    lean.end()
    after = forward(lean)
    assert (after - before).abs().max() > 1e-3
    assert (after - forward(trunk)).abs().max() < 1e-4
    lean.begin()
    assert (forward(lean) - after).abs().max() < 1e-4


def test_a_decoder_lays_weights_out_between_begin_and_end(tiny: Load) -> None:
    decoder = SlotDecoder(trunk_of(tiny("llama")), torch.device("cpu"))
    assert decoder.lean is not None
    assert decoder.lean.head is None
    decoder.begin()
    assert isinstance(decoder.lean.head, Product) or not available()
    decoder.end()
    assert decoder.lean.head is None


def test_products_add_and_multiply() -> None:
    if not available():
        pytest.skip("this build of torch has no products with weights laid out beforehand")
    rows, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [-5.0, 6.0]]), torch.tensor([0.5, -1.0])
    with torch.no_grad():
        product = laid_out(weight, bias)
        # 1·3 + 2·4 + 0.5 = 11.5; −1·5 + 2·6 − 1 = 6
        assert product(rows).tolist() == [[11.5, 6.0]]
        assert product.plus(rows, torch.tensor([[1.0, -6.0]])).tolist() == [[12.5, 0.0]]
        assert product.times(rows, torch.tensor([[2.0, 0.5]])).tolist() == [[23.0, 3.0]]
        assert torch.allclose(product(rows, "swish"), torch.tensor([[11.5, 6.0]]) * torch.sigmoid(product(rows)))


def test_trained_products_have_the_derivatives_of_a_linear_map() -> None:
    if not available():
        pytest.skip("this build of torch has no products with weights laid out beforehand")
    rows = torch.tensor([[1.0, 2.0], [0.5, -1.0]], requires_grad=True)
    weight = torch.tensor([[3.0, 4.0], [-5.0, 6.0], [0.0, 1.0]], requires_grad=True)
    bias = torch.tensor([0.5, -1.0, 0.0], requires_grad=True)
    out = trained(rows, weight, bias)
    assert out.tolist() == [[11.5, 6.0, 2.0], [-2.0, -9.5, -1.0]]
    (out * torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.0]])).sum().backward()
    expected = [
        [[3.0, 6.0], [5.0, -6.0]],  # dy W
        [[1.0, 2.0], [-0.5, 1.0], [2.0, 4.0]],  # dyᵀ x
        [1.0, -1.0, 2.0],  # Σ dy
    ]
    assert [given.grad.tolist() for given in (rows, weight, bias)] == expected


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_gradients_of_many_rows_are_those_of_the_module(tiny: Load, architecture: str) -> None:
    trunk = trunk_of(tiny(architecture))
    lean = lean_for(trunk)
    assert lean is not None
    tokens = torch.from_numpy(np.random.default_rng(1).integers(5, 30, 300))
    pieces = [Piece(tokens[start : start + 20].numpy(), 0, start) for start in range(0, 300, 20)]
    layout, _, _ = lay_out(pieces, [])
    slope = torch.randn(300, trunk.config.hidden_size, generator=torch.Generator().manual_seed(2))
    found = []
    for body in (trunk, lean):
        trunk.module.zero_grad()
        (body.hidden(tokens, torch.arange(20).repeat(15), layout) * slope).sum().backward()
        found.append([w.grad.clone() for w in trunk.body.parameters() if w.grad is not None])
    assert len(found[0]) == len(found[1]) > 10
    for own, fast in zip(*found, strict=True):
        assert (own - fast).norm() <= 1e-5 * own.norm()
