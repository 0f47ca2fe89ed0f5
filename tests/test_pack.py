"""pack: from rows to tensors, worked by hand."""

from __future__ import annotations

import pytest
import torch

from maieutic.pack import pack
from maieutic.types import Example, Finish, Rollout


def example(tokens, mask, reward=1.0, *, finish=Finish.STOP, steps=(), temperature=1.0, group=0, unit=0):
    logprobs = tuple(-0.5 * (i + 1) if chosen else 0.0 for i, chosen in enumerate(mask))
    rollout = Rollout("t", tuple(tokens), tuple(mask), logprobs, finish, temperature=temperature)
    return Example(rollout, reward, group, unit, step_rewards=tuple(steps))


N, Y = False, True


def test_rows_are_padded_on_the_right_and_stay_token_aligned():
    batch = pack(
        [
            example([5, 6, 7], [N, Y, Y], 2.0, group=3, unit=8),
            example([5, 9, 6, 7, 4], [N, N, Y, N, Y], -1.0, group=1, unit=2),
        ]
    )
    assert batch.tokens.tolist() == [[5, 6, 7, 0, 0], [5, 9, 6, 7, 4]]
    assert batch.mask.tolist() == [[N, Y, Y, N, N], [N, N, Y, N, Y]]
    assert batch.sampler_logprobs.tolist() == [[0, -1.0, -1.5, 0, 0], [0, 0, -1.5, 0, -2.5]]
    assert batch.lengths.tolist() == [3, 5]
    assert batch.rewards.tolist() == [2, -1]
    assert batch.groups.tolist() == [3, 1]
    assert batch.units.tolist() == [8, 2]
    assert batch.size == 2


def test_types_of_the_columns():
    batch = pack([example([5, 6], [N, Y])])
    assert batch.tokens.dtype == batch.lengths.dtype == batch.groups.dtype == torch.long
    assert batch.mask.dtype == batch.terminated.dtype == torch.bool
    assert batch.sampler_logprobs.dtype == batch.rewards.dtype == batch.token_rewards.dtype == torch.float32
    assert not batch.columns


def test_padding_is_told_by_lengths_and_never_by_an_id():
    """A16: padding is what lies beyond a row's length, whatever token stands there."""
    # token 0 is a token like any other: a row may contain it and even end in it
    batch = pack([example([5, 0, 0], [N, Y, Y]), example([5, 6, 7, 8], [N, Y, Y, Y])])
    assert batch.lengths.tolist() == [3, 4]
    assert batch.mask[0].tolist() == [N, Y, Y, N]
    assert batch.token_rewards[0].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([N, Y, Y, Y], [0, 0, 0, 3]),
        ([N, Y, Y, N], [0, 0, 3, 0]),  # a tool wrote the last token: the outcome is that of the last chosen one
        ([N, Y, N, N], [0, 3, 0, 0]),
        ([N, N, N, Y], [0, 0, 0, 3]),
    ],
)
def test_the_outcome_is_on_the_last_chosen_token(mask, expected):
    wide = example([5] * 6, [N, Y, Y, Y, Y, Y], 0.0)
    batch = pack([example([5, 6, 7, 8], mask, 3.0), wide])
    assert batch.token_rewards[0].tolist() == [*expected, 0, 0]


def test_step_rewards_are_where_their_steps_end_and_add_to_the_outcome():
    # steps end at tokens 1 and 3, the second where the outcome is: .25 and .5 + 2
    batch = pack([example([5, 6, 7, 8], [N, Y, Y, Y], 2.0, steps=[(1, 0.25), (3, 0.5)])])
    assert batch.token_rewards.tolist() == [[0, 0.25, 0, 2.5]]
    assert batch.rewards.tolist() == [2.0]  # the outcome alone


def test_only_the_length_limit_leaves_a_row_unterminated():
    """A17: why a rollout ended is carried, never guessed from its last token."""
    rows = [example([5, 6], [N, Y], finish=f) for f in (Finish.STOP, Finish.LENGTH, Finish.ENVIRONMENT)]
    assert pack(rows).terminated.tolist() == [True, False, True]


def test_the_temperature_is_that_of_the_rows():
    assert pack([example([5, 6], [N, Y], temperature=0.7)] * 2).temperature == 0.7


def test_rows_of_two_temperatures_are_refused():
    rows = [example([5, 6], [N, Y], temperature=t) for t in (1.0, 0.7)]
    with pytest.raises(ValueError, match=r"temperatures \[0\.7, 1\.0\]; expected one"):
        pack(rows)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no examples; a step without rows is skipped"):
        pack([])


def test_a_row_cannot_begin_with_a_chosen_token():
    with pytest.raises(ValueError, match="nothing precedes it"):
        example([5, 6], [Y, Y])
