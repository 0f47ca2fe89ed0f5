"""What every reward promises: exactly one score a rollout, in order, and none for a rollout that failed."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from maieutic.endpoint import ScriptedRespondent
from maieutic.rewards import (
    AnswerVerifier,
    answer_reward,
    gate,
    judge_group,
    load_reward,
    required,
    reward,
    think_format,
    weighted,
)
from maieutic.rewards.judge import Judge
from maieutic.tasks import AnswerAfterMarker, NumberAfterMarker, ProgramValue
from maieutic.types import Finish, Message, Rollout, Score, Task

TASK = Task("t/1", (Message("user", "2 + 2?"),), "4", {"numbers": ("2", "2")})


def rollout(text, finish=Finish.STOP, sibling=0):
    note = "the prompt is too long" if finish is Finish.ERROR else ""
    return Rollout("t/1", (1, 2), (False, True), (0.0, -0.1), finish, text, sibling=sibling, note=note)


@reward
def length(completion):
    """A tenth for each character."""
    return 0.1 * len(completion)


@reward(timeout_seconds=5)
def parts(completion, answer):
    """A mapping of parts."""
    return {"has": float(answer in completion), "short": float(len(completion) < 20)}


OWN = """
def own(prompt, completion, answer):
    return float(completion.endswith(answer) and prompt == "2 + 2?")

async def longest(task, rollouts):
    from maieutic.types import Finish, Score

    widest = max((len(r.text) for r in rollouts if r.finish is not Finish.ERROR), default=0)
    return [Score(None if r.finish is Finish.ERROR else float(len(r.text) == widest)) for r in rollouts]
"""


def from_file(name):
    """A reward out of a user's file."""

    def make(folder):
        path = folder / "rewards.py"
        path.write_text(OWN, encoding="utf-8")
        return load_reward(f"{path}:{name}", timeout_seconds=5)

    return make


def strict(folder):
    return answer_reward(AnswerVerifier())


def by_text(messages):
    """A score from 1 to 10 that depends on the candidate only."""
    return 1 + len(messages[0].content.split("<candidate>")[1]) % 10


REWARDS = {
    "answer": strict,
    "answer, truncated": lambda folder: answer_reward(AnswerVerifier(), correct=2.0, wrong=-1.0, truncated=-0.5),
    "number after marker": lambda folder: answer_reward(NumberAfterMarker(hashes=4)),
    "answer after marker": lambda folder: answer_reward(AnswerAfterMarker()),
    "program": lambda folder: answer_reward(ProgramValue()),
    "think format": lambda folder: think_format(),
    "required blocks": lambda folder: required("think", "answer"),
    "weighted": lambda folder: weighted(
        {"answer": strict(folder), "format": think_format()}, {"answer": 1.0, "format": 0.1}
    ),
    "gate": lambda folder: gate(think_format(), strict(folder)),
    "lifted": lambda folder: length,
    "lifted, parts": lambda folder: parts,
    "judge": lambda folder: Judge(ScriptedRespondent(lambda messages, sample: f"<score>{by_text(messages)}</score>")),
    "judge, at length": lambda folder: Judge(
        ScriptedRespondent(lambda messages, sample: f"<score>{by_text(messages)}</score>"), length_correction=1.0
    ),
    "file": from_file("own"),
    "file, group": from_file("longest"),
}


@pytest.fixture(scope="module", params=REWARDS)
def judge(request, tmp_path_factory):
    made = REWARDS[request.param](tmp_path_factory.mktemp("rewards"))
    yield made
    if hasattr(made, "close"):
        made.close()


def scores(judge, *rollouts, task=TASK):
    return asyncio.run(judge(task, rollouts))


TEXTS = [
    "#### 4",
    "#### 5",
    "",
    "<think>2 + 2</think>#### 4",
    "<think>a</think>\n<answer>4</answer>",
    "n0 + n1",
    "\x00<",
]


def test_one_score_each_in_order(judge):
    group = [rollout(text, sibling=i) for i, text in enumerate(TEXTS)]
    given = scores(judge, *group)
    assert len(given) == len(TEXTS)
    assert all(isinstance(score, Score) for score in given)
    assert all(isinstance(score.reward, float) and math.isfinite(score.reward) for score in given)
    again = scores(judge, *reversed(group))
    assert again[::-1] == given


@pytest.mark.parametrize("size", [0, 1, 2, 9])
def test_groups_of_any_size(judge, size):
    assert len(scores(judge, *[rollout("#### 4")] * size)) == size


def test_a_rollout_that_failed_has_no_reward_and_takes_none_from_its_siblings(judge):
    good, bad = rollout("#### 4"), rollout("", Finish.ERROR)
    first, failed, last = scores(judge, good, bad, good)
    assert failed.reward is None
    assert failed.correct is None
    assert first == last
    assert first.reward is not None


def test_nothing_but_failures(judge):
    assert [s.reward for s in scores(judge, *[rollout("", Finish.ERROR)] * 3)] == [None] * 3


def test_a_truncated_rollout_is_judged(judge):
    (score,) = scores(judge, rollout("#### 4", Finish.LENGTH))
    assert score.reward is not None


def test_judging_is_deterministic_and_leaves_its_input_alone(judge):
    group = [rollout(text, sibling=i) for i, text in enumerate(TEXTS)]
    kept = [replace(r) for r in group]
    assert scores(judge, *group) == scores(judge, *group)
    assert group == kept
    assert TASK.meta == {"numbers": ("2", "2")}


def test_groups_may_be_judged_at_the_same_time(judge):
    groups = [[rollout(text)] * 2 for text in TEXTS]

    async def together():
        return await asyncio.gather(*(judge_group(judge, TASK, group) for group in groups))

    assert asyncio.run(together()) == [scores(judge, *group) for group in groups]


def test_it_tells_texts_apart(judge):
    """A reward that gives everything the same would pass all of the above."""
    beside = rollout("a")
    assert len({scores(judge, rollout(text), beside)[0].reward for text in TEXTS}) > 1
