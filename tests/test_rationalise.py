"""Hints: what failed is tried again with the answer in the prompt, and what is kept reads as if it had not been."""

from __future__ import annotations

import re

import pytest

from maieutic.algorithms import star
from maieutic.backends.toy import ScriptedSampler, ToyChat, ToySums, toy_policy
from maieutic.core.select import everything, informative
from maieutic.errors import ConfigError
from maieutic.protocols import Policy
from maieutic.rationalise import HINT, NOTE, Rationalised, hinted
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.train import train
from maieutic.types import Message, Score, Task

TASKS = ToySums(limit=2)  # 0 + 0, 0 + 1, 1 + 0, 1 + 1
CHAT = ToyChat([*TASKS.vocabulary, "hint"])


def obeys(prompt, sibling):
    """Writes what follows the word `hint` in the prompt; without one, 0."""
    words = CHAT.decode(prompt).split()
    return CHAT.completion(words[words.index("hint") + 1] if "hint" in words else "0")


async def exact(task, rollouts):
    return [Score(float(r.text == task.answer), correct=r.text == task.answer) for r in rollouts]


def accepts(score):
    return bool(score.correct)


def source_of(script=obeys, **options):
    roller = Roller(ScriptedSampler(script), CHAT, exact, max_completion_length=3, seed=5)
    plain = Sampled(TASKS, roller, prompts=4, num_generations=2, seed=5)
    return Rationalised(plain, roller, accepts, **{"hint": "{question} hint {answer}", **options})


def test_the_answer_goes_into_the_last_message():
    task = Task("t", (Message("system", "be brief"), Message("user", "{answer} in \\boxed{}?")), "42")
    assert hinted(task, "{question} ({answer})").prompt == (
        Message("system", "be brief"),
        Message("user", "{answer} in \\boxed{}? (42)"),  # the question's own braces are text
    )
    assert hinted(task, HINT).prompt[-1].content.endswith("Hint: the answer is 42.")
    assert task.prompt[-1].content == "{answer} in \\boxed{}?"


def test_failed_tasks_get_a_hinted_group_without_the_hint():
    groups = source_of().next()
    plain, tried = groups[:4], groups[4:]
    failed = [g for g in plain if g.task.answer != "0"]
    assert len(failed) == 3  # all but 0 + 0
    assert [g.task for g in tried] == [g.task for g in failed]
    assert [g.id for g in tried] == [~g.id for g in failed]
    assert len({g.id for g in groups}) == len(groups)
    for group in tried:
        assert group.hinted
        (rollout,) = group.rollouts
        prompt = CHAT.prompt(group.task.prompt)
        assert rollout.tokens == prompt + CHAT.completion(group.task.answer)  # as if the policy had found it alone
        assert rollout.mask == (False,) * 3 + (True,) * 2
        assert rollout.logprobs == (0.0,) * 5
        assert [(s.role, s.start, s.stop) for s in rollout.spans] == [("prompt", 0, 3), ("assistant", 3, 5)]
        assert rollout.note == NOTE
        assert group.scores[0].correct
        assert CHAT.ids["hint"] not in rollout.tokens


def test_a_policy_that_ignores_the_hint_is_not_believed():
    groups = source_of(lambda prompt, sibling: CHAT.completion("1 1")).next()
    assert len(groups) == 8
    assert not any(score.correct for group in groups for score in group.scores)
    assert star().select(groups) == []


def test_star_learns_what_it_rationalised_and_a_comparison_of_rewards_never_sees_it():
    groups = source_of().next()
    rows = star().select(groups)
    assert sorted(r.rollout.text for r in rows) == ["0", "1", "1", "2"]
    assert {r.rollout.task_id for r in everything()(groups)} == {g.task.id for g in groups[:4]}
    assert len(everything()(groups)) == 8
    assert informative()(groups) == []


def test_what_speaks_of_the_hint_is_left_out():
    groups = source_of(leaks=re.compile("1")).next()
    left = [g.scores[0] for g in groups if g.hinted and g.task.answer == "1"]
    assert [score.reward for score in left] == [None, None]
    assert "speaks of the hint" in left[0].note
    assert sorted(r.rollout.text for r in star().select(groups)) == ["0", "2"]


def test_several_attempts_and_tasks_without_an_answer():
    assert {len(g.rollouts) for g in source_of(num_generations=3).next() if g.hinted} == {3}
    roller = Roller(ScriptedSampler(obeys), CHAT, exact, max_completion_length=3)
    tasks = [Task("t", (Message("user", "1"),))]
    source = Rationalised(
        Sampled(tasks, roller, prompts=1, num_generations=1), roller, accepts, hint="{question}{answer}"
    )
    assert len(source.next()) == 1


def test_its_state_is_that_of_the_source():
    one, other = source_of(), source_of()
    one.next()
    other.restore(one.state())
    assert other.next() == one.next()
    assert other.num_generations == 2


@pytest.mark.parametrize("wrong", [{"hint": "the answer is {answer}"}, {"hint": "{question}"}, {"num_generations": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"hint|num_generations"):
        source_of(**wrong)


def test_star_learns_in_one_round_what_only_hints_could_tell_it():
    """The scripted policy answers 0 to everything; what is learned is what the hint made it write."""
    learned = toy_policy(CHAT, length=3, buckets=64, learning_rate=0.3)
    policy = Policy(learned.learner, ScriptedSampler(obeys), CHAT)
    (step,) = train(source_of(), policy, star(steps=60), steps=1)
    assert step.metrics["rows/coverage"] == 1.0
    assert step.metrics["reward/mean"] == 0.25  # of what it wrote without a hint
    assert (step.metrics["hinted/count"], step.metrics["hinted/correct"]) == (3.0, 1.0)
    after = Sampled(TASKS, Roller(learned.sampler, CHAT, exact, 3, 1.0), prompts=4, num_generations=8).next()
    correct = [score.correct for group in after for score in group.scores]
    assert sum(correct) / len(correct) > 0.9
