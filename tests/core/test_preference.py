"""Losses of pairs: numbers worked by hand in nats, and where they stand in `[B, T]`.

A pair is two rows of log-probs; the chosen one comes first. Where a formula speaks of a sum or a mean, the rows are
made so that it is the number in the comment.
"""

from __future__ import annotations

import math

import pytest
import torch

from maieutic.core.preference import chosen_nll, dpo, ipo, log1mexp, odds_ratio, simpo
from maieutic.core.weights import pair_mean
from maieutic.types import Batch, Outputs

F64 = torch.float64


def batch_of(*rows, ref=None, pairs=None):
    """A batch whose rows have these log-probs after a prompt of one token, and the outputs with gradient."""
    width = 1 + max(len(row) for row in rows)
    pad = [[0.0, *row, *[0.0] * (width - 1 - len(row))] for row in rows]
    mask = torch.tensor([[False, *[True] * len(row), *[False] * (width - 1 - len(row))] for row in rows])
    logprobs = torch.tensor(pad, dtype=F64, requires_grad=True)
    zeros = torch.zeros(len(rows), width, dtype=F64)
    columns = {"pairs": torch.tensor(pairs or [[i, i + 1] for i in range(0, len(rows), 2)])}
    if ref is not None:
        columns["ref_logprobs"] = torch.tensor([[0.0, *row, *[0.0] * (width - 1 - len(row))] for row in ref], dtype=F64)
    numbers = torch.arange(len(rows))
    made = Batch(
        tokens=mask.long(), mask=mask, lengths=1 + mask.sum(1), sampler_logprobs=zeros, rewards=zeros[:, 0],
        token_rewards=zeros, terminated=numbers >= 0, groups=numbers // 2, units=numbers // 2, columns=columns,
    )  # fmt: skip
    return Outputs(logprobs), made


def total(part, outputs, batch):
    """sum(weights * loss), which is the mean over pairs, and its gradient `[B, T]`."""
    value = (pair_mean()(batch) * part(outputs, batch)).sum()
    (slope,) = torch.autograd.grad(value, outputs.logprobs)
    return float(value.detach()), slope


def test_orpo_by_hand():
    """T6.2: l_c = ln .5, l_r = ln .2."""
    outputs, batch = batch_of([math.log(0.5)], [math.log(0.2)])
    # log odds: ln(.5/.5) = 0 and ln(.2/.8) = −1.386294; log OR = 1.386294 = ln 4; σ(ln 4) = 4/5; −ln .8 = .223144
    value, slope = total(odds_ratio(), outputs, batch)
    assert value == pytest.approx(0.223144, abs=1e-6)
    # ∂L/∂l_c = −σ(−ln 4)/(1 − .5) = −.2 · 2 = −.4; ∂L/∂l_r = .2/(1 − .2) = +.25
    assert slope[:, 1].tolist() == pytest.approx([-0.4, 0.25])
    # with λ = .1 and NLL = ln 2 = .693147: .693147 + .0223144 = .7154615
    assert total(chosen_nll() + 0.1 * odds_ratio(), outputs, batch)[0] == pytest.approx(0.7154615, abs=1e-6)


def test_orpo_takes_means():
    """A29: odds are of the geometric mean of the token probabilities, not of the product."""
    # (ln .25 + ln 1) / 2 = ln .5 and (3 · ln .2) / 3 = ln .2: the numbers of one token each
    long, batch = batch_of([math.log(0.25), 0.0], [math.log(0.2)] * 3)
    short, alone = batch_of([math.log(0.5)], [math.log(0.2)])
    assert total(odds_ratio(), long, batch)[0] == pytest.approx(total(odds_ratio(), short, alone)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [-1e-6, -1e-9, 0.0, -math.log(2.0), -60.0, -1000.0])
def test_orpo_is_finite_at_both_ends(mean, dtype):
    """T6.3: P → 1 and P → 0 on either side; where P rounds to 1 the gradient of the odds is cut off."""
    for rows in ([mean], [-1.0]), ([-1.0], [mean]), ([mean], [mean]):
        outputs, batch = batch_of(*rows)
        outputs = Outputs(outputs.logprobs.detach().to(dtype).requires_grad_())
        value, slope = total(chosen_nll() + 0.1 * odds_ratio(), outputs, batch)
        assert math.isfinite(value)
        assert torch.isfinite(slope).all()


def test_log1mexp_is_exact_where_the_plain_formula_is_not():
    # log(1 − e^−1e−12) = log(1e−12) − 5e−13; by way of 1 − exp, float64 is off by 2e−5
    x = torch.tensor([-1e-12, -0.1, -2.0, -40.0], dtype=F64)
    wanted = [math.log(1e-12) - 5e-13, math.log(1 - math.exp(-0.1)), math.log(1 - math.exp(-2.0)), -math.exp(-40.0)]
    assert log1mexp(x).tolist() == pytest.approx(wanted, rel=1e-9)
    assert float(torch.log(1 - torch.exp(x[0]))) != pytest.approx(wanted[0], abs=1e-5)
    assert torch.autograd.gradcheck(log1mexp, (torch.tensor([-0.1, -0.7, -2.0, -5.0], dtype=F64, requires_grad=True),))


def test_equal_sides_teach_nothing_but_likelihood():
    """T6.4: chosen = rejected: L_OR = ln 2, and its two gradients cancel."""
    outputs, batch = batch_of([-0.5, -1.5], [-0.5, -1.5])
    value, slope = total(odds_ratio(), outputs, batch)
    assert value == pytest.approx(math.log(2.0))
    assert torch.equal(slope[0], -slope[1])
    assert float(slope[0].abs().sum()) > 0.1
    _, with_likelihood = total(chosen_nll() + 0.1 * odds_ratio(), outputs, batch)
    # the same tokens in both rows: together they are pulled by the likelihood alone, −1/|y| a token
    assert (with_likelihood[0] + with_likelihood[1]).tolist() == pytest.approx([0.0, -0.5, -0.5])


def test_dpo_at_the_beginning():
    """T6.5: policy = reference: the loss is ln 2 and every log-prob is pulled with β/2."""
    outputs, batch = batch_of([-1.0, -2.0], [-3.0], ref=[[-1.0, -2.0], [-3.0]])
    value, slope = total(dpo(beta=0.1), outputs, batch)
    assert value == pytest.approx(math.log(2.0))
    assert slope.tolist() == [pytest.approx([0.0, -0.05, -0.05]), pytest.approx([0.0, 0.05, 0.0])]


def test_dpo_by_hand():
    """T6.6: policy (−10, −15), reference (−12, −14), β = .1."""
    # Δ = (−10 + 12) − (−15 + 14) = 3; β Δ = .3; −ln σ(.3) = .5543552
    outputs, batch = batch_of([-4.0, -6.0], [-15.0], ref=[[-7.0, -5.0], [-14.0]])
    part = dpo()
    value, slope = total(part, outputs, batch)
    assert value == pytest.approx(0.5543552, abs=1e-7)
    # ∂L/∂Δ = −β σ(−.3) = −.1 · .4255575
    assert slope[0].tolist() == pytest.approx([0.0, -0.04255575, -0.04255575])
    assert slope[1].tolist() == pytest.approx([0.0, 0.04255575, 0.0])
    _, seen = part.terms(outputs, batch)
    assert {name: quantity.tolist() for name, quantity in seen.items()} == {
        "pairs/accuracy": [1.0],
        "pairs/margin": [3.0],
        "pairs/chosen_logprob": [-10.0],
        "pairs/rejected_logprob": [-15.0],
    }
    assert not any(quantity.requires_grad for quantity in seen.values())


def test_dpo_with_smoothed_labels():
    # .9 · .5543552 + .1 · (.5543552 + .3), as −ln σ(−x) = −ln σ(x) + x: .5843552; slope −β(.9 σ(−.3) − .1 σ(.3))
    outputs, batch = batch_of([-10.0], [-15.0], ref=[[-12.0], [-14.0]])
    value, slope = total(dpo(0.1, label_smoothing=0.1), outputs, batch)
    assert value == pytest.approx(0.5843552, abs=1e-7)
    assert slope[0, 1].item() == pytest.approx(-0.1 * (0.9 * 0.4255575 - 0.1 * 0.5744425), abs=1e-8)


@pytest.mark.parametrize("part", [dpo(), ipo(), simpo(), odds_ratio()], ids=str)
def test_sums_and_means(part):
    """A29: DPO and IPO's paper sum over the completion, SimPO and ORPO average: a longer row tells them apart."""
    twice, batch = batch_of([-1.0, -1.0], [-2.0], ref=[[-1.5, -1.5], [-2.0]])
    once, alone = batch_of([-1.0], [-2.0], ref=[[-1.5], [-2.0]])
    sums = part.label in ("dpo()", "ipo()")
    assert (total(part, twice, batch)[0] == pytest.approx(total(part, once, alone)[0])) is not sums


def test_what_is_prompt_padding_or_a_tools_is_in_no_sum():
    """A29: only chosen tokens count, whatever stands in the other places, the stop token among them."""
    outputs, batch = batch_of([-1.0, -2.0, -0.5], [-3.0], ref=[[-1.5, -2.0, -0.5], [-2.0]])
    mask = batch.mask.clone()
    mask[0, 2] = False  # a tool wrote the middle token
    spoiled = torch.where(mask, batch.ref_logprobs, torch.nan)
    inside = Outputs(torch.where(mask, outputs.logprobs, 0.0))
    found = dpo().terms(inside, batch.with_(mask=mask, ref_logprobs=spoiled))[1]
    assert found["pairs/margin"].tolist() == [0.5 - (-1.0)]  # (−1.5 + 2) − (−3 + 2)
    assert found["pairs/chosen_logprob"].tolist() == [-1.5]


@pytest.mark.parametrize("shift", [-7.0, 3.0])
@pytest.mark.parametrize("part", [dpo(), dpo(label_smoothing=0.2), ipo(), simpo()], ids=str)
def test_a_constant_of_the_prompt_changes_nothing(part, shift):
    """T6.7: the same added to both sides' log-probs cancels; in SimPO, to both means."""
    plain, batch = batch_of([-10.0, -2.0], [-15.0, -1.0], ref=[[-12.0, 0.0], [-14.0, 0.0]])
    moved = Outputs(torch.where(batch.mask, plain.logprobs + shift, 0.0))
    assert part(moved, batch).tolist() == [pytest.approx(row) for row in part(plain, batch).tolist()]
    of_reference = batch.with_(ref_logprobs=torch.where(batch.mask, batch.ref_logprobs + shift, 0.0))
    assert part(plain, of_reference).tolist() == [pytest.approx(row) for row in part(plain, batch).tolist()]


def test_the_odds_ratio_does_depend_on_a_constant():
    # P_c/P_r is kept, odds are not: ln(.5/.5) − ln(.2/.8) = 1.386, and at a tenth ln(.05/.95) − ln(.02/.98) = .947
    high, batch = batch_of([math.log(0.5)], [math.log(0.2)])
    low = Outputs(torch.where(batch.mask, high.logprobs + math.log(0.1), 0.0))
    margins = [odds_ratio().terms(outputs, batch)[1]["pairs/margin"].item() for outputs in (high, low)]
    assert margins == pytest.approx([math.log(4.0), math.log(49 / 19)])


def test_simpo_by_hand():
    """T6.8: l = (−.5, −.8), β = 2.5, γ = 1.375."""
    # 2.5 · .3 − 1.375 = −.625; −ln σ(−.625) = 1.0537007
    outputs, batch = batch_of([-0.25, -0.75], [-0.8, -0.8, -0.8])
    value, slope = total(simpo(), outputs, batch)
    assert value == pytest.approx(1.0537007, abs=1e-7)
    # ∂L/∂l = −2.5 σ(.625) = −2.5 · .6513549, half of it on each of two tokens, a third of it on each of three
    assert slope[0, 1].item() == pytest.approx(-1.25 * 0.6513549, abs=1e-6)
    assert slope[1, 1].item() == pytest.approx(2.5 / 3 * 0.6513549, abs=1e-6)


def test_ipo_by_hand():
    # Δ = 3 as in DPO's numbers; (3 − 1/(2 · .1))² = (3 − 5)² = 4, and 2 · (3 − 5) = −4
    outputs, batch = batch_of([-4.0, -6.0], [-15.0], ref=[[-7.0, -5.0], [-14.0]])
    value, slope = total(ipo(), outputs, batch)
    assert value == pytest.approx(4.0)
    assert slope[0, 1].item() == pytest.approx(-4.0)
    # by means: Δ = 2/2 − (−1) = 2; (2 − 5)² = 9; slope −6 on a mean of two tokens: −3 each
    value, slope = total(ipo(average=True), outputs, batch)
    assert value == pytest.approx(9.0)
    assert slope[0, 1].item() == pytest.approx(-3.0)
    # and beyond the target a preference is pulled back
    outputs, batch = batch_of([0.0], [-9.0], ref=[[0.0], [0.0]])
    assert total(ipo(), outputs, batch)[1][0, 1].item() == pytest.approx(8.0)


def test_where_a_pairs_loss_stands():
    """On every chosen token of the chosen row, whatever the order of the rows; none on the rejected row."""
    outputs, batch = batch_of([-1.0], [-2.0, -2.0], [-3.0, -1.0], [-0.5], pairs=[[1, 0], [2, 3]])
    value = simpo(beta=1.0, gamma=0.0)(outputs, batch).detach()
    # row 1 over row 0: Δ = −2 + 1 = −1, −ln σ(−1) = 1.3132617; row 2 over row 3: Δ = −2 + .5 = −1.5, 1.7014133
    assert value.tolist() == [
        [0.0, 0.0, 0.0],
        [0.0, pytest.approx(1.3132617), pytest.approx(1.3132617)],
        [0.0, pytest.approx(1.7014133), pytest.approx(1.7014133)],
        [0.0, 0.0, 0.0],
    ]
    # weights 1/(P |y_c|) = 1/(2 · 2), so that the total is the mean over pairs
    assert pair_mean()(batch).tolist() == [[0.0] * 3, [0.0, 0.25, 0.25], [0.0, 0.25, 0.25], [0.0] * 3]
    mean, slope = total(simpo(beta=1.0, gamma=0.0), outputs, batch)
    assert mean == pytest.approx((1.3132617 + 1.7014133) / 2)
    assert (slope[[0, 3]].abs().sum(1) > 0.01).all()  # the gradient does reach the rejected rows


def test_the_likelihood_term_is_a_mean_over_each_chosen_completion():
    # NLL/|y|: (1 + 3)/2 = 2 and 6/1 = 6; mean over two pairs 4; a mean over tokens would be 10/3
    outputs, batch = batch_of([-1.0, -3.0], [-9.0], [-6.0], [-9.0])
    value, slope = total(chosen_nll(), outputs, batch)
    assert value == pytest.approx(4.0)
    assert not slope[[1, 3]].any()
    assert chosen_nll()(outputs, batch).detach()[1].tolist() == [0.0, 0.0, 0.0]


def test_a_pair_of_its_own_counts_as_one_among_many():
    outputs, batch = batch_of(
        [-1.0, -2.0], [-2.0], [-3.0], [-0.5, -0.1], ref=[[-1.0, -1.0], [-1.0], [-2.0], [-1.0, -1.0]]
    )
    whole, _ = total(dpo(), outputs, batch)
    apart = []
    for rows in (torch.tensor([0, 1]), torch.tensor([3, 2])):
        part = batch.rows(rows)
        apart.append(total(dpo(), Outputs(outputs.logprobs[rows]), part)[0])
    assert whole == pytest.approx(sum(apart) / 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dpo(beta=0.0), "dpo: got beta=0.0; expected a finite number above 0"),
        (lambda: dpo(label_smoothing=0.5), "got label_smoothing=0.5"),
        (lambda: ipo(beta=-1.0), "ipo: got beta=-1.0"),
        (lambda: simpo(beta=math.inf), "simpo: got beta=inf"),
        (lambda: simpo(gamma=math.nan), "simpo: got gamma=nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
