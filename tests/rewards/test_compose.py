"""Arithmetic of answer rewards, weighted sums and gates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from maieutic.errors import ConfigError, RewardError
from maieutic.protocols import Reward
from maieutic.rewards import AnswerVerifier, answer_reward, gate, judge_group, think_format, weighted
from maieutic.types import Finish, Message, Rollout, Score, Task

TASK = Task("t", (Message("user", "2 + 2?"),), "4")


def rollout(text: str, finish: Finish = Finish.STOP) -> Rollout:
    return Rollout("t", (1, 2), (False, True), (0.0, -0.1), finish, text)


def fixed(*scores: Score) -> Reward:
    async def judge(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        return list(scores)

    return judge


def judged(reward: Reward, *rollouts: Rollout) -> list[Score]:
    return asyncio.run(judge_group(reward, TASK, rollouts))


def test_answers() -> None:
    right, wrong, cut, failed = judged(
        answer_reward(AnswerVerifier(), correct=2.0, wrong=-1.0),
        rollout("#### 4"),
        rollout("#### 5"),
        rollout("#### 4", Finish.LENGTH),
        rollout("#### 4", Finish.ERROR),
    )
    assert right == Score(2.0, correct=True, parts={"answer": 2.0}, answer="4")
    assert wrong == Score(-1.0, correct=False, parts={"answer": -1.0}, note="got 5, expected 4", answer="5")
    assert cut == Score(2.0, correct=True, parts={"answer": 2.0}, note="cut by the length limit", answer="4")
    assert (failed.reward, failed.correct, failed.parts) == (None, None, {})


def test_truncated_rollouts_can_have_a_reward_of_their_own() -> None:
    reward = answer_reward(AnswerVerifier(), truncated=-0.5)
    done, cut = judged(reward, rollout("#### 4"), rollout("#### 4", Finish.LENGTH))
    assert (done.reward, cut.reward, cut.correct) == (1.0, -0.5, True)


def test_weighted_sums() -> None:
    reward = weighted(
        {
            "answer": answer_reward(AnswerVerifier()),
            "format": think_format(),
        },
        {"answer": 1.0, "format": 0.1},
    )
    good, plain, formed = judged(
        reward, rollout("<think>2 + 2</think>#### 4"), rollout("#### 4"), rollout("<think>2</think>#### 5")
    )
    assert good.reward == pytest.approx(1.1)  # 1 · 1 + 0.1 · 1
    assert good.parts == {"answer": 1.0, "format": 1.0}
    assert (plain.reward, plain.parts) == (1.0, {"answer": 1.0, "format": 0.0})
    assert formed.reward == pytest.approx(0.1)  # 1 · 0 + 0.1 · 1
    assert [score.correct for score in (good, plain, formed)] == [True, True, False]
    assert [score.answer for score in (good, plain, formed)] == ["4", "4", "5"]


def test_what_was_read_passes_through_sums_and_gates() -> None:
    """Without an answer a wrong rollout is malformed; with one it is parsed and wrong."""
    answer = answer_reward(AnswerVerifier())
    texts = (rollout("#### 5"), rollout("five, I think"))
    for reward in (answer, weighted({"a": answer}, {"a": 0.5}), gate(fixed(Score(1.0), Score(1.0)), answer)):
        assert [score.answer for score in judged(reward, *texts)] == ["5", None]
    closed = gate(fixed(Score(None), Score(None)), answer)
    assert [score.answer for score in judged(closed, *texts)] == ["5", None]


def test_parts_of_parts_and_step_rewards_are_kept() -> None:
    steps = Score(3.0, parts={"a": 1.0, "b": 2.0}, step_rewards=((1, 4.0),))
    (score,) = judged(weighted({"x": fixed(steps), "y": fixed(Score(1.0))}, {"x": 0.5, "y": -2.0}), rollout(""))
    assert score.reward == pytest.approx(-0.5)  # 0.5 · 3 − 2 · 1
    assert score.parts == {"x": 3.0, "x/a": 1.0, "x/b": 2.0, "y": 1.0}
    assert score.step_rewards == ((1, 2.0),)  # 0.5 · 4


def test_an_unscorable_part_makes_the_whole_unscorable() -> None:
    parts = {"x": fixed(Score(1.0, correct=True)), "y": fixed(Score(None, note="no judge"))}
    for order in (parts, dict(reversed(parts.items()))):
        (score,) = judged(weighted(order, {"x": 1.0, "y": 0.5}), rollout(""))
        assert (score.reward, score.correct, score.parts, score.note) == (None, True, {"x": 1.0}, "y: no judge")


def test_gates_multiply() -> None:
    opened = fixed(Score(1.0), Score(0.0), Score(0.5), Score(None, note="?"), Score(1.0))
    inner = fixed(
        Score(2.0, correct=True, parts={"answer": 2.0}), Score(2.0), Score(3.0, step_rewards=((1, 4.0),)), Score(1.0),
        Score(None),
    )  # fmt: skip
    scores = judged(gate(opened, inner), *[rollout("")] * 5)
    assert [score.reward for score in scores] == [2.0, 0.0, 1.5, None, None]  # 1·2, 0·2, 0.5·3
    assert scores[0].parts == {"gate": 1.0, "answer": 2.0}
    assert scores[0].correct is True
    assert scores[2].step_rewards == ((1, 2.0),)  # 0.5 · 4


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_gate_lies_between_0_and_1(value: float) -> None:
    with pytest.raises(RewardError, match="between 0 and 1"):
        judged(gate(fixed(Score(value)), fixed(Score(1.0))), rollout(""))


def test_the_wrong_number_of_scores_is_an_error() -> None:
    short = fixed(Score(1.0))
    expected = r"got 1 scores for 2 rollouts; expected exactly one"
    for reward in (short, weighted({"a": short}, {"a": 1.0}), gate(short, fixed(Score(1.0), Score(1.0)))):
        with pytest.raises(RewardError, match=expected):
            judged(reward, rollout(""), rollout(""))


def test_weights_must_fit_their_rewards() -> None:
    part = fixed(Score(1.0))
    for rewards, weights in (({}, {}), ({"a": part}, {}), ({"a": part}, {"b": 1.0}), ({"a": part}, {"a": 1, "b": 1})):
        with pytest.raises(ConfigError, match="one weight for each reward"):
            weighted(rewards, weights)
    with pytest.raises(ConfigError, match="finite"):
        weighted({"a": part}, {"a": float("inf")})
    with pytest.raises(ConfigError, match="finite"):
        answer_reward(AnswerVerifier(), truncated=float("nan"))
