"""Norms and gates in few passes: the numbers and first derivatives of the ordinary operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import rms_norm, silu

from maieutic.backends.local.passes import gated, normed


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]


def test_by_hand() -> None:
    # x = (3, 4): mean x² = 12.5, so y = w x / √12.5
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    found = normed(x, torch.tensor([1.0, 2.0], dtype=torch.float64), 0.0)
    assert found.tolist()[0] == pytest.approx([3 / 12.5**0.5, 8 / 12.5**0.5])
    # silu(1) = 1 / (1 + 1/e) = 0.7311
    assert gated(torch.ones(1, 1), 2 * torch.ones(1, 1)).item() == pytest.approx(1.4621, abs=1e-4)


@pytest.mark.parametrize("shape", [(7, 5), (7, 3, 4)])
def test_a_norm_and_its_derivatives(shape: tuple[int, ...]) -> None:
    states, weight, slope = drawn(shape, shape[-1:], shape)
    found, plain = normed(states, weight, 1e-3), rms_norm(states, shape[-1:], weight, 1e-3)
    torch.testing.assert_close(found, plain, atol=1e-12, rtol=0)
    mine, theirs = (torch.autograd.grad(y, (states, weight), slope) for y in (found, plain))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_a_norm_whose_weight_is_frozen() -> None:
    states, weight, slope = drawn((7, 5), (5,), (7, 5))
    frozen = weight.detach()
    (mine,) = torch.autograd.grad(normed(states, frozen, 1e-3), states, slope)
    (plain,) = torch.autograd.grad(rms_norm(states, (5,), frozen, 1e-3), states, slope)
    torch.testing.assert_close(mine, plain, atol=1e-12, rtol=0)


def test_a_gate_and_its_derivatives_keep_what_goes_in_alone() -> None:
    gate, up, slope = drawn((9, 6), (9, 6), (9, 6))
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        found = gated(gate, up)
    assert sorted(kept) == sorted([gate.data_ptr(), up.data_ptr()])
    plain = silu(gate) * up
    torch.testing.assert_close(found, plain, atol=1e-12, rtol=0)
    for a, b in zip(*(torch.autograd.grad(y, (gate, up), slope) for y in (found, plain)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_a_second_derivative_is_refused() -> None:
    states, weight = drawn((3, 4), (4,))
    (first,) = torch.autograd.grad(normed(states, weight, 1e-3).square().sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
