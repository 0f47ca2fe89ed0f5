"""Critic and policy agree with what can be written down: values, advantages and gradients by exact enumeration.

Vocabulary of 3 (stop, 1, 2), at most 2 tokens after the prompt (1,): seven completions, three states in which a token
is chosen. V(s) is the mean reward of the completions that begin with s, each weighed by its probability; a one-step
lookahead is Q(s, a) = r + V(s′), and A = Q − V.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from maieutic.algorithms import ppo
from maieutic.backends.local import LocalLearner, Optimiser, SeparateCritic
from maieutic.backends.toy import STOP, ToyCritic, ToyLearner, ToyModel, enumerate_completions
from maieutic.core import losses, weights
from maieutic.core.critic import gae, value_loss
from maieutic.models.causal import load_causal
from maieutic.models.small import tiny_folder
from maieutic.pack import pack
from maieutic.types import Batch, Example, Finish, Rollout

LENGTH = 2
PROMPT = (1,)
COMPLETIONS = list(enumerate_completions(ToyModel(3, LENGTH), LENGTH))
#: Binary fractions, because `pack` holds rewards in float32.
REWARDS = dict(zip(COMPLETIONS, (0.25, 1.0, -0.5, 0.0, 2.0, 0.75, -1.0), strict=True))

State = tuple[int, ...]


@pytest.fixture
def model() -> ToyModel:
    made = ToyModel(3, LENGTH, seed=4, dtype=torch.float64)
    made.table.data *= 8  # far from uniform
    return made


def batch_of(completions: list[State], rewards: Mapping[State, float]) -> Batch:
    examples = []
    for number, c in enumerate(completions):
        mask = (False,) * len(PROMPT) + (True,) * len(c)
        finish = Finish.STOP if c[-1] == STOP else Finish.LENGTH
        examples.append(Example(Rollout("t", PROMPT + c, mask, (0.0,) * len(mask), finish), rewards[c], 0, number))
    batch = pack(examples)
    return batch.with_(**{n: getattr(batch, n).double() for n in ("sampler_logprobs", "rewards", "token_rewards")})


def everything() -> Batch:
    """All seven completions."""
    return batch_of(COMPLETIONS, REWARDS)


def chances(model: ToyModel) -> Tensor:
    """π(c) of every completion, `[7]`, with gradient."""
    return model.outputs(everything()).logprobs.sum(1).exp()


def exact_values(model: ToyModel, gamma: float = 1.0) -> dict[State, float]:
    """V of the states (), (1) and (2): the reward comes with the last token, `gamma` for each token before it."""
    share = dict(zip(COMPLETIONS, chances(model).tolist(), strict=True))
    made = {}
    for state in [(), (1,), (2,)]:
        after = [c for c in COMPLETIONS if c[: len(state)] == state]
        total = sum(share[c] * gamma ** (len(c) - 1 - len(state)) * REWARDS[c] for c in after)
        made[state] = total / sum(share[c] for c in after)
    return made


def filled(batch: Batch, values: Mapping[State, float]) -> Batch:
    """`old_values` looked up by state; nothing is to be got where a row is cut."""
    old = torch.zeros_like(batch.token_rewards)
    for row, t in batch.mask.nonzero().tolist():
        old[row, t] = values[tuple(batch.tokens[row, len(PROMPT) : t].tolist())]
    return batch.with_(old_values=old, final_values=torch.zeros_like(batch.rewards))


def said(learner: ToyLearner | LocalLearner) -> dict[State, float]:
    """A critic's values of the three states."""
    batch = everything()
    found = learner.values(batch)
    places = batch.mask.nonzero().tolist()
    return {tuple(batch.tokens[row, len(PROMPT) : t].tolist()): float(found[row, t]) for row, t in places}


def test_the_values_are_a_fixed_point(model: ToyModel) -> None:
    """Bellman: V(s) = Σ_a π(a | s) (r + γ V(s′))."""
    for gamma in (1.0, 0.9):
        values = exact_values(model, gamma)
        policy = torch.softmax(model.table[0], -1).detach()
        first, second = policy[0, PROMPT[-1]], policy[1]
        inner = {a: sum(float(second[a, b]) * REWARDS[(a, b)] for b in range(3)) for a in (1, 2)}
        assert values[(1,)] == pytest.approx(inner[1])
        assert values[()] == pytest.approx(
            float(first[STOP]) * REWARDS[(STOP,)] + gamma * sum(float(first[a]) * inner[a] for a in (1, 2))
        )


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
def test_a_critic_of_a_fixed_policy_converges_to_the_enumerated_values(
    model: ToyModel, gamma: float, lam: float
) -> None:
    """From what was got (λ = 1), from the critic itself one step on (λ = 0), and between."""
    learner = ToyLearner(model, learning_rate=0.05, critic=ToyCritic(model))
    before = model.table.detach().clone()
    share = chances(model).detach()
    loss = value_loss(None)
    for _ in range(400):
        batch = everything()
        batch = batch.with_(old_values=learner.values(batch), final_values=torch.zeros(7, dtype=torch.float64))
        batch = gae(gamma, lam)(batch)
        # every completion as often as the policy writes it: the expectation of a step on samples
        learner.step(batch.with_(weights=batch.mask * share[:, None]), loss.terms, needs=loss.needs)
    wanted = exact_values(model, gamma)
    assert max(abs(value - wanted[state]) for state, value in said(learner).items()) < 0.02
    assert torch.equal(model.table, before)  # the policy stayed

    advantages = gae(gamma, 0.0)(filled(everything(), said(learner))).advantages
    for (row, t), advantage in enumerated_advantages(model, gamma).items():
        assert float(advantages[row, t]) == pytest.approx(advantage, abs=0.04)


def enumerated_advantages(model: ToyModel, gamma: float) -> dict[tuple[int, int], float]:
    """E[what is got | s, a] − E[what is got | s] for each chosen token, by summing over completions."""
    share = dict(zip(COMPLETIONS, chances(model).tolist(), strict=True))
    values = exact_values(model, gamma)
    made = {}
    for row, completion in enumerate(COMPLETIONS):
        for t in range(len(completion)):
            after = [c for c in COMPLETIONS if c[: t + 1] == completion[: t + 1]]
            got = sum(share[c] * gamma ** (len(c) - 1 - t) * REWARDS[c] for c in after) / sum(share[c] for c in after)
            made[row, len(PROMPT) + t] = got - values[completion[:t]]
    return made


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_a_one_step_lookahead_is_the_enumerated_advantage(model: ToyModel, gamma: float) -> None:
    advantages = gae(gamma, 0.0)(filled(everything(), exact_values(model, gamma))).advantages
    wanted = enumerated_advantages(model, gamma)
    assert len(wanted) == int(everything().mask.sum())
    assert max(abs(a) for a in wanted.values()) > 0.5
    for (row, t), advantage in wanted.items():
        assert float(advantages[row, t]) == pytest.approx(advantage, abs=1e-12)


def test_a_separate_critic_on_a_real_decoder_converges_too(model: ToyModel, tmp_path_factory) -> None:
    folder = tiny_folder("llama", tmp_path_factory.mktemp("tiny"))
    policy, own = (load_causal(folder, dtype="float32", device="cpu") for _ in range(2))
    learner = LocalLearner(policy, Optimiser(), critic=SeparateCritic(own, learning_rate=5e-3))
    batch = everything()
    batch = batch.with_(**{n: getattr(batch, n).float() for n in ("sampler_logprobs", "rewards", "token_rewards")})
    batch = gae(lam=1.0)(filled(batch, dict.fromkeys([(), (1,), (2,)], 0.0)))
    batch = batch.with_(weights=(batch.mask * chances(model).detach()[:, None]).float())
    loss = value_loss(None)
    # tokens that the decoder tells apart: over (1) and (1, 1) its attention would average the same value
    batch = batch.with_(tokens=torch.where(batch.mask, batch.tokens + 5, 9))
    for _ in range(200):
        learner.step(batch, loss.terms, needs=loss.needs)
    found, wanted = learner.values(batch), filled(everything(), exact_values(model)).old_values
    assert float((found - wanted).abs().max()) < 0.02


# ---- gradients


def gradient(model: ToyModel, total: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(total, model.table, retain_graph=True)
    return found.flatten()


def exact_gradient(model: ToyModel) -> Tensor:
    """∇J with J = Σ_c π(c) r(c)."""
    return gradient(model, (chances(model) * torch.tensor(list(REWARDS.values()), dtype=torch.float64)).sum())


def expected_gradient(model: ToyModel, given, values: Mapping[State, float]) -> Tensor:
    """E over one completion of ∇ sum(weights · surrogate) at the first step, with these values for a critic."""
    share = chances(model).detach()
    outputs = model.outputs(everything())
    batch = given(filled(everything(), values).with_(old_logprobs=outputs.logprobs.detach()))
    assert torch.equal(weights.sequence_sum()(batch.rows(torch.tensor([3]))), batch.mask[3:4].double())
    loss = losses.clipped_surrogate()(outputs, batch)
    return gradient(model, (share[:, None] * batch.mask * loss).sum())


def test_the_gradient_is_exact_for_any_critic_at_lambda_one_and_for_the_right_one_at_any_lambda(
    model: ToyModel,
) -> None:
    right = exact_values(model)
    wrong = {(): 0.7, (1,): -1.3, (2,): 2.0}
    wanted = -exact_gradient(model)
    assert float(wanted.norm()) > 0.1
    for given, values in [(gae(lam=1.0), wrong), *[(gae(lam=lam), right) for lam in (0.0, 0.5, 0.95, 1.0)]]:
        torch.testing.assert_close(expected_gradient(model, given, values), wanted, rtol=1e-10, atol=1e-12)
    # a wrong critic that is trusted turns the gradient
    turned = expected_gradient(model, gae(lam=0.5), wrong)
    assert float(torch.nn.functional.cosine_similarity(turned, wanted, dim=0)) < 0.99


def test_the_first_step_of_ppo_follows_the_regularised_gradient(model: ToyModel) -> None:
    """On the batch of all completions: the row's gradient is the sum over tokens of −Â ∇log π / tokens, with Â the
    whitened advantages of r − β (log π − log ref), and of c (V − R) in the critic's table."""
    reference = ToyModel(3, LENGTH, seed=9, dtype=torch.float64)
    algorithm = ppo(beta=0.3, lam=0.9)
    critic = ToyCritic(model)
    outputs = model.outputs(everything())
    batch = filled(everything(), dict.fromkeys([(), (1,), (2,)], 0.0))
    batch = batch.with_(
        old_logprobs=outputs.logprobs.detach(), ref_logprobs=reference.outputs(everything()).logprobs.detach()
    )
    learner = ToyLearner(model, critic=critic)
    credited = algorithm.credit(batch)
    value = (algorithm.weigh(credited) * algorithm.loss(learner.outputs(credited), credited)).sum()
    found, of_critic = torch.autograd.grad(value, [model.table, critic.table])

    # by hand: V = 0, so δₜ = rₜ and Aₜ = rₜ + .9 Aₜ₊₁, from the last token on
    penalised = batch.token_rewards - 0.3 * (batch.old_logprobs - batch.ref_logprobs)
    advantages = torch.zeros_like(penalised)
    for row, completion in enumerate(COMPLETIONS):
        following = 0.0
        for t in reversed(range(1, 1 + len(completion))):
            following = float(penalised[row, t]) + 0.9 * following
            advantages[row, t] = following
    chosen = advantages[batch.mask]
    white = torch.where(batch.mask, (advantages - chosen.mean()) / (chosen.var(correction=0) + 1e-8).sqrt(), 0.0)
    wanted = gradient(model, -(white * model.outputs(everything()).logprobs).sum() / int(batch.mask.sum()))
    torch.testing.assert_close(found.flatten(), wanted, rtol=1e-10, atol=1e-12)
    # the critic: .1 · (V − R) / tokens, and R = A + V = A; beyond the value clip too, as V = V_old
    total = -0.1 * chosen.sum() / int(batch.mask.sum())
    assert float(of_critic.sum()) == pytest.approx(float(total))


# ---- sampled gradients on three tokens of two symbols: all eight completions

CODES = list(itertools.product((0, 1), repeat=3))


def codes() -> tuple[Batch, Tensor]:
    """The eight completions, none of which ends before its third token, and their rewards."""
    rewards = dict(zip(CODES, (0.5, -1.0, 2.0, 0.25, 1.0, 0.0, -0.5, 3.0), strict=True))
    return batch_of(CODES, rewards), torch.tensor([rewards[c] for c in CODES], dtype=torch.float64)


@pytest.mark.parametrize("form", ["per token", "per sequence"])
@pytest.mark.parametrize("baseline", ["none", "of the state", "of the action"])
def test_a_sampled_gradient_with_a_baseline_of_the_state_is_within_four_standard_errors(
    form: str, baseline: str
) -> None:
    """Σₜ ∇log π(aₜ | sₜ) (R − b(sₜ)): b is a random number for each prefix; per sequence, one number for the prompt."""
    model = ToyModel(2, 3, seed=3, dtype=torch.float64)
    model.table.data *= 5
    batch, rewards = codes()
    outputs = model.outputs(batch)
    share = outputs.logprobs.sum(1).exp()
    exact = gradient(model, (share * rewards).sum())
    draw = torch.Generator().manual_seed(1)
    table = {c[:n]: float(torch.randn((), generator=draw)) for c in CODES for n in range(4)}
    offset = torch.zeros_like(batch.token_rewards)
    for row, c in enumerate(CODES):
        for t in range(3):
            of_state = table[c[:t]] if form == "per token" else table[()]
            of_action = table[c[: t + 1]] if form == "per token" else table[c]
            offset[row, 1 + t] = {"none": 0.0, "of the state": of_state, "of the action": of_action}[baseline]
    credited = batch.with_(advantages=torch.where(batch.mask, rewards[:, None] - offset, 0.0))
    loss = losses.policy_gradient()(outputs, credited)
    each = torch.stack([-gradient(model, row.sum()) for row in loss])  # [8, weights]: of one sample of each kind

    drawn = torch.multinomial(share.detach(), 20_000, replacement=True, generator=draw)
    samples = each[drawn]
    error = (samples.mean(0) - exact).abs()
    standard = samples.std(0) / len(drawn) ** 0.5
    assert float(exact.norm()) > 0.1
    within = bool((error <= 4 * standard + 1e-12).all())
    assert within is (baseline != "of the action")  # which is no baseline: it takes the reward's own signal away
