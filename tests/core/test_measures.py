"""Measures: what a log says of a step's groups, from a set worked by hand."""

from __future__ import annotations

import pytest

from maieutic.core.measures import group_measures
from maieutic.types import Finish, Group, Rollout, Score, Task


def rollout(length, finish=Finish.STOP, tool=0):
    """A prompt token, `length` chosen tokens and `tool` tokens that a tool wrote."""
    mask = (False,) + (True,) * length + (False,) * tool
    return Rollout("t", (1,) * len(mask), mask, (0.0,) * len(mask), finish)


def group(id, *rows):
    rollouts, scores = zip(*rows, strict=True)
    return Group(Task("t", ()), tuple(rollouts), tuple(scores), id=id)


GROUPS = [
    # two rewards that differ
    group(0, (rollout(4), Score(1.0, correct=True, parts={"answer": 1.0, "format": 0.5})),
             (rollout(2, tool=3), Score(0.0, correct=False, parts={"answer": 0.0}))),
    # two that are equal; one was cut by the length limit
    group(1, (rollout(8, Finish.LENGTH), Score(0.5, correct=False, parts={"answer": 0.5})),
             (rollout(6), Score(0.5, correct=True, parts={"answer": 0.5}))),
    # one that failed, one unscorable, one with a reward that nothing is compared with
    group(2, (rollout(0, Finish.ERROR), Score(None)),
             (rollout(3), Score(None)),
             (rollout(1), Score(-1.0))),
]  # fmt: skip


def test_a_set_of_groups_by_hand():
    # rewards 1, 0, .5, .5, −1: mean 1/5; squared deviations .64 + .04 + .09 + .09 + 1.44 = 2.3, /5 → .46, √ .678233
    # comparable groups 0 and 1, of which 1 has equal rewards; known verdicts: 2 right of 4
    # lengths 4, 2, 8, 6, 0, 3, 1 (tool tokens do not count): 24 over 7 rollouts, one of which was cut
    assert group_measures(GROUPS) == pytest.approx(
        {
            "rollouts/count": 7,
            "rollouts/unscorable": 2,
            "rollouts/errors": 1,
            "reward/mean": 0.2,
            "reward/std": 0.678233,
            "reward/frac_zero_std": 0.5,
            "reward/correct": 0.5,
            "completions/mean_length": 24 / 7,
            "completions/max_length": 8,
            "completions/clipped_ratio": 1 / 7,
            "reward/parts/answer": (1.0 + 0.0 + 0.5 + 0.5) / 4,
            "reward/parts/format": 0.5,  # over the one rollout that has the part
        },
        abs=1e-6,
    )


def test_what_is_unscorable_is_counted_and_is_no_zero():
    measures = group_measures([group(0, (rollout(1), Score(1.0)), (rollout(1), Score(None)))])
    assert measures["reward/mean"] == 1.0
    assert measures["rollouts/unscorable"] == 1
    assert "reward/frac_zero_std" not in measures  # one reward is not compared with anything


def test_groups_of_one_do_not_count_as_equal():
    measures = group_measures([group(0, (rollout(1), Score(1.0))), group(1, (rollout(1), Score(1.0)))])
    assert "reward/frac_zero_std" not in measures


def test_without_rewards_there_are_no_means_of_them():
    measures = group_measures([group(0, (rollout(0, Finish.ERROR), Score(None)))])
    assert measures["rollouts/errors"] == measures["rollouts/unscorable"] == 1
    assert not any(name.startswith("reward/") for name in measures)


def test_no_groups_at_all():
    assert group_measures([]) == {"rollouts/count": 0, "rollouts/unscorable": 0, "rollouts/errors": 0}
