"""Penalties on form, worked by hand."""

from __future__ import annotations

import asyncio

import pytest

from maieutic.errors import ConfigError
from maieutic.rewards import weighted
from maieutic.rewards.shaping import SHAPING, missing_eos, repetition, soft_overlong, too_long
from maieutic.types import Finish, Rollout, Score, Task

TASK = Task("t", ())


def rollout(tokens=(), *, text="", finish=Finish.STOP, prompt=2, mask=None):
    """`tokens` after a prompt of `prompt` tokens, all chosen unless `mask` says otherwise."""
    size = prompt + len(tokens)
    own = (False,) * prompt + tuple(mask or (True,) * len(tokens))
    return Rollout("t", (0,) * prompt + tuple(tokens), own, (0.0,) * size, finish, text)


def reward(judge, *rollouts):
    return [score.reward for score in asyncio.run(judge(TASK, list(rollouts)))]


def of_length(*lengths):
    return [rollout([1] * n) for n in lengths]


def test_soft_overlong():
    # L = 20480, C = 4096, so it begins at 16384: (16384 − 17408)/4096 = −.25, half way −.5, at L −1, beyond −1
    found = reward(soft_overlong(20480, 4096), *of_length(0, 16384, 17408, 18432, 20480, 30000))
    assert found == [0, 0, -0.25, -0.5, -1, -1]


def test_the_cache_is_a_fifth_unless_told():
    assert reward(soft_overlong(20480), *of_length(16384, 17408)) == [0, -0.25]  # DAPO's own numbers
    assert reward(soft_overlong(10), *of_length(8, 9, 10)) == [0, -0.5, -1]
    assert reward(soft_overlong(3), *of_length(2, 3)) == [0, -1]


def test_what_a_tool_wrote_counts_towards_the_length_and_not_towards_repetition():
    # 10 tokens, 6 of them a tool's: as long as 10. Chosen: 1 2 3 4, no bigram twice; the 5s are not the model's
    mixed = rollout([1, 2, 5, 5, 5, 5, 5, 5, 3, 4], mask=[True] * 2 + [False] * 6 + [True] * 2)
    assert reward(soft_overlong(10, 2), mixed) == [-1]
    assert reward(repetition(2), mixed) == [0]


def test_repetition():
    # (1,2,3), (2,3,4): both different → 0. Five 5s: four bigrams, one different: −(1 − 1/4) = −.75; trigrams: −2/3
    assert reward(repetition(), rollout([1, 2, 3, 4])) == [0]
    assert reward(repetition(2), rollout([5] * 5)) == [-0.75]
    assert reward(repetition(), rollout([5] * 5)) == [pytest.approx(-2 / 3)]
    assert reward(repetition(3, -0.5), rollout([5] * 5)) == [pytest.approx(-1 / 3)]
    assert reward(repetition(), rollout([5, 5])) == [0]  # fewer than three tokens


def test_missing_eos():
    ends = [rollout([1], finish=finish) for finish in (Finish.STOP, Finish.LENGTH, Finish.ENVIRONMENT)]
    assert reward(missing_eos(-0.3), *ends) == [0, -0.3, 0]


def test_too_long():
    # 941 ≤ 1024: 0; (1024 − 1365)/1024 = −341/1024 = −.3330; (1024 − 21000)/1024 = −19.5, not below −10
    texts = [rollout(text="x" * n) for n in (941, 1024, 1365, 21000)]
    assert reward(too_long(), *texts) == [0, 0, pytest.approx(-0.3330, abs=1e-4), -10]


def test_copying_everything_does_not_pay():
    """Of a copy (all of the quiz, 21000 characters), a good short summary and a bad one, the good one is best."""

    async def quiz(task, rollouts):
        return [Score(grade) for grade in (1.0, 0.9, 0.3)]

    candidates = [rollout([1], text="x" * n) for n in (21000, 900, 800)]
    alone = reward(quiz, *candidates)
    both = reward(weighted({"quiz": quiz, "too_long": too_long()}, {"quiz": 1.0, "too_long": 1.0}), *candidates)
    assert alone.index(max(alone)) == 0
    assert both.index(max(both)) == 1


@pytest.mark.parametrize("name", SHAPING)
def test_what_failed_has_no_reward_and_nothing_is_ever_paid_for(name):
    judge = SHAPING[name](**({"max_completion_length": 4} if name == "soft_overlong" else {}))
    failed = rollout(finish=Finish.ERROR)
    rows = [failed, rollout(), rollout([7] * 9, text="x" * 5000, finish=Finish.LENGTH)]
    nothing, empty, bad = reward(judge, *rows)
    assert nothing is None
    assert empty == 0
    assert bad < 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: soft_overlong(10, 11),
        lambda: soft_overlong(10, 0),
        lambda: repetition(0),
        lambda: repetition(3, 1.0),
        lambda: missing_eos(0.5),
        lambda: missing_eos(float("-inf")),
        lambda: too_long(0),
        lambda: too_long(10, 1.0),
    ],
)
def test_settings_that_would_pay_or_divide_by_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        wrong()
