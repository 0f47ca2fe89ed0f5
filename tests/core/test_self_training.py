"""Self-training: what is kept of what was sampled, and what fine-tuning on it leads to.

Tabular: completions of one token out of four (the stop token and three words), two of them correct.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from maieutic.algorithms import expert_iteration, rejection_sampling
from maieutic.backends.toy import ToyLearner, ToyModel
from maieutic.core import losses, weights
from maieutic.core.measures import group_measures, row_measures
from maieutic.core.self_training import correct_only, equations
from maieutic.core.update import refit
from maieutic.errors import UnknownName
from maieutic.pack import pack
from maieutic.types import Finish, Group, Rollout, Score, Task

PROMPT = (1,)


def sampled(texts, correct, task="t", id=0, tokens=None, **score):
    """A group: the i-th rollout writes texts[i] (as one token, unless told otherwise)."""
    rollouts = tuple(
        Rollout(task, (*PROMPT, token), (False, True), (0.0, -0.5), Finish.STOP, text, sibling=i, temperature=0.7)
        for i, (text, token) in enumerate(zip(texts, tokens or [2] * len(texts), strict=True))
    )
    scores = tuple(Score(float(right), correct=right, **score) for right in correct)
    return Group(Task(task, ()), rollouts, scores, id=id)


def texts_of(rows):
    return [row.rollout.text for row in rows]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("He has 3*4 = $12.00, so 12 - 2 = 10 are left. #### 10", ("3*4=12", "12-2=10")),
        ("48 / 2 = <<48/2=24>>24 clips; 48+24=<<48+24=72>>72", ("48/2=24", "48+24=72")),  # GSM8K's annotations
        ("3 x 4 = 12 and 2 × 5 = 10 and 8 ÷ 2 = 4", ("3*4=12", "2*5=10", "8/2=4")),
        ("1,000 + 2,500.50 = 3,500.5", ("1000+2500.5=3500.5",)),
        ("(2 + 3) * 4 = 20", ("(2+3)*4=20",)),
        ("2 + 2 = 4 + 1 = 5", ("2+2=4", "4+1=5")),
        ("3 * 4 = 12 ; 12 - 2 = 10 ; # 10", ("3*4=12", "12-2=10")),
        ("2 + 2 = 5", ("2+2=5",)),  # what was written, not what is true
        ("x = 5, and 7 = 7", ()),
        ("no numbers = here", ()),
        ("", ()),
    ],
)
def test_the_equations_of_a_text(text, wanted):
    assert equations(text) == wanted


def test_equations_read_any_text_in_no_time():
    assert equations("1 " * 50_000 + "= 3") == ()
    assert equations("=" * 50_000) == ()
    assert len(equations("1+1=2 " * 10_000)) == 10_000


def test_only_what_is_correct_is_kept_and_each_text_once():
    group = sampled(["a  b", "wrong", "a b", "c"], [True, False, True, True])
    assert texts_of(correct_only()([group])) == ["a  b", "c"]
    assert texts_of(correct_only("none")([group])) == ["a  b", "a b", "c"]
    assert texts_of(correct_only(len)([group])) == ["a  b", "a b", "c"]  # a key of one's own: 4, 3 and 1 characters


def test_the_same_equations_in_other_words_are_one_path():
    said = ["3 * 4 = 12 apples", "so 3*4=12", "12 = 4 * 3, 4*3 = 12", "a dozen", "a  dozen"]
    assert texts_of(correct_only("equations")([sampled(said, [True] * 5)])) == [said[0], said[2], said[3]]


def test_duplicates_are_those_of_one_task_in_any_of_its_groups():
    groups = [sampled(["a"], [True], "t", 0), sampled(["a"], [True], "u", 1), sampled(["a", "b"], [True, True], "t", 2)]
    rows = correct_only()(groups)
    assert [(r.rollout.task_id, r.rollout.text) for r in rows] == [("t", "a"), ("t", "b"), ("u", "a")]
    assert [r.unit for r in rows] == [0, 1, 2]
    assert [r.group for r in rows] == [0, 0, 1]


def test_a_score_that_does_not_say_correct_must_reach_the_threshold():
    group = sampled(["a", "b", "c", "d"], [True] * 4)
    scores = (Score(1.0), Score(0.9), Score(2.0, correct=False), Score(None))
    assert texts_of(correct_only()([replace(group, scores=scores)])) == ["a"]
    assert texts_of(correct_only(threshold=0.5)([replace(group, scores=scores)])) == ["a", "b"]


def test_what_the_limit_cut_is_left_out_unless_asked_for():
    group = sampled(["a", "b"], [True, True])
    cut = replace(group, rollouts=(replace(group.rollouts[0], finish=Finish.LENGTH), group.rollouts[1]))
    assert texts_of(correct_only()([cut])) == ["b"]
    assert texts_of(correct_only(skip_truncated=False)([cut])) == ["a", "b"]


def test_rows_are_imitated_and_carry_no_log_probs_of_a_sampler():
    (row,) = correct_only()([sampled(["a"], [True])])
    assert row.rollout.logprobs == (0.0, 0.0)
    assert row.rollout.temperature == 1.0  # sampled at 0.7, and it is the policy itself that is to become likelier
    assert row.reward == 1.0


def test_the_cap_draws_of_each_task_and_the_seed_says_which():
    many = [sampled([f"{i}" for i in range(30)], [True] * 30, task) for task in "tu"]
    drawn = [texts_of(correct_only(cap=10, seed=seed)(many)) for seed in (0, 0, 1)]
    assert [len(each) for each in drawn] == [20, 20, 20]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][:10] != drawn[0][10:]  # another ten of the other task
    assert len(correct_only(cap=40)(many)) == 60


def test_impossible_settings_are_refused():
    with pytest.raises(UnknownName, match="equations"):
        correct_only("equation")
    with pytest.raises(ValueError, match="cap=0"):
        correct_only(cap=0)
    with pytest.raises(ValueError, match="union"):
        correct_only("none", union=True)
    for wrong in ({"epochs": 0}, {"rows": 0}, {"steps": 0}, {"growth": 1.2}, {"steps": 4, "growth": 0.0}):
        with pytest.raises(ValueError, match="refit"):
            refit(**wrong)


# ---- the union of rounds


def test_a_task_without_a_correct_sample_gives_nothing_and_coverage_never_falls_under_union():
    """Three rounds on four tasks, of which (1, 2), (3), then none has a correct sample."""
    rounds = [{1, 2}, {3}, set()]
    found = {}
    for union in (False, True):
        select = correct_only(union=union)
        for right in rounds:
            groups = [sampled([f"{t}"], [t in right], f"t{t}", t) for t in range(4)]
            rows = select(groups)
            found.setdefault(union, []).append((row_measures(groups, rows)["rows/coverage"], len(rows)))
    assert found[False] == [(0.5, 2), (0.25, 1), (0.0, 0)]
    assert found[True] == [(0.5, 2), (0.75, 3), (0.75, 3)]


def test_what_is_kept_goes_through_json_and_on_as_if_nothing_had_happened():
    first, second = correct_only(union=True), correct_only(union=True)
    first([sampled(["a", "ß\ud800"], [True, True], tokens=[2, 70_000])])
    second.kept.restore(json.loads(json.dumps(first.kept.state())))
    later = [sampled(["a", "b"], [True, True])]
    assert second(later) == first(later)
    assert texts_of(first(later)) == ["a", "ß\ud800", "b"]
    assert first.memory == (first.kept,)


def test_demonstrations_are_what_the_first_round_adds_to():
    select = correct_only(union=True)
    shown = Group(
        Task("t", ()), (Rollout("t", (1, 3), (False, True), (0.0, 0.0), Finish.STOP, "shown"),), (Score(1.0),)
    )
    select.kept.add([shown])
    assert texts_of(select([sampled(["found", "shown"], [True, True])])) == ["shown", "found"]


def test_two_selects_share_nothing():
    one, other = correct_only(union=True), correct_only(union=True)
    one([sampled(["a"], [True])])
    assert other([]) == []


# ---- what one round leads to


def four(seed=2):
    """A policy over four one-token completions after one prompt, far from uniform."""
    model = ToyModel(4, 1, seed=seed, dtype=torch.float64)
    model.table.data *= 8
    return model


def chances(model):
    return torch.softmax(model.table[0, 0, PROMPT[-1]].detach(), 0)


@pytest.mark.parametrize(("dedup", "wanted"), [("none", [0.75, 0.25]), ("text", [0.5, 0.5])])
def test_a_round_without_and_with_duplicates(dedup, wanted):
    """π = (6, 5, 2, 3)/16; completions 0 and 2 are correct. 16 samples in exactly these proportions stand for K → ∞.

    With duplicates π′ ∝ π · 1[correct] = (6/8, 2/8); without them it is uniform over the correct ones, (1/2, 1/2).
    """
    counts = {0: 6, 1: 5, 2: 2, 3: 3}
    drawn = [token for token, count in counts.items() for _ in range(count)]
    group = sampled([f"{token}" for token in drawn], [token in (0, 2) for token in drawn], tokens=drawn)
    rows = correct_only(dedup)([group])
    shares = [sum(row.rollout.tokens[1] == token for row in rows) / len(rows) for token in (0, 2)]
    assert shares == wanted

    model = four()
    algorithm = replace(expert_iteration(), update=refit(epochs=600, rows=100))
    learner = ToyLearner(model, learning_rate=0.1)
    algorithm.update(learner, pack(rows), algorithm)
    assert chances(model)[[0, 2]].tolist() == pytest.approx(wanted, abs=1e-3)
    assert float(chances(model)[[1, 3]].sum()) < 2e-3


# ---- refit


class Watching(ToyLearner):
    """A toy learner that notes the weights before each optimiser step, the rows, and what it was reset to."""

    def __init__(self, model):
        super().__init__(model, learning_rate=0.1)
        self.before, self.sizes, self.resets = [], [], []

    def reset(self, folder=None, **how):
        super().reset(folder, **how)
        self.resets.append(how)

    def step(self, batch, loss, **more):
        self.before.append(self.model.table.detach().clone())
        self.sizes.append(batch.size)
        return super().step(batch, loss, **more)


def rows_of(count):
    return pack(correct_only()([sampled([f"{i}" for i in range(count)], [True] * count, tokens=[0, 2] * (count // 2))]))


def test_each_round_begins_with_the_weights_of_the_base():
    learner = Watching(four())
    base = learner.model.table.detach().clone()
    algorithm = replace(expert_iteration(), update=refit(epochs=2, rows=4))
    for _ in range(3):
        algorithm.update(learner, rows_of(8), algorithm)
    assert len(learner.before) == 3 * 2 * 2  # rounds, epochs, batches of 4 of 8 rows
    for round_ in range(3):
        assert torch.equal(learner.before[4 * round_], base)
        assert not torch.equal(learner.before[4 * round_ + 1], base)
    assert learner.resets == [{"total_steps": 4, "keep_weights": False}] * 3


def test_without_a_restart_it_goes_on_with_the_weights_and_a_fresh_optimiser():
    learner = Watching(four())
    algorithm = replace(rejection_sampling(), update=refit(epochs=1, rows=8, restart=False))
    for _ in range(2):
        algorithm.update(learner, rows_of(8), algorithm)
    assert not torch.equal(learner.before[1], learner.before[0])
    assert learner.resets == [{"total_steps": 1, "keep_weights": True}] * 2
    assert refit().requires == {"restart"}
    assert refit(restart=False).requires == frozenset()


def test_batches_are_of_at_most_so_many_rows_and_every_row_is_in_one_of_each_epoch():
    learner = Watching(four())
    algorithm = replace(expert_iteration(), update=refit(epochs=2, rows=4))
    metrics = algorithm.update(learner, rows_of(10), algorithm)
    assert learner.sizes == [4, 3, 3, 4, 3, 3]  # 10 rows in 3 batches that differ by one row at most
    assert metrics["optim/steps"] == 6.0
    assert "policy/sampler_mismatch_nats" not in metrics


def test_steps_grow_from_round_to_round_and_a_resumed_run_counts_on():
    """40 steps at first, 20 % more each round: 40, 48, 57.6 → 58."""
    algorithm = replace(expert_iteration(), update=refit(rows=4, steps=40, growth=1.2))
    taken = [algorithm.update(Watching(four()), rows_of(8), algorithm)["optim/steps"] for _ in range(2)]
    resumed = replace(expert_iteration(), update=refit(rows=4, steps=40, growth=1.2))
    resumed.restore(json.loads(json.dumps(algorithm.state())))
    learner = Watching(four())
    assert [*taken, resumed.update(learner, rows_of(8), resumed)["optim/steps"]] == [40.0, 48.0, 58.0]
    assert len(learner.sizes) == 58


def test_a_refit_weighs_each_batch_by_itself():
    """Two batches of one row, of 1 and 2 tokens: the token mean of each adds up to 1, not to 1/3 and 2/3."""
    group = sampled(["a", "b"], [True, True])
    long = Rollout("t", (1, 2, 0), (False, True, True), (0.0,) * 3, Finish.STOP, "b")
    rows = correct_only()([replace(group, rollouts=(group.rollouts[0], long))])
    sums = []

    class Weighed(ToyLearner):
        def step(self, batch, loss, **more):
            sums.append(float(batch.weights.sum()))
            return super().step(batch, loss, **more)

    algorithm = replace(expert_iteration(), loss=losses.nll(), weigh=weights.token_mean(), update=refit(rows=1))
    algorithm.update(Weighed(ToyModel(4, 2)), pack(rows), algorithm)
    assert sums == [1.0, 1.0]


def test_hinted_groups_are_imitated_and_measured_apart():
    plain, hinted = sampled(["a"], [False]), replace(sampled(["b", "c"], [True, False], id=-1), hinted=True)
    assert texts_of(correct_only()([plain, hinted])) == ["b"]
    measures = group_measures([plain, hinted])
    assert measures["reward/mean"] == 0.0
    assert measures["rollouts/count"] == 1.0
    assert (measures["hinted/count"], measures["hinted/correct"]) == (2.0, 0.5)
