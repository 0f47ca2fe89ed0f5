"""Parts: how they print, compose, and say what they read."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from maieutic.core import credit, losses, select, update, weights
from maieutic.core.kl import k2, k3
from maieutic.core.parts import Algorithm, Credit, Loss, Part, Select, Weigh, needs, remembers, requires
from maieutic.core.parts import credit as credit_factory
from maieutic.core.parts import loss as loss_factory
from maieutic.errors import MissingColumn
from maieutic.types import PROVIDERS, Batch, Outputs


def batch_of(**columns):
    """One row: a prompt token and two chosen ones."""
    shape = (1, 3)
    mask = torch.tensor([[False, True, True]])
    batch = Batch(
        torch.zeros(shape, dtype=torch.long), mask, torch.tensor([3]), torch.zeros(shape), torch.ones(1),
        torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([True]), torch.tensor([0]), torch.tensor([0]),
    )  # fmt: skip
    return batch.with_(**{name: torch.tensor([value]) for name, value in columns.items()})


OUT = Outputs(torch.tensor([[0.0, -1.0, -2.0]]))


@pytest.mark.parametrize(
    ("part", "kind", "label"),
    [
        (select.everything(), Select, "everything()"),
        (select.informative(skip_truncated=True), Select, "informative(skip_truncated=True)"),
        (credit.kl_in_reward(0.05), Credit, "kl_in_reward(beta=0.05)"),
        (credit.group_normalized(eps=1e-6), Credit, "group_normalized(eps=1e-06)"),
        (losses.clipped_surrogate(0.2, epsilon_high=0.28), Loss, "clipped_surrogate(epsilon=0.2, epsilon_high=0.28)"),
        (losses.kl_to_reference(k3), Loss, "kl_to_reference(estimator=k3)"),
        (weights.constant_length(512), Weigh, "constant_length(length=512)"),
    ],
)
def test_a_part_prints_as_it_was_written(part, kind, label):
    assert isinstance(part, kind)
    assert part.label == str(part) == label


def test_factories_keep_their_documentation():
    assert losses.nll.__name__ == "nll"
    assert "maximum likelihood" in losses.nll.__doc__


def test_parts_and_algorithms_are_values_that_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        losses.nll().label = "other"


def test_losses_add():
    # −A·lp + k2(lp, ref): −2·(−1) + ½(−1 + 1)² = 2  and  −3·(−2) + ½(−2 + 1)² = 6.5
    both = losses.policy_gradient() + losses.kl_to_reference(k2)
    assert both.label == "policy_gradient() + kl_to_reference(estimator=k2)"
    assert both.needs == {"advantages", "ref_logprobs"}
    value = both(OUT, batch_of(advantages=[0.0, 2.0, 3.0], ref_logprobs=[0.0, -1.0, -1.0]))
    assert value[0, 1:].tolist() == [2.0, 6.5]


def test_losses_scale():
    half = 0.5 * losses.nll()
    assert half.label == "0.5 * nll()"
    assert half(OUT, batch_of())[0, 1:].tolist() == [0.5, 1.0]


def test_a_scaled_sum_is_written_with_parentheses():
    whole = 0.5 * (losses.nll() + losses.nll())
    assert whole.label == "0.5 * (nll() + nll())"
    assert whole(OUT, batch_of())[0, 1:].tolist() == [1.0, 2.0]
    assert (2 * (losses.nll() + 0.5 * losses.nll())).label == "2 * (nll() + 0.5 * nll())"


def test_what_both_losses_watch_is_watched_and_not_scaled():
    both = losses.clipped_surrogate() + 0.1 * losses.kl_to_reference()
    columns = {"advantages": [0.0, 1.0, 1.0], "old_logprobs": [0.0, -1.0, -2.0], "ref_logprobs": [0.0, -2.0, -2.0]}
    _, seen = both.terms(OUT, batch_of(**columns))
    assert {"policy/ratio", "kl/reference"} <= seen.keys()
    # k3 at δ = −1 + 2 = 1: e⁻¹ + 1 − 1 = e⁻¹, whatever the coefficient
    assert seen["kl/reference"][0, 1:].tolist() == pytest.approx([0.367879, 0.0], abs=1e-6)


@loss_factory
def watching(name):
    """A loss of zeros that watches a constant under `name`."""
    return lambda outputs, batch: (torch.zeros_like(outputs.logprobs), {name: torch.ones_like(outputs.logprobs)})


def test_a_loss_may_watch_nothing():
    value, seen = losses.nll().terms(OUT, batch_of())
    assert seen == {}
    assert torch.equal(value, losses.nll()(OUT, batch_of()))
    assert watching("a").terms(OUT, batch_of())[1].keys() == {"a"}


def test_credits_chain_left_first():
    # uniform gives (1, 1); chaining whitened after it gives 0, chaining it before leaves whitened nothing to read
    chained = credit.uniform() | credit.whitened()
    assert chained.label == "uniform() | whitened()"
    assert chained.needs == frozenset()
    assert chained(batch_of()).advantages.tolist() == [[0, 0, 0]]
    backwards = credit.whitened() | credit.uniform()
    assert backwards.needs == {"advantages"}
    with pytest.raises(MissingColumn, match=r"whitened\(\) \| uniform\(\) reads 'advantages'"):
        backwards(batch_of())


def test_a_chain_needs_what_its_second_link_reads_of_models():
    assert (credit.discounted() | credit.kl_in_reward(0.1)).needs == {"old_logprobs", "ref_logprobs"}


def test_a_chain_whose_first_link_fills_nothing_says_who_misses_it():
    with pytest.raises(MissingColumn, match=r"^whitened\(\) reads 'advantages'.*a credit"):
        (credit.none() | credit.whitened())(batch_of())


@pytest.mark.parametrize("column", sorted(PROVIDERS))
def test_a_missing_column_names_its_reader_and_its_provider(column):
    def read(outputs, batch):
        return getattr(batch, column)

    with pytest.raises(MissingColumn) as caught:
        Loss("greedy()", read, frozenset({column}))(OUT, batch_of())
    assert str(caught.value).startswith(f"greedy() reads {column!r}")
    assert PROVIDERS[column] in str(caught.value)


def test_reading_a_missing_column_of_a_batch_says_who_fills_it():
    with pytest.raises(MissingColumn, match=r"no 'ref_logprobs'.*reference=\.\.\."):
        batch_of().ref_logprobs  # noqa: B018 - the read is what is tested
    with pytest.raises(AttributeError, match="nonsense"):
        batch_of().nonsense  # noqa: B018 - the read is what is tested


def test_needs_refuses_a_column_that_does_not_exist():
    with pytest.raises(ValueError, match=r"needs\(ref_logprob\): no such column; known: .*ref_logprobs"):
        needs("advantages", "ref_logprob")


def test_a_batch_is_not_changed_by_with():
    batch = batch_of(advantages=[0.0, 1.0, 1.0])
    other = batch.with_(advantages=torch.zeros(1, 3), rewards=torch.tensor([5.0]))
    assert batch.advantages.tolist() == [[0, 1, 1]]
    assert batch.rewards.tolist() == [1]
    assert other.advantages.tolist() == [[0, 0, 0]]
    assert other.rewards.tolist() == [5]
    assert other.has("advantages")
    assert not other.has("returns")


def test_rows_of_a_batch_take_their_columns_along():
    batch = batch_of(advantages=[0.0, 1.0, 2.0]).rows(torch.tensor([0, 0]))
    assert batch.size == 2
    assert batch.advantages.tolist() == [[0, 1, 2]] * 2


def test_rows_of_a_batch_keep_the_pairs_of_which_both_are_there():
    # four copies of the row; pairs (0, 1) and (3, 2)
    four = batch_of().rows(torch.tensor([0, 0, 0, 0])).with_(pairs=torch.tensor([[0, 1], [3, 2]]))
    assert four.rows(torch.tensor([2, 3, 0])).pairs.tolist() == [[1, 0]]  # 3 is now row 1, 2 is row 0; 1 is gone
    assert four.rows(torch.tensor([0])).pairs.tolist() == []


def algorithm_of(given, loss, optimiser=None):
    return Algorithm("own", select.everything(), given, loss, weights.token_mean(), optimiser or update.sgd())


def test_an_algorithm_needs_the_union_and_asks_models_for_what_it_does_not_fill():
    loss = losses.clipped_surrogate() + 0.1 * losses.kl_to_reference()
    one = algorithm_of(credit.group_centered(), loss)
    assert one.needs == {"advantages", "old_logprobs", "ref_logprobs"}
    assert one.asks == {"ref_logprobs"}  # one optimiser step: the old policy is the present one
    assert algorithm_of(credit.group_centered(), loss, update.sgd(epochs=2)).asks == {"old_logprobs", "ref_logprobs"}
    # a credit reads the old policy before the update, so it is asked for whatever the update does
    in_reward = algorithm_of(credit.kl_in_reward(0.1) | credit.leave_one_out(), losses.clipped_surrogate())
    assert in_reward.asks == {"old_logprobs", "ref_logprobs"}


def test_an_algorithm_samples_unless_its_rows_were_shown():
    one = algorithm_of(credit.group_centered(), losses.policy_gradient())
    assert one.samples
    assert not dataclasses.replace(one, select=select.demonstrations()).samples


def test_a_coefficient_of_nothing_leaves_a_part_out():
    loss = losses.policy_gradient() + 0 * losses.kl_to_reference()
    assert (loss.label, loss.needs) == ("policy_gradient()", {"advantages"})
    given = credit.kl_in_reward(0.0) | credit.leave_one_out()
    assert (given.label, given.needs) == ("leave_one_out()", frozenset())
    assert (credit.none() | credit.uniform()).label == "uniform()"


class Counter:
    """Remembers how many batches it saw."""

    def __init__(self):
        self.seen = 0

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]


def test_what_a_part_remembers_and_requires_goes_up_to_its_algorithm():
    counter = Counter()

    @credit_factory
    def counted():
        @remembers(counter)
        @requires("values")
        def give(batch):
            counter.seen += 1
            return batch

        return give

    algorithm = algorithm_of(counted() | credit.uniform(), losses.policy_gradient())
    algorithm.credit(batch_of())
    assert algorithm.requires == {"values"}
    assert algorithm.state() == [{"seen": 1}]
    algorithm.restore([{"seen": 5}])
    assert counter.seen == 5
    with pytest.raises(ValueError, match="no such capability"):
        requires("wings")


def test_a_bare_part_needs_nothing():
    part = Part("bare()", print)
    part.check(batch_of())
    assert part.needs == frozenset()
