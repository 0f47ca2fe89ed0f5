"""Log-probs and entropies in one pass: the numbers of the plain formulas and their gradients, in little memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from maieutic.models.causal import candidate_logprobs, selected_logprobs_and_entropy
from maieutic.models.softmax import IN_CACHE, scores


def drawn(rows: int, vocabulary: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, chosen tokens, and three candidates each, of which the first is the chosen token itself."""
    draw = torch.Generator().manual_seed(rows)
    logits = (3 * torch.randn(rows, vocabulary, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()
    tokens = torch.randint(0, vocabulary, (rows,), generator=draw)
    others = torch.stack([(tokens + 1) % vocabulary, (tokens + 2) % vocabulary], dim=1)
    return logits, tokens, torch.cat([tokens[:, None], others], dim=1)


def test_by_hand() -> None:
    # p = (1/2, 1/4, 1/4): log p(1) = -log 4, H = (1/2) log 2 + 2 (1/4) log 4 = 1.5 log 2
    logits = torch.tensor([[math.log(2.0), 0.0, 0.0]], requires_grad=True)
    found = scores(logits, torch.tensor([1]), entropy=True)
    assert found.entropy is not None
    assert found.candidates is None
    assert found.logprobs.item() == pytest.approx(-math.log(4), abs=1e-6)
    assert found.entropy.item() == pytest.approx(1.5 * math.log(2), abs=1e-6)
    (slope,) = torch.autograd.grad(found.logprobs.sum(), logits)
    assert slope.tolist()[0] == pytest.approx([-0.5, 0.75, -0.25], abs=1e-6)  # [i = 1] - p
    spread = scores(logits, torch.tensor([1]), entropy=True).entropy
    assert spread is not None
    (slope,) = torch.autograd.grad(spread.sum(), logits)
    # -p (log p + H): -1/2 (-log 2 + 1.5 log 2) = -log 2 / 4, and -1/4 (-2 log 2 + 1.5 log 2) = log 2 / 8 twice
    assert slope.tolist()[0] == pytest.approx([-math.log(2) / 4, math.log(2) / 8, math.log(2) / 8], abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 5), (37, 11), (IN_CACHE // 4000 + 3, 4000)])
def test_numbers_and_gradients_of_the_plain_formulas(rows: int, vocabulary: int, temperature: float) -> None:
    logits, tokens, candidates = drawn(rows, vocabulary)
    draw = torch.Generator().manual_seed(7)
    a, b = (torch.randn(rows, generator=draw, dtype=torch.float64) for _ in range(2))
    c = torch.randn(rows, 3, generator=draw, dtype=torch.float64)
    found = scores(logits, tokens, temperature, entropy=True, candidates=candidates)
    chosen, entropy = selected_logprobs_and_entropy(logits, tokens, temperature)
    others = candidate_logprobs(logits, candidates, temperature)
    assert found.entropy is not None
    assert found.candidates is not None
    for mine, plain in zip(found, (chosen, entropy, others), strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-12, rtol=0)
    (mine,) = torch.autograd.grad(
        (a * found.logprobs).sum() + (b * found.entropy).sum() + (c * found.candidates).sum(), logits
    )
    (plain,) = torch.autograd.grad((a * chosen).sum() + (b * entropy).sum() + (c * others).sum(), logits)
    torch.testing.assert_close(mine, plain, atol=1e-12, rtol=0)


def test_each_quantity_has_its_own_gradient() -> None:
    logits, tokens, candidates = drawn(9, 6)
    plain = (*selected_logprobs_and_entropy(logits, tokens), candidate_logprobs(logits, candidates))
    for number, expected in enumerate(plain):
        found = scores(logits, tokens, entropy=True, candidates=candidates)[number]
        assert found is not None
        mine, wanted = (torch.autograd.grad(x.square().sum(), logits, retain_graph=True)[0] for x in (found, expected))
        torch.testing.assert_close(mine, wanted, atol=1e-12, rtol=0)


def test_half_precision_is_computed_in_float32() -> None:
    logits, tokens, _ = drawn(8, 50, torch.bfloat16)
    found = scores(logits, tokens, 0.9, entropy=True)
    chosen, entropy = selected_logprobs_and_entropy(logits.detach().double(), tokens, 0.9)
    assert found.logprobs.dtype == torch.float32
    torch.testing.assert_close(found.logprobs, chosen.float(), atol=2e-6, rtol=0)
    torch.testing.assert_close(found.entropy, entropy.float(), atol=2e-6, rtol=0)
    (slope,) = torch.autograd.grad(found.logprobs.sum(), logits)
    assert slope.dtype == torch.bfloat16


def test_a_row_is_the_same_whatever_stands_beside_it() -> None:
    logits, tokens, _ = drawn(300, 1999, torch.float32)
    whole = scores(logits, tokens, entropy=True)
    alone = scores(logits[123:124], tokens[123:124], entropy=True)
    assert alone.entropy is not None
    assert whole.entropy is not None
    assert torch.equal(whole.logprobs[123:124], alone.logprobs)
    assert torch.equal(whole.entropy[123:124], alone.entropy)


def test_nothing_of_the_logits_size_is_kept_but_the_logits() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    logits, tokens, candidates = drawn(64, 500)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        scores(logits, tokens, entropy=True, candidates=candidates)
    assert sum(tensor is logits or tensor.data_ptr() == logits.data_ptr() for tensor in kept) == 1
    assert sum(tensor.numel() for tensor in kept) <= logits.numel() + 64 * 20


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 5\) for tokens \(4,\)"):
        scores(torch.zeros(3, 5), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"temperature 0\.0"):
        scores(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long), 0.0)
