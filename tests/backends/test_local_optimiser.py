"""Schedules by hand, and which weights Muon takes."""

import math
from collections.abc import Callable

import pytest
import torch

from maieutic.backends.local.optimiser import Optimiser, Updater, hidden_matrices
from maieutic.errors import ConfigError, UnknownName
from maieutic.models.causal import CausalModel
from maieutic.models.lora import LoRA

Load = Callable[..., CausalModel]


def test_schedules_by_hand() -> None:
    constant = Optimiser(warmup_steps=4)
    assert [constant.share(i) for i in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    # 2 steps of warm-up, then 8 down to a tenth: at step 6 half of the way, 1 - 0.9 / 2.
    linear = Optimiser(schedule="linear", warmup_steps=2, total_steps=10, final_fraction=0.1)
    assert [linear.share(i) for i in (0, 1, 2, 6, 10, 50)] == pytest.approx([0.5, 1, 1, 0.55, 0.1, 0.1])
    # cosine at a quarter of the way: 0.5 * (1 + cos(pi / 4)) = 0.8536
    cosine = Optimiser(schedule="cosine", total_steps=8)
    assert [cosine.share(i) for i in (0, 2, 4, 8)] == pytest.approx([1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "adamx"}, "did you mean 'adamw'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"schedule": "linear"}, "total_steps=None"),
        ({"schedule": "linear", "total_steps": 5, "warmup_steps": 5}, "total_steps=5"),
        ({"learning_rate": -1.0}, "0 or more"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises((ConfigError, UnknownName), match=said):
        Optimiser(**settings)  # type: ignore[arg-type]


def test_adamw_by_hand() -> None:
    # First step: m = 0.1 g, v = 0.05 g^2, corrected to g and g^2, so the weight moves by the rate: 1 - 0.1 = 0.9;
    # weight decay takes rate * decay * weight = 0.1 * 0.5 * 1 = 0.05 before.
    weight = torch.nn.Parameter(torch.ones(1))
    updater = Updater(Optimiser(learning_rate=0.1, weight_decay=0.5), {"w": weight}, frozenset())
    weight.grad = torch.full((1,), 3.0)
    assert updater.step() == pytest.approx(0.1)
    assert float(weight.detach()) == pytest.approx(1 - 0.05 - 0.1, abs=1e-6)


def test_muon_moves_matrices_orthogonally_and_leaves_the_rest_to_adamw() -> None:
    # A gradient of rank 2 with singular values 5 and 0.1: Muon's step has both near 1 (Newton-Schulz: 0.5 to 1.5,
    # times the rate and sqrt(max(1, rows / columns)) = sqrt(2)), while a plain step would keep 5 : 0.1.
    basis = torch.linalg.qr(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))[0]
    other = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(1)))[0]
    matrix, rest = torch.nn.Parameter(torch.zeros(8, 4)), torch.nn.Parameter(torch.zeros(3))
    settings = Optimiser(kind="muon", learning_rate=0.01, muon_learning_rate=0.1)
    updater = Updater(settings, {"matrix": matrix, "rest": rest}, frozenset({"matrix"}))
    matrix.grad = basis @ torch.diag(torch.tensor([5.0, 0.1])) @ other.T
    rest.grad = torch.ones(3)
    updater.step()
    sizes = torch.linalg.svdvals(matrix.detach())[:2] / (0.1 * math.sqrt(2))
    assert ((sizes > 0.5) & (sizes < 1.5)).all()
    torch.testing.assert_close(rest.detach(), torch.full((3,), -0.01), atol=1e-6, rtol=0)
    assert set(updater.state()) == {
        "muon/matrix/momentum_buffer", "adamw/rest/step", "adamw/rest/exp_avg", "adamw/rest/exp_avg_sq",
    }  # fmt: skip


def test_hidden_matrices_leave_out_embeddings_and_head(tiny: Load) -> None:
    names = hidden_matrices(tiny("llama").module)
    assert len(names) == 2 * 7  # q, k, v, o, gate, up, down in 2 layers
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in names)
    assert len(hidden_matrices(tiny("gpt2").module)) == 2 * 4  # qkv, out, up, down
    adapters = hidden_matrices(tiny("llama", lora=LoRA(rank=2)).module)
    assert sum("lora_" in name for name in adapters) == 2 * 7 * 2


def test_muon_without_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden matrices"):
        Updater(Optimiser(kind="muon"), {"w": torch.nn.Parameter(torch.ones(3))}, frozenset())


def test_a_gradient_that_is_short_enough_is_not_touched() -> None:
    weights = {"a": torch.zeros(2, requires_grad=True), "b": torch.zeros(1, requires_grad=True)}
    for weight in weights.values():
        weight.grad = torch.full_like(weight, 2.0)  # of length 2 * sqrt(3) = 3.46
    written = [weight.grad._version for weight in weights.values() if weight.grad is not None]
    assert Updater(Optimiser(max_grad_norm=3.5), weights, frozenset()).clip() == pytest.approx(12**0.5)
    assert [weight.grad._version for weight in weights.values() if weight.grad is not None] == written
    Updater(Optimiser(max_grad_norm=3.4), weights, frozenset()).clip()
    assert weights["b"].grad is not None
    assert weights["b"].grad.item() == pytest.approx(2.0 * 3.4 / 12**0.5, rel=1e-5)
