"""Losses and KL estimators, worked by hand, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch

from maieutic.core import kl, losses, weights
from maieutic.core.parts import Loss
from maieutic.types import Batch, Outputs

F64 = torch.float64


def batch_of(width, **columns):
    """One row of `width` chosen tokens after a one-token prompt; columns are given for the chosen tokens."""
    shape = (1, width + 1)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[:, 0] = False
    zeros = torch.zeros(shape, dtype=F64)
    batch = Batch(
        torch.zeros(shape, dtype=torch.long), mask, torch.tensor([width + 1]), zeros, torch.zeros(1, dtype=F64), zeros,
        torch.tensor([True]), torch.tensor([0]), torch.tensor([0]),
    )  # fmt: skip
    return batch.with_(**{k: torch.tensor([[0.0, *v]], dtype=F64) for k, v in columns.items()})


def value_and_gradient(loss, logprobs, batch):
    """Per-token loss and its derivative with respect to each log-prob, without the prompt's entry."""
    now = torch.tensor([[0.0, *logprobs]], dtype=F64, requires_grad=True)
    value = loss(Outputs(now), batch)
    (gradient,) = torch.autograd.grad(value.sum(), now)
    return value[0, 1:].tolist(), gradient[0, 1:].tolist()


def test_nll():
    value, gradient = value_and_gradient(losses.nll(), [-0.5, -2.0], batch_of(2))
    assert value == [0.5, 2.0]
    assert gradient == [-1, -1]


def test_policy_gradient():
    # −A · lp: −(2)(−.5) = 1 and −(−1)(−3) = −3; derivative −A
    value, gradient = value_and_gradient(losses.policy_gradient(), [-0.5, -3.0], batch_of(2, advantages=[2, -1]))
    assert value == [1.0, -3.0]
    assert gradient == [-2, 1]


@pytest.mark.parametrize(
    ("advantage", "ratio", "objective", "slope"),
    [
        # ε = .2. The slope is that of the objective in ρ: A where min() takes the unclipped side, else 0.
        (1.0, 0.5, 0.5, 1.0),
        (1.0, 1.0, 1.0, 1.0),
        (1.0, 1.5, 1.2, 0.0),
        (-1.0, 0.5, -0.8, 0.0),
        (-1.0, 1.5, -1.5, -1.0),  # no upper clip for bad actions
    ],
)
def test_clipped_surrogate_table(advantage, ratio, objective, slope):
    """A7: −min(ρA, clip(ρ)A) has no upper bound for A < 0; see `dual_clip`."""
    batch = batch_of(1, advantages=[advantage], old_logprobs=[-1.0])
    value, gradient = value_and_gradient(losses.clipped_surrogate(0.2), [-1.0 + math.log(ratio)], batch)
    assert value == pytest.approx([-objective])
    assert gradient == pytest.approx([-slope * ratio])  # dρ/d(log π) = ρ


@pytest.mark.parametrize(
    ("advantage", "ratio", "value", "slope", "beyond"),
    [
        # c = 3: for A < 0 the loss is at most −c A. The slope is that of the loss in ρ.
        (-1.0, 5.0, 3.0, 0.0, 1.0),
        (-1.0, 2.9, 2.9, 1.0, 0.0),
        (-2.0, 5.0, 6.0, 0.0, 1.0),
        (-1.0, 0.5, 0.8, 0.0, 0.0),  # the lower clip is as it was
        (1.0, 5.0, -1.2, 0.0, 0.0),  # and so is what is good
    ],
)
def test_the_dual_clip_bounds_the_blame(advantage, ratio, value, slope, beyond):
    """A7: one bad token that has become likelier cannot blow a step up."""
    loss, now = losses.clipped_surrogate(0.2, dual_clip=3.0), -3.0 + math.log(ratio)
    batch = batch_of(1, advantages=[advantage], old_logprobs=[-3.0])
    found, gradient = value_and_gradient(loss, [now], batch)
    assert found == pytest.approx([value])
    assert gradient == pytest.approx([slope * ratio])  # dρ/d(log π) = ρ
    _, watched = loss.terms(Outputs(torch.tensor([[0.0, now]], dtype=F64)), batch)
    assert float(watched["clip_ratio/dual"][0, 1]) == beyond


def test_at_the_clip_boundary_the_objective_is_the_bound():
    batch = batch_of(1, advantages=[1.0], old_logprobs=[-1.0])
    value, gradient = value_and_gradient(losses.clipped_surrogate(0.2), [-1.0 + math.log(1.2)], batch)
    assert value == pytest.approx([-1.2])
    assert -1.2 - 1e-9 <= gradient[0] <= 0  # a subgradient: anything between both sides


def test_clip_higher_only_moves_the_upper_bound():
    # ε_high = .28: ρ = 1.25 is inside for A > 0; ρ = .75 still clipped for A < 0
    loss = losses.clipped_surrogate(0.2, 0.28)
    batch = batch_of(2, advantages=[1.0, -1.0], old_logprobs=[-1.0, -1.0])
    value, gradient = value_and_gradient(loss, [-1 + math.log(1.25), -1 + math.log(0.75)], batch)
    assert value == pytest.approx([-1.25, 0.8])
    assert gradient == pytest.approx([-1.25, 0.0])


def test_at_the_first_step_the_surrogate_is_reinforce():
    # ρ = 1: loss −A, gradient −A as policy_gradient's
    batch = batch_of(3, advantages=[2.0, -1.0, 0.5], old_logprobs=[-0.3, -2.0, -1.0])
    value, gradient = value_and_gradient(losses.clipped_surrogate(), [-0.3, -2.0, -1.0], batch)
    _, reinforce = value_and_gradient(losses.policy_gradient(), [-0.3, -2.0, -1.0], batch)
    assert value == pytest.approx([-2.0, 1.0, -0.5])
    assert gradient == pytest.approx(reinforce)


@pytest.mark.parametrize("beta", [0.0, 0.04, 1.0])
def test_first_step_value_with_a_reference_equal_to_the_policy(beta):
    # ρ = 1, A = 2, δ = 0: loss −2 for any β, with and without clip
    loss = losses.clipped_surrogate() + beta * losses.kl_to_reference(kl.k3)
    batch = batch_of(1, advantages=[2.0], old_logprobs=[-1.0], ref_logprobs=[-1.0])
    assert value_and_gradient(loss, [-1.0], batch)[0] == pytest.approx([-2.0])


def test_zero_advantage_leaves_only_the_kl_term():
    batch = batch_of(1, advantages=[0.0], old_logprobs=[-1.0], ref_logprobs=[-2.0])
    surrogate = losses.clipped_surrogate()
    assert value_and_gradient(surrogate, [-1.0], batch)[1] == [0]
    # k2 with δ = 1: value ½, gradient δ = 1, times β = .5
    value, gradient = value_and_gradient(surrogate + 0.5 * losses.kl_to_reference(kl.k2), [-1.0], batch)
    assert (value, gradient) == (pytest.approx([0.25]), pytest.approx([0.5]))


def test_for_tokens_of_an_older_policy_only_what_is_corrected_is_exact():
    """A12: π_old = (.4, .6) drew the tokens, π = (.7, .3), ref = (.5, .5); wanted is ∇KL(π‖ref) = (.177933, −.177933).

    With g = ∂/∂logit₀ of log π₀ = .3 and of log π₁ = −.7, and δ = (.336472, −.510826):
    k2 without a ratio: .4·.336472·.3 + .6·(−.510826)·(−.7) = .040377 + .214547 = .254924, 43 % too much.
    """
    old, ref = torch.tensor([0.4, 0.6], dtype=F64), torch.tensor([0.5, 0.5], dtype=F64)

    def gradient(of):
        logits = torch.tensor([0.7, 0.3], dtype=F64).log().requires_grad_()
        value = (old * of(torch.log_softmax(logits, 0), ref.log())).sum()
        return torch.autograd.grad(value, logits)[0].tolist()

    reverse = [0.177933, -0.177933]
    assert gradient(kl.k2) == pytest.approx([0.254924, -0.254924], abs=1e-5)
    assert gradient(kl.k3_plus) == pytest.approx(gradient(kl.k2))
    assert gradient(lambda now, to: kl.corrected_k2(now, to, old.log())) == pytest.approx(reverse, abs=1e-5)
    assert gradient(lambda now, to: kl.corrected_k3(now, to, old.log())) == pytest.approx(reverse, abs=1e-5)


def test_a_kl_in_the_loss_is_masked_and_counted_like_the_policy_term():
    """A14: two of four tokens are chosen; with every way to count, what stands off the mask changes nothing.

    δ = 1 at the chosen tokens: k2 is ½ there, so the mean over tokens or over rows is ½ and the sum over a row 1.
    """
    batch = batch_of(4, ref_logprobs=[-2.0, -90.0, -2.0, 5.0])
    batch = batch.with_(mask=torch.tensor([[False, True, False, True, False]]))
    now = torch.tensor([[0.0, -1.0, -1.0, -1.0, -1.0]], dtype=F64, requires_grad=True)
    value = losses.kl_to_reference(kl.k2)(Outputs(now), batch)
    for weigh, wanted in (
        (weights.token_mean(), 0.5), (weights.sequence_mean(), 0.5),
        (weights.sequence_sum(), 1.0), (weights.constant_length(8), 1 / 8),
    ):  # fmt: skip
        total = (weigh(batch) * value).sum()
        assert float(total.detach()) == pytest.approx(wanted)
        (slope,) = torch.autograd.grad(total, now, retain_graph=True)
        assert slope[0, [0, 2, 4]].tolist() == [0, 0, 0]
        assert slope[0, 1] == slope[0, 3] == pytest.approx(wanted)


def test_shapes_of_the_estimators():
    # δ = log π − log ref.  k3(−6) = e⁶ + (−6) − 1 = 396.43, k3(6) = e⁻⁶ + 6 − 1 = 5.0025
    delta = torch.tensor([-6.0, 0.0, 6.0], dtype=F64)
    zero = torch.zeros(3, dtype=F64)
    assert kl.k1(delta, zero).tolist() == [-6, 0, 6]
    assert kl.k2(delta, zero).tolist() == [18, 0, 18]
    assert kl.k3(delta, zero).tolist() == pytest.approx([396.4288, 0.0, 5.00248], abs=1e-4)


def test_what_the_gradient_of_each_estimator_is():
    """A10: π = (.7, .3), ref = (.5, .5), gradients with respect to logits, exact expectation under π."""
    ref = torch.tensor([0.5, 0.5], dtype=F64)

    def gradient(of, through_ratio=False):
        logits = torch.tensor([0.7, 0.3], dtype=F64).log().requires_grad_()
        logprobs = torch.log_softmax(logits, 0)
        sampled = logprobs.detach().exp()
        ratio = (logprobs - logprobs.detach()).exp() if through_ratio else 1.0
        return torch.autograd.grad((sampled * ratio * of(logprobs, ref.log())).sum(), logits)[0].tolist()

    # reverse KL = Σ π log(π/ref): ∂/∂logit₀ = π₀(log(π₀/ref₀) − KL) = .7(.336472 − .0822829) = .177933
    reverse = [0.177933, -0.177933]
    # forward KL(ref‖π): ∂/∂logit = π − ref = (.2, −.2)
    assert gradient(kl.k1) == pytest.approx([0, 0], abs=1e-12)
    assert gradient(kl.k2) == pytest.approx(reverse, abs=1e-5)
    assert gradient(kl.k3) == pytest.approx([0.2, -0.2], abs=1e-12)
    assert gradient(kl.k3, through_ratio=True) == pytest.approx(reverse, abs=1e-5)
    assert gradient(kl.k3_plus) == pytest.approx(reverse, abs=1e-5)
    logprobs = torch.tensor([0.7, 0.3], dtype=F64).log()
    assert torch.equal(kl.k3_plus(logprobs, ref.log()), kl.k3(logprobs, ref.log()))
    for corrected in (kl.corrected_k2, kl.corrected_k3):  # the old policy is the present one
        assert gradient(lambda now, to, k=corrected: k(now, to, now.detach())) == pytest.approx(reverse, abs=1e-5)

    policy = torch.tensor([0.7, 0.3], dtype=F64)
    expected = {k: float((policy * k(policy.log(), ref.log())).sum()) for k in (kl.k1, kl.k2, kl.k3)}
    # Σπ log(π/ref) = .7·.336472 − .3·.510826 = .0822829;  ½Σπδ² = ½(.7·.113214 + .3·.260943) = .0787662
    assert expected[kl.k1] == pytest.approx(0.0822829, abs=1e-7)
    assert expected[kl.k3] == pytest.approx(0.0822829, abs=1e-7)
    assert expected[kl.k2] == pytest.approx(0.0787662, abs=1e-7)


def test_an_absurd_log_ratio_does_not_overflow():
    batch = batch_of(1, advantages=[-1.0], old_logprobs=[-1000.0], ref_logprobs=[0.0])
    value, gradient = value_and_gradient(losses.clipped_surrogate(), [0.0], batch)
    assert math.isfinite(value[0])
    assert math.isfinite(gradient[0])
    assert math.isfinite(float(kl.k3(torch.tensor(-1000.0), torch.tensor(0.0))))


def test_losses_add_scale_and_say_what_they_read():
    whole = losses.clipped_surrogate(0.2, 0.28) + 0.04 * losses.kl_to_reference(kl.k3)
    assert str(whole) == "clipped_surrogate(epsilon=0.2, epsilon_high=0.28) + 0.04 * kl_to_reference(estimator=k3)"
    assert whole.needs == {"advantages", "old_logprobs", "ref_logprobs"}
    batch = batch_of(1, advantages=[1.0], old_logprobs=[-1.0], ref_logprobs=[-1.0])
    _, watched = whole.terms(Outputs(torch.tensor([[0.0, -1.0]], dtype=F64)), batch)
    of_ratio = {"clip_ratio/low", "clip_ratio/high", "policy/ratio", "policy/kl_to_old", "policy/ratio_limited"}
    assert set(watched) == of_ratio | {"kl/reference", "kl/limited"}
    twice = 2.0 * (losses.nll() + losses.nll())
    assert isinstance(twice, Loss)
    assert str(twice) == "2 * (nll() + nll())"
    assert value_and_gradient(twice, [-0.5], batch_of(1))[0] == [2.0]


def test_an_estimator_that_is_none_is_refused_at_once():
    with pytest.raises(ValueError, match="got estimator 3; expected k1, k2 or k3"):
        losses.kl_to_reference(3)


def test_impossible_clips_are_refused():
    with pytest.raises(ValueError, match=r"epsilon=1\.5"):
        losses.clipped_surrogate(1.5)
    with pytest.raises(ValueError, match=r"dual_clip=1\.0"):
        losses.clipped_surrogate(dual_clip=1.0)


def test_the_sequence_ratio_is_the_geometric_mean():
    """A7: GSPO's ratio is the exponential of the mean log-ratio, the same for every token of a row."""
    # token ratios (2, ½): s = √(2·½) = 1, so the loss is −A; (1.1, 1.1, 1.1): s = 1.1. Bounds wide enough not to clip.
    loss = losses.clipped_sequence_ratio(0.5, 0.5)
    batch = batch_of(2, advantages=[3.0, 3.0], old_logprobs=[-1.0, -1.0])
    assert value_and_gradient(loss, [-1 + math.log(2), -1 - math.log(2)], batch)[0] == pytest.approx([-3.0, -3.0])
    batch = batch_of(3, advantages=[1.0] * 3, old_logprobs=[-2.0] * 3)
    assert value_and_gradient(loss, [-2 + math.log(1.1)] * 3, batch)[0] == pytest.approx([-1.1] * 3)


def test_the_gradient_of_the_sequence_ratio_at_one_is_the_mean_score():
    # two tokens, s = 1: d(s A)/d(log π_t) = s A / 2 = 1; the loss stands on both tokens, so their sum has 2 · 1 each,
    # and sequence_mean (½ a token) makes it A · mean_t ∇ log π
    batch = batch_of(2, advantages=[2.0, 2.0], old_logprobs=[-1.0, -3.0])
    assert value_and_gradient(losses.clipped_sequence_ratio(), [-1.0, -3.0], batch)[1] == pytest.approx([-2.0, -2.0])


def test_the_sequence_clip_silences_a_whole_row_and_padding_does_not_count():
    # A > 0 and s = 1.1 > 1 + 4e-4: clipped, gradient 0. The third token is not chosen and would make s another number.
    batch = batch_of(3, advantages=[1.0, 1.0, 0.0], old_logprobs=[-1.0, -1.0, -9.0])
    batch = batch.with_(mask=torch.tensor([[False, True, True, False]]))
    now = [-1 + math.log(1.1)] * 2 + [0.0]
    value, gradient = value_and_gradient(losses.clipped_sequence_ratio(), now, batch)
    assert value[:2] == pytest.approx([-1.0004, -1.0004])
    assert gradient == [0, 0, 0]


def test_the_clipped_weight_keeps_teaching_where_the_surrogate_falls_silent():
    """A7: CISPO's gradient survives outside the clip."""
    # ρ = 8 beyond cap 5, A = 2: gradient −5 · 2; inside, ρ = 1.5: −1.5 · 2. PPO's at ρ = 8 is 0.
    batch = batch_of(2, advantages=[2.0, 2.0], old_logprobs=[-3.0, -3.0])
    now = [-3 + math.log(8), -3 + math.log(1.5)]
    value, gradient = value_and_gradient(losses.clipped_weight(5.0), now, batch)
    assert gradient == pytest.approx([-10.0, -3.0])
    assert value == pytest.approx([-10.0 * now[0], -3.0 * now[1]])
    assert value_and_gradient(losses.clipped_surrogate(), now, batch)[1][0] == 0


def test_the_token_form_of_the_sequence_ratio_has_its_value_and_each_tokens_own_gradient():
    # token ratios (2, ½): s = 1 for both. Value −A of each token, gradient −s A at the token itself: (−3, 1), where
    # the shared ratio spreads the sum of advantages, −(3 − 1)/2 = −1, over both.
    loss, shared = losses.clipped_sequence_token_ratio(0.5, 0.5), losses.clipped_sequence_ratio(0.5, 0.5)
    batch = batch_of(2, advantages=[3.0, -1.0], old_logprobs=[-1.0, -1.0])
    now = [-1 + math.log(2), -1 - math.log(2)]
    assert value_and_gradient(loss, now, batch) == (pytest.approx([-3.0, 1.0]), pytest.approx([-3.0, 1.0]))
    assert value_and_gradient(shared, now, batch) == (pytest.approx([-3.0, 1.0]), pytest.approx([-1.0, -1.0]))


def test_with_one_advantage_a_row_both_sequence_losses_have_the_same_gradient():
    # three ratios of 1.1: s = 1.1; each token's −1.1 A / 3 · 3 (the loss stands on three tokens) = −1.1 A
    batch = batch_of(3, advantages=[2.0] * 3, old_logprobs=[-2.0] * 3)
    now = [-2 + math.log(1.1)] * 3
    found = [value_and_gradient(make(0.5, 0.5), now, batch) for make in (
        losses.clipped_sequence_ratio, losses.clipped_sequence_token_ratio
    )]  # fmt: skip
    for value, gradient in found:
        assert value == pytest.approx([-2.2] * 3)
        assert gradient == pytest.approx([-2.2] * 3)


def test_the_clip_of_the_token_form_is_that_of_the_row():
    # s = √(2 · 1.1) = 1.483 > 1.2: the row is clipped for A > 0, its second token with ratio 1.1 too
    batch = batch_of(2, advantages=[1.0, 1.0], old_logprobs=[-1.0, -1.0])
    now = [-1 + math.log(2), -1 + math.log(1.1)]
    value, gradient = value_and_gradient(losses.clipped_sequence_token_ratio(0.2, 0.2), now, batch)
    assert value == pytest.approx([-1.2, -1.2])
    assert gradient == [0, 0]


def test_the_soft_gate_is_the_policy_gradient_at_one_and_fades_on_both_sides():
    # slope in ρ: 4 σ(τ(ρ−1)) (1 − σ) A, times ρ for the slope in log π. At ρ = 1 it is A for every τ.
    batch = batch_of(2, advantages=[2.0, -3.0], old_logprobs=[-1.0, -1.0])
    value, gradient = value_and_gradient(losses.soft_gate(1.0, 1.05), [-1.0, -1.0], batch)
    assert gradient == pytest.approx([-2.0, 3.0])
    assert value == pytest.approx([-4.0, 3 * 2 / 1.05])  # −(4/τ)·½·A: its value means nothing, its slope does
    # ρ = 3, τ = 1: σ(2) = .880797, 4 · .880797 · .119203 = .419974; times ρ = 3 and A = 2: 2.51985
    # τ = 1.05, ρ = 3: σ(2.1) = .890903, 4 · .890903 · .109097 = .388779; times 3 · 3: 3.49901
    _, gradient = value_and_gradient(losses.soft_gate(), [-1 + math.log(3)] * 2, batch)
    assert gradient == pytest.approx([-2.51985, 3.49901], abs=1e-4)
    # PPO's is 0 for the good token, and grows without bound for the bad one
    assert value_and_gradient(losses.clipped_surrogate(), [-1 + math.log(3)] * 2, batch)[1] == pytest.approx([0.0, 9.0])


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="tau_positive=0"):
        losses.soft_gate(0.0)


def test_the_ratio_to_the_reference_is_another_algorithm():
    # π = e⁻¹, π_old = e⁻¹, ref = ½e⁻¹: ρ_old = 1 goes through, ρ_ref = 2 is clipped at 1.2 and teaches nothing
    batch = batch_of(1, advantages=[1.0], old_logprobs=[-1.0], ref_logprobs=[-1 - math.log(2)])
    course = losses.clipped_surrogate(0.2, anchor="ref")
    assert value_and_gradient(losses.clipped_surrogate(0.2), [-1.0], batch) == ([-1.0], [-1.0])
    assert value_and_gradient(course, [-1.0], batch) == (pytest.approx([-1.2]), [0.0])
    assert course.needs == {"advantages", "ref_logprobs"}
    with pytest.raises(ValueError, match="got anchor='sampler'; expected one of old, ref"):
        losses.clipped_surrogate(anchor="sampler")


def test_clamped_log_ratios_are_counted():
    """A13: beyond 20 nats a ratio is cut and has no gradient, so the log says for how many tokens."""
    now, old = [-1.0, -30.0, -1.0], [-1.0, -1.0, -25.0]
    batch = batch_of(3, advantages=[1.0] * 3, old_logprobs=old, ref_logprobs=old)
    outputs = Outputs(torch.tensor([[0.0, *now]], dtype=F64))
    for loss, name in (
        (losses.surrogate(), "policy/ratio_limited"),
        (losses.clipped_surrogate(), "policy/ratio_limited"),
        (losses.clipped_weight(), "policy/ratio_limited"),
        (losses.soft_gate(), "policy/ratio_limited"),
        (losses.kl_to_reference(kl.k3), "kl/limited"),
    ):
        assert loss.terms(outputs, batch)[1][name][0, 1:].tolist() == [0.0, 1.0, 1.0]
    value, gradient = value_and_gradient(losses.kl_to_reference(kl.k3), now, batch)
    assert value[1:] == pytest.approx([math.exp(20) - 21, math.exp(-20) + 19])  # δ = −29 and 24, both cut at 20
    assert gradient[1:] == [0.0, 0.0]


def test_a_cap_of_zero_is_refused():
    with pytest.raises(ValueError, match="cap=0"):
        losses.clipped_weight(0.0)
    with pytest.raises(ValueError, match=r"epsilon=1\.0"):
        losses.clipped_sequence_ratio(1.0)
