"""The loop: what it yields, skips, refuses and asks models for; stopping and going on changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest
import torch

from maieutic.algorithms import dapo, dr_grpo, grpo, reinforce, rloo, sft
from maieutic.annotate import annotate, fillers
from maieutic.backends.toy import ToyChat, ToyScorer, ToySums, toy_policy
from maieutic.core.kl import k2
from maieutic.errors import ConfigError
from maieutic.pack import pack
from maieutic.rollout import Roller
from maieutic.sources import Recorded, Sampled
from maieutic.train import train
from maieutic.types import Score

TASKS = ToySums(limit=3)
CHAT = ToyChat(TASKS.vocabulary)


async def digits(task, rollouts):
    """1 for the right text, a tenth for a text of the right length."""
    return [
        Score(float(r.text == task.answer) + 0.1 * (len(r.text) == len(task.answer)), correct=r.text == task.answer)
        for r in rollouts
    ]


def named(value):
    """The id of a parameter: an algorithm's name and what it steps by."""
    return f"{value.name} {value.update}" if hasattr(value, "update") else str(value)


def policy_of(seed=1):
    return toy_policy(CHAT, length=3, buckets=32, seed=seed)


def source_of(policy, reward=digits, **options):
    roller = Roller(policy.sampler, CHAT, reward, max_completion_length=3, seed=5)
    return Sampled(TASKS, roller, **{"prompts": 4, "num_generations": 4, "seed": 5, **options})


@dataclass
class Noting:
    """A source that notes when it is asked, and with which version of the weights its rollouts were sampled."""

    source: Sampled
    events: list = field(default_factory=list)
    samples = True

    def next(self):
        groups = self.source.next()
        self.events.append(("sample", groups[0].rollouts[0].version))
        return groups


def test_it_yields_each_step_after_its_update_and_samples_the_next_one_only_then():
    policy = policy_of()
    source = Noting(source_of(policy))
    seen = []
    for step in train(source, policy, grpo(), steps=3):
        source.events.append(("yield", step.index))
        seen.append(step)
        assert policy.learner.version == step.index + 1
    assert source.events == [
        ("sample", 0), ("yield", 0), ("sample", 1), ("yield", 1), ("sample", 2), ("yield", 2),
    ]  # fmt: skip
    for step in seen:
        assert step.batch is not None
        assert step.batch.size == len(step.examples) == 16
        assert step.batch.tokens.tolist() == pack(step.examples).tokens.tolist()  # row i of the batch is examples[i]
        assert step.batch.has("advantages")
        assert len(step.groups) == 4


def test_it_does_nothing_until_it_is_asked():
    policy = policy_of()
    steps = train(source_of(policy), policy, grpo(), steps=3)
    assert policy.learner.version == 0
    next(steps)
    assert policy.learner.version == 1


def test_weights_are_published_once_an_update_and_before_the_caller_sees_the_step():
    published = []
    policy = policy_of()
    policy = replace(policy, publish=lambda: published.append(policy.learner.version))
    for step in train(source_of(policy), policy, grpo(epochs=2), steps=3):
        assert len(published) == step.index + 1
    assert published == [2, 4, 6]  # two optimiser steps each


async def all_equal(task, rollouts):
    """The same reward for everyone."""
    return [Score(0.5) for _ in rollouts]


async def nothing(task, rollouts):
    """No reward for anyone."""
    return [Score(None) for _ in rollouts]


@pytest.mark.parametrize(("reward", "algorithm"), [(all_equal, dapo()), (nothing, grpo())], ids=["equal", "unscorable"])
def test_a_step_without_rows_is_yielded_and_makes_no_update(reward, algorithm):
    published = []
    policy = replace(policy_of(), publish=lambda: published.append(1))
    before = policy.learner.weights()["table"].detach().clone()
    for index, step in enumerate(train(source_of(policy, reward), policy, algorithm, steps=2)):
        assert step.index == index
        assert step.batch is None
        assert step.examples == ()
        assert len(step.groups) == 4
        assert step.metrics["train/skipped"] == 1.0
        assert step.metrics["rollouts/count"] == 16
        assert "loss" not in step.metrics
    assert torch.equal(policy.learner.weights()["table"], before)
    assert policy.learner.version == 0
    assert published == []


def test_equal_rewards_make_an_update_that_moves_nothing_where_rows_are_kept():
    policy = policy_of()
    before = policy.learner.weights()["table"].detach().clone()
    (step,) = train(source_of(policy, all_equal), policy, grpo(), steps=1)
    assert step.metrics["train/skipped"] == 0.0
    assert step.metrics["reward/frac_zero_std"] == 1.0
    assert torch.equal(policy.learner.weights()["table"], before)


@dataclass
class Untouched:
    """A source and a learner that must not be asked."""

    def next(self):
        raise AssertionError("a step began")


@pytest.mark.parametrize("algorithm", [grpo(beta=0.1), rloo(beta=0.1), grpo(beta=0.1, kl=k2, epochs=2)], ids=named)
def test_a_reference_that_is_read_and_not_given_is_refused_before_the_first_step(algorithm):
    with pytest.raises(ConfigError, match=rf"{algorithm.name} reads 'ref_logprobs'.*reference"):
        train(Untouched(), policy_of(), algorithm, steps=1)  # not even iterated


@dataclass
class Counting:
    """A reference that counts how often it is asked."""

    scorer: ToyScorer
    asked: int = 0

    def logprobs(self, batch):
        self.asked += 1
        return self.scorer.logprobs(batch)


@pytest.mark.parametrize(("algorithm", "expected"), [(grpo(), 0), (dr_grpo(3), 0), (grpo(beta=0.1), 2)], ids=named)
def test_a_reference_is_asked_only_where_it_is_read(algorithm, expected):
    policy = policy_of()
    reference = Counting(ToyScorer(policy.learner.model))
    for step in train(source_of(policy), policy, algorithm, steps=2, reference=reference):
        assert step.batch.has("ref_logprobs") is bool(expected)
    assert reference.asked == expected


@pytest.mark.parametrize(
    ("algorithm", "filled"),
    [
        (grpo(), False),
        (reinforce(), False),
        (sft(), False),
        (grpo(epochs=2), True),
        (dapo(minibatches=2), True),
        (rloo(beta=0.1), True),
    ],
    ids=named,
)
def test_the_old_policy_is_run_only_where_it_is_not_the_present_one(algorithm, filled):
    policy = policy_of()
    source = Recorded(TASKS, CHAT, batch=4) if algorithm.name == "sft" else source_of(policy)
    for step in train(source, policy, algorithm, steps=2, reference=ToyScorer(policy.learner.model)):
        assert step.batch.has("old_logprobs") is filled


def test_the_old_policy_is_that_before_the_update():
    policy = policy_of()
    frozen = ToyScorer(policy.learner.model)
    (step,) = train(source_of(policy), policy, grpo(epochs=3), steps=1)
    assert torch.equal(step.batch.old_logprobs, frozen.logprobs(step.batch))
    assert not torch.equal(step.batch.old_logprobs, policy.learner.logprobs(step.batch))


def test_the_reference_stays_where_the_run_began():
    policy = policy_of()
    reference = ToyScorer(policy.learner.model)
    steps = list(train(source_of(policy), policy, grpo(beta=0.05), steps=4, reference=reference))
    divergence = [step.metrics["kl/reference"] for step in steps]
    assert divergence[0] == pytest.approx(0.0, abs=1e-12)  # the policy is its own reference at step 0
    assert divergence[1] > 1e-3
    assert divergence[3] > divergence[1]


def test_annotate_fills_what_is_asked_and_nothing_else():
    policy = policy_of()
    batch = pack(grpo().select(source_of(policy).next()))
    fill = fillers(policy, ToyScorer(policy.learner.model), None)
    assert annotate(batch, frozenset(), fill).columns == {}
    both = annotate(batch, frozenset({"old_logprobs", "ref_logprobs"}), fill)
    assert both.columns.keys() == {"old_logprobs", "ref_logprobs"}
    # sampled by this very policy a moment ago, so learner, reference and sampler say the same
    torch.testing.assert_close(both.old_logprobs, batch.sampler_logprobs, atol=1e-6, rtol=0)
    torch.testing.assert_close(both.ref_logprobs, batch.sampler_logprobs, atol=1e-6, rtol=0)


def test_metrics_of_a_step():
    policy = policy_of()
    (step,) = train(source_of(policy), policy, grpo(beta=0.05), steps=1, reference=ToyScorer(policy.learner.model))
    assert step.metrics.keys() == {
        "rollouts/count", "rollouts/unscorable", "rollouts/errors",
        "reward/mean", "reward/std", "reward/frac_zero_std", "reward/correct",
        "completions/mean_length", "completions/max_length", "completions/clipped_ratio",
        "loss", "clip_ratio/low", "clip_ratio/high", "policy/ratio", "policy/kl_to_old", "kl/reference",
        "policy/ratio_limited", "kl/limited", "rows/count", "rows/coverage",
        "policy/sampler_mismatch_nats", "policy/entropy", "train/skipped",
    }  # fmt: skip
    rewards = [r for g in step.groups for r in g.rewards]
    assert step.metrics["reward/mean"] == pytest.approx(sum(rewards) / 16)
    assert step.metrics["policy/ratio"] == 1.0
    assert step.metrics["policy/sampler_mismatch_nats"] < 1e-6


def test_several_epochs_move_the_ratio_and_the_clip_bites():
    policy = policy_of()
    (step,) = train(source_of(policy), policy, grpo(epochs=4, minibatches=2), steps=1)
    assert policy.learner.version == 8
    assert step.metrics["policy/ratio"] != 1.0
    assert step.metrics["clip_ratio/low"] + step.metrics["clip_ratio/high"] > 0
    tables = {}
    for epsilon in (0.05, 0.2, 0.9):
        policy = policy_of()
        list(train(source_of(policy), policy, grpo(epsilon=epsilon, epochs=4), steps=1))
        tables[epsilon] = policy.learner.weights()["table"].detach()
    assert not torch.equal(tables[0.05], tables[0.2])
    assert not torch.equal(tables[0.2], tables[0.9])


def test_the_clip_cannot_matter_with_one_optimiser_step():
    tables = []
    for epsilon in (0.01, 0.9):
        policy = policy_of()
        list(train(source_of(policy), policy, grpo(epsilon=epsilon), steps=3))
        tables.append(policy.learner.weights()["table"].detach())
    assert torch.equal(*tables)


def test_steps_and_start_say_which_indices_are_run():
    policy = policy_of()
    assert [s.index for s in train(source_of(policy), policy, grpo(), steps=5, start=3)] == [3, 4]
    assert list(train(source_of(policy), policy, grpo(), steps=3, start=3)) == []


RESUMED = [sft(), reinforce(), rloo(beta=0.05), grpo(beta=0.05), grpo(epochs=2, minibatches=2), dr_grpo(3), dapo()]


def outcome(step):
    """Everything of a step that could differ."""
    return step.index, step.groups, dict(step.metrics)


@pytest.mark.parametrize("algorithm", RESUMED, ids=named)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(algorithm, tmp_path):
    def begin():
        policy = policy_of()
        if algorithm.name == "sft":
            source = Recorded(TASKS, CHAT, batch=5, seed=5)
        else:
            source = source_of(policy, until=algorithm.select.keeps)
        return policy, source, ToyScorer(policy.learner.model)

    policy, source, reference = begin()
    unbroken = [outcome(s) for s in train(source, policy, algorithm, steps=8, reference=reference)]
    final = policy.learner.weights()["table"].detach()

    policy, source, reference = begin()
    begun = [outcome(s) for s in train(source, policy, algorithm, steps=3, reference=reference)]
    policy.learner.save(tmp_path)
    state = source.state()

    policy, source, reference = begin()  # a new process
    policy.learner.load(tmp_path)
    source.restore(state)
    rest = [outcome(s) for s in train(source, policy, algorithm, steps=8, start=3, reference=reference)]
    assert begun + rest == unbroken
    assert torch.equal(policy.learner.weights()["table"], final)


def test_it_can_be_run_inside_a_running_loop():
    """As in a notebook: the same steps as from ordinary code."""

    async def notebook():
        policy = policy_of()
        return [outcome(s) for s in train(source_of(policy), policy, grpo(), steps=2)]

    policy = policy_of()
    ordinary = [outcome(s) for s in train(source_of(policy), policy, grpo(), steps=2)]
    assert asyncio.run(notebook()) == ordinary
