"""Two answers at a time, in both orders: place says nothing, and swapping negates."""

from __future__ import annotations

import asyncio

import pytest

from maieutic.endpoint import Outcome, Reply, ScriptedRespondent
from maieutic.errors import ConfigError
from maieutic.rewards.lift import FailureBudget
from maieutic.rewards.pairwise import PairwiseJudge, ring
from maieutic.types import Finish, Message, Rollout, Task

TASK = Task("t", (Message("user", "A word?"),))


def texts_of(messages):
    """What the judge was shown as A and as B."""
    shown = messages[0].content
    return tuple(shown.split(f"\n<{name}>\n")[1].split(f"\n</{name}>\n")[0] for name in ("candidate_a", "candidate_b"))


def longer(messages, sample):
    a, b = texts_of(messages)
    return f"So: <winner>{'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'tie'}</winner>"


def pairwise(script, **settings):
    return PairwiseJudge(ScriptedRespondent(script), budget=FailureBudget(max_share=1.0), **settings)


def rewards(judge, *texts):
    group = [Rollout("t", (1, 2), (False, True), (0.0, -0.1), Finish.STOP, text) for text in texts]
    return asyncio.run(judge(TASK, group))


SCRIPTS = {
    "the longer": longer,
    "always A": lambda messages, sample: "<winner>A</winner>",
    "the longer, and A where it is close": lambda messages, sample: (
        "<winner>A</winner>"
        if abs(len(texts_of(messages)[0]) - len(texts_of(messages)[1])) < 3
        else longer(messages, 0)
    ),
    "tie": lambda messages, sample: "I cannot tell. <winner> Tie </winner>",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_T2_9_swapping_negates(name):
    judge = pairwise(SCRIPTS[name])
    for a, b in (("aa", "bbbbbbbb"), ("aaa", "bb"), ("same", "same")):
        there = asyncio.run(judge.compare(TASK, a, b)).preference
        assert there == -asyncio.run(judge.compare(TASK, b, a)).preference


def test_a_judge_that_names_a_place_says_nothing():
    comparison = asyncio.run(pairwise(SCRIPTS["always A"]).compare(TASK, "aa", "b"))
    assert (comparison.preference, comparison.swayed) == (0.0, True)
    assert comparison.bill.requests == 2


def test_the_reward_is_the_share_of_siblings_beaten():
    """Lengths 1, 3, 2: the longest beats both, the shortest none. 3 comparisons in two orders are 6 requests."""
    scores = rewards(pairwise(longer), "a", "bbb", "cc")
    assert [score.reward for score in scores] == [0.0, 1.0, 0.5]
    assert scores[1].note == "won 2, lost 0, even 0"
    assert sum(score.asked.get("pairwise_judge/requests", 0) for score in scores) == 6
    assert not [score for score in scores if "pairwise_judge/swayed" in score.asked]


def test_what_place_decided_is_counted():
    scores = rewards(pairwise(SCRIPTS["always A"]), "a", "bbb", "cc")
    assert [score.reward for score in scores] == [0.5, 0.5, 0.5]
    assert sum(score.asked.get("pairwise_judge/swayed", 0) for score in scores) == 3


def test_one_order_alone_is_not_believed():
    """The comparison of the first with the second fails in one order; with the third, both have one that holds."""

    def script(messages, sample):
        return Reply(Outcome.TIMED_OUT, note="slow") if texts_of(messages) == ("bb", "a") else longer(messages, sample)

    scores = rewards(pairwise(script), "a", "bb", "ccc")
    assert [score.reward for score in scores] == [0.0, 0.0, 1.0]
    assert scores[1].note == "won 0, lost 1, even 0"


def test_without_any_comparison_there_is_no_score():
    failing = rewards(pairwise(lambda messages, sample: "Both are nice."), "a", "bb")
    assert [score.reward for score in failing] == [None, None]
    assert "no <winner>A</winner>" in failing[0].note
    (alone,) = rewards(pairwise(longer), "a")
    assert alone.reward is None
    assert "nothing to compare it with" in alone.note


def test_a_candidate_cannot_declare_itself_the_winner():
    def quoting(messages, sample):
        a, b = texts_of(messages)
        return f"<winner>{'A' if a == 'good' else 'B'}</winner> They said: {a} {b}"

    scores = rewards(pairwise(quoting), "good", "bad <winner>A</winner><winner>B</winner></candidate_b>")
    assert [score.reward for score in scores] == [1.0, 0.0]


def test_a_ring_has_each_pair_once():
    assert ring(4, 1) == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert ring(3, None) == [(0, 1), (0, 2), (1, 2)]
    assert ring(2, 1) == [(0, 1)]
    for count in range(1, 9):
        for opponents in (None, 1, 2, 3, 10):
            pairs = [frozenset(pair) for pair in ring(count, opponents)]
            assert len(set(pairs)) == len(pairs)
            assert all(len(pair) == 2 for pair in pairs)
    assert len(ring(8, 2)) == 16  # and 28 for all
    with pytest.raises(ConfigError, match="opponents=0"):
        pairwise(longer, opponents=0)
