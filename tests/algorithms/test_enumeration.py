"""Expectations without sampling: on a policy with few completions, all of them are written down.

Vocabulary of 3 (stop, 1, 2) and at most 2 tokens: the completions are

    (0)   (1 0)   (2 0)   (1 1)   (1 2)   (2 1)   (2 2)           the last four are cut by the length limit

J = Σ_c π(c) r(c) is a sum of seven terms, and autograd gives its gradient exactly. The gradient that an algorithm
would follow is Σ over all groups of G completions of π(c₁) … π(c_G) ∇ sum(weights * loss); a step goes down, so an
unbiased one has expectation −∇J.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from maieutic.algorithms import (
    dapo,
    distil,
    dpo,
    dr_grpo,
    expert_iteration,
    gdpo,
    gkd,
    grpo,
    gspo_token,
    ipo,
    lite_ppo,
    on_policy_distillation,
    orpo,
    rcrl,
    reinforce,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    rejection_sampling,
    rest_em,
    rloo,
    rpo,
    sapo,
    sft,
    simpo,
    star,
    trpo,
)
from maieutic.annotate import top
from maieutic.backends.toy import STOP, ToyChat, ToyModel, ToyScorer, enumerate_completions
from maieutic.core import credit, losses, select, update, weights
from maieutic.core.corrections import corrected, sequence, token, truncated
from maieutic.core.distillation import kl_to_teacher, reverse_kl_advantage
from maieutic.core.kl import k1, k2, k3
from maieutic.core.parts import Algorithm, needs
from maieutic.core.parts import credit as credit_factory
from maieutic.core.self_training import correct_only
from maieutic.pack import pack
from maieutic.types import Example, Finish, Group, Outputs, Rollout, Score, Task

LENGTH = 2
PROMPT = (1,)


@pytest.fixture(scope="module")
def model():
    made = ToyModel(3, LENGTH, seed=4, dtype=torch.float64)
    made.table.data *= 8  # far from uniform, so that a wrong weighting shows
    return made


COMPLETIONS = list(enumerate_completions(ToyModel(3, LENGTH), LENGTH))
#: A reward for each completion, with no pattern to it; binary fractions, because `pack` holds rewards in float32.
REWARDS = dict(zip(COMPLETIONS, (0.25, 1.0, -0.5, 0.0, 2.0, 0.75, -1.0), strict=True))


def row(completion, reward, group=0):
    stopped = completion[-1] == STOP
    rollout = Rollout(
        "t", PROMPT + completion, (False,) + (True,) * len(completion), (0.0,) * (1 + len(completion)),
        Finish.STOP if stopped else Finish.LENGTH,
    )  # fmt: skip
    return Example(rollout, reward, group, group, parts={"answer": reward})


def batch_of(completions, rewards=None, groups=None):
    """A float64 batch of these completions, by default one group with the rewards of the table."""
    rewards = rewards or [REWARDS[c] for c in completions]
    groups = groups or [0] * len(completions)
    batch = pack([row(*each) for each in zip(completions, rewards, groups, strict=True)])
    return batch.with_(**{n: getattr(batch, n).double() for n in ("sampler_logprobs", "rewards", "token_rewards")})


def objective(model, batch, algorithm, reference=None, teacher=None):
    """sum(weights * loss) of one batch at a first step, with gradient."""
    if teacher is not None:
        batch = batch.with_(teacher_logprobs=teacher.logprobs(batch), **top(teacher, batch))
    outputs = model.outputs(batch)
    batch = batch.with_(old_logprobs=outputs.logprobs.detach())
    if reference is not None:
        batch = batch.with_(ref_logprobs=reference.logprobs(batch))
    batch = algorithm.credit(batch)
    return (algorithm.weigh(batch) * algorithm.loss(outputs, batch)).sum()


def gradient(model, value):
    (found,) = torch.autograd.grad(value, model.table)
    return found.flatten()


def probabilities(model):
    """π(c) of every completion, `[7]`, with gradient."""
    return model.outputs(batch_of(COMPLETIONS)).logprobs.sum(1).exp()


def exact(model):
    """∇J."""
    return gradient(model, (probabilities(model) * torch.tensor(list(REWARDS.values()), dtype=torch.float64)).sum())


def expected(model, algorithm, size, reference=None, teacher=None):
    """E[∇ sum(weights * loss)] over every group of `size` independent completions."""
    chances = dict(zip(COMPLETIONS, probabilities(model).tolist(), strict=True))
    total = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(COMPLETIONS, repeat=size):
        chance = math.prod(chances[c] for c in group)
        total = total + chance * objective(model, batch_of(list(group)), algorithm, reference, teacher)
    return gradient(model, total)


def build(given, loss=None, weigh=None):
    """An algorithm of these parts; policy gradient and sequence_sum unless told otherwise."""
    loss, weigh = loss or losses.policy_gradient(), weigh or weights.sequence_sum()
    return Algorithm("parts", select.everything(), given, loss, weigh, update.sgd())


def assert_equal(found, wanted):
    assert float(wanted.norm()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_the_enumeration_is_complete(model):
    assert len(COMPLETIONS) == len(set(COMPLETIONS)) == 7
    assert float(probabilities(model).sum().detach()) == pytest.approx(1.0, abs=1e-14)
    assert float(probabilities(model).detach().max()) > 0.3  # and not uniform


@pytest.mark.parametrize("given", [credit.uniform(), credit.discounted()], ids=str)
def test_reinforce_without_a_baseline_is_unbiased(model, given):
    assert_equal(expected(model, build(given), 1), -exact(model))


@credit_factory
def state_baseline(table):
    """Aₜ = Rₜ − b(t, previous token): any function of the state that the token was chosen in."""

    @needs("returns")
    def give(batch):
        steps = torch.arange(batch.tokens.shape[1])[None].expand_as(batch.tokens)
        return batch.with_(advantages=(batch.returns - table[steps, batch.tokens.roll(1, dims=1)]) * batch.mask)

    return give


@credit_factory
def action_baseline(table):
    """Aₜ = Rₜ − b(t, the token itself): what a baseline must not be."""

    @needs("returns")
    def give(batch):
        steps = torch.arange(batch.tokens.shape[1])[None].expand_as(batch.tokens)
        return batch.with_(advantages=(batch.returns - table[steps, batch.tokens]) * batch.mask)

    return give


def test_a_baseline_of_the_state_is_free_and_one_of_the_action_is_not(model):
    table = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_equal(expected(model, build(credit.discounted() | state_baseline(table)), 1), -exact(model))
    wrong = expected(model, build(credit.discounted() | action_baseline(table)), 1)
    assert float((wrong + exact(model)).norm() / exact(model).norm()) > 0.1


@pytest.mark.parametrize("size", [2, 3])
def test_rloo_is_unbiased(model, size):
    assert_equal(expected(model, rloo(), size), -exact(model))


@pytest.mark.parametrize("size", [2, 3])
def test_a_mean_that_includes_the_row_itself_shrinks_the_gradient(model, size):
    """A5: by (G − 1)/G, and does not turn it; RLOO has all of it."""
    # r − mean = (G−1)/G · (r − mean of the others): half of it at G = 2, two thirds at G = 3
    assert_equal(expected(model, build(credit.group_centered()), size), -(size - 1) / size * exact(model))


def test_dr_grpo_is_that_over_a_constant(model):
    # (G−1)/G / L with G = 2, L = 5: a tenth, whatever the lengths of the rows
    assert_equal(expected(model, dr_grpo(max_completion_length=5), 2), -0.1 * exact(model))


@pytest.mark.parametrize(
    "algorithm",
    [grpo(), dapo(), reinforce(), build(credit.leave_one_out(), weigh=weights.sequence_mean())],
    ids=["deviation and rows", "deviation and tokens", "whitened over the batch", "rows by their mean"],
)
def test_dividing_by_deviations_or_lengths_turns_the_gradient(model, algorithm):
    """What GRPO's deviation and its mean over a row's tokens do is no scaling: the direction is another one."""
    assert 0 < cosine(expected(model, algorithm, 2), -exact(model)) < 0.999


def pair_gradient(model, advantages, weigh):
    """E of −Σ wᵢ Aᵢ Σₜ log π over pairs of completions, with A of (rewards, lengths) and w of lengths written out."""
    logprobs = dict(zip(COMPLETIONS, model.outputs(batch_of(COMPLETIONS)).logprobs.sum(1), strict=True))
    total = torch.zeros((), dtype=torch.float64)
    for a, b in itertools.product(COMPLETIONS, repeat=2):
        chance = float(torch.exp(logprobs[a] + logprobs[b]).detach())
        given = advantages(REWARDS[a], REWARDS[b], len(a), len(b))
        counts = weigh(len(a), len(b))
        total = total - chance * (counts[0] * given[0] * logprobs[a] + counts[1] * given[1] * logprobs[b])
    return gradient(model, total)


def of_two(r, s, eps=1e-4):
    """(r − mean)/(std + eps) and its negative: half the difference over |difference|/√2."""
    half = (r - s) / 2
    return half / (abs(half) * math.sqrt(2) + eps), -half / (abs(half) * math.sqrt(2) + eps)


def whitened_by_hand(r, s, m, n):
    """Two values on m and n tokens, less their mean over tokens, over their deviation; 0 for two equal ones."""
    mean = (m * r + n * s) / (m + n)
    spread = math.sqrt((m * (r - mean) ** 2 + n * (s - mean) ** 2) / (m + n) + 1e-8)
    return ((r - mean) / spread, (s - mean) / spread) if r != s else (0.0, 0.0)


#: Row → its advantages of a pair of completions, and how their tokens count.
PAIRS = {
    "lite_ppo": (lite_ppo(), lambda r, s, m, n: of_two(r, s), lambda m, n: (1 / (m + n),) * 2),
    "gdpo": (gdpo(), lambda r, s, m, n: of_two(*of_two(r, s)), lambda m, n: (1 / (2 * m), 1 / (2 * n))),
    "gspo_token": (gspo_token(), lambda r, s, m, n: of_two(r, s), lambda m, n: (1 / (2 * m), 1 / (2 * n))),
    "sapo": (sapo(), lambda r, s, m, n: of_two(r, s), lambda m, n: (1 / (2 * m), 1 / (2 * n))),
    "reinforce_plus_plus": (reinforce_plus_plus(beta=0.0), whitened_by_hand, lambda m, n: (1 / (m + n),) * 2),
    "reinforce_plus_plus_baseline": (
        reinforce_plus_plus_baseline(beta=0.0),
        lambda r, s, m, n: whitened_by_hand((r - s) / 2, (s - r) / 2, m, n),
        lambda m, n: (1 / (m + n),) * 2,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_expected_gradient_of_a_pair_is_the_stated_one(model, name):
    algorithm, advantages, weigh = PAIRS[name]
    assert_equal(expected(model, algorithm, 2), pair_gradient(model, advantages, weigh))


def drawn_by_another(model, sampler, algorithm):
    """E[∇ sum(weights * loss)] over single completions that another policy wrote, with its log-probs."""
    batch = batch_of(COMPLETIONS)
    written = sampler.outputs(batch).logprobs.detach()
    total = torch.zeros((), dtype=torch.float64)
    for number, completion in enumerate(COMPLETIONS):
        single = batch_of([completion])
        single = single.with_(sampler_logprobs=written[number : number + 1, : single.tokens.shape[1]])
        total = total + float(written[number].sum().exp()) * objective(model, single, algorithm)
    return gradient(model, total)


def test_only_the_ratio_of_a_whole_row_makes_another_policys_rows_as_good_as_ones_own(model):
    """A9: E_s[w r ∇log π] = ∇J with w the product over the row; tokens' own ratios are biased, and none is worse."""
    sampler = ToyModel(3, LENGTH, seed=6, dtype=torch.float64)
    corrections = {
        "none": None,
        "token": truncated(high=1e6, level=token),
        "sequence": truncated(high=1e6, level=sequence),
    }
    found = {
        name: drawn_by_another(model, sampler, build(credit.uniform(), corrected(losses.policy_gradient(), weight)))
        for name, weight in corrections.items()
    }
    assert_equal(found["sequence"], -exact(model))
    away = {name: float((each + exact(model)).norm() / exact(model).norm()) for name, each in found.items()}
    assert away["none"] > away["token"] > 0.05


@credit_factory
def estimate_in_reward(estimator):
    """A = −estimator of the whole completion, without gradient: any estimator as a penalty in the reward."""

    @needs("old_logprobs", "ref_logprobs")
    def give(batch):
        penalty = estimator(batch.old_logprobs, batch.ref_logprobs) * batch.mask
        return batch.with_(advantages=-penalty.sum(1, keepdim=True) * batch.mask)

    return give


def kl_of_completions(model, reference):
    """KL(π ‖ ref) of whole completions, with gradient."""
    batch = batch_of(COMPLETIONS)
    logprobs = model.outputs(batch).logprobs.sum(1)
    return (logprobs.exp() * (logprobs - reference.logprobs(batch).sum(1))).sum()


def test_in_the_reward_only_k1_is_the_reverse_kl(model):
    """A11: with k2 or k3 there the gradient is another one, however exactly its mean is taken."""
    reference = ToyScorer(ToyModel(3, LENGTH, seed=9, dtype=torch.float64))
    wanted = gradient(model, kl_of_completions(model, reference))
    found = {k: expected(model, build(estimate_in_reward(k)), 1, reference) for k in (k1, k2, k3)}
    assert_equal(found[k1], wanted)
    for wrong in (k2, k3):
        assert float((found[wrong] - wanted).norm() / wanted.norm()) > 0.5


def test_k3_in_the_reward_fades_as_the_policy_comes_near_the_reference(model):
    """A11: no pull when it matters: at a tenth of the distance k3's gradient is about a tenth of what it should be."""
    shares = []
    for distance in (0.5, 0.05, 0.005):
        near = ToyModel(3, LENGTH, seed=4, dtype=torch.float64)
        near.table.data = model.table.data + distance * ToyModel(3, LENGTH, seed=9, dtype=torch.float64).table.data * 10
        reference = ToyScorer(near)
        wanted = gradient(model, kl_of_completions(model, reference))
        found = expected(model, build(estimate_in_reward(k3)), 1, reference)
        shares.append(float(found.norm() / wanted.norm()))
    assert shares[0] > 5 * shares[1] > 25 * shares[2]
    assert shares[2] < 0.01


def test_rloo_with_kl_in_the_reward_follows_the_regularised_objective(model):
    """E = −∇(J − β KL(π ‖ ref)), with the KL of whole completions, exactly."""
    beta, reference = 0.3, ToyScorer(ToyModel(3, LENGTH, seed=9, dtype=torch.float64))
    batch = batch_of(COMPLETIONS)
    logprobs = model.outputs(batch).logprobs.sum(1)
    kl = (logprobs.exp() * (logprobs - reference.logprobs(batch).sum(1))).sum()
    assert float(kl.detach()) > 0.1
    wanted = -(exact(model) - beta * gradient(model, kl))
    assert_equal(expected(model, rloo(beta=beta), 2, reference), wanted)
    assert cosine(wanted, -exact(model)) < 0.999


#: A group of rows of different lengths, one of rows of equal lengths, and one whose rewards are all equal.
MIXED = [(0,), (1, 0), (1, 2), (2, 2)]
LEVEL = [(1, 0), (2, 1), (1, 2), (2, 2)]
EQUAL = [(1, 0), (1, 0), (1, 0), (1, 0)]


def one(model, algorithm, completions, groups=None, teacher=None):
    return gradient(model, objective(model, batch_of(completions, groups=groups), algorithm, teacher=teacher))


@pytest.fixture(scope="module")
def teacher():
    guide = ToyModel(3, LENGTH, seed=9, dtype=torch.float64)
    guide.table.data *= 8
    return ToyScorer(guide)


def teacher_kl(model, teacher):
    """KL(π ‖ teacher) of whole completions, with gradient."""
    batch = batch_of(COMPLETIONS)
    logprobs = model.outputs(batch).logprobs.sum(1)
    return (logprobs.exp() * (logprobs - teacher.logprobs(batch).sum(1))).sum()


def token_kls(model, teacher):
    """Σ_c π(c) Σ_t KL(π(·|c_<t) ‖ teacher(·|c_<t)), with gradient through the KL of each token alone."""
    batch = batch_of(COMPLETIONS)
    q = torch.log_softmax(model.logits(batch), -1)
    ids, logprobs = teacher.top(batch)
    p = torch.zeros_like(q).scatter(-1, ids, logprobs)
    kl = torch.where(batch.mask, (q.exp() * (q - p)).sum(-1), 0.0).sum(1)
    return (probabilities(model).detach() * kl).sum()


def test_on_policy_distillation_follows_the_reverse_kl(model, teacher):
    """Discount 1: that of whole completions. Discount 0: that of each token, given how those before it came about."""
    assert float(teacher_kl(model, teacher).detach()) > 0.1
    # the chain rule: the KL of completions is the sum of those of tokens (their gradients differ by the way there)
    torch.testing.assert_close(teacher_kl(model, teacher), token_kls(model, teacher))
    whole, single = (build(reverse_kl_advantage(0.5, discount)) for discount in (1.0, 0.0))
    assert_equal(expected(model, whole, 1, teacher=teacher), 0.5 * gradient(model, teacher_kl(model, teacher)))
    assert_equal(expected(model, single, 1, teacher=teacher), 0.5 * gradient(model, token_kls(model, teacher)))
    apart = gradient(model, teacher_kl(model, teacher)) - gradient(model, token_kls(model, teacher))
    assert float(apart.norm()) > 0.01
    row = build(reverse_kl_advantage(), weigh=weights.token_mean())
    assert_equal(one(model, on_policy_distillation(), MIXED, teacher=teacher), one(model, row, MIXED, teacher=teacher))


def test_on_policy_distillation_beside_the_task_adds_both(model, teacher):
    both = one(model, on_policy_distillation(0.3, task_reward=True), MIXED, teacher=teacher)
    apart = [one(model, on_policy_distillation(0.3), MIXED, teacher=teacher)]
    apart += [one(model, build(credit.group_centered(), weigh=weights.token_mean()), MIXED)]
    assert_equal(both, sum(apart))


def test_the_whole_reverse_kl_has_the_gradient_of_its_samples(model, teacher):
    """GKD at β = 1 on its own samples: the expectation of policy gradient with the teacher's log-probs."""
    gkd_row = gkd(lmbda=1.0, beta=1.0)
    found = expected(model, build(credit.none(), gkd_row.loss), 1, teacher=teacher)
    assert_equal(found, gradient(model, token_kls(model, teacher)))
    assert_equal(found, expected(model, build(credit.none(), kl_to_teacher()), 1, teacher=teacher))


def test_distillation_at_beta_0_is_the_likelihood_under_the_teacher(model, teacher):
    """distil: −Σ p log q up to a constant, so with a teacher of one mind it is sft on what the teacher would write."""
    sure = ToyModel(3, LENGTH, dtype=torch.float64)
    sure.table.data = torch.zeros_like(sure.table)
    sure.table.data[..., 2] = 60.0  # always writes 2
    found = one(model, distil(), [(2, 2)], teacher=ToyScorer(sure))
    assert_equal(found, one(model, sft(), [(2, 2)]))
    assert_equal(
        one(model, distil(), MIXED, teacher=teacher), one(model, gkd(lmbda=0.5, beta=0.0), MIXED, teacher=teacher)
    )


@pytest.mark.parametrize("completions", [MIXED, LEVEL], ids=["mixed", "level"])
def test_at_the_first_step_the_surrogate_is_the_policy_gradient(model, completions):
    """GRPO without deviation and KL is REINFORCE with the group's mean as baseline, on every batch."""
    for weigh in (weights.sequence_mean(), weights.token_mean(), weights.sequence_sum()):
        surrogate = build(credit.group_centered(), losses.clipped_surrogate(), weigh)
        plain = build(credit.group_centered(), losses.policy_gradient(), weigh)
        assert_equal(one(model, surrogate, completions), one(model, plain, completions))


@pytest.mark.parametrize("completions", [MIXED, LEVEL], ids=["mixed", "level"])
def test_rloo_is_a_multiple_of_the_group_baseline(model, completions):
    # G/(G−1) = 4/3 with four siblings
    centred = build(credit.group_centered(), losses.clipped_surrogate())
    assert_equal(one(model, rloo(), completions), 4 / 3 * one(model, centred, completions))


def test_dr_grpo_is_grpo_without_deviation_up_to_scale_where_lengths_are_equal(model):
    # 1/(B·L) against 1/(B·|o|) with |o| = 2, L = 8: a quarter; and no multiple where lengths differ
    without = build(credit.group_centered(), losses.clipped_surrogate(), weights.sequence_mean())
    assert_equal(one(model, dr_grpo(8), LEVEL), one(model, without, LEVEL) / 4)
    assert cosine(one(model, dr_grpo(8), MIXED), one(model, without, MIXED)) < 0.999


def test_dapo_counts_as_grpo_where_lengths_are_equal(model):
    assert_equal(one(model, dapo(), LEVEL), one(model, grpo(), LEVEL))
    assert cosine(one(model, dapo(), MIXED), one(model, grpo(), MIXED)) < 0.999


def test_trpo_follows_the_gradient_of_the_group_baseline(model):
    # its surrogate has the policy gradient's slope, and so in expectation (G−1)/G · ∇J, as `group_centered` has
    row = build(credit.group_centered(), losses.surrogate())
    assert_equal(expected(model, row, 2), -0.5 * exact(model))
    plain = build(credit.group_centered(), losses.policy_gradient(), weights.token_mean())
    assert_equal(one(model, trpo(), MIXED), one(model, plain, MIXED))


def test_leaving_equal_groups_out_changes_the_denominator_only(model):
    # GRPO divides by 8 rows where DAPO, without the four equal ones, divides by 4
    both = one(model, grpo(), LEVEL + EQUAL, groups=[0] * 4 + [1] * 4)
    assert_equal(one(model, dapo(), LEVEL), 2 * both)


def test_dr_grpo_blames_a_long_wrong_answer_as_much_a_token_as_a_short_one(model):
    """GRPO's blame of one token falls as 1/|o|: in a row of 2 tokens it is half of that in a row of 1."""
    batch = batch_of([(0,), (1, 2), (1, 0)], rewards=[0.0, 0.0, 1.0])
    slopes = {}
    for algorithm in (grpo(), dr_grpo(8)):
        logprobs = model.outputs(batch).logprobs.detach().requires_grad_()
        outputs = Outputs(logprobs)
        credited = algorithm.credit(batch.with_(old_logprobs=logprobs.detach()))
        (algorithm.weigh(credited) * algorithm.loss(outputs, credited)).sum().backward()
        slopes[algorithm.name] = logprobs.grad[0, 1] / logprobs.grad[1, 1]
    assert float(slopes["grpo"]) == pytest.approx(2.0)
    assert float(slopes["dr_grpo"]) == pytest.approx(1.0)


def test_imitating_right_completions_is_reinforce_with_rewards_of_zero_and_one(model):
    """Expert iteration with one step: nll on the right rows, each 1/K of a sum over K samples, K the number drawn."""
    rewards = [1.0, 0.0, 1.0, 0.0]
    plain = gradient(model, objective(model, batch_of(MIXED, rewards=rewards), build(credit.uniform())))
    right = batch_of([MIXED[0], MIXED[2]])
    imitation = gradient(model, objective(model, right, build(credit.none(), losses.nll())))
    assert_equal(plain, imitation * 2 / 4)


#: Completions that are correct where a reward is 0 or 1.
RIGHT = {(1, 0), (2, 0), (0,)}


def kept_of(group, algorithm):
    """What an algorithm selects of a group of completions, the right ones being `RIGHT`; None where that is nothing."""
    rollouts = [replace(row(c, 0.0).rollout, text=str(c), sibling=i) for i, c in enumerate(group)]
    scores = tuple(Score(float(c in RIGHT), correct=c in RIGHT) for c in group)
    rows = algorithm.select([Group(Task("t", ()), tuple(rollouts), scores)])
    batch = pack(rows) if rows else None
    return batch and batch.with_(sampler_logprobs=batch.sampler_logprobs.double())


def imitated(model, algorithm, size, scale):
    """E[scale(kept, size) · ∇ sum(weights * loss)] over every group of `size` completions."""
    chances = dict(zip(COMPLETIONS, probabilities(model).tolist(), strict=True))
    total = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(COMPLETIONS, repeat=size):
        if kept := kept_of(group, algorithm):
            chance = math.prod(chances[c] for c in group)
            total = total + chance * scale(kept.size, size) * objective(model, kept, algorithm)
    return gradient(model, total)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_one_step_of_expert_iteration_is_reinforce_without_a_baseline(model, size):
    """Σ over right samples of ∇nll, over K samples drawn: −∇ P(right), for every K."""
    parts = {"select": correct_only("none"), "weigh": weights.sequence_sum()}
    found = imitated(model, replace(expert_iteration(), **parts), size, lambda kept, drawn: kept / drawn)
    right = torch.tensor([float(c in RIGHT) for c in COMPLETIONS], dtype=torch.float64)
    assert_equal(found, -gradient(model, (probabilities(model) * right).sum()))


@pytest.mark.parametrize("make", [expert_iteration, rejection_sampling, rest_em, star], ids=lambda f: f.__name__)
def test_the_expected_gradient_of_a_round_of_two_samples(model, make):
    """Of two samples the kept set is {a} with chance p_a² + 2 p_a P(wrong), {a, b} with 2 p_a p_b; its gradient is that
    of −(log π(a) + …) / tokens of the set. (A union adds what earlier groups found, so each group gets its own part.)
    """
    p = dict(zip(COMPLETIONS, probabilities(model).tolist(), strict=True))
    found = torch.zeros((), dtype=torch.float64)
    for a, b in itertools.product(COMPLETIONS, repeat=2):
        algorithm = make()
        if kept := kept_of((a, b), algorithm):
            found = found + p[a] * p[b] * objective(model, kept, algorithm)
    wrong = sum(chance for c, chance in p.items() if c not in RIGHT)
    logprobs = dict(zip(COMPLETIONS, model.outputs(batch_of(COMPLETIONS)).logprobs.sum(1), strict=True))
    wanted = sum((p[a] ** 2 + 2 * p[a] * wrong) * -logprobs[a] / len(a) for a in RIGHT)
    wanted = wanted + sum(
        2 * p[a] * p[b] * -(logprobs[a] + logprobs[b]) / (len(a) + len(b))
        for a, b in itertools.combinations(sorted(RIGHT), 2)
    )
    assert_equal(gradient(model, found), gradient(model, wanted))


def odds_of(logprob, length):
    """log P/(1 − P) of the geometric mean P of the tokens' probabilities."""
    probability = (logprob / length).exp()
    return (probability / (1 - probability)).log()


def softplus(x):
    """−log σ(−x)."""
    return (1 + x.exp()).log()


#: Algorithm → the loss of a pair by its paper: log-probs `s` of right and wrong, those of the reference, lengths.
OF_PAIR = [
    (orpo(), lambda s, ref, n: -s[0] / n[0] + 0.1 * softplus(odds_of(s[1], n[1]) - odds_of(s[0], n[0]))),
    (dpo(beta=0.5), lambda s, ref, n: softplus(-0.5 * ((s[0] - ref[0]) - (s[1] - ref[1])))),
    (ipo(beta=0.25), lambda s, ref, n: ((s[0] - ref[0]) - (s[1] - ref[1]) - 2) ** 2),
    (simpo(), lambda s, ref, n: softplus(1.375 - 2.5 * (s[0] / n[0] - s[1] / n[1]))),
    (rpo(beta=0.5), lambda s, ref, n: softplus(-0.5 * ((s[0] - ref[0]) - (s[1] - ref[1]))) - s[0] / n[0]),
]


@pytest.mark.parametrize(("algorithm", "of_pair"), OF_PAIR, ids=[algorithm.name for algorithm, _ in OF_PAIR])
def test_the_expected_gradient_of_preferences_between_two_samples(model, algorithm, of_pair):
    """A right one and a wrong one, in either order, have chance 2 p_a p_b; all other groups of two teach nothing."""
    reference = ToyScorer(ToyModel(3, LENGTH, seed=9, dtype=torch.float64))
    p = dict(zip(COMPLETIONS, probabilities(model).tolist(), strict=True))
    found = torch.zeros((), dtype=torch.float64)
    for a, b in itertools.product(COMPLETIONS, repeat=2):
        if kept := kept_of((a, b), algorithm):
            found = found + p[a] * p[b] * objective(model, kept, algorithm, reference)
    batch = batch_of(COMPLETIONS)
    s = dict(zip(COMPLETIONS, model.outputs(batch).logprobs.sum(1), strict=True))
    ref = dict(zip(COMPLETIONS, reference.logprobs(batch).sum(1), strict=True))
    wanted = sum(
        2 * p[a] * p[b] * of_pair((s[a], s[b]), (ref[a], ref[b]), (len(a), len(b)))
        for a in RIGHT
        for b in set(COMPLETIONS) - RIGHT
    )
    assert_equal(gradient(model, found), gradient(model, wanted))


def test_sft_on_all_samples_moves_nothing_in_expectation(model):
    # E[∇ log π] = 0: imitating oneself without a reward is a random walk, so one row of nll has no direction
    found = expected(model, build(credit.none(), losses.nll()), 1)
    assert float(found.abs().max()) < 1e-14
    assert one(model, build(credit.none(), losses.nll()), [(1, 2)]).any()


def test_return_conditioning_is_fitted_where_bayes_says(model):
    """E[∇ nll of labelled rows] = −Σ_c π(c) ∇ log p(c | label of c), which vanishes at p(c | GOOD) = π(c) / P(GOOD) for
    the good completions, and 0 for the others, and in the same way for the bad ones."""
    chat = ToyChat(["a", "b", "[GOOD]", "[BAD]", "\n"])
    row_of = rcrl().bind(chat).select
    chances = dict(zip(COMPLETIONS, probabilities(model).tolist(), strict=True))
    prompts = {True: (1, 3), False: (1, 4)}
    wide = ToyModel(len(chat.words), LENGTH, buckets=64, seed=1, dtype=torch.float64)
    places = {label: wide.bucket(prompt) for label, prompt in prompts.items()}
    assert places[True] != places[False]

    def slope():
        total = torch.zeros((), dtype=torch.float64)
        for number, completion in enumerate(COMPLETIONS):
            rollout, score = row(completion, 0.0).rollout, Score(REWARDS[completion])
            examples = row_of([Group(Task("t", ()), (rollout,), (score,), id=number)])
            batch = pack(examples)
            total = total - chances[completion] * wide.outputs(batch).logprobs.sum()
        return torch.autograd.grad(total, wide.table)[0]

    assert float(slope().norm()) > 0.1
    posterior = torch.full_like(wide.table, 1e-300)  # log 0, without being infinite
    for label, place in places.items():
        for completion in COMPLETIONS:
            if (REWARDS[completion] >= 0.5) is label:
                previous = (prompts[label][-1], *completion[:-1])
                for position, token in enumerate(completion):
                    posterior[place, position, previous[position], token] += chances[completion]
    wide.table.data = posterior.log()
    assert float(slope().abs().max()) < 1e-12
