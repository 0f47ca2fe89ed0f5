"""Natural steps by products alone: numbers worked by hand, and what a trust region promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import functional_call, jacrev

from maieutic.backends.toy import STOP, ToyLearner, ToyModel
from maieutic.core import credit, losses, select, weights
from maieutic.core.parts import Algorithm, Loss
from maieutic.core.parts import credit as credit_factory
from maieutic.core.parts import weigh as weigh_factory
from maieutic.core.trust_region import (
    backtracked,
    conjugate_gradient,
    fisher_product,
    flatten,
    line_search,
    some_tokens,
    trust_region,
    unflatten,
)  # fmt: skip
from maieutic.core.update import sgd
from maieutic.errors import NumericalError
from maieutic.pack import pack
from maieutic.types import Batch, Example, Finish, Rollout

PI = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARDS = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
FISHER = torch.diag(PI) - torch.outer(PI, PI)


def arms():
    """Three rows, one for each arm: a prompt token and the arm."""
    zeros = torch.zeros(3, 2, dtype=torch.float64)
    return Batch(
        torch.tensor([[1, 0], [1, 1], [1, 2]]), torch.tensor([[False, True]] * 3), torch.full((3,), 2), zeros, REWARDS,
        zeros, torch.ones(3, dtype=torch.bool), torch.arange(3), torch.arange(3),
    )  # fmt: skip


@credit_factory
def centred_under_the_policy():
    """A = r − Σ π r = r − .3 = (.7, −.3, −1.3)."""
    return lambda batch: batch.with_(advantages=(batch.rewards - PI @ batch.rewards)[:, None] * batch.mask)


@weigh_factory
def as_often_as_drawn():
    """Each arm weighs its probability before the step, so that the objective is the exact E[ρ A]."""
    return lambda batch: batch.old_logprobs.exp() * batch.mask


def bandit():
    """A learner whose policy is π in the only state of the bandit, and the rest of its table 0."""
    model = ToyModel(3, 1, dtype=torch.float64)
    model.table.data.zero_()
    model.table.data[0, 0, 1] = PI.log()
    return ToyLearner(model)


def bandit_row(update, loss=None):
    return Algorithm(
        "bandit", select.everything(), centred_under_the_policy(), loss or losses.surrogate(), as_often_as_drawn(),
        update,
    )  # fmt: skip


def stepped(learner, algorithm, batch):
    batch = algorithm.credit(batch.with_(old_logprobs=learner.logprobs(batch)))
    return algorithm.update(learner, batch, algorithm)


def policy_of(learner):
    return torch.softmax(learner.model.table.detach()[0, 0, 1], 0)


def test_the_natural_gradient_of_a_bandit_by_hand():
    # A = (.7, −.3, −1.3), g = π⊙A = (.35, −.09, −.26). F x = g has the solutions A + c: for x = (1, 0, −1),
    # π·x = .3 and F x = π⊙(x − .3) = (.35, −.09, −.26). gᵀx = .35 + .26 = .61 = Var_π(A).
    g = PI * (REWARDS - PI @ REWARDS)
    assert g.tolist() == pytest.approx([0.35, -0.09, -0.26])
    found = conjugate_gradient(lambda v: FISHER @ v, g)
    assert found.x.tolist() == pytest.approx([1.0, 0.0, -1.0], abs=1e-9)  # of all solutions the shortest: it sums to 0
    assert float(g @ found.x) == pytest.approx(0.61)
    assert found.x.tolist() == pytest.approx((torch.linalg.pinv(FISHER) @ g).tolist(), abs=1e-9)
    assert math.sqrt(2 * 0.01 / 0.61) == pytest.approx(0.181071, abs=1e-6)


def test_one_step_on_the_bandit():
    # δ = .01 and no damping: β = √(.02/.61) = .181071, and the logits move by β·(1, 0, −1):
    # π ∝ (.5·e^.181071, .3, .2·e^−.181071) = (.599250, .3, .166876) / 1.066125 = (.562082, .281393, .156525);
    # promised β·.61 = .110454; E r goes from .3 to .562082 − .156525 = .405558, a gain of .105558;
    # KL(old ‖ new) = Σ π log(π/π') = .0097097, which the quadratic model puts at .01.
    learner = bandit()
    metrics = stepped(learner, bandit_row(trust_region(max_kl=0.01, damping=0.0, kl_share=1.0)), arms())
    assert policy_of(learner).tolist() == pytest.approx([0.562082, 0.281393, 0.156525], abs=1e-6)
    assert metrics["trpo/kl"] == pytest.approx(0.0097097, abs=1e-7)
    assert metrics["trpo/expected"] == pytest.approx(0.110454, abs=1e-6)
    assert metrics["trpo/improvement"] == pytest.approx(0.105558, abs=1e-6)
    assert (metrics["trpo/accepted"], metrics["trpo/step_fraction"], metrics["trpo/backtracks"]) == (1.0, 1.0, 0.0)
    assert metrics["trpo/cg_residual"] < 1e-5
    assert learner.version == 1
    untouched = [learner.model.table[0, 0, state] for state in (0, 2)]  # states in which nothing was chosen
    assert not any(row.any() for row in untouched)


def test_a_bandit_ends_at_its_best_arm():
    learner, row = bandit(), bandit_row(trust_region(max_kl=0.05, damping=1e-4, kl_share=1.0))
    for _ in range(60):
        stepped(learner, row, arms())
    assert float(policy_of(learner)[0]) > 0.99


def spd(size, seed=0):
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + torch.eye(size, dtype=torch.float64)


def test_conjugate_gradient_solves_what_solve_does():
    matrix = spd(20)
    b = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = conjugate_gradient(lambda v: matrix @ v, b, iterations=60, tolerance=1e-26)
    torch.testing.assert_close(found.x, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(b - matrix @ found.x, found.residual, rtol=0, atol=1e-10)


def test_conjugate_gradient_stops_when_it_is_near_enough():
    matrix, b = spd(20), torch.ones(20, dtype=torch.float64)
    asked = []

    def product(v):
        asked.append(v)
        return matrix @ v

    rough = conjugate_gradient(product, b, iterations=60, tolerance=1e-2)
    assert len(asked) == rough.iterations < 20
    assert float(rough.residual @ rough.residual) <= 1e-2 * 20
    assert conjugate_gradient(product, b, iterations=3, tolerance=0.0).iterations == 3
    assert conjugate_gradient(product, torch.zeros(20, dtype=torch.float64)).iterations == 0


def test_conjugate_gradient_stops_on_negative_curvature_with_what_it_has():
    # F = diag(2, 1, −1), b = (1, 1, .5): the first direction curves up (2 + 1 − .25 > 0), a later one down
    matrix = torch.diag(torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64))
    b = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    found = conjugate_gradient(lambda v: matrix @ v, b)
    assert found.iterations in (1, 2)
    torch.testing.assert_close(b - matrix @ found.x, found.residual)
    assert conjugate_gradient(lambda v: -v, b).x.tolist() == [0.0, 0.0, 0.0]
    assert conjugate_gradient(lambda v: v * math.nan, b).x.tolist() == [0.0, 0.0, 0.0]


class Curved(torch.nn.Module):
    """Logits `[5, 4]` that are not linear in 26 weights, some of which have no say."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.inner = torch.nn.Parameter(torch.randn(3, 3, generator=draw, dtype=torch.float64))
        self.outer = torch.nn.Parameter(torch.randn(3, 4, generator=draw, dtype=torch.float64))
        self.idle = torch.nn.Parameter(torch.randn(5, generator=draw, dtype=torch.float64))
        self.inputs = torch.randn(5, 3, generator=draw, dtype=torch.float64)

    def forward(self):
        return torch.tanh(self.inputs @ self.inner) @ self.outer


def gauss_newton(model):
    """Σ Jᵀ (diag π − π πᵀ) J `[26, 26]`, with whole Jacobians."""
    named = dict(model.named_parameters())
    slopes = jacrev(lambda weights: functional_call(model, weights, ()))(named)
    jacobian = torch.cat([slopes[name].reshape(5, 4, -1) for name in named], dim=2)
    chances = torch.softmax(model().detach(), -1)
    inner = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    return torch.einsum("mvi,mvw,mwj->ij", jacobian, inner, jacobian)


def vectors(count, size, seed=5):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_fisher_products_are_those_of_gauss_newton():
    model = Curved()
    matrix, parameters = gauss_newton(model).detach(), list(model.parameters())
    assert float(matrix.norm()) > 1
    for v in vectors(4, 26):
        torch.testing.assert_close(fisher_product(model(), parameters, v), matrix @ v, rtol=1e-10, atol=1e-12)
    assert not fisher_product(model(), parameters, vectors(1, 26)[0])[-5:].any()  # the idle weights


def test_fisher_products_are_differences_of_the_gradient_of_the_divergence():
    model = Curved()
    parameters = list(model.parameters())
    start, kept = flatten(parameters), torch.log_softmax(model().detach(), -1)

    def slope(at):
        for p, value in zip(parameters, unflatten(at, parameters), strict=True):
            p.data.copy_(value)
        divergence = (kept.exp() * (kept - torch.log_softmax(model(), -1))).sum()
        found = torch.autograd.grad(divergence, parameters[:2])
        return torch.cat([flatten(list(found)), torch.zeros(5, dtype=torch.float64)])

    for v in vectors(3, 26):
        difference = (slope(start + 1e-5 * v) - slope(start - 1e-5 * v)) / 2e-5
        slope(start)
        torch.testing.assert_close(fisher_product(model(), parameters, v), difference, rtol=1e-6, atol=1e-7)


def test_fisher_products_are_symmetric_and_never_negative():
    model = Curved()
    u, *others = vectors(6, 26)
    parameters = list(model.parameters())
    for v in others:
        image = fisher_product(model(), parameters, v)
        assert float(v @ image) > 0
        assert float(u @ image) == pytest.approx(float(v @ fisher_product(model(), parameters, u)), rel=1e-9)


def test_a_natural_step_does_not_depend_on_how_the_policy_is_parametrised():
    # logits = M φ: F_φ = MᵀFM and g_φ = Mᵀg, so M·Δφ = F⁻¹g up to a constant, and both steps have one length. A plain
    # gradient step goes along M Mᵀ g instead.
    mixing = torch.tensor([[2.0, 0.3, -0.5], [0.1, 0.4, 0.2], [-0.7, 0.6, 1.5]], dtype=torch.float64)
    g = PI * (REWARDS - PI @ REWARDS)

    def natural(fisher, slope):
        found = conjugate_gradient(lambda v: fisher @ v, slope, iterations=50, tolerance=1e-26)
        return math.sqrt(0.02 / float(slope @ found.x)) * found.x

    plain = torch.softmax(PI.log() + natural(FISHER, g), 0)
    mixed = torch.softmax(PI.log() + mixing @ natural(mixing.T @ FISHER @ mixing, mixing.T @ g), 0)
    torch.testing.assert_close(mixed, plain, rtol=1e-9, atol=1e-12)
    without = torch.softmax(PI.log() + 0.1 * mixing @ mixing.T @ g, 0) - torch.softmax(PI.log() + 0.1 * g, 0)
    assert float(without.norm()) > 0.01  # where a plain gradient step goes depends on it


VOCABULARY, LENGTH = 4, 3


def sampled_batch(model, seed):
    """Six rows in two groups, drawn without looking at the model, with rewards that are all different."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(6):
        body = torch.randint(1, VOCABULARY, (int(torch.randint(0, LENGTH, (1,), generator=draw)),), generator=draw)
        completion = (*body.tolist(), STOP)
        tokens, mask = (number // 3, *completion), (False, *[True] * len(completion))
        rollout = Rollout("t", tokens, mask, (0.0,) * len(tokens), Finish.STOP)
        rows.append(Example(rollout, float(torch.randn(1, generator=draw)), number // 3, number))
    return pack(rows)


def row_of(update, loss=None):
    return Algorithm(
        "row", select.everything(), credit.group_centered(), loss or losses.surrogate(), weights.token_mean(), update
    )


def divergence(model, batch, before):
    """Mean KL(before ‖ now) over the chosen tokens."""
    now = torch.log_softmax(model.logits(batch).detach(), -1)[batch.mask]
    return float((before.exp() * (before - now)).sum(-1).mean())


@pytest.mark.parametrize("slack", [1.0, 1.5])
def test_no_accepted_step_goes_beyond_the_bound(slack):
    """100 random policies, far from uniform, under bounds from 1e-4 to 1 nat: where ½ dᵀF d is good, and far off."""
    accepted = shortened = 0
    for seed in range(100):
        model = ToyModel(VOCABULARY, LENGTH, 2, seed=seed)
        model.table.data *= 20
        learner, batch = ToyLearner(model), sampled_batch(model, seed)
        before = torch.log_softmax(model.logits(batch).detach(), -1)[batch.mask]
        start = model.table.detach().clone()
        max_kl = 10 ** (-4 + seed % 5)
        update = trust_region(max_kl=max_kl, damping=1e-3, kl_share=1.0, kl_slack=slack)
        metrics = stepped(learner, row_of(update), batch)
        found = divergence(model, batch, before)
        assert found <= slack * max_kl * (1 + 1e-4) + 1e-7
        assert learner.version == metrics["trpo/accepted"]
        accepted += metrics["trpo/accepted"]
        shortened += metrics["trpo/step_fraction"] < 1
        if metrics["trpo/accepted"]:
            assert metrics["trpo/kl"] == pytest.approx(found, abs=1e-6)
            assert metrics["trpo/improvement"] >= 0.1 * metrics["trpo/expected"] > 0
        else:
            assert torch.equal(model.table, start)
    assert accepted > 80
    assert shortened > 5  # the line search had something to do


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_failed_search_leaves_the_weights_as_they_were_to_the_bit(dtype):
    def promises(outputs, _):
        return -(outputs.logprobs - outputs.logprobs.detach())  # it has a slope, and never gets any better

    model = ToyModel(VOCABULARY, LENGTH, 2, seed=1, dtype=dtype)
    start = model.table.detach().clone()
    learner = ToyLearner(model)
    row = row_of(trust_region(damping=1e-3, kl_share=1.0), Loss("promises()", promises))
    metrics = stepped(learner, row, sampled_batch(model, 1))
    assert metrics["trpo/expected"] > 0
    assert (metrics["trpo/accepted"], metrics["trpo/step_fraction"], metrics["trpo/backtracks"]) == (0.0, 0.0, 10.0)
    assert torch.equal(model.table, start)
    assert learner.version == 0


def test_no_gradient_no_step():
    model = ToyModel(VOCABULARY, LENGTH, 2, seed=1)
    start = model.table.detach().clone()
    learner, batch = ToyLearner(model), sampled_batch(model, 1)
    metrics = stepped(learner, row_of(trust_region()), batch.with_(rewards=torch.ones(6)))
    assert metrics["trpo/accepted"] == metrics["trpo/kl"] == metrics["trpo/cg_iterations"] == 0.0
    assert torch.equal(model.table, start)
    assert learner.version == 0


def test_a_gradient_that_is_not_finite_stops_the_toy():
    model = ToyModel(VOCABULARY, LENGTH, 2, seed=1)
    batch = sampled_batch(model, 1)
    with pytest.raises(NumericalError, match="not finite"):
        stepped(
            ToyLearner(model), row_of(trust_region()), batch.with_(rewards=torch.tensor([1.0, math.inf, 0, 1, 0, 1]))
        )


def test_micro_batches_change_nothing():
    ends = []
    for count in (1, 2, 5):
        model = ToyModel(VOCABULARY, LENGTH, 2, seed=3, dtype=torch.float64)
        learner = ToyLearner(model, micro_batches=count)
        stepped(learner, row_of(trust_region(damping=1e-3)), sampled_batch(model, 3))
        assert learner.version == 1
        ends.append(model.table.detach().clone())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=1e-12)


class Near:
    """One weight in a bowl: F = 2, loss −w + w⁴, KL = w². Notes what is asked of it."""

    def __init__(self):
        self.asked = []
        self.at = torch.zeros(1, dtype=torch.float64)

    def parameters(self):
        return self.at.clone()

    def move(self, parameters):
        self.at = parameters.clone()

    def objective(self, loss):
        self.asked.append("objective")
        return float(-self.at + self.at**4)

    def fisher_product(self, vector):
        self.asked.append("fisher")
        return 2.0 * vector

    def kl(self):
        self.asked.append("kl")
        return float(self.at**2)


class Noting:
    """A learner that notes the tokens at which it is told to compare policies."""

    def __init__(self, version=0):
        self.version, self.near, self.tokens = version, Near(), []

    def gradient(self, batch, loss):
        return torch.tensor([-1.0], dtype=torch.float64), {"loss": 0.0}

    def neighbourhood(self, batch, tokens):
        self.tokens.append(tokens)
        return self.near

    def count_step(self):
        self.version += 1


def wide_mask():
    mask = torch.zeros(5, 40, dtype=torch.bool)
    mask[:, 3:31] = True  # 140 chosen tokens
    mask[2, 10:14] = False
    return mask  # 136


def noted(version=0, **options):
    learner, zeros = Noting(version), torch.zeros(5, 40)
    batch = Batch(
        torch.zeros(5, 40, dtype=torch.long), wide_mask(), torch.full((5,), 40), zeros, torch.zeros(5), zeros,
        torch.ones(5, dtype=torch.bool), torch.arange(5), torch.arange(5),
    ).with_(advantages=zeros, old_logprobs=zeros)  # fmt: skip
    row = row_of(trust_region(**options))
    return learner, row.update(learner, batch, row)


def test_products_and_divergence_are_of_one_set_of_chosen_tokens():
    """A28: Fisher products and the KL of the line search come from one neighbourhood, made of one masked token set."""
    learner, _ = noted()
    (tokens,) = learner.tokens  # one set a step, for everything
    assert {"fisher", "kl", "objective"} == set(learner.near.asked)
    assert not (tokens & ~wide_mask()).any()
    rows = tokens.any(1)
    assert int(rows.sum()) == round(0.2 * int(wide_mask().any(1).sum()))  # a fifth of the rows …
    assert torch.equal(tokens[rows], wide_mask()[rows])  # … with all their chosen tokens
    assert torch.equal(noted()[0].tokens[0], tokens)  # drawn by the seed and the steps so far, so a resumed run …
    assert not torch.equal(noted(version=1)[0].tokens[0], tokens)  # … goes on as an unbroken one
    assert not torch.equal(noted(seed=1)[0].tokens[0], tokens)
    assert torch.equal(noted(kl_share=1.0)[0].tokens[0], wide_mask())


def test_the_length_of_a_step_and_its_damping_by_hand():
    # g = 1, F + λ = 2 + .5: x = .4, xᵀ(F + λ)x = .4, β = √(2·.08/.4) = .632456, a step to .252982.
    # promised .252982; gained .252982 − .252982⁴ = .248886; KL .064 ≤ 1.5 · .08
    learner, metrics = noted(max_kl=0.08, damping=0.5)
    assert float(learner.near.at) == pytest.approx(0.252982, abs=1e-6)
    assert metrics["trpo/expected"] == pytest.approx(0.252982, abs=1e-6)
    assert metrics["trpo/improvement"] == pytest.approx(0.248886, abs=1e-6)
    assert metrics["trpo/kl"] == pytest.approx(0.064, abs=1e-6)
    assert metrics["trpo/cg_iterations"] == 1
    assert learner.version == 1


def test_a_step_that_gains_too_little_is_halved():
    # δ = 1, no damping: x = ½, β = √(2/.5) = 2, the step goes to w = 1 where −w + w⁴ = 0 gains nothing of the 1 that
    # was promised. At ½ it gains ½ − 1/16 = .4375 ≥ .1 · ½.
    learner, metrics = noted(max_kl=1.0, damping=0.0)
    assert float(learner.near.at) == pytest.approx(0.5)
    assert (metrics["trpo/step_fraction"], metrics["trpo/backtracks"]) == (0.5, 1.0)
    assert metrics["trpo/improvement"] == pytest.approx(0.4375)
    assert metrics["trpo/expected"] == pytest.approx(0.5)
    assert metrics["trpo/kl"] == pytest.approx(0.25)


def test_line_search_by_hand():
    # gains 0.5·f − f² of the promised 1·f, KL f². At 1: −.5, at ½: 0, at ¼: .0625 ≥ .1 · ¼; and a bound of .01 on the
    # KL asks for f ≤ .1, which 1/16 is the first to be.
    def attempt(fraction):
        return 0.5 * fraction - fraction**2, fraction**2

    found = line_search(attempt, 1.0, bound=1.0, accept=0.1, backtracks=10)
    assert (found.fraction, found.backtracks, found.improvement) == (0.25, 2, 0.0625)
    assert line_search(attempt, 1.0, bound=0.01, accept=0.1, backtracks=10).fraction == 0.0625
    refused = line_search(attempt, 1.0, bound=0.01, accept=0.1, backtracks=3)
    assert (refused.accepted, refused.fraction, refused.backtracks, refused.kl) == (False, 0.0, 3, 0.0625)
    assert not line_search(lambda _: (math.nan, 0.0), 1.0, 1.0, 0.1, 10).accepted
    assert not line_search(lambda _: (math.inf, 0.0), 1.0, 1.0, 0.1, 10).accepted
    assert not line_search(lambda _: (1.0, math.nan), 1.0, 1.0, 0.1, 10).accepted


def test_backtracked_shortens_what_an_optimiser_did():
    model = ToyModel(VOCABULARY, LENGTH, 2, seed=2)
    batch = sampled_batch(model, 2)
    before = torch.log_softmax(model.logits(batch).detach(), -1)[batch.mask]
    start = model.table.detach().clone()
    free, bound = ToyLearner(model, learning_rate=1.0), 1e-3
    stepped(free, row_of(sgd(), losses.policy_gradient()), batch)
    way = model.table.detach() - start
    assert divergence(model, batch, before) > 10 * bound
    model.table.data.copy_(start)
    held = ToyLearner(model, learning_rate=1.0)
    update = backtracked(sgd(), max_kl=bound, kl_share=1.0)
    metrics = stepped(held, row_of(update, losses.policy_gradient()), batch)
    assert metrics["trust_region/accepted"] == 1.0
    fraction = metrics["trust_region/step_fraction"]
    assert fraction in [0.5**k for k in range(1, 10)]
    torch.testing.assert_close(model.table.detach() - start, fraction * way, rtol=1e-3, atol=1e-6)
    assert metrics["trust_region/kl"] == pytest.approx(divergence(model, batch, before), abs=1e-7)
    assert metrics["trust_region/kl"] <= bound
    # with no fraction small enough, the weights are those of before
    model.table.data.copy_(start)
    tight = backtracked(sgd(), max_kl=1e-12, backtracks=2, kl_share=1.0)
    metrics = stepped(ToyLearner(model, learning_rate=1.0), row_of(tight, losses.policy_gradient()), batch)
    assert metrics["trust_region/accepted"] == metrics["trust_region/step_fraction"] == 0.0
    assert torch.equal(model.table, start)


def test_vectors_come_back_to_the_bit():
    made = [torch.randn(3, 2).to(torch.bfloat16), torch.randn(4), torch.randn(2, 1, 2)]
    vector = flatten(made)
    assert (vector.dtype, vector.shape) == (torch.float32, (14,))
    assert all(torch.equal(a, b) for a, b in zip(unflatten(vector, made), made, strict=True))
    assert flatten([torch.zeros(1, dtype=torch.float64), torch.zeros(1)]).dtype == torch.float64
    with pytest.raises(ValueError, match=r"shape \(13,\); expected \(14,\)"):
        unflatten(vector[:-1], made)


def test_some_tokens_takes_at_least_one_row_that_has_any():
    mask = torch.tensor([[False, False, False], [False, True, True]])
    assert torch.equal(some_tokens(mask, 0.01, "0"), mask)


def test_what_the_parts_declare():
    update = trust_region()
    assert (update.steps, update.uses_optimiser) == (1, False)
    assert row_of(update).asks == {"old_logprobs"}  # the line search leaves the old policy, so it is asked for
    assert row_of(update).requires == {"trust_region"}
    assert str(update) == "trust_region(max_kl=0.01, damping=0.05)"
    around = backtracked(sgd(epochs=2))
    assert (around.steps, around.uses_optimiser, around.requires) == (2, True, {"trust_region"})
    assert str(around) == "backtracked(sgd(epochs=2, minibatches=1), max_kl=0.01)"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_kl": 0.0}, {"damping": -0.1}, {"cg_iterations": 0}, {"cg_tolerance": -1.0}, {"backtracks": 0},
        {"accept": 1.0}, {"accept": -0.1}, {"kl_slack": 0.9}, {"kl_share": 0.0}, {"kl_share": 1.1},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"trust_region: got .*expected"):
        trust_region(**wrong)


@pytest.mark.parametrize("wrong", [{"max_kl": 0.0}, {"backtracks": 0}, {"kl_share": 0.0}])
def test_impossible_settings_of_backtracked_are_refused(wrong):
    with pytest.raises(ValueError, match=r"backtracked: got .*expected"):
        backtracked(sgd(), **wrong)
