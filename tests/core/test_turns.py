"""A loss in the first turn only."""

from __future__ import annotations

import torch

from maieutic.algorithms import grpo
from maieutic.core.losses import kl_to_reference, nll
from maieutic.core.turns import first_turn, in_first_turn
from maieutic.pack import pack
from maieutic.types import Example, Finish, Outputs, Rollout


def batch_of(*masks: str):
    """`"..xx..x"`: chosen tokens are x."""
    rows = [Rollout("t", tuple(range(len(m))), tuple(c == "x" for c in m), (0.0,) * len(m), Finish.STOP) for m in masks]
    return pack([Example(row, 1.0, 0, i) for i, row in enumerate(rows)])


def test_where_the_first_turn_is():
    batch = batch_of("..xx..x.xx", ".xxx", "....x")
    shown = ["".join(".x"[int(v)] for v in row) for row in first_turn(batch.mask)]
    assert shown == ["..xx......", ".xxx......", "....x....."]


def test_the_loss_and_its_gradient_are_there_only():
    batch = batch_of("..xx..x", ".x")
    logprobs = torch.full(batch.mask.shape, -0.5, requires_grad=True)
    made = in_first_turn(nll())
    value, seen = made.terms(Outputs(logprobs), batch)
    # −(−.5) on tokens 2 and 3 of the first row and 1 of the second
    assert value.tolist() == [[0, 0, 0.5, 0.5, 0, 0, 0], [0, 0.5, 0, 0, 0, 0, 0]]
    assert seen == {}
    value.sum().backward()
    assert logprobs.grad.sum().item() == -3.0
    assert made.label == "in_first_turn(nll())"


def test_needs_are_those_of_the_loss_and_nothing_stays_nothing():
    assert in_first_turn(kl_to_reference()).needs == {"ref_logprobs"}
    assert in_first_turn(0 * kl_to_reference()).absent
    assert "ref_logprobs" not in grpo().needs
    assert "0.1 * in_first_turn(kl_to_reference(estimator=k3))" in grpo(beta_first_turn=0.1).loss.label
    assert grpo(beta_first_turn=0.1).asks == {"ref_logprobs"}
