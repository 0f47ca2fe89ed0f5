"""Rewards that raise, hang, return what is no reward or the wrong number of scores; and what async calls share."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from maieutic.rewards.lift import Ending, FailureBudget, Judgement, PlainReward, load_reward
from maieutic.types import Finish, Message, Rollout, Task

TASK = Task("t", (Message("user", "2 + 2?"),), "4")

SOURCE = """
import asyncio, os, time

def single(completion, answer):
    return _judge(completion)

async def waited(completion, answer):
    return _judge(completion)

def group(completions, answer, **kwargs):
    return [_judge(c) for c in completions]

async def waited_group(completions, answer, **kwargs):
    return [_judge(c) for c in completions]

def labelled(queries, prompts, labels):
    return {"rewards": [_judge(q[len(p):]) for q, p in zip(queries, prompts)]}

def _judge(text):
    if text == "raise":
        raise KeyError("gone")
    while text == "hang":
        time.sleep(0.01)
    if text == "die":
        os._exit(3)
    return {"nan": float("nan"), "text": "1.0", "none": None}.get(text, 1.0)

running = most = 0

async def together(completion):
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.05)
    running -= 1
    return float(most)

async def sleepy(completion):
    await asyncio.sleep(60 if completion == "sleep" else 0)
    return 1.0

lock = asyncio.Lock()

async def shares(completion):
    async with lock:
        await asyncio.sleep(0)
    return float(id(asyncio.get_running_loop()) % 1000003)

async def sleepy_group(completions, **kwargs):
    await asyncio.sleep(60)

def few(completions, **kwargs):
    return [1.0]

def many(queries, prompts, labels):
    return [1.0] * (len(queries) + 1)

def single_number(completions, **kwargs):
    return 1.0

class Rubric:
    def __init__(self, *funcs):
        self.funcs, self.weights = list(funcs), [1.0] * len(funcs)

def one_of_a_rubric(completion, answer):
    return _judge(completion[-1]["content"])

rubric = Rubric(one_of_a_rubric, lambda completion: 0.5)

def nameless(queries, prompts, labels):
    return {"scores": [1.0]}
"""


def load(folder: Path, name: str, timeout_seconds: float = 10.0) -> PlainReward:
    (folder / "mine.py").write_text(SOURCE)
    made = load_reward(f"{folder / 'mine.py'}:{name}", timeout_seconds=timeout_seconds, budget=FailureBudget(1.0))
    assert isinstance(made, PlainReward)
    return made


def judge(made: PlainReward, *texts: str) -> list[Judgement]:
    rollouts = [Rollout("t", (1, 2), (False, True), (0.0, -0.1), Finish.STOP, text) for text in texts]
    return asyncio.run(made.judge(TASK, rollouts))


def endings(judged: list[Judgement]) -> list[str]:
    return [each.ending.value for each in judged]


@pytest.mark.parametrize("name", ["single", "waited"])
def test_a_completion_fails_alone(tmp_path: Path, name: str) -> None:
    made = load(tmp_path, name, timeout_seconds=0.4)
    judged = judge(made, "fine", "raise", "nan", "text", "none", "hang", "die", "fine")
    wanted = ["scored", "failed", "failed", "failed", "unscorable", "timed out", "failed", "scored"]
    assert endings(judged) == wanted
    notes = [each.score.note for each in judged]
    for said, note in zip(["KeyError: 'gone'", "is nan", "type str", "returned None", "no result within"], notes[1:]):
        assert said in note
    assert "exit code 3" in notes[6]
    assert [each.score.reward for each in judged] == [1.0, *[None] * 6, 1.0]
    assert (made.budget.calls, made.budget.failures) == (8, 5)  # None is no failure
    made.close()


def test_what_one_function_of_a_rubric_raises_is_the_failure_of_its_completion(tmp_path: Path) -> None:
    made = load(tmp_path, "rubric")
    judged = judge(made, "fine", "raise", "fine")
    assert endings(judged) == ["scored", "failed", "scored"]
    assert [each.score.reward for each in judged] == [1.5, None, 1.5]
    assert "KeyError: 'gone'" in judged[1].score.note
    made.close()


@pytest.mark.parametrize("name", ["group", "waited_group", "labelled"])
def test_a_group_fails_together_where_there_is_one_call(tmp_path: Path, name: str) -> None:
    made = load(tmp_path, name, timeout_seconds=0.4)
    assert endings(judge(made, "fine", "raise")) == ["failed", "failed"]
    assert endings(judge(made, "fine", "hang")) == ["timed out", "timed out"]
    assert endings(judge(made, "fine", "nan", "none")) == ["scored", "failed", "unscorable"]
    assert endings(judge(made, "fine", "fine")) == ["scored", "scored"]  # in a fresh process
    assert (made.budget.calls, made.budget.failures) == (4, 3)
    made.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("few", "it returned 1 scores for 2 completions; expected exactly one a completion"),
        ("many", "it returned 3 scores for 2 completions"),
        ("single_number", "it returned float; expected a list of 2 rewards"),
        ("nameless", "it returned a dict with 'scores'; expected a dict with 'rewards'"),
    ],
)
def test_the_wrong_number_of_scores_is_a_failure_that_says_so(tmp_path: Path, name: str, said: str) -> None:
    made = load(tmp_path, name)
    judged = judge(made, "a", "b")
    assert endings(judged) == ["failed", "failed"]
    assert said in judged[0].score.note
    made.close()


def test_async_calls_of_a_group_are_made_at_once(tmp_path: Path) -> None:
    made = load(tmp_path, "together")
    assert judge(made, *"abcdefgh")[-1].score.reward == 8.0
    made.close()


def test_an_async_call_that_is_late_is_cancelled_alone(tmp_path: Path) -> None:
    made = load(tmp_path, "sleepy", timeout_seconds=0.3)
    start = time.monotonic()
    judged = judge(made, "a", "sleep", "sleep", "b")
    assert time.monotonic() - start < 30
    assert endings(judged) == ["scored", "timed out", "timed out", "scored"]
    assert "the call was cancelled" in judged[1].score.note
    late = load(tmp_path, "sleepy_group", timeout_seconds=0.3)
    assert endings(judge(late, "a", "b")) == ["timed out", "timed out"]
    made.close()
    late.close()


def test_async_calls_share_one_event_loop_from_group_to_group(tmp_path: Path) -> None:
    made = load(tmp_path, "shares")
    loops = {each.score.reward for _ in range(3) for each in judge(made, "a", "b")}
    assert len(loops) == 1
    made.close()


def test_a_closure_that_is_async_runs_too() -> None:
    async def f(completion: str) -> float:
        await asyncio.sleep(0)
        return float(len(completion))

    made = PlainReward(f)
    assert not made.killable
    assert [each.score.reward for each in judge(made, "a", "abc")] == [1.0, 3.0]
    assert made.form.concurrent
    assert endings(judge(made)) == []


def test_endings_are_four() -> None:
    assert [each.value for each in Ending] == ["scored", "unscorable", "timed out", "failed"]
