"""Corrections for a sampler that is not the learner, worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from maieutic.backends.toy import ToyLearner, ToyModel
from maieutic.core import corrections, credit, losses, select, update, weights
from maieutic.core.corrections import CORRECTIONS, corrected, geometric_mean, sequence, token
from maieutic.core.parts import Algorithm
from maieutic.errors import MissingColumn
from maieutic.types import Batch, Outputs

F64 = torch.float64


def batch_of(ratios, *, advantages=1.0, mask=None):
    """Rows whose chosen tokens have these ratios π_old / π_s, after a one-token prompt; π_old is e⁻¹ everywhere."""
    ratios = torch.tensor(ratios, dtype=F64)
    mask = torch.ones(ratios.shape, dtype=torch.bool) if mask is None else torch.tensor(mask)
    mask = torch.nn.functional.pad(mask, (1, 0))
    sampler = torch.nn.functional.pad(-1.0 - ratios.log(), (1, 0))
    size = len(ratios)
    old = torch.full(mask.shape, -1.0, dtype=F64)
    rows = Batch(
        torch.zeros(mask.shape, dtype=torch.long), mask, torch.full((size,), mask.shape[1]), sampler,
        torch.zeros(size, dtype=F64), torch.zeros(mask.shape, dtype=F64), torch.ones(size, dtype=torch.bool),
        torch.arange(size), torch.arange(size),
    )  # fmt: skip
    columns = torch.as_tensor(advantages, dtype=F64).reshape(-1, 1) * mask
    return rows.with_(old_logprobs=old, advantages=columns)


def outputs_of(batch, logprobs=-1.0):
    return Outputs(torch.full(batch.mask.shape, logprobs, dtype=F64, requires_grad=True))


def weight_of(part, batch):
    return part(outputs_of(batch), batch)[0][:, 1:].tolist()


#: The ratios .4, 1 and 3 with bounds ½ and 2.
ROW = [[0.4, 1.0, 3.0]]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (corrections.truncated(2.0, 0.5), [0.5, 1.0, 2.0]),
        (corrections.truncated(2.0), [0.4, 1.0, 2.0]),  # the original: only from above
        (corrections.masked(0.5, 2.0), [0.0, 1.0, 0.0]),
        (corrections.masked(0.5, 2.0, sequence), [1.2, 1.2, 1.2]),  # .4 · 1 · 3 = 1.2, inside: kept as it is
        (corrections.masked(0.5, 1.1, sequence), [0.0, 0.0, 0.0]),
        (corrections.truncated(1.1, level=sequence), [1.1, 1.1, 1.1]),
        (corrections.truncated(2.0, level=geometric_mean), [1.2 ** (1 / 3)] * 3),  # 1.0627
        (corrections.filtered(0.9, 1.1), [1.0, 1.0, 1.0]),  # 1.0627 is inside
        (corrections.filtered(0.95, 1.05), [0.0, 0.0, 0.0]),
        (corrections.filtered(0.5, 2.0, token), [0.0, 1.0, 0.0]),
    ],
    ids=str,
)
def test_what_a_token_is_given(part, expected):
    assert weight_of(part, batch_of(ROW)) == [pytest.approx(expected)]


def test_what_was_not_chosen_counts_in_no_ratio():
    # the second token was written by a tool: the product is .4 · 3, the geometric mean √1.2
    batch = batch_of([[0.4, 7.0, 3.0]], mask=[[True, False, True]])
    assert weight_of(corrections.truncated(2.0, level=sequence), batch)[0] == pytest.approx([1.2, 1.2, 1.2])
    assert weight_of(corrections.truncated(2.0, level=geometric_mean), batch)[0][0] == pytest.approx(math.sqrt(1.2))
    assert weight_of(corrections.truncated(9.0), batch)[0] == pytest.approx([0.4, 1.0, 3.0])


def test_weights_have_no_gradient():
    # nll's own gradient is −1 a token, so what is left of it is the weight alone
    batch, part = batch_of(ROW), corrected(losses.nll(), corrections.truncated(2.0, 0.5))
    outputs = outputs_of(batch)
    part(outputs, batch).sum().backward()
    assert outputs.logprobs.grad[0, 1:].tolist() == pytest.approx([-0.5, -1.0, -2.0])


@pytest.mark.parametrize("name", [name for name, part in CORRECTIONS.items() if part is not None])
def test_engines_that_agree_are_not_corrected(name):
    batch = batch_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], advantages=[1.0, -2.0])
    plain, outputs = losses.clipped_surrogate(), outputs_of(batch)
    part = corrected(plain, CORRECTIONS[name])
    assert torch.equal(part(outputs, batch), plain(outputs, batch))
    assert torch.autograd.grad(part(outputs, batch).sum(), outputs.logprobs)[0].equal(
        torch.autograd.grad(plain(outputs, batch).sum(), outputs.logprobs)[0]
    )


def test_the_product_explodes_with_length_and_the_mean_does_not():
    """A9: .01 nats a token are no drift at all; over 1000 tokens the product is e¹⁰ = 22026, the mean e^.01 = 1.01005.

    So the product is for masks, the mean for filters, and the token's own ratio for weights.
    """
    batch = batch_of([[math.exp(0.01)] * 1000])
    assert weight_of(corrections.masked(0.0, 1e6, sequence), batch)[0][0] == pytest.approx(22026.47, rel=1e-6)
    assert weight_of(corrections.masked(0.0, 3.0, sequence), batch)[0][0] == 0.0  # the whole row is dropped
    assert weight_of(corrections.truncated(2.0, level=geometric_mean), batch)[0][0] == pytest.approx(1.01005, abs=1e-5)
    assert weight_of(CORRECTIONS["token_truncate"], batch)[0][0] == pytest.approx(1.01005, abs=1e-5)
    assert weight_of(corrections.filtered(0.98, 1.02), batch)[0][0] == 1.0


def test_raw_weights_shares_and_divergence_are_watched():
    """A9: the log shows the weights before they are cut, how many are cut, and how far the engines are apart."""
    batch = batch_of(ROW)
    _, seen = corrected(losses.policy_gradient(), corrections.masked()).terms(outputs_of(batch), batch)
    assert seen["correction/weight"][0, 1:].tolist() == pytest.approx([0.4, 1.0, 3.0])
    assert seen["correction/masked"][0, 1:].tolist() == [1.0, 0.0, 1.0]
    # k3 of the sampler to the learner from the sampler's tokens: w − log w − 1
    divergence = [0.4 - math.log(0.4) - 1, 0.0, 3 - math.log(3) - 1]
    assert seen["correction/kl_to_sampler"][0, 1:].tolist() == pytest.approx(divergence)


def test_the_effective_share_is_of_the_whole_batch():
    """A9: (mean w)² / mean w² over all tokens, as it cannot be had from the means of micro-batches.

    Weights (.4, 1, 3): (4.4/3)² / (10.16/3) = 2.151111 / 3.386667 = .635171.
    """
    model = ToyModel(4, 3)
    batch = batch_of(ROW)
    batch = batch.with_(sampler_logprobs=batch.sampler_logprobs + 1.0)  # −log w
    now = model.outputs(batch).logprobs.detach().double()
    batch = batch.with_(sampler_logprobs=batch.sampler_logprobs + now, old_logprobs=now)
    loss = corrected(losses.policy_gradient(), corrections.truncated())
    row = Algorithm("own", select.everything(), credit.none(), loss, weights.token_mean(), update.sgd())
    metrics = row.update(ToyLearner(model), batch, row)
    assert metrics["correction/effective_share"] == pytest.approx(0.635171, abs=1e-6)
    assert metrics["correction/weight"] == pytest.approx(4.4 / 3)
    assert metrics["correction/masked"] == pytest.approx(1 / 3)
    assert "correction/weight_squared" not in metrics


def test_the_off_policy_mask_drops_bad_rows_that_the_policy_would_not_write_any_more():
    # rows sampled at log-probs −1 and now at −1.8: .8 nats a token apart. The third row has mixed advantages.
    batch = batch_of([[1.0, 1.0]] * 3, advantages=[-1.0, 1.0, -1.0])
    batch = batch.with_(advantages=batch.advantages * torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, -1]]))
    part = corrections.off_policy_sequence_mask(0.5)
    kept, seen = part(outputs_of(batch, -1.8), batch)
    assert kept[:, 1:].tolist() == [[0, 0], [1, 1], [0, 1]]
    assert seen["correction/off_policy"][:, 1:].tolist() == [[1, 1], [0, 0], [1, 0]]
    assert part(outputs_of(batch, -1.4), batch)[0].min() == 1  # .4 nats are near enough
    assert part(outputs_of(batch, -0.2), batch)[0].min() == 1  # what became likelier is never dropped


def test_the_off_policy_mask_compares_with_the_policy_of_this_step_and_not_the_old_one():
    # the sampler and the old policy agree (ratio 1); what has moved is the policy
    batch = batch_of([[1.0, 1.0]], advantages=[-1.0])
    part = corrections.off_policy_sequence_mask(0.5)
    assert "old_logprobs" not in part.needs
    assert part(outputs_of(batch, -3.0), batch)[0][0, 1:].tolist() == [0, 0]


def test_a_mean_over_chosen_tokens_decides_and_not_over_the_width():
    # two chosen tokens with .8 nats, two of a tool: .8, not .4
    batch = batch_of([[1.0] * 4], advantages=[-1.0], mask=[[True, False, True, False]])
    kept, _ = corrections.off_policy_sequence_mask(0.5)(outputs_of(batch, -1.8), batch)
    assert kept[0, [1, 3]].tolist() == [0, 0]


def test_corrections_nest_and_say_what_they_read():
    whole = corrected(
        corrected(losses.clipped_surrogate(), corrections.truncated(2.0)), corrections.filtered(0.9, 1.1)
    ) + 0.1 * losses.kl_to_reference()  # fmt: skip
    assert whole.label == (
        "corrected(corrected(clipped_surrogate(), truncated(high=2)), filtered(low=0.9, high=1.1)) + "
        "0.1 * kl_to_reference()"
    )
    assert whole.needs == {"advantages", "old_logprobs", "ref_logprobs"}
    batch = batch_of(ROW)
    outputs = outputs_of(batch)
    plain = losses.policy_gradient()
    both = corrected(corrected(plain, corrections.truncated(2.0)), corrections.filtered(0.9, 1.1))
    assert both(outputs, batch).tolist() == corrected(plain, corrections.truncated(2.0))(outputs, batch).tolist()
    none = corrected(corrected(plain, corrections.truncated(2.0)), corrections.filtered(0.99, 1.01))
    assert not none(outputs, batch).any()


def test_no_correction_is_the_loss_itself():
    plain = losses.policy_gradient()
    assert corrected(plain, None) is plain


def test_a_missing_column_names_the_correction():
    batch = batch_of(ROW)
    columns = {name: value for name, value in batch.columns.items() if name != "old_logprobs"}
    with pytest.raises(MissingColumn, match=r"truncated\(\)\) reads 'old_logprobs'"):
        corrected(losses.policy_gradient(), corrections.truncated())(outputs_of(batch), replace(batch, columns=columns))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: corrections.truncated(0.5),  # what agrees would be cut
        lambda: corrections.masked(1.5, 2.0),
        lambda: corrections.filtered(-0.1, 1.1),
        lambda: corrections.off_policy_sequence_mask(0.0),
    ],
)
def test_impossible_bounds_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        wrong()
