"""What completions show of themselves, and penalties for it, worked by hand."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maieutic.errors import ConfigError
from maieutic.rewards import traits
from maieutic.rewards.penalties import (
    PENALTIES,
    copied,
    enumerated_answer,
    language_switch,
    several_answers,
    unclosed_tags,
)
from maieutic.rewards.shaping import SHAPING
from maieutic.types import Finish, Message, Rollout, Score, Task

PROMPT = (7, 1, 2, 3, 4, 5)


def rollout(tokens=(9,), text="", *, mask=None, finish=Finish.STOP):
    """`tokens` after the six of `PROMPT`, all chosen unless `mask` says otherwise."""
    own = (False,) * 6 + tuple(mask or (True,) * len(tokens))
    return Rollout("t", (*PROMPT, *tokens), own, (0.0,) * len(own), finish, text)


def reward(judge, made, answer="7", asked="What is 3 + 4?"):
    task = Task("t", (Message("user", asked),), answer)
    (score,) = asyncio.run(judge(task, [made]))
    return score.reward


def test_copied():
    # (1,2,3,4), (2,3,4,5): both in the prompt → −1. Of (2,3,4,5), (3,4,5,8), (4,5,8,9), (5,8,9,9) a quarter: free
    assert reward(copied(), rollout([1, 2, 3, 4, 5])) == -1
    assert reward(copied(), rollout([2, 3, 4, 5, 8, 9, 9])) == 0
    # Of (2,3), (3,9): a half, −(.5 − .25)/(1 − .25) = −1/3
    assert reward(copied(2, free=0.25), rollout([2, 3, 9])) == pytest.approx(-1 / 3)
    assert reward(copied(), rollout([1, 2, 3])) == 0  # fewer than four tokens
    # what a tool inserted is not the model's: chosen are 1 2 and 4 5, no bigram of which but (2, 4) is new: 2/3
    inserted = rollout([1, 2, 3, 4, 5], mask=[True, True, False, True, True])
    assert reward(copied(2, free=0.0), inserted) == pytest.approx(-2 / 3)


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("", 0),
        ("so it is 7", 0),
        ("#### 7", 1),
        ("# 7 ; # 8", 2),
        ("#### 70 #### 71 #### 72", 3),
        ("#### 0.5\n#### 1/2", 1),  # the same value
        ("\\boxed{1} or \\boxed{2}", 2),
        ("<answer>7</answer><answer>8</answer><answer>7</answer>", 2),
        ("The answer is 7. No: the answer is 8.", 2),
        ("<think># 1 # 2 # 3</think># 7", 1),  # thinking aloud is free
        ("# 1. Plan\n# 2. Do\n#### 7", 1),  # headings are no answers
    ],
)
def test_listed_answers(text, answers):
    assert traits.listed_answers(text) == answers
    assert reward(several_answers(), rollout(text=text)) == pytest.approx(-(1 - 1 / max(1, answers)))


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ("7", 1), ("", 0), ("1,080", 1), ("3/4", 1), ("-5", 1), ("70, 71 or 72", 3), ("70,71", 2), ("0-1000", 2),
        ("72 \\pm 5", 2), ("A/B/C", 3), ("either A or B", 2), ("12 apples", 1), ("...,;", 0), ("1,000, 2,000", 2),
    ],
)  # fmt: skip
def test_alternatives(answer, count):
    assert traits.alternatives(answer) == count


def test_enumerated_answer():
    assert reward(enumerated_answer(), rollout(text="<answer>70, 71, 72, 73</answer>")) == -0.75
    assert reward(enumerated_answer(), rollout(text="<answer>72</answer>")) == 0
    assert reward(enumerated_answer(), rollout(text="70, 71")) == 0  # no marked answer
    pair = rollout(text="<answer>1, 2</answer>")
    assert reward(enumerated_answer(), pair, answer="(1, 2)") == 0  # the gold is a pair itself
    assert reward(enumerated_answer(), rollout(text="\\boxed{1, 2, 3, 4}"), answer="1, 2") == -0.5


def test_unclosed_tags():
    assert reward(unclosed_tags(), rollout(text="<think>x</think><answer>7</answer>")) == 0
    assert reward(unclosed_tags(), rollout(text="<think>x<answer>7</answer>")) == -0.5
    assert reward(unclosed_tags(), rollout(text="x</think>7</answer>")) == -1
    assert reward(unclosed_tags(["think"]), rollout(text="</think>x<think>")) == -1  # the wrong way round
    assert reward(unclosed_tags(), rollout(text="7")) == 0


def test_language_switch():
    # 4 letters of 8 are Han: (.5 − .1)/(1 − .1) = .4444
    assert reward(language_switch(), rollout(text="so 答案 be 七十 7")) == pytest.approx(-0.4 / 0.9)
    assert reward(language_switch(), rollout(text="so be it: 7")) == 0
    assert reward(language_switch(), rollout(text="so α + β = 7")) == 0  # mathematics
    assert reward(language_switch(), rollout(text="答案是7"), asked="三加四是多少?") == 0
    assert reward(language_switch(free=0.0), rollout(text="so はい"), asked="say yes") == -0.5
    assert reward(language_switch(), rollout(text="12 + 3")) == 0  # no letters


def test_repetition_counts_what_the_model_chose():
    assert traits.repeated([5] * 5, 2) == 0.75
    assert traits.repeated([1, 2, 3]) == 0
    assert traits.repeated([1, 2]) is None


def test_impossible_settings_are_refused():
    for make in PENALTIES.values():
        with pytest.raises(ConfigError, match="expected a finite number, 0 or less"):
            make(penalty=0.5)
    for make, wrong in ((copied, {"n": 0}), (copied, {"free": 1.0}), (language_switch, {"free": -0.1})):
        with pytest.raises(ConfigError, match="expected"):
            make(**wrong)
    with pytest.raises(ConfigError, match="names of tags"):
        unclosed_tags(["<b>"])


def test_a_failed_rollout_has_no_penalty_and_no_reward():
    for make in PENALTIES.values():
        failed = rollout(text="", finish=Finish.ERROR)
        assert asyncio.run(make()(Task("t", ()), [failed]))[0] == Score(
            None, note="the rollout failed: no reason given"
        )


pieces = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "####", "# ", "7", "1,080", "or", " ", "\n", ",",
     "答", "\ud800", "\x00", "-", "/", "answer is", "é", "Я"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(pieces, max_size=40).map("".join), st.lists(st.integers(0, 9), max_size=30), st.none() | st.text())
def test_penalties_are_bounded_whatever_is_written(text, tokens, answer):
    made = rollout(tokens, text) if tokens else rollout(text=text)
    limited = {"soft_overlong": {"max_completion_length": 20}}
    for name, make in {**PENALTIES, **SHAPING}.items():
        found = reward(make(**limited.get(name, {})), made, answer)
        assert -10 <= found <= 0 if name == "too_long" else -1 <= found <= 0, name
