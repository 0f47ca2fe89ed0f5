"""Weights: the four ways to count tokens, on rows of 2 and 8 chosen tokens with per-token losses −1 and +1."""

from __future__ import annotations

import pytest
import torch

from maieutic.core import weights
from maieutic.types import Batch

F64 = torch.float64


def two_rows(lengths=(2, 8), width=9):
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for i, n in enumerate(lengths):
        mask[i, 1 : 1 + n] = True
    zeros = torch.zeros(mask.shape, dtype=F64)
    ones = torch.ones(len(lengths), dtype=F64)
    return Batch(
        torch.zeros(mask.shape, dtype=torch.long), mask, torch.full((len(lengths),), width), zeros, ones, zeros,
        ones.bool(), torch.arange(len(lengths)), torch.arange(len(lengths)),
    )  # fmt: skip


LOSS = torch.tensor([[-1.0], [1.0]], dtype=F64)


@pytest.mark.parametrize(
    ("weigh", "expected"),
    [
        (weights.sequence_mean(), 0.0),  # (−1 + 1) / 2
        (weights.token_mean(), 0.6),  # (−2 + 8) / 10
        (weights.sequence_sum(), 3.0),  # (−2 + 8) / 2
        (weights.constant_length(16), 0.1875),  # (−2 + 8) / (2·16)
    ],
)
def test_what_each_weighs(weigh, expected):
    """A1: four objectives, four numbers; none depends on the padded width."""
    batch = two_rows()
    made = weigh(batch)
    assert float((made * LOSS).sum()) == pytest.approx(expected)
    assert made[~batch.mask].abs().sum() == 0


@pytest.mark.parametrize(
    "weigh", [weights.sequence_mean(), weights.token_mean(), weights.sequence_sum(), weights.constant_length(16)]
)
def test_rows_without_chosen_tokens_and_padding_do_not_count(weigh):
    """A3: such a row is in no numerator and in no denominator, and a batch of them divides by nothing."""
    plain = weigh(two_rows())
    padded = weigh(two_rows((2, 8, 0), width=30))
    assert padded[:2, :9].tolist() == plain.tolist()
    assert padded[2].abs().sum() == 0
    assert weigh(two_rows((0, 0))).abs().sum() == 0


def test_a_long_wrong_answer_is_blamed_less_per_token_by_sequence_mean_only():
    def blame_per_token(weigh, length):
        return float(weigh(two_rows((4, length), width=1 + max(4, length)))[1, 1])

    # sequence_mean: 1/(2·|o|), so ten times longer is ten times less; constant_length: 1/(2·16) whatever the length
    mean, constant = weights.sequence_mean(), weights.constant_length(16)
    assert blame_per_token(mean, 4) / blame_per_token(mean, 40) == pytest.approx(10)
    assert blame_per_token(constant, 4) == blame_per_token(constant, 40) == 1 / 32


def test_a_length_of_zero_is_refused():
    with pytest.raises(ValueError, match="length=0"):
        weights.constant_length(0)
