"""Rows without an advantage may stay away: which losses allow it, and that the gradient is the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maieutic.algorithms import ALGORITHMS, grpo, make_algorithm
from maieutic.backends.toy import ToyChat, ToySums, toy_policy
from maieutic.core.losses import clipped_surrogate, policy_gradient
from maieutic.core.sparing import Sparing, is_silent
from maieutic.rewards.compose import answer_reward
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.train import train

#: Rows of the table whose loss is 0 and flat where advantages are.
SILENT = {
    "reinforce", "reinforce_plus_plus", "rloo", "trpo", "grpo", "dr_grpo", "dapo", "lite_ppo", "gdpo", "gspo",
    "gspo_token", "cispo", "sapo", "on_policy_distillation",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_which_losses_are_silent_without_advantages(name):
    assert is_silent(make_algorithm(name, {}, max_completion_length=3).loss) == (name in SILENT)


def test_a_term_beside_the_advantage_is_heard():
    assert not is_silent(grpo(beta=0.04).loss)  # a KL to the reference pulls at every row
    assert not is_silent(clipped_surrogate() + 0.5 * policy_gradient() + make_algorithm("sft", {}).loss)
    assert is_silent(clipped_surrogate() + 0.5 * policy_gradient())


def run(spare: bool, steps: int = 4):
    tasks = ToySums()
    policy = toy_policy(ToyChat(tasks.vocabulary), length=3)
    roller = Roller(policy.sampler, policy.chat, answer_reward(tasks.verifier), max_completion_length=3, seed=0)
    source = Sampled(tasks, roller, prompts=6, num_generations=4)
    learner = Sparing(policy.learner) if spare else policy.learner
    made = list(train(source, replace(policy, learner=learner), grpo(), steps=steps))
    return made, policy.learner.weights()


def test_updates_are_the_same_without_them():
    (plain, expected), (spared, found) = run(False), run(True)
    left_out = [step.metrics["update/rows_spared"] for step in spared]
    uniform = [4.0 * sum(len(set(group.rewards)) == 1 for group in step.groups) for step in plain]
    assert left_out == [min(rows, 23.0) for rows in uniform]  # one of 24 rows is run where none has an advantage
    assert sum(left_out) > 0
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-7)


def test_a_step_without_any_advantage_is_a_step():
    tasks = ToySums()
    policy = toy_policy(ToyChat(tasks.vocabulary), length=3)
    (step,), _ = run(False, steps=1)
    batch = step.batch.with_(advantages=torch.zeros_like(step.batch.advantages))
    batch = batch.with_(weights=grpo().weigh(batch))
    before = {name: weight.clone() for name, weight in policy.learner.weights().items()}
    metrics = Sparing(policy.learner).step(batch, grpo().loss.terms, needs=grpo().loss.needs)
    assert metrics["update/rows_spared"] == batch.size - 1
    assert policy.learner.version == 1
    assert all(torch.equal(weight, before[name]) for name, weight in policy.learner.weights().items())
