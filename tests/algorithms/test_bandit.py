"""A bandit with four arms, whose optimum under each use of a KL estimator is known in closed form.

Completions of one token, rewards r = (1, .5, 0, −1), reference (.4, .3, .2, .1), β = .5; every expectation is a sum
over the four arms. Optimising r − β·(estimator) with the parts of this library must end at

    k1 in the reward, k2 in the loss    π ∝ ref · exp(r/β)           (.741754, .204657, .050193, .003396)   reverse KL
    k3 in the loss                      π = β·ref / (c − r)          (.708376, .191734, .077983, .021907)   forward KL
    k1 in the loss                      the best arm alone           (1, 0, 0, 0)                           none at all

where c = 1.282336 makes the probabilities add up to 1.
"""

from __future__ import annotations

import math

import pytest
import torch

from maieutic.algorithms import trpo
from maieutic.backends.toy import ToyChat, toy_policy
from maieutic.core import credit, losses
from maieutic.core.kl import k1, k2, k3
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.train import train
from maieutic.types import Batch, Message, Outputs, Score, Task

REWARDS = torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
BETA = 0.5

REVERSE = [0.741754, 0.204657, 0.050193, 0.003396]
FORWARD = [0.708376, 0.191734, 0.077983, 0.021907]


def arms():
    """Four rows, one for each arm: a prompt token and the arm, with its reward and the reference's log-prob."""
    mask = torch.tensor([[False, True]] * 4)
    zeros = torch.zeros(4, 2, dtype=torch.float64)
    batch = Batch(
        torch.tensor([[0, arm] for arm in range(4)]), mask, torch.full((4,), 2), zeros, REWARDS,
        torch.stack([zeros[:, 0], REWARDS], dim=1), torch.ones(4, dtype=torch.bool), torch.arange(4), torch.arange(4),
    )  # fmt: skip
    return batch.with_(ref_logprobs=torch.stack([zeros[:, 0], REFERENCE.log()], dim=1))


def optimum(judged, loss, *, steps=2500, rate=4.0):
    """Plain gradient descent on the exact expectation of the loss over arms; the policy where it ends."""
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    rows = arms()
    for _ in range(steps):
        logprobs = torch.log_softmax(logits, 0)
        outputs = Outputs(torch.stack([torch.zeros_like(logprobs), logprobs], dim=1))
        batch = judged(rows.with_(old_logprobs=outputs.logprobs.detach()))
        chances = logprobs.detach().exp()  # the weight of an arm is how often it is drawn
        (slope,) = torch.autograd.grad((chances[:, None] * loss(outputs, batch)).sum(), logits)
        logits = (logits - rate * slope).detach().requires_grad_()
    return torch.softmax(logits, 0).tolist()


def test_the_closed_forms_are_what_they_say():
    boltzmann = REFERENCE * torch.exp(REWARDS / BETA)
    assert (boltzmann / boltzmann.sum()).tolist() == pytest.approx(REVERSE, abs=1e-6)
    assert (BETA * REFERENCE / (1.282336 - REWARDS)).tolist() == pytest.approx(FORWARD, abs=2e-6)
    assert 0.5 * sum(abs(a - b) for a, b in zip(REVERSE, FORWARD, strict=True)) == pytest.approx(0.0463, abs=1e-4)


def test_k1_in_the_reward_ends_at_the_boltzmann_policy():
    judged = credit.kl_in_reward(BETA) | credit.uniform()
    assert optimum(judged, losses.policy_gradient()) == pytest.approx(REVERSE, abs=1e-3)


@pytest.mark.parametrize(
    ("surrogate", "estimator", "wanted"),
    [
        pytest.param(losses.policy_gradient(), k2, REVERSE, id="k2"),
        pytest.param(losses.policy_gradient(), k3, FORWARD, id="k3"),
        pytest.param(losses.clipped_surrogate(), k3, FORWARD, id="k3 beside GRPO's surrogate"),
        pytest.param(losses.policy_gradient(), k1, [1.0, 0.0, 0.0, 0.0], id="k1"),
    ],
)
def test_what_an_estimator_in_the_loss_ends_at(surrogate, estimator, wanted):
    loss = surrogate + BETA * losses.kl_to_reference(estimator)
    assert optimum(credit.uniform(), loss) == pytest.approx(wanted, abs=1e-3)


def test_without_any_kl_the_best_arm_wins():
    assert optimum(credit.uniform(), losses.policy_gradient())[0] > 0.999


def test_the_two_regularised_optima_can_be_told_apart():
    # the largest gap, .033 at the best arm, is 33 times the tolerance of the tests above
    assert max(abs(a - b) for a, b in zip(REVERSE, FORWARD, strict=True)) > 0.03
    assert math.fsum(REVERSE) == pytest.approx(math.fsum(FORWARD), abs=1e-5)


async def arm_rewards(task, rollouts):
    """The reward of the arm that was drawn: words 1 to 4 of the chat are the arms."""
    return [Score(float(REWARDS[rollout.tokens[-1] - 1]) if rollout.tokens[-1] else -2.0) for rollout in rollouts]


def test_trust_region_steps_on_samples_end_at_the_best_arm():
    """One prompt, 64 draws a step, no KL to any reference: each step is at most .05 nats, and they get there."""
    chat = ToyChat(["a", "b", "c", "d"])
    policy = toy_policy(chat, length=1, seed=3)
    roller = Roller(policy.sampler, chat, arm_rewards, max_completion_length=1, seed=3)
    source = Sampled([Task("bandit", (Message("user", "a"),))], roller, prompts=1, num_generations=64, seed=3)
    row = trpo(max_kl=0.05, damping=1e-3, kl_share=1.0)
    steps = list(train(source, policy, row, steps=60))
    assert all(step.metrics["trpo/kl"] <= 1.5 * 0.05 for step in steps if step.metrics["trpo/accepted"])
    logits = policy.learner.model.table.detach()[0, 0, chat.ids["a"]]
    assert float(torch.softmax(logits, 0)[chat.ids["a"]]) > 0.99
