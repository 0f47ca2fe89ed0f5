"""Rows that are one another in a special case, and one pair that is often said to be and is not.

Each is compared by the derivative of sum(weights * loss) with respect to the log-prob of every token, on groups of
four rows, of equal lengths (LEVEL), of different ones (MIXED) and of one token each (SHORT). Whatever maps weights to
log-probs, equal derivatives there are equal gradients.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maieutic.algorithms import (
    dapo,
    dpo,
    dr_grpo,
    expert_iteration,
    gdpo,
    grpo,
    gspo,
    gspo_token,
    lite_ppo,
    on_policy_distillation,
    reinforce_plus_plus,
    rloo,
    sft,
)
from maieutic.core import credit, losses, select, update, weights
from maieutic.core.corrections import CORRECTIONS
from maieutic.core.parts import Algorithm
from maieutic.core.self_training import correct_only
from maieutic.pack import pack
from maieutic.types import Finish, Group, Outputs, Rollout, Score, Task

LEVEL, MIXED, SHORT = [3, 3, 3, 3], [1, 4, 2, 5], [1, 1, 1, 1]
REWARDS = [1.0, 0.0, 0.25, 0.0]


def group_of(lengths, rewards=REWARDS, id=0):
    """Rows of these lengths after a one-token prompt; a reward of 1 is correct."""
    rollouts, scores = [], []
    for sibling, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
        body = tuple(range(10 * sibling + 1, 10 * sibling + 1 + length))
        own = (False,) + (True,) * length
        logprobs = tuple(-0.1 * token for token in (0, *body))
        rollouts.append(Rollout("t", (0, *body), own, logprobs, Finish.STOP, text=str(body), sibling=sibling))
        scores.append(Score(reward, correct=reward == 1.0, parts={"answer": reward}))
    return Group(Task("t", ()), tuple(rollouts), tuple(scores), id=id)


def noise(shape, seed):
    return 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slopes(algorithm, *groups, moved=False, **columns):
    """Derivatives `[B, T]` at a first optimiser step, or where the policy has `moved` from the old one."""
    batch = pack(algorithm.select(list(groups)))
    wide = ("sampler_logprobs", "rewards", "token_rewards")
    batch = batch.with_(**{name: getattr(batch, name).double() for name in wide})
    shape = batch.mask.shape
    now = (batch.sampler_logprobs + (noise(shape, 5) * batch.mask if moved else 0.0)).requires_grad_()
    given = {"old_logprobs": batch.sampler_logprobs, "ref_logprobs": batch.sampler_logprobs - 0.5 * batch.mask}
    batch = batch.with_(**{**given, **{name: make(shape) * batch.mask for name, make in columns.items()}})
    batch = algorithm.credit(batch)
    total = (algorithm.weigh(batch) * algorithm.loss(Outputs(now), batch)).sum()
    return torch.autograd.grad(total, now)[0]


def build(given, loss=None, weigh=None):
    loss, weigh = loss or losses.policy_gradient(), weigh or weights.sequence_mean()
    return Algorithm("own", select.everything(), given, loss, weigh, update.sgd())


def same(found, wanted):
    assert float(wanted.abs().max()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def parallel(a, b):
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)) > 1 - 1e-9


@pytest.mark.parametrize("lengths", [LEVEL, MIXED, SHORT], ids=str)
def test_grpo_without_deviation_and_kl_is_reinforce_with_the_groups_mean(lengths):
    same(slopes(grpo(scale="none"), group_of(lengths)), slopes(build(credit.group_centered()), group_of(lengths)))


@pytest.mark.parametrize("lengths", [LEVEL, MIXED, SHORT], ids=str)
def test_rloo_is_four_thirds_of_that_with_four_siblings(lengths):
    # G/(G − 1) = 4/3, counted by rows as RLOO does
    centred = build(credit.group_centered(), weigh=weights.sequence_sum())
    same(slopes(rloo(), group_of(lengths)), 4 / 3 * slopes(centred, group_of(lengths)))


def test_dr_grpo_is_grpo_without_deviation_where_lengths_are_equal():
    # 1/(B·12) against 1/(B·3): a quarter
    same(slopes(dr_grpo(12), group_of(LEVEL)), slopes(grpo(scale="none"), group_of(LEVEL)) / 4)
    assert not parallel(slopes(dr_grpo(12), group_of(MIXED)), slopes(grpo(scale="none"), group_of(MIXED)))


def test_dapo_counts_as_grpo_where_lengths_are_equal():
    same(slopes(dapo(epsilon_high=0.2), group_of(LEVEL), moved=True), slopes(grpo(), group_of(LEVEL), moved=True))
    assert not parallel(slopes(dapo(), group_of(MIXED)), slopes(grpo(), group_of(MIXED)))


def test_gspo_is_grpo_for_completions_of_one_token():
    found = slopes(gspo(0.2, 0.2), group_of(SHORT), moved=True)
    same(found, slopes(grpo(), group_of(SHORT), moved=True))
    other = slopes(gspo(0.2, 0.2), group_of(LEVEL), moved=True)
    assert not parallel(other, slopes(grpo(), group_of(LEVEL), moved=True))


@pytest.mark.parametrize("lengths", [LEVEL, MIXED], ids=str)
def test_gspo_token_is_gspo_where_a_row_has_one_advantage(lengths):
    found = slopes(gspo_token(0.2, 0.2), group_of(lengths), moved=True)
    same(found, slopes(gspo(0.2, 0.2), group_of(lengths), moved=True))


def test_lite_ppo_is_dapo_where_the_batch_is_one_group():
    same(slopes(lite_ppo(), group_of(MIXED)), slopes(dapo(), group_of(MIXED)))
    two = group_of(MIXED), group_of(MIXED, [0.5, 0.25, 0.5, 1.0], id=1)
    assert not parallel(slopes(lite_ppo(), *two), slopes(dapo(), *two))


def test_gdpo_of_one_part_and_one_group_is_grpo_up_to_its_eps():
    # (r − mean)/(std + eps) has deviation 1 up to eps, so dividing by it once more changes nothing
    found, wanted = slopes(gdpo(), group_of(MIXED)), slopes(grpo(), group_of(MIXED))
    assert parallel(found, wanted)
    assert float(found.norm() / wanted.norm()) == pytest.approx(1.0, abs=1e-3)


def test_the_baseline_of_reinforce_plus_plus_falls_out_in_one_group():
    # whitening takes any constant off, the group's mean among them; in two groups it does not
    plain = reinforce_plus_plus(beta=0.0)
    other = replace(plain, credit=credit.group_centered() | credit.whitened())
    same(slopes(plain, group_of(MIXED)), slopes(other, group_of(MIXED)))
    two = group_of(MIXED), group_of(MIXED, [0.5, 0.25, 0.5, 1.0], id=1)
    assert not parallel(slopes(plain, *two), slopes(other, *two))


@pytest.mark.parametrize("name", [name for name, part in CORRECTIONS.items() if part is not None])
def test_a_correction_where_sampler_and_learner_agree_is_none(name):
    found = slopes(grpo(correction=CORRECTIONS[name]), group_of(MIXED), moved=True)
    same(found, slopes(grpo(), group_of(MIXED), moved=True))


def test_expert_iteration_is_reinforce_without_a_baseline_on_rewards_of_zero_and_one():
    """One gradient step on K = 4 samples of which one is right: the kept rows' nll, each counting 1/K."""
    rewards = [0.0, 1.0, 0.0, 0.0]
    imitation = replace(expert_iteration(), select=correct_only("none"), weigh=weights.sequence_sum())
    kept = slopes(imitation, group_of(MIXED, rewards))
    practice = slopes(build(credit.uniform(), weigh=weights.sequence_sum()), group_of(MIXED, rewards))
    same(practice[1:2, : kept.shape[1]], kept / 4)  # a batch is as wide as its longest row
    assert not practice[[0, 2, 3]].any()


def test_on_policy_distillation_is_rl_with_nothing_but_a_kl_to_the_teacher():
    # γ = 0: a token answers for its own log-ratio alone
    def teacher(shape):
        return -1.0 + noise(shape, 9)

    only_kl = build(credit.kl_in_reward(1.0) | credit.discounted(0.0), weigh=weights.token_mean())
    nothing = group_of(MIXED, [0.0] * 4)
    found = slopes(on_policy_distillation(), nothing, teacher_logprobs=teacher)
    same(found, slopes(only_kl, nothing, ref_logprobs=teacher))


def test_sft_is_not_dpo_at_a_vanishing_beta():
    """Negative control: DPO's gradient over β tends to −½(∇ log π(chosen) − ∇ log π(rejected)).

    It pushes the rejected row away as hard as it draws the chosen one near, however small β is; SFT has no such term.
    """
    pair = group_of([3, 3], [1.0, 0.0])
    for beta in (1e-2, 1e-4, 1e-6):
        found = slopes(dpo(beta=beta), pair) / beta
        torch.testing.assert_close(found[0, 1:], torch.full((3,), -0.5, dtype=torch.float64), rtol=beta, atol=0)
        torch.testing.assert_close(found[1, 1:], torch.full((3,), 0.5, dtype=torch.float64), rtol=beta, atol=0)
    chosen = replace(sft(), select=correct_only("none"))
    imitation = slopes(chosen, pair)
    assert imitation.shape[0] == 1
    both = torch.cat([imitation, torch.zeros_like(imitation)])
    assert not parallel(found, both)
    assert parallel(found[:1], imitation)  # on the chosen row alone they agree, which is where the saying comes from
