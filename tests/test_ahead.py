"""Sampling one step ahead: the same as in one process, to the bit; going on after a stop; failures; who may use it."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # on the path of the processes that are started, too

from ahead_practice import CHAT, OneBehind, die, divide, hang, policy_of, practise, refuse, source_of

from maieutic.ahead import Ahead
from maieutic.ahead.memory import SharedWeights, nameless, places
from maieutic.ahead.messages import Drawn, keep, kept, travelling
from maieutic.algorithms import ALGORITHMS, grpo, make_algorithm, reinforce, rloo
from maieutic.core.corrections import masked, truncated
from maieutic.core.cost import Spent
from maieutic.errors import ConfigError, RewardError, RunError
from maieutic.train import train
from maieutic.types import Finish, Group, Message, Rollout, Score, Span, Task


def ahead_of(policy, *more, **options):
    return Ahead(source_of(policy), policy.learner, partial(practise, 7, *more), **options)


def weights_of(policy):
    return policy.learner.weights()["table"].detach().clone()


def simulated(steps, algorithm):
    """The steps and the weights of the same training in one process."""
    policy = policy_of()
    made = list(train(OneBehind(practise(7), policy.learner), policy, algorithm, steps=steps))
    return made, weights_of(policy)


def test_it_is_what_one_process_would_do_and_goes_on_after_a_stop(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "maieutic")
    expected, end = simulated(5, grpo())
    policy = policy_of()
    source = ahead_of(policy, batches=5)
    made = []
    steps = train(source, policy, grpo(), steps=5)
    assert source.pid is None  # nothing begins before it is asked
    for step in steps:
        made.append(step)
        if step.index == 2:  # as a run does at a checkpoint
            state = source.state()
            source.save(tmp_path)
            policy.learner.save(tmp_path)
    running = source._process.running
    assert (running.pid, running.poll()) == (source.pid, None)
    source.close()
    assert running.poll() is not None
    assert source.pid is None
    assert [step.groups for step in made] == [step.groups for step in expected]
    assert torch.equal(weights_of(policy), end)
    assert source.state() == {"handed_out": 5, "source": {"visits": 20}}
    # the first batch is fresh, each other one is one update old
    assert [step.metrics["policy/staleness"] for step in made] == [0, 1, 1, 1, 1]
    assert [{r.version for g in step.groups for r in g.rollouts} for step in made] == [{0}, {0}, {1}, {2}, {3}]
    drift = [step.metrics["policy/sampler_mismatch_nats"] for step in made]
    assert drift[0] < 1e-6 < 1e-3 < min(drift[1:])
    # what rewards told the log there is told here, and what they printed did no harm
    assert [record.getMessage() for record in caplog.records if record.name == "maieutic.tests"][:1] == [
        f"judged {made[0].groups[0].task.id}"
    ]

    resumed = policy_of(seed=3)
    resumed.learner.load(tmp_path)
    source = ahead_of(resumed, batches=5)
    source.restore(state)
    source.load(tmp_path)
    rest = list(train(source, resumed, grpo(), steps=5, start=3))
    source.close()
    assert [step.groups for step in rest] == [step.groups for step in made[3:]]
    assert [step.metrics for step in rest] == [step.metrics for step in made[3:]]
    assert torch.equal(weights_of(resumed), end)


@pytest.mark.parametrize(
    ("fail", "kind", "said"),
    [
        (divide, RunError, "sampling ahead failed: ZeroDivisionError: division by zero"),
        (refuse, RewardError, "enough of this"),
        (die, RunError, r"died \(signal 9\)"),
    ],
)
def test_what_goes_wrong_there_is_raised_here(fail, kind, said):
    """In its second batch, which is sampled while the first one is learned from: it is heard of where that is due."""
    policy = policy_of()
    source = ahead_of(policy, 5, fail)  # a batch has four groups
    steps = train(source, policy, grpo(), steps=3)
    assert next(steps).index == 0
    with pytest.raises(kind, match=said) as raised:
        next(steps)
    told = [str(raised.value), *getattr(raised.value, "__notes__", [])]
    assert fail is die or any("ahead_practice.py" in text and f"in {fail.__name__}" in text for text in told)
    source.close()


def test_a_process_whose_parent_lets_go_of_it_leaves():
    """The pipe is closed, as when this process is killed: it leaves in the middle of a batch."""
    policy = policy_of()
    source = ahead_of(policy, 4, hang)
    source.next()  # a batch has four groups: the next one will not be there for an hour
    running = source._process.running
    assert running.poll() is None
    running.stdin.close()
    assert running.wait(timeout=60) == 0
    with pytest.raises(RunError, match="died"):
        source.next()
    source.close()


@pytest.mark.parametrize("make", [lambda: practise(1), partial(practise, lambda: 1)], ids=["lambda", "argument"])
def test_a_practice_that_cannot_be_sent_is_refused(make):
    policy = policy_of()
    with pytest.raises(ConfigError, match="cannot be sent to another process"):
        Ahead(source_of(policy), policy.learner, make)


def test_a_practice_of_the_running_script_is_refused():
    def practice():
        return practise(1)

    practice.__module__ = "__main__"
    policy = policy_of()
    with pytest.raises(ConfigError, match="the script that is being run"):
        Ahead(source_of(policy), policy.learner, practice)


@pytest.mark.parametrize("algorithm", [reinforce(), rloo()], ids=["reinforce", "rloo"])
def test_a_loss_without_a_ratio_is_refused_with_the_remedy(algorithm):
    policy = policy_of()
    with pytest.raises(ConfigError, match=r"token_truncate.*grpo.*overlap = false"):
        train(ahead_of(policy), policy, algorithm, steps=1)


#: Those whose loss takes each row for the present policy's, unless it is told otherwise.
WITHOUT_RATIO = {"reinforce", "rloo"}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_who_may_learn_from_older_rows(name):
    """Of the table all but two: the others have a ratio, a correction, or imitate, which asks not who wrote a row."""
    algorithm = make_algorithm(name, {}, max_completion_length=3)
    policy = policy_of()
    try:
        train(ahead_of(policy), policy, algorithm, steps=1)
    except ConfigError as error:  # the toy lacks what some of them need
        said = str(error)
    else:
        said = ""
    assert ("samples ahead" in said) == (name in WITHOUT_RATIO)


def one_step(algorithm):
    """A step on rows that a policy of other weights wrote."""
    policy = policy_of()
    practice = practise(7)

    class Older:
        stale = samples = True
        num_generations = 4

        def next(self):
            return practice.source.next()

    (step,) = train(Older(), policy, algorithm, steps=1)
    return step, policy


def test_the_ratio_is_to_the_policy_that_sampled():
    step, _ = one_step(grpo())
    # not spared, though there is one optimiser step only, and not the learner's own
    assert torch.equal(step.batch.old_logprobs, step.batch.sampler_logprobs)
    mask = step.batch.mask
    before = policy_of().learner.logprobs(step.batch)
    ratio = torch.exp(before - step.batch.sampler_logprobs)[mask]
    assert step.metrics["policy/ratio"] == pytest.approx(float(ratio.mean()), abs=1e-6)
    assert abs(float(ratio.mean()) - 1.0) > 1e-4


def test_a_correction_has_the_way_from_the_policy_that_sampled_to_the_old_one():
    for algorithm in (grpo(correction=truncated(1.1)), rloo(correction=truncated(1.1))):
        assert algorithm.loss.corrected
        step, _ = one_step(algorithm)
        assert not step.batch.has("old_logprobs")  # the present policy's, as on fresh rows
        before = policy_of().learner.logprobs(step.batch)
        weight = torch.exp(before - step.batch.sampler_logprobs)[step.batch.mask]
        assert step.metrics["correction/weight"] == pytest.approx(float(weight.mean()), abs=1e-6)
        assert 0 < step.metrics["correction/masked"] < 1
    assert not grpo().loss.corrected
    assert (0.5 * grpo(correction=masked()).loss + grpo().loss).corrected


def test_a_batch_that_is_ahead_is_kept_to_the_bit(tmp_path):
    task = Task(
        "t/1", (Message("user", "2 + 2?"),), "4", MappingProxyType({"a": [1, 2], "b": object(), "c": "x\ud800"})
    )
    rollouts = (
        Rollout("t/1", (5, 6, 7), (False, True, False), (0.0, -0.1, 0.0), Finish.STOP, "6 7", (Span("prompt", 0, 1),)),
        Rollout("t/1", (5,), (False,), (0.0,), Finish.ERROR, sibling=1, version=3, temperature=0.7, note="too long"),
    )
    scores = (Score(1 / 3, True, {"z": 0.1, "a": 0.2}, ((1, 0.25),), "said", "4"), Score(None, note="none"))
    groups = (Group(task, rollouts, scores, id=-4, hinted=True), Group(task, (), ()))
    drawn = Drawn(groups, {"visits": 3, "curriculum": {"until": {"t": 2}}}, False, Spent(3, 4))
    keep(drawn, tmp_path / "batch")
    found = kept(tmp_path / "batch")
    plain = replace(task, meta={"a": [1, 2], "c": "x\ud800"})
    assert found == replace(drawn, groups=tuple(replace(group, task=plain) for group in groups))
    assert list(found.groups[0].scores[0].parts) == ["z", "a"]
    assert type(travelling(groups)[0].task.meta) is dict


def test_weights_go_through_the_memory_to_the_bit_and_others_are_refused():
    weights = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.tensor(2.5, dtype=torch.float64)}
    where = places(weights)
    assert [place.offset for place in where] == [0, 64, 128]  # 60 and 14 bytes before them
    memory = nameless()
    one, other = SharedWeights(memory, where), SharedWeights(memory, where)
    one.write(weights)
    copies = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    other.read(copies)
    assert all(torch.equal(copies[name], weight) for name, weight in weights.items())
    with pytest.raises(ConfigError, match=r"weight 'b', \(7,\) in torch.bfloat16, and the learner none"):
        one.write({"a": weights["a"], "c": weights["c"]})
    with pytest.raises(ConfigError, match=r"the learner \(5, 3\) in torch.float32"):
        one.write({**weights, "a": weights["a"].T})


def test_it_is_its_source_in_all_else():
    source = ahead_of(policy_of())
    assert (source.num_generations, source.prompts, source.samples) == (4, 4, True)
    assert source.roller.chat is CHAT
    assert not hasattr(source, "share")
