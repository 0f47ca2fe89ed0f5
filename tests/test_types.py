"""Types: what a batch does with its columns."""

from __future__ import annotations

import pytest
import torch

from maieutic.errors import MissingColumn
from maieutic.pack import pack
from maieutic.types import Example, Finish, Rollout


def one_row():
    rollout = Rollout("t", (1, 2, 3), (False, True, True), (0.0, -0.5, -1.0), Finish.STOP)
    return pack([Example(rollout, 1.0, group=0, unit=0)])


def test_a_batch_moves_whole():
    # the meta device has shapes and no values: every tensor must be there, the added columns too
    moved = one_row().with_(advantages=torch.ones(1, 3)).to(torch.device("meta"))
    names = ("tokens", "mask", "lengths", "sampler_logprobs", "rewards", "token_rewards", "terminated", "groups")
    assert {getattr(moved, name).device.type for name in (*names, "units", "advantages")} == {"meta"}
    assert moved.temperature == 1.0


def test_a_missing_column_says_who_fills_it():
    with pytest.raises(MissingColumn, match=r"'ref_logprobs'.*reference model"):
        one_row().ref_logprobs  # noqa: B018
    with pytest.raises(AttributeError, match="nonsense"):
        one_row().nonsense  # noqa: B018
