"""Distillation: numbers worked by hand, then what must hold whatever the numbers are.

Two distributions over two tokens, p = (.4, .6) of the teacher and q = (.7, .3) of the student, whole:

    KL(p ‖ q) = .4 ln(.4/.7) + .6 ln(.6/.3) = −.223846 + .415888 = .192042
    KL(q ‖ p) = .7 ln(.7/.4) + .3 ln(.3/.6) =  .391731 − .207944 = .183787
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from maieutic.core.credit import group_centered, none
from maieutic.core.distillation import (
    DIVERGENCES,
    forward_kl,
    jensen_shannon,
    kl_to_teacher,
    reverse_kl,
    reverse_kl_advantage,
    teacher_in_reward,
    watch_teacher,
)
from maieutic.core.kl import k1, k3
from maieutic.core.losses import policy_gradient
from maieutic.errors import MissingColumn
from maieutic.types import Batch, Outputs

FORWARD = 0.192042
REVERSE = 0.183787


def batch_of(mask, **columns):
    """A batch with this mask `[B, T]`, tokens 0, and the columns given."""
    mask = torch.tensor(mask, dtype=torch.bool)
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    return Batch(
        tokens=torch.zeros(mask.shape, dtype=torch.long), mask=mask, lengths=torch.full((len(mask),), mask.shape[1]),
        sampler_logprobs=zeros, rewards=zeros[:, 0], token_rewards=zeros, terminated=mask.any(1),
        groups=torch.zeros(len(mask), dtype=torch.long), units=torch.arange(len(mask)), columns=columns,
    )  # fmt: skip


def logs(*probabilities):
    """`[1, 2, V]` log-probs: a prompt token, of which nothing is said (zeros), and one chosen token."""
    row = torch.tensor([[0.0] * len(probabilities), [math.log(p) for p in probabilities]], dtype=torch.float64)
    return row[None]


def top(teacher, student, k=None):
    """Outputs (with gradient) and batch of one chosen token, the teacher keeping its `k` likeliest tokens."""
    ids = teacher.topk(k or teacher.shape[-1]).indices
    outputs = Outputs(torch.zeros(1, 2, dtype=torch.float64), top_logprobs=student.gather(-1, ids))
    return outputs, batch_of([[0, 1]], teacher_top_ids=ids, teacher_top_logprobs=teacher.gather(-1, ids))


def value(loss, teacher, student, k=None):
    return float(loss(*top(teacher, student, k))[0, 1].detach())


P, Q = logs(0.4, 0.6), logs(0.7, 0.3)


def test_the_two_divergences():
    assert value(forward_kl(), P, Q) == pytest.approx(FORWARD, abs=1e-6)
    assert value(reverse_kl(), P, Q) == pytest.approx(REVERSE, abs=1e-6)


@pytest.mark.parametrize(("beta", "expected"), [(0.1, 0.0170996), (0.5, 0.0462008), (0.9, 0.0165180)])
def test_the_generalised_jensen_shannon_divergence(beta, expected):
    # β = ½: m = (.55, .45); KL(p‖m) = .4 ln(.4/.55) + .6 ln(.6/.45) = .0452277, KL(q‖m) = .7 ln(.7/.55)
    # + .3 ln(.3/.45) = .0471739; half their sum is .0462008
    assert value(jensen_shannon(beta), P, Q) == pytest.approx(expected, abs=5e-8)


def test_the_ends_of_beta_are_a_jump_and_scaling_closes_it():
    assert value(jensen_shannon(0.0), P, Q) == value(forward_kl(), P, Q)
    assert value(jensen_shannon(1.0), P, Q) == value(reverse_kl(), P, Q)
    # the formula goes to 0 at both ends; what it is a multiple of there is the KL: JSD(1e-4) / 1e-4 = .19202
    assert value(jensen_shannon(1e-4), P, Q) / 1e-4 == pytest.approx(0.19202, abs=1e-5)
    assert value(jensen_shannon(1 - 1e-4), P, Q) / 1e-4 == pytest.approx(REVERSE, abs=5e-5)
    for beta, end in ((1e-6, FORWARD), (0.0, FORWARD), (1 - 1e-6, REVERSE), (1.0, REVERSE)):
        assert value(jensen_shannon(beta, scaled=True), P, Q) == pytest.approx(end, abs=2e-6)
    # β = ½: divided by a quarter
    assert value(jensen_shannon(0.5, scaled=True), P, Q) == pytest.approx(4 * 0.0462008, abs=2e-7)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_order_of_arguments(beta, scaled):
    """Student and teacher exchanged, and β with 1 − β, is the same divergence; without the latter it is not."""
    there = value(jensen_shannon(beta, scaled), P, Q)
    assert value(jensen_shannon(1.0 - beta, scaled), Q, P) == pytest.approx(there, abs=1e-12)
    if beta != 0.5:
        assert abs(value(jensen_shannon(1.0 - beta, scaled), P, Q) - there) > 1e-4


def random_logits(size, seed):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(1, 2, size, generator=generator, dtype=torch.float64)


ALL = [forward_kl(), reverse_kl(), jensen_shannon(0.3), jensen_shannon(0.3, True)]
ALL += [
    forward_kl(renormalise=True),
    reverse_kl(temperature=2.0, renormalise=True),
    jensen_shannon(0.7, False, 0.5, True),
]


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("loss", ALL, ids=str)
def test_a_student_like_its_teacher_has_nothing_to_learn(loss, k):
    logits = random_logits(7, 0).requires_grad_()
    student = torch.log_softmax(logits, -1)
    found = loss(*top(student.detach(), student, k))[0, 1]
    found.backward()
    assert abs(float(found.detach())) < 1e-14
    assert float(logits.grad.abs().max()) < 1e-13


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_the_gradient_is_the_students_alone_and_the_right_one(loss):
    """By finite differences of the value, and none for the teacher."""
    teacher = torch.log_softmax(random_logits(5, 1), -1).requires_grad_()
    logits = random_logits(5, 2).requires_grad_()

    def at(some):
        return loss(*top(teacher, torch.log_softmax(some, -1), 3))[0, 1]

    at(logits).backward()
    assert teacher.grad is None
    assert float(logits.grad.abs().max()) > 1e-3
    assert torch.autograd.gradcheck(at, logits.detach().requires_grad_())


T4, S4 = logs(0.5, 0.3, 0.1, 0.1), logs(0.4, 0.3, 0.2, 0.1)


def test_candidates_and_the_rest():
    # p = (.5, .3, .1, .1), q = (.4, .3, .2, .1), two candidates kept
    # whole:        .5 ln(.5/.4) + .1 ln(.1/.2) = .1115718 − .0693147                   = .0422571
    # renormalised: .625 ln(.625/.571429) + .375 ln(.375/.428571) = .0560074 − .0500741 = .0059333
    # with a tail:  .5 ln(.5/.4) + .3 ln(1) + .2 ln(.2/.3) = .1115718 − .0810930        = .0304788
    assert value(forward_kl(), T4, S4) == pytest.approx(0.0422571, abs=5e-8)
    assert value(forward_kl(renormalise=True), T4, S4, 2) == pytest.approx(0.0059333, abs=5e-8)
    assert value(forward_kl(), T4, S4, 2) == pytest.approx(0.0304788, abs=5e-8)


@pytest.mark.parametrize("make", DIVERGENCES.values(), ids=list(DIVERGENCES))
def test_a_tail_is_a_lower_bound_that_rises_to_the_whole(make):
    teacher, student = (torch.log_softmax(random_logits(9, seed), -1) for seed in (3, 4))
    found = [value(make(), teacher, student, k) for k in range(1, 10)]
    assert all(more >= less - 1e-14 for less, more in itertools.pairwise(found))
    assert found[0] < found[-1] - 1e-3
    p, q = teacher[0, 1].exp(), student[0, 1].exp()
    m = (p + q) / 2
    whole = {
        forward_kl: (p * (p / q).log()).sum(),
        reverse_kl: (q * (q / p).log()).sum(),
        jensen_shannon: ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2,
    }
    assert found[-1] == pytest.approx(float(whole[make]), abs=1e-13)
    assert value(make(renormalise=True), teacher, student) == pytest.approx(float(whole[make]), abs=1e-13)


@pytest.mark.parametrize("loss", ALL[:3], ids=str)
def test_a_whole_vocabulary_in_float32_has_a_harmless_tail(loss):
    """What is left of 1 after 500 terms of float32 is rounding: it must reach neither the value nor the gradient."""
    logits = random_logits(500, 5)
    teacher, mine = torch.log_softmax(random_logits(500, 6), -1), logits.float().requires_grad_()
    exact = logits.requires_grad_()
    loss(*top(teacher, torch.log_softmax(exact, -1)))[0, 1].backward()
    outputs, batch = top(teacher.float(), torch.log_softmax(mine, -1))
    found = loss(outputs, batch)[0, 1]
    found.backward()
    assert float(found.detach()) == pytest.approx(value(loss, teacher, torch.log_softmax(exact, -1)), rel=1e-5)
    torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=1e-3, atol=1e-7)


def test_mass_that_the_student_has_outside_the_candidates():
    # q keeps a tenth of its mass on the two candidates, in the teacher's proportions; only the tail sees it
    student = logs(0.1 * 0.625, 0.1 * 0.375, 0.45, 0.45)
    assert value(forward_kl(renormalise=True), T4, student, 2) == pytest.approx(0.0, abs=1e-12)
    # .5 ln(.5/.0625) + .3 ln(.3/.0375) + .2 ln(.2/.9) = 1.0397208 + .6238325 − .3008155
    assert value(forward_kl(), T4, student, 2) == pytest.approx(1.3627378, abs=5e-7)


def test_a_temperature_keeps_the_scale_of_the_gradient():
    """τ² KL at logits/τ: for small differences d the gradient stays about p d, whatever τ is (arXiv 1503.02531)."""
    teacher, small = torch.zeros(1, 2, 2, dtype=torch.float64), torch.zeros(1, 2, 2, dtype=torch.float64)
    small[0, 1, 0] = 1e-3
    slopes = []
    for tau in (1.0, 4.0):
        logits = small.clone().requires_grad_()
        loss = forward_kl(temperature=tau, renormalise=True)
        loss(*top(torch.log_softmax(teacher, -1), torch.log_softmax(logits, -1)))[0, 1].backward()
        slopes.append(float(logits.grad[0, 1, 0]))
    assert slopes[0] == pytest.approx(0.25e-3, rel=1e-3)  # q − p = σ(1e-3) − ½ = 1e-3 / 4
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-3)
    # √.4 : √.6 gives p = (.449490, .550510), √.7 : √.3 gives q = (.604356, .395644);
    # KL = .449490 · (−.296065) + .550510 · .330328 = .048779, times 4
    assert value(forward_kl(2.0, True), P, Q) == pytest.approx(4 * 0.048779, abs=5e-5)


def test_what_is_watched():
    outputs, batch = top(P, Q)
    for loss in (forward_kl(), reverse_kl(), jensen_shannon(0.5)):
        _, seen = loss.terms(outputs, batch)
        assert float(seen["distil/kl"][0, 1]) == pytest.approx(REVERSE, abs=1e-6)  # whichever is minimised
        assert float(seen["distil/top1_agreement"][0, 1]) == 0.0  # .6 is the teacher's first, .7 the student's
    assert float(forward_kl().terms(*top(P, P))[1]["distil/top1_agreement"][0, 1]) == 1.0
    assert float(forward_kl().terms(*top(T4, S4, 2))[1]["distil/kept_mass"][0, 1]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: forward_kl(temperature=0.0, renormalise=True), "temperature=0"),
        (lambda: forward_kl(temperature=2.0), "renormalise=True"),
        (lambda: jensen_shannon(1.5), "0 ≤ beta ≤ 1"),
        (lambda: jensen_shannon(-0.1), "0 ≤ beta ≤ 1"),
        (lambda: reverse_kl_advantage(discount=1.5), "discount=1.5"),
        (lambda: kl_to_teacher("k2"), "expected k1, k2 or k3"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_learner_that_says_nothing_of_the_candidates():
    outputs, batch = top(P, Q)
    with pytest.raises(MissingColumn, match="no top_logprobs"):
        forward_kl()(Outputs(outputs.logprobs), batch)
    with pytest.raises(MissingColumn, match=r"\(1, 2, 1\)"):
        forward_kl()(Outputs(outputs.logprobs, top_logprobs=outputs.top_logprobs[..., :1]), batch)


# One token of two is drawn from q; the teacher says how likely it finds it.


def sampled(student, teacher, **more):
    """Both tokens as two rows of a batch, and their log-probs `[2, 2]` with the student's gradient."""
    now = torch.stack([torch.zeros_like(student), student], dim=1)
    there = torch.stack([torch.zeros_like(teacher), teacher], dim=1)
    batch = batch_of([[0, 1], [0, 1]], old_logprobs=now.detach(), teacher_logprobs=there, **more)
    return Outputs(now), batch


def expected_slope(make):
    """E_q of the gradient on the student's logits, q = (.7, .3) and p = (.5, .5)."""
    logits = torch.tensor([math.log(0.7), math.log(0.3)], dtype=torch.float64, requires_grad=True)
    student = torch.log_softmax(logits, 0)
    outputs, batch = sampled(student, torch.full((2,), math.log(0.5), dtype=torch.float64))
    (student.detach().exp() * make(outputs, batch)[:, 1]).sum().backward()
    return logits.grad.tolist()


def by_credit(given):
    return lambda outputs, batch: policy_gradient()(outputs, given(batch))


def test_the_expected_gradient_of_on_policy_distillation_is_that_of_the_reverse_kl():
    # ∇KL(q‖p)_i = q_i (ln(q_i/p_i) − KL), KL = .7 ln 1.4 + .3 ln .6 = .0822829: .7 (.3364722 − .0822829) = .1779325
    wanted = [0.1779325, -0.1779325]
    assert expected_slope(by_credit(reverse_kl_advantage())) == pytest.approx(wanted, abs=1e-7)
    assert expected_slope(by_credit(reverse_kl_advantage(0.5))) == pytest.approx([x / 2 for x in wanted], abs=1e-7)
    assert expected_slope(kl_to_teacher()) == pytest.approx(wanted, abs=1e-7)
    assert expected_slope(kl_to_teacher(k1)) == pytest.approx([0.0, 0.0], abs=1e-12)
    assert expected_slope(kl_to_teacher(k3)) == pytest.approx([0.2, -0.2], abs=1e-12)  # q − p: the forward KL


def test_to_watch_the_teacher_changes_no_loss():
    outputs, batch = sampled(Q[0, 1], P[0, 1])
    batch = batch.with_(advantages=torch.ones(2, 2, dtype=torch.float64))
    value, seen = (policy_gradient() + watch_teacher()).terms(outputs, batch)
    assert torch.equal(value, policy_gradient()(outputs, batch))
    # k3 = p/q + ln(q/p) − 1: .4/.7 + ln(.7/.4) − 1 = .1310444, .6/.3 + ln(.3/.6) − 1 = .3068528
    assert seen["distil/kl"][:, 1].tolist() == pytest.approx([0.1310444, 0.3068528], abs=1e-7)


def three_tokens(**more):
    """A row: prompt, chosen, a tool's token, chosen, chosen; log-ratios of student to teacher .1, –, .3, −.2."""
    nan = math.nan
    old = torch.tensor([[nan, -1.0, nan, -2.0, -0.5]], dtype=torch.float64)
    teacher = torch.tensor([[nan, -1.1, nan, -2.3, -0.3]], dtype=torch.float64)
    return batch_of([[0, 1, 0, 1, 1]], old_logprobs=old, teacher_logprobs=teacher, **more)


def test_the_advantage_of_a_token():
    # c = 2, discount 0: −2 · (.1, .3, −.2)
    found = reverse_kl_advantage(2.0)(three_tokens()).advantages[0].tolist()
    assert found == pytest.approx([0.0, -0.2, 0.0, -0.6, 0.4])
    # γ = ½: A₄ = .4; A₃ = −.6 + .5 · .4 = −.4; A₁ = −.2 + .5 · (−.4) = −.4: the tool's token counts for nothing
    found = reverse_kl_advantage(2.0, 0.5)(three_tokens()).advantages[0].tolist()
    assert found == pytest.approx([0.0, -0.4, 0.0, -0.4, 0.4])
    found = reverse_kl_advantage(2.0, 1.0)(three_tokens()).advantages[0].tolist()
    assert found == pytest.approx([0.0, -0.4, 0.0, -0.2, 0.4])


def test_it_is_added_to_the_advantage_of_the_task():
    before = three_tokens(advantages=torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0]], dtype=torch.float64))
    found = reverse_kl_advantage(2.0, added=True)(before).advantages[0].tolist()
    assert found == pytest.approx([0.0, 0.8, 0.0, 0.4, 1.4])
    chain = group_centered() | reverse_kl_advantage(0.5, added=True)
    assert chain.needs == {"old_logprobs", "teacher_logprobs"}
    assert chain.siblings == 2
    alone = group_centered() | reverse_kl_advantage(0.0, added=True)
    assert alone.label == group_centered().label
    assert reverse_kl_advantage(0.0).absent
    assert reverse_kl_advantage(0.0).needs == frozenset()


def test_the_teacher_in_the_reward():
    # c = 2: rₜ falls by 2 · (.1, .3, −.2), r by their sum .4
    batch = teacher_in_reward(2.0)(three_tokens())
    assert batch.token_rewards[0].tolist() == pytest.approx([0.0, -0.2, 0.0, -0.6, 0.4])
    assert batch.rewards.tolist() == pytest.approx([-0.4])
    assert teacher_in_reward(0.0).label == "teacher_in_reward(coef=0)"
    assert (teacher_in_reward(0.0) | group_centered()).label == group_centered().label
    assert none().absent is teacher_in_reward(0.0).absent is True
