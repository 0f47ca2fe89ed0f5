"""Select: which rollouts become rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maieutic.core import select
from maieutic.types import Finish, Group, Rollout, Score, Task


def rollout(finish=Finish.STOP, chosen=True, sibling=0):
    return Rollout("t", (1, 2), (False, chosen), (0.0, 0.0), finish, sibling=sibling)


def group(*rows, id=0):
    """A group of (reward, finish) pairs; siblings are numbered in order."""
    rollouts = tuple(rollout(finish, sibling=i) for i, (_, finish) in enumerate(rows))
    return Group(Task("t", ()), rollouts, tuple(Score(reward) for reward, _ in rows), id=id)


STOP, CUT, ERROR = Finish.STOP, Finish.LENGTH, Finish.ERROR


def chosen(part, *groups):
    return [(e.group, e.rollout.sibling, e.reward) for e in part(groups)]


def test_everything_is_every_scorable_rollout_in_order():
    first, second = group((1.0, STOP), (0.0, CUT), id=4), group((0.5, STOP), id=7)
    assert chosen(select.everything(), first, second) == [(4, 0, 1.0), (4, 1, 0.0), (7, 0, 0.5)]


@pytest.mark.parametrize("part", [select.everything(), select.informative()], ids=str)
def test_what_has_no_reward_is_left_out_and_never_zero(part):
    # an unscorable rollout and one that failed have None; a reward of 0 is a reward
    mixed = group((None, STOP), (0.0, STOP), (None, ERROR), (1.0, STOP))
    assert chosen(part, mixed) == [(0, 1, 0.0), (0, 3, 1.0)]


def test_a_rollout_in_which_nothing_was_chosen_is_left_out():
    silent = Group(Task("t", ()), (rollout(chosen=False), rollout()), (Score(1.0), Score(0.0)))
    assert [e.reward for e in select.everything()([silent])] == [0.0]


def test_truncated_rollouts_are_left_out_on_request():
    """A17: what the limit cut is a row like others unless it is asked to be left out."""
    cut = group((1.0, STOP), (0.0, CUT), (0.5, Finish.ENVIRONMENT))
    assert chosen(select.everything(skip_truncated=True), cut) == [(0, 0, 1.0), (0, 2, 0.5)]
    assert len(select.everything(skip_truncated=False)([cut])) == 3


def test_informative_leaves_out_groups_whose_rewards_are_equal():
    groups = [group((1.0, STOP), (1.0, STOP), id=1), group((1.0, STOP), (0.0, STOP), id=2), group((0.1, STOP), id=3)]
    assert chosen(select.informative(), *groups) == [(2, 0, 1.0), (2, 1, 0.0)]


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([(1.0, STOP), (0.0, STOP)], True),
        ([(1.0, STOP), (1.0, STOP)], False),
        ([(0.7, STOP)], False),  # a group of one has nothing to compare with
        ([(1.0, STOP), (None, STOP)], False),  # nor has one of which one rollout is scorable
        ([(None, ERROR), (None, ERROR)], False),
        ([], False),
    ],
)
def test_keeps_says_whether_a_group_counts(rows, kept):
    part = select.informative()
    assert part.keeps(group(*rows)) is kept
    assert bool(part([group(*rows)])) is kept


@pytest.mark.parametrize("rows", [[(1.0, STOP), (0.0, CUT)], [(1.0, STOP), (1.0, STOP), (0.0, CUT)]])
def test_what_is_left_out_does_not_make_a_group_informative(rows):
    # without the truncated rollout the rewards that remain are equal
    assert select.informative().keeps(group(*rows))
    strict = select.informative(skip_truncated=True)
    assert not strict.keeps(group(*rows))
    assert strict([group(*rows)]) == []


def test_everything_does_not_say_what_it_keeps():
    assert select.everything().keeps is None


def test_every_row_is_a_unit_and_keeps_its_step_rewards():
    task, rolled = Task("t", ()), (rollout(), rollout())
    made = Group(task, rolled, (Score(1.0, step_rewards=((1, 0.25),)), Score(0.0)), id=9)
    first, second, third = select.everything()([made, replace(made, rollouts=rolled[:1], scores=(Score(1.0),), id=4)])
    assert [first.unit, second.unit, third.unit] == [0, 1, 2]
    assert [first.group, second.group, third.group] == [9, 9, 4]
    assert first.step_rewards == ((1, 0.25),)
    assert first.rollout is rolled[0]
