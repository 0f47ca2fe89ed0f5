"""Credits, worked by hand. Batches have one token a row unless the test is about tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maieutic.core import credit
from maieutic.errors import MissingColumn, UnknownName
from maieutic.types import Batch


def rows(rewards, groups, *, mask=None, token_rewards=None):
    """A float64 batch whose row i has reward rewards[i] and belongs to groups[i]."""
    mask = torch.tensor([[False, True]] * len(rewards)) if mask is None else torch.tensor(mask)
    size = mask.shape
    rewards = torch.tensor(rewards, dtype=torch.float64)
    if token_rewards is None:
        token_rewards = torch.zeros(size, dtype=torch.float64)
        token_rewards[:, -1] = rewards
    return Batch(
        tokens=torch.zeros(size, dtype=torch.long),
        mask=mask,
        lengths=torch.full((size[0],), size[1]),
        sampler_logprobs=torch.zeros(size, dtype=torch.float64),
        rewards=rewards,
        token_rewards=torch.as_tensor(token_rewards, dtype=torch.float64),
        terminated=torch.ones(size[0], dtype=torch.bool),
        groups=torch.tensor(groups),
        units=torch.tensor(groups),
    )


def per_row(batch):
    return batch.advantages[:, -1].tolist()


def test_group_normalized_with_the_unbiased_deviation():
    # r = (1,0,0,0): mean 1/4, squared deviations 9/16 + 3·1/16 = 3/4, over n−1 = 3 → 1/4, std 1/2
    # (1 − 1/4) / 1/2 = 1.5 and (0 − 1/4) / 1/2 = −0.5; with eps 1e-4: .75/.5001 = 1.49970, −.25/.5001 = −.49990
    exact = credit.group_normalized(eps=0.0)(rows([1.0, 0, 0, 0], [5] * 4))
    assert per_row(exact) == pytest.approx([1.5, -0.5, -0.5, -0.5])
    usual = credit.group_normalized()(rows([1.0, 0, 0, 0], [5] * 4))
    assert per_row(usual) == pytest.approx([1.4997, -0.4999, -0.4999, -0.4999], abs=1e-4)


def test_group_normalized_with_the_population_deviation():
    # over n = 4: variance 3/16, std .4330127; .75/.4330127 = 1.7320508 = √3, −.25/.4330127 = −.5773503 = −1/√3
    given = credit.group_normalized(eps=0.0, ddof=0)(rows([1.0, 0, 0, 0], [5] * 4))
    assert per_row(given) == pytest.approx([1.7320508, -0.5773503, -0.5773503, -0.5773503])


def test_leave_one_out_compares_with_the_others():
    # 1 − mean(0,0,0) = 1;  0 − mean(1,0,0) = −1/3;  and it is 4/3 · (r − mean)
    given = credit.leave_one_out()(rows([1.0, 0, 0, 0], [0] * 4))
    assert per_row(given) == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    centred = credit.group_centered()(rows([1.0, 0, 0, 0], [0] * 4))
    assert per_row(given) == pytest.approx([4 / 3 * a for a in per_row(centred)])


def test_groups_are_compared_within_themselves_whatever_the_order_of_rows():
    # group 9 has (2, 0): centred (1, −1); group 4 has (5, 5, 5): 0 each
    given = credit.group_centered()(rows([2.0, 5, 0, 5, 5], [9, 4, 9, 4, 4]))
    assert per_row(given) == [1, 0, -1, 0, 0]


@pytest.mark.parametrize("make", [credit.group_centered, credit.group_normalized, credit.leave_one_out])
def test_equal_rewards_and_single_rows_get_exactly_zero(make):
    """A4: a group without variance is never normalised, whatever noise rounding leaves in its mean."""
    # 0.1 is not a binary fraction: 0.1+0.1+0.1 ≠ 3·0.1, and noise over a tiny deviation would be a number
    assert per_row(make()(rows([0.1] * 3, [1, 1, 1]))) == [0, 0, 0]
    assert per_row(make()(rows([0.7], [1]))) == [0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=8).filter(lambda r: max(r) - min(r) > 0.1),
    st.floats(0.5, 20),
    st.floats(-10, 10),
)
def test_normalised_credit_ignores_scale_and_shift(rewards, scale, shift):
    before = per_row(credit.group_normalized(eps=0.0)(rows(rewards, [0] * len(rewards))))
    moved = [scale * r + shift for r in rewards]
    assert per_row(credit.group_normalized(eps=0.0)(rows(moved, [0] * len(moved)))) == pytest.approx(before, abs=1e-6)


def test_every_chosen_token_gets_the_rows_advantage_and_no_other():
    # the tool wrote the third token: its mask is False
    batch = rows([1.0, 0.0], [0, 0], mask=[[False, True, False, True], [False, True, True, False]])
    given = credit.group_centered()(batch).advantages
    assert given.tolist() == [[0, 0.5, 0, 0.5], [0, -0.5, -0.5, 0]]


def test_the_batch_deviation_is_one_number_for_all_groups():
    # r = (1, 0 | 3, 3): the groups' own means leave ±½ and 0; the batch's mean is 7/4, squares 9/16 + 49/16 + 2·25/16
    # = 108/16, over 3 → 9/4, deviation 3/2
    batch = rows([1.0, 0, 3, 3], [0, 0, 1, 1])
    given = (credit.group_centered() | credit.batch_scaled(eps=0.0))(batch)
    assert per_row(given) == pytest.approx([1 / 3, -1 / 3, 0, 0])
    # over 4: 27/16
    population = (credit.group_centered() | credit.batch_scaled(eps=0.0, ddof=0))(batch)
    assert per_row(population)[0] == pytest.approx(0.5 / (27 / 16) ** 0.5)


def test_the_batch_deviation_of_equal_rewards_divides_nothing():
    """A4: .1 is not a binary fraction, and a deviation that should be 0 would blow its noise up."""
    batch = rows([0.1] * 3, [0, 1, 1]).with_(advantages=torch.full((3, 2), 0.1, dtype=torch.float64))
    assert per_row(credit.batch_scaled()(batch)) == [0, 0, 0]
    assert per_row(credit.batch_normalized()(batch)) == [0, 0, 0]
    assert per_row(credit.batch_scaled()(rows([0.7], [0]).with_(advantages=torch.ones(1, 2)))) == [0]


def test_rows_count_once_in_the_batch_mean_however_long_they_are():
    # rows of 1 and 3 tokens with advantages 0 and 2: mean 1, deviation √2 (over n − 1 = 1), so ∓1/√2
    batch = rows([0.0, 0.0], [0, 1], mask=[[False, True, False, False], [False, True, True, True]])
    batch = batch.with_(advantages=torch.tensor([[9.0, 0, 9, 9], [9, 2, 2, 2]], dtype=torch.float64))
    given = credit.batch_normalized(eps=0.0)(batch).advantages
    assert given[0].tolist() == pytest.approx([0, -(0.5**0.5), 0, 0])
    assert given[1].tolist() == pytest.approx([0, 0.5**0.5, 0.5**0.5, 0.5**0.5])


def with_parts(parts, names, groups):
    """Rows whose rewards are the sums of these parts, `[B, R]`; None where a row lacks one."""
    table = torch.tensor([[float("nan") if p is None else p for p in row] for row in parts], dtype=torch.float64)
    batch = rows(table.nansum(1).tolist(), groups)
    return dataclasses.replace(batch.with_(reward_parts=table), part_names=names)


def test_parts_are_normalised_each_on_its_own_scale():
    """A6: a sum loses what it was made of. (1, 0) and (0, 1) have one sum; among (0, 0) and (1, 1) their parts differ.

    Answer (1, 0, 0, 0): (1.5, −.5, −.5, −.5) as in GRPO; format (0, 1, 1, 1): (−1.5, .5, .5, .5). Their sum is 0 in
    every row, as that of the rewards is constant. With weights (1, .5) it is (.75, −.25, −.25, −.25).
    """
    batch = with_parts([(1, 0), (0, 1), (0, 1), (0, 1)], ("answer", "format"), [0] * 4)
    assert per_row(credit.parts_normalized(eps=0.0)(batch)) == pytest.approx([0, 0, 0, 0])
    weighed = credit.parts_normalized({"answer": 1.0, "format": 0.5}, eps=0.0)(batch)
    assert per_row(weighed) == pytest.approx([0.75, -0.25, -0.25, -0.25])
    only = credit.parts_normalized({"answer": 2.0}, eps=0.0)(batch)
    assert per_row(only) == pytest.approx([3, -1, -1, -1])


def test_a_large_part_does_not_drown_a_small_one():
    """A6: sum-then-normalise gives (100, 1) and (100, 0) nearly the same; parts of equal spread count alike.

    Answer (100, 100, 0, 0): ±√3/2 with ddof 1; format (1, 0, 1, 0) likewise: sums √3, 0, 0, −√3.
    """
    batch = with_parts([(100, 1), (100, 0), (0, 1), (0, 0)], ("answer", "format"), [0] * 4)
    assert per_row(credit.parts_normalized(eps=0.0)(batch)) == pytest.approx([3**0.5, 0, 0, -(3**0.5)])
    summed = per_row(credit.group_normalized(eps=0.0)(batch))
    assert abs(summed[0] - summed[1]) < 0.02


def test_parts_of_a_part_count_once_more_unless_it_is_said_which_count():
    # `answer` was (1, 0) and had a part of its own, (1, 0) too: each ±1/√2, so together twice that
    batch = with_parts([(1, 1), (0, 0)], ("answer", "answer/format"), [0] * 2)
    assert per_row(credit.parts_normalized(eps=0.0)(batch)) == pytest.approx([2**0.5, -(2**0.5)])
    once = credit.parts_normalized({"answer": 1.0}, eps=0.0)(batch)
    assert per_row(once) == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_step_rewards_are_spent_from_token_to_token_and_by_nothing_else():
    # both outcomes are 1; the second row got .5 for its first step as well
    batch = rows([1.0, 1.0], [0, 0], token_rewards=[[0, 0, 1.0], [0, 0.5, 1.0]], mask=[[False, True, True]] * 2)
    for alike in (credit.group_centered(), credit.group_normalized(), credit.leave_one_out()):
        assert not alike(batch).advantages.any()
    assert credit.uniform()(batch).advantages.tolist() == [[0, 1, 1]] * 2
    assert credit.discounted()(batch).advantages.tolist() == [[0, 1, 1], [0, 1.5, 1]]


def test_a_missing_part_is_left_out_and_not_zero():
    """A6: of the format (1, –, 0) mean ½ and deviation 1/√2 are those of two rows; as a 0 they would be of three."""
    batch = with_parts([(0, 1), (0, None), (0, 0)], ("answer", "format"), [0] * 3)
    assert per_row(credit.parts_normalized(eps=0.0)(batch)) == pytest.approx([0.5**0.5, 0, -(0.5**0.5)])


def test_parts_are_compared_within_their_group():
    batch = with_parts([(1,), (0,), (5,), (5,)], ("answer",), [7, 7, 2, 2])
    assert per_row(credit.parts_normalized(eps=0.0)(batch)) == pytest.approx([0.5**0.5, -(0.5**0.5), 0, 0])


def test_gdpo_brings_the_sum_back_to_one_scale():
    # two parts that agree: 2 · (1.5, −.5, −.5, −.5), mean 0, deviation 2: what GRPO gives, whatever the number of parts
    batch = with_parts([(1, 1), (0, 0), (0, 0), (0, 0)], ("a", "b"), [0] * 4)
    given = (credit.parts_normalized(eps=0.0) | credit.batch_normalized(eps=0.0))(batch)
    assert per_row(given) == pytest.approx([1.5, -0.5, -0.5, -0.5])


def test_a_part_that_no_row_has_is_named():
    batch = with_parts([(1, 0), (0, 1)], ("answer", "format"), [0, 0])
    with pytest.raises(UnknownName, match=r"unknown reward part 'fromat'; did you mean 'format'\?"):
        credit.parts_normalized({"fromat": 1.0})(batch)
    with pytest.raises(MissingColumn, match=r"reads 'reward_parts'.*named parts"):
        credit.parts_normalized()(rows([1.0, 0.0], [0, 0]))
    with pytest.raises(ValueError, match="got no reward_weights"):
        credit.parts_normalized({})


def test_rewards_to_go_are_discounted_over_chosen_tokens_only():
    # token rewards (–, 1, 0, 2) with the third token not chosen, γ = 1/2:
    # t=3: 2;  t=2: not chosen, passes 2 on without discount and gets nothing;  t=1: 1 + 1/2·2 = 2
    batch = rows([2.0], [0], mask=[[False, True, False, True]], token_rewards=[[0, 1.0, 0, 2.0]])
    given = credit.discounted(0.5)(batch)
    assert given.advantages.tolist() == [[0, 2, 0, 2]]
    assert given.returns.tolist() == [[0, 2, 0, 2]]


def test_inserted_tokens_leave_the_returns_of_chosen_ones_unchanged():
    plain = credit.discounted(0.9)(rows([1.0], [0], mask=[[False, True, True]], token_rewards=[[0, 0.25, 1.0]]))
    with_tool = credit.discounted(0.9)(
        rows([1.0], [0], mask=[[False, True, False, False, True]], token_rewards=[[0, 0.25, 0, 0, 1.0]])
    )
    assert with_tool.advantages[0, [1, 4]].tolist() == plain.advantages[0, 1:].tolist()


def test_whitening_ignores_padding():
    # chosen advantages 1, 2, 6: mean 3, variance (4+1+9)/3 = 14/3
    batch = rows([0.0, 0.0], [0, 1], mask=[[False, True, True], [False, True, False]])
    batch = batch.with_(advantages=torch.tensor([[50.0, 1, 2], [50, 6, 50]], dtype=torch.float64))
    given = credit.whitened(eps=0.0)(batch).advantages
    deviation = (14 / 3) ** 0.5
    assert given[0, 1:].tolist() == pytest.approx([-2 / deviation, -1 / deviation])
    assert given[1].tolist() == pytest.approx([0, 3 / deviation, 0])
    chosen = given[batch.mask]
    assert float(chosen.mean()) == pytest.approx(0)
    assert float((chosen**2).mean()) == pytest.approx(1)


def test_whitening_equal_advantages_gives_zero():
    batch = credit.uniform()(rows([0.1, 0.1, 0.1], [0, 1, 2]))
    assert per_row(credit.whitened()(batch)) == [0, 0, 0]


def test_kl_in_the_reward_is_charged_token_by_token():
    # β = .1, old − ref = (.5, −.2): token rewards (0 − .05, 1 + .02), outcome 1 − .1·(.5 − .2) = .97
    batch = rows([1.0], [0], mask=[[False, True, True]])
    batch = batch.with_(
        old_logprobs=torch.tensor([[0, -1.0, -1.0]], dtype=torch.float64),
        ref_logprobs=torch.tensor([[0, -1.5, -0.8]], dtype=torch.float64),
    )
    given = credit.kl_in_reward(0.1)(batch)
    assert given.token_rewards[0].tolist() == pytest.approx([0, -0.05, 1.02])
    assert given.rewards.tolist() == pytest.approx([0.97])


def test_a_missing_column_names_its_reader_and_the_remedy():
    with pytest.raises(MissingColumn, match=r"kl_in_reward\(beta=0.1\) reads 'old_logprobs'.*annotate"):
        credit.kl_in_reward(0.1)(rows([1.0], [0]))
    with pytest.raises(MissingColumn, match=r"whitened\(\) reads 'advantages'.*credit"):
        (credit.kl_in_reward(0.1) | credit.whitened())(
            rows([1.0], [0]).with_(old_logprobs=torch.zeros(1, 2), ref_logprobs=torch.zeros(1, 2))
        )


@pytest.mark.parametrize("wrong", [lambda: credit.group_normalized(ddof=2), lambda: credit.discounted(1.5)])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        wrong()
