"""Curriculum: tasks that are always or never solved are passed over, and looked at again."""

from __future__ import annotations

import json

import pytest

from maieutic.backends.toy import STOP, ScriptedSampler, ToyChat, ToySums
from maieutic.core.select import informative
from maieutic.curriculum import Curriculum
from maieutic.errors import ConfigError
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.types import Finish, Group, Rollout, Score, Task

TASKS = ToySums(limit=3)
CHAT = ToyChat(TASKS.vocabulary)


def group(task, visit, *correct):
    rollout = Rollout(task, (1, 2), (False, True), (0.0, 0.0), Finish.STOP)
    return Group(Task(task, ()), (rollout,) * len(correct), tuple(Score(0.0, correct=c) for c in correct), id=visit)


def kept(curriculum, task, visits):
    return [v for v in visits if curriculum.keeps(task, v)]


def test_a_task_outside_the_bounds_is_left_out_of_the_next_epochs():
    # ten tasks, two epochs to skip: seen at visit 13, in epoch 1, it is out in epochs 2 and 3 and back at visit 40
    curriculum = Curriculum(skip=2)
    curriculum.see(
        [group("easy", 13, True, True), group("hard", 14, False, False), group("mixed", 15, True, False)], 10
    )
    assert kept(curriculum, "easy", [20, 29, 35, 39, 40, 55]) == [40, 55]
    assert kept(curriculum, "hard", [20, 39, 40]) == [40]
    assert kept(curriculum, "mixed", [20, 39, 40]) == [20, 39, 40]
    assert curriculum.keeps("never seen", 20)


@pytest.mark.parametrize(
    ("correct", "inside"),
    [([True, False, False, False], False), ([True, True, False, False], True), ([True, True, True, False], False)],
)
def test_the_bounds_themselves_are_outside(correct, inside):
    # solve rates ¼, ½ and ¾ between bounds of ¼ and ¾
    curriculum = Curriculum(0.25, 0.75)
    curriculum.see([group("t", 0, *correct)], 1)
    assert curriculum.keeps("t", 1) is inside


def test_what_is_not_known_to_be_wrong_is_not_wrong():
    curriculum = Curriculum()
    curriculum.see([group("unknown", 0, None, None), group("partly", 1, None, True, False)], 2)
    assert curriculum.keeps("unknown", 2)
    assert curriculum.keeps("partly", 2)
    curriculum.see([group("partly", 3, None, True, True)], 2)
    assert not curriculum.keeps("partly", 4)


def test_only_the_last_look_counts():
    curriculum = Curriculum()
    curriculum.see([group("t", 0, False, False)], 1)
    assert not curriculum.keeps("t", 1)
    curriculum.see([group("t", 3, True, False)], 1)
    assert curriculum.keeps("t", 1)


@pytest.mark.parametrize("wrong", [{"low": 0.5, "high": 0.5}, {"low": -0.1}, {"high": 1.1}, {"skip": 0}])
def test_bounds_with_nothing_between_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected 0 ≤ low < high ≤ 1"):
        Curriculum(**wrong)


async def by_text(task, rollouts):
    return [Score(float(r.text == task.answer), correct=r.text == task.answer) for r in rollouts]


def even_half(prompt, sibling):
    """Sibling 0 is right where the first number is even; all are wrong where it is odd."""
    a, _, b = (int(w) if w != "+" else w for w in CHAT.decode(prompt).split())
    right = sibling == 0 and a % 2 == 0
    return (*CHAT.encode(" ".join(str(a + b if right else 9))), STOP)


def sampled(**options):
    roller = Roller(ScriptedSampler(even_half), CHAT, by_text, max_completion_length=3)
    return Sampled(TASKS, roller, **{"prompts": 3, "num_generations": 2, "curriculum": Curriculum(), **options})


def odd(groups):
    return [g for g in groups if int(g.task.id.removeprefix("toy/")[0]) % 2]


class TestSampled:
    """Nine tasks, of which the three with an odd first number are never solved."""

    def test_the_first_epoch_is_whole_and_the_next_two_lack_what_taught_nothing(self):
        source = sampled()
        first = [g for _ in range(3) for g in source.next()]
        assert sorted(g.task.id for g in first) == sorted(t.id for t in TASKS)
        assert len(odd(first)) == 3
        later = [g for _ in range(4) for g in source.next()]  # six tasks an epoch: two epochs in four steps
        assert not odd(later)
        assert len({g.task.id for g in later[:6]}) == len({g.task.id for g in later[6:]}) == 6
        assert len(odd(source.next() + source.next() + source.next())) == 3  # the fourth epoch is whole again

    def test_a_step_always_has_its_prompts(self):
        source = sampled(prompts=5)
        assert [len(source.next()) for _ in range(9)] == [5] * 9

    def test_where_nothing_is_worth_it_the_source_goes_on_to_the_epoch_that_looks_again(self):
        never = Sampled(
            TASKS, Roller(ScriptedSampler(lambda *_: (STOP,)), CHAT, by_text, max_completion_length=3),
            prompts=9, num_generations=2, curriculum=Curriculum(skip=3),
        )  # fmt: skip
        never.next()
        assert [g.id for g in never.next()] == list(range(36, 45))  # epochs 1, 2 and 3 are passed over

    def test_going_on_is_the_same_as_never_having_stopped(self):
        unbroken = sampled()
        expected = [unbroken.next() for _ in range(9)]
        begun = sampled()
        for _ in range(5):
            begun.next()
        resumed = sampled()
        resumed.restore(json.loads(json.dumps(begun.state())))
        assert [resumed.next() for _ in range(4)] == expected[5:]
        assert resumed.state() == unbroken.state()

    def test_it_spares_the_refills(self):
        # without it each epoch draws the three useless tasks again; with it only the first does
        plain, spared = (sampled(until=informative().keeps, curriculum=c) for c in (None, Curriculum()))
        drawn = [sum(len(source.next()) for _ in range(6)) for source in (plain, spared)]
        assert drawn[1] == 21  # for 18 useful groups: 9 + 6 + 6
        assert 24 <= drawn[0] <= 27  # three epochs of 9, less what comes after the last useful one
