"""sgd: how a batch is split into optimiser steps, and what they are told."""

from __future__ import annotations

import pytest
import torch

from maieutic.core import credit, losses, select, update, weights
from maieutic.core.parts import Algorithm
from maieutic.core.trust_region import backtracked, trust_region
from maieutic.types import Batch


class Recording:
    """A learner that only writes down what it is asked to do."""

    def __init__(self, version=0, advance=True):
        self.version, self.advance = version, advance
        self.batches, self.needs = [], []

    def step(self, batch, loss, *, needs=frozenset()):
        self.batches.append(batch)
        self.needs.append(needs)
        self.version += self.advance
        return {"loss": float(len(self.batches)), "policy/sampler_mismatch_nats": float(len(self.batches))}


UNITS = [3, 3, 8, 8, 8, 1, 5, 5, 2, 2, 7]
"""Six units of 1 to 3 rows; group numbers need not be small or in order."""


def rows(units=UNITS):
    size = len(units)
    mask = torch.tensor([[False, True, True]] * size)
    mask[0, 2] = False
    zeros = torch.zeros(size, 3)
    return Batch(
        torch.arange(3 * size).view(size, 3), mask, torch.full((size,), 3), zeros, torch.zeros(size), zeros,
        torch.ones(size, dtype=torch.bool), torch.tensor(units), torch.tensor(units),
    ).with_(advantages=zeros)  # fmt: skip


def run(learner=None, weigh=None, **options):
    learner = learner or Recording()
    algorithm = Algorithm(
        "a", select.everything(), credit.none(), losses.policy_gradient(), weigh or weights.token_mean(),
        update.sgd(**options),
    )  # fmt: skip
    metrics = algorithm.update(learner, rows(), algorithm)
    return learner, metrics


def test_one_step_is_the_whole_batch_in_its_own_order():
    learner, _ = run()
    (batch,) = learner.batches
    assert batch.units.tolist() == UNITS
    assert learner.needs == [{"advantages"}]


@pytest.mark.parametrize("minibatches", [2, 3, 5, 6])
def test_minibatches_are_a_partition_by_units(minibatches):
    learner, _ = run(minibatches=minibatches)
    assert len(learner.batches) == minibatches
    units = [set(b.units.tolist()) for b in learner.batches]
    assert sorted(u for one in units for u in one) == sorted(set(UNITS))  # no unit in two of them
    firsts = [t for b in learner.batches for t in b.tokens[:, 0].tolist()]
    assert sorted(firsts) == list(range(0, 33, 3))  # every row in exactly one
    assert max(map(len, units)) - min(map(len, units)) <= 1
    for batch in learner.batches:
        assert torch.equal(batch.tokens[:, 0].sort().values, batch.tokens[:, 0])  # rows of a unit stay side by side


def test_there_are_never_more_minibatches_than_units():
    learner, _ = run(minibatches=50)
    assert len(learner.batches) == 6
    assert all(len(set(b.units.tolist())) == 1 for b in learner.batches)


def split(learner):
    return [b.units.tolist() for b in learner.batches]


def test_the_split_depends_on_the_seed_and_the_version_and_on_nothing_else():
    assert split(run(Recording(4), minibatches=3)[0]) == split(run(Recording(4), minibatches=3)[0])
    assert split(run(Recording(4), minibatches=3)[0]) != split(run(Recording(5), minibatches=3)[0])
    assert split(run(Recording(4), minibatches=3, seed=1)[0]) != split(run(Recording(4), minibatches=3)[0])


def test_every_epoch_shuffles_anew():
    learner, _ = run(epochs=2, minibatches=3)
    assert len(learner.batches) == 6
    assert split(learner)[:3] != split(learner)[3:]


def test_epochs_repeat_the_batch():
    learner, _ = run(epochs=3)
    assert split(learner) == [UNITS] * 3


def test_weights_are_made_once_over_the_rows_of_an_optimiser_step():
    # token_mean over 21 tokens; in minibatches over each one's own, so that every step's weights add up to 1
    (whole,) = run()[0].batches
    assert whole.weights[1].tolist() == pytest.approx([0, 1 / 21, 1 / 21])
    for part in run(minibatches=3)[0].batches:
        assert float(part.weights.sum()) == pytest.approx(1.0)
        chosen = int(part.mask.sum())
        assert part.weights[part.mask].tolist() == pytest.approx([1 / chosen] * chosen)


def test_metrics_are_means_over_steps_and_the_mismatch_is_that_of_the_first():
    # losses 1, 2, 3, 4 → 2.5; only at the first step are sampler and learner the same policy
    _, metrics = run(epochs=2, minibatches=2)
    assert metrics == {"loss": 2.5, "policy/sampler_mismatch_nats": 1.0}


@pytest.mark.parametrize(("options", "steps"), [({}, 1), ({"epochs": 3}, 3), ({"epochs": 2, "minibatches": 4}, 8)])
def test_steps_is_how_many_optimiser_steps_a_batch_makes_at_most(options, steps):
    assert update.sgd(**options).steps == steps


def test_passes_is_how_often_a_row_goes_through_the_model():
    assert update.sgd().passes == 1.0
    assert update.sgd(epochs=3, minibatches=4).passes == 3.0  # in parts or not: each row once an epoch
    assert (update.refit(epochs=2, rows=32).passes, update.refit(epochs=2, rows=32).rows) == (2.0, 32)
    assert update.refit(steps=40).passes is None  # as often as 40 batches are more than there are rows
    # a gradient, 10 products with the Fisher matrix, each two passes over a fifth of the rows, the search: 1 + 4 + 1
    assert trust_region(cg_iterations=10).passes == 6.0
    around = backtracked(update.sgd(epochs=2, minibatches=3))  # and its search
    assert (around.passes, around.steps, around.uses_optimiser) == (3.0, 6, True)


def test_it_prints_as_it_was_written():
    assert str(update.sgd()) == "sgd()"
    assert str(update.sgd(epochs=2)) == "sgd(epochs=2, minibatches=1)"


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"minibatches": 0}, {"epochs": -1}, {"epochs": 1.5}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"sgd: got epochs=.*expected whole numbers, at least 1"):
        update.sgd(**wrong)
