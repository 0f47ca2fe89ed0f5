"""A bandit with four arms, whose optimum under each use of a KL estimator is known in closed form.

Completions of one token, rewards r = (1, .5, 0, −1), reference (.4, .3, .2, .1), β = .5; every expectation is a sum
over the four arms. Optimising r − β·(estimator) with the parts of this library must end at

    k1 in the reward, k2 in the loss    π ∝ ref · exp(r/β)           (.741754, .204657, .050193, .003396)   reverse KL
    k3 in the loss                      π = β·ref / (c − r)          (.708376, .191734, .077983, .021907)   forward KL
    k1 in the loss                      the best arm alone           (1, 0, 0, 0)                           none at all

where c = 1.282336 makes the probabilities add up to 1.
"""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from maieutic.algorithms import ALGORITHMS, grpo, make_algorithm, rloo, trpo
from maieutic.backends.toy import ToyChat, ToyScorer, toy_policy
from maieutic.core import credit, losses
from maieutic.core.kl import corrected_k2, corrected_k3, k1, k2, k3, k3_plus
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


def optimum(judged, loss, *, steps=2500, rate=4.0, behaviour=None):
    """Plain gradient descent on the exact expectation of the loss over arms; the policy where it ends.

    Arms are drawn by the policy itself, or always by the same `behaviour`.
    """
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    rows = arms()
    for _ in range(steps):
        logprobs = torch.log_softmax(logits, 0)
        outputs = Outputs(torch.stack([torch.zeros_like(logprobs), logprobs], dim=1))
        chances = logprobs.detach().exp() if behaviour is None else behaviour
        old = torch.stack([torch.zeros_like(chances), chances.log()], dim=1)
        batch = judged(rows.with_(old_logprobs=old))
        # the weight of an arm is how often it is drawn
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
        pytest.param(losses.policy_gradient(), k3_plus, REVERSE, id="k3_plus"),
        pytest.param(losses.policy_gradient(), corrected_k2, REVERSE, id="corrected_k2"),
        pytest.param(losses.clipped_surrogate(), corrected_k3, REVERSE, id="corrected_k3 beside GRPO's surrogate"),
    ],
)
def test_what_an_estimator_in_the_loss_ends_at(surrogate, estimator, wanted):
    loss = surrogate + BETA * losses.kl_to_reference(estimator)
    assert optimum(credit.uniform(), loss) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    ("estimator", "ends_right"),
    [(k2, False), (k3, False), (k3_plus, False), (corrected_k2, True), (corrected_k3, True)],
)
def test_of_arms_that_an_older_policy_drew_only_what_is_corrected_ends_right(estimator, ends_right):
    """A12: every arm is drawn equally often, for ever. The surrogate's own ratio is corrected by its nature."""
    loss = losses.clipped_surrogate(1 - 1e-9, 1e9) + BETA * losses.kl_to_reference(estimator)
    found = optimum(credit.uniform(), loss, behaviour=torch.full((4,), 0.25, dtype=torch.float64))
    assert (max(abs(a - b) for a, b in zip(found, REVERSE, strict=True)) < 1e-3) is ends_right


def test_the_expected_gradient_is_the_exact_one():
    """At π = softmax(.3, −.2, .5, 0): ∂/∂logitᵢ of J − β KL is πᵢ (gᵢ − Σ π g), g = r − β (log π − log ref)."""
    logits = torch.tensor([0.3, -0.2, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    policy = torch.softmax(logits, 0).detach()
    gain = REWARDS - BETA * (policy.log() - REFERENCE.log())
    wanted = policy * (gain - (policy * gain).sum())
    rows = arms()
    logprobs = torch.log_softmax(logits, 0)
    outputs = Outputs(torch.stack([torch.zeros_like(logprobs), logprobs], dim=1))
    filled = rows.with_(old_logprobs=outputs.logprobs.detach())
    for judged, loss in (
        (credit.kl_in_reward(BETA) | credit.uniform(), losses.policy_gradient()),
        (credit.uniform(), losses.policy_gradient() + BETA * losses.kl_to_reference(k2)),
        (credit.uniform(), losses.clipped_surrogate() + BETA * losses.kl_to_reference(corrected_k3)),
    ):
        total = (policy[:, None] * loss(outputs, judged(filled))).sum()
        (slope,) = torch.autograd.grad(total, logits, retain_graph=True)
        torch.testing.assert_close(-slope, wanted, rtol=1e-12, atol=1e-14)


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


#: The task of every sampled bandit: one prompt; the stop token and three words are its four arms.
PULL = Task("bandit", (Message("user", "a"),))


async def pay(task, rollouts):
    """The reward of the arm that was pulled."""
    found = []
    for rollout in rollouts:
        arm = rollout.tokens[-1]
        found.append(Score(float(REWARDS[arm]), correct=arm == 0, parts={"arm": float(REWARDS[arm])}))
    return found


def pulled(row, *, steps, draws, learning_rate, start=None):
    """The policies over the arms after each step of training on samples."""
    chat = ToyChat(["a", "b", "c"])
    policy = toy_policy(chat, length=1, learning_rate=learning_rate, seed=3, critic="values" in row.requires)
    model = policy.learner.model
    if start is not None:
        model.table.data[:] = start.log().float()
    reference = ToyScorer(model)
    roller = Roller(policy.sampler, chat, pay, max_completion_length=1, seed=3)
    source = Sampled([PULL], roller, prompts=1, num_generations=draws, seed=3, until=row.select.keeps, max_refill=0)
    policies = []
    for _ in train(source, policy, row, steps=steps, reference=reference):
        policies.append(torch.softmax(model.table.detach()[0, 0, chat.ids["a"]].double(), 0))
    return policies


def without_kl(name):
    """The row with its KL to the reference left out, where it has one."""
    options = {"beta": 0.0} if "beta" in inspect.signature(ALGORITHMS[name]).parameters else {}
    return make_algorithm(name, options, max_completion_length=1)


def practises(name):
    """Whether the row spends rewards as advantages of samples."""
    row = make_algorithm(name, {}, max_completion_length=1)
    return row.samples and "advantages" in row.needs and "teacher_logprobs" not in row.needs


PRACTISED = [name for name in ALGORITHMS if practises(name)]


@pytest.mark.parametrize("name", PRACTISED)
def test_every_row_finds_the_best_arm_by_samples(name):
    last = pulled(without_kl(name), steps=60, draws=16, learning_rate=0.3)[-1]
    assert float(last[0]) > 0.99


def test_the_rows_that_practise_are_all_there():
    least = {"grpo", "rloo", "ppo", "reinforce", "reinforce_plus_plus", "trpo", "cispo", "gspo"}
    assert least <= set(PRACTISED)


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        pytest.param(rloo(beta=BETA), REVERSE, id="k1 in the reward"),
        pytest.param(grpo(beta=BETA, kl=k2, scale="none"), REVERSE, id="k2 in the loss"),
        pytest.param(grpo(beta=BETA, kl=k3, scale="none"), FORWARD, id="k3 in the loss"),
        pytest.param(grpo(beta=BETA, kl=k1, scale="none"), [1.0, 0.0, 0.0, 0.0], id="k1 in the loss"),
    ],
)
def test_what_a_row_ends_at_on_samples(row, wanted):
    """The mean policy of the last steps, within .02: the noise of 48 draws a step is in each of them."""
    policies = pulled(row, steps=160, draws=48, learning_rate=0.05, start=REFERENCE)
    mean = torch.stack(policies[-80:]).mean(0)
    assert mean.tolist() == pytest.approx(wanted, abs=0.02)
