"""Layout rewards, against tables worked by hand."""

from __future__ import annotations

import asyncio
import time

import pytest

from maieutic.errors import ConfigError
from maieutic.protocols import Reward
from maieutic.rewards.format import has_blocks, has_think_format, required, think_format
from maieutic.types import Finish, Message, Rollout, Score, Task

TASK = Task("t", (Message("user", "2 + 2?"),), "4")


def judge(reward: Reward, text: str, finish: Finish = Finish.STOP) -> Score:
    (score,) = asyncio.run(reward(TASK, [Rollout("t", (1, 2), (False, True), (0.0, -0.1), finish, text)]))
    return score


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>2 and 2</think>4", True),
        ("<think>\n2 and 2\n</think>\n4\n", True),
        ("<think>2 < 3</think>4", True),
        (" <think>2</think>4", False),  # something precedes it
        ("4", False),
        ("", False),
        ("<think>2", False),
        ("2</think>4", False),
        ("</think>4<think>", False),
        ("<think></think>4", False),
        ("<think> \n</think>4", False),
        ("<think>2</think>", False),
        ("<think>2</think> \n", False),
        ("<think><think>2</think>4", False),
        ("<think>2</think>4<think>", False),
        ("<think>2</think><think>3</think>4", False),
        ("<think>2</think>3</think>4", False),
        ("<THINK>2</THINK>4", False),
    ],
)
def test_think_format(text: str, kept: bool) -> None:
    assert has_think_format(text) is kept
    assert judge(think_format(value=0.5), text) == Score(0.5 if kept else 0.0, parts={"think": float(kept)})


def test_a_prefilled_tag_is_put_back() -> None:
    assert has_think_format("2 and 2</think>4", prefilled=True)
    assert not has_think_format("2 and 2</think>4")
    assert not has_think_format("<think>2 and 2</think>4", prefilled=True)  # written twice
    assert judge(think_format(prefilled=True), "2</think>4").reward == 1.0
    assert judge(required("think", "answer", prefilled=True), "2</think><answer>4</answer>").reward == 1.0


@pytest.mark.parametrize(
    ("text", "reward", "think", "answer"),
    [
        ("<think>2</think><answer>4</answer>", 1.0, 1.0, 1.0),
        ("<think>2</think>\n<answer>4</answer>\n", 1.0, 1.0, 1.0),
        ("<think>2 < 3</think>\n<answer>x < 4</answer>", 1.0, 1.0, 1.0),
        ("<think>2</think> so <answer>4</answer>", 0.0, 1.0, 1.0),  # something between
        ("<think>2</think> so < <answer>4</answer>", 0.0, 1.0, 1.0),
        ("<think>2</think><answer>4</answer> done", 0.0, 1.0, 1.0),  # something after
        ("so <think>2</think><answer>4</answer>", 0.0, 1.0, 1.0),
        ("<answer>4</answer><think>2</think>", 0.0, 1.0, 1.0),  # wrong order
        ("<think><answer>4</answer></think>", 0.0, 1.0, 1.0),  # nested
        ("<think>2</think>4", 0.0, 1.0, 0.0),
        ("<think>2</think><answer> </answer>", 0.0, 1.0, 0.0),
        ("<think>2</think><answer>4</answer><answer>5</answer>", 0.0, 1.0, 0.0),
        ("<think>2<answer>4</answer>", 0.0, 0.0, 1.0),
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_required_blocks(text: str, reward: float, think: float, answer: float) -> None:
    assert has_blocks(text, ("think", "answer")) is bool(reward)
    assert judge(required("think", "answer"), text) == Score(reward, parts={"think": think, "answer": answer})


def test_failed_rollouts_are_unscorable() -> None:
    for reward in (think_format(), required("think")):
        assert judge(reward, "<think>2</think>4", Finish.ERROR).reward is None


@pytest.mark.parametrize("tags", [(), ("think", "think"), ("a b",), ("<think>",), ("",)])
def test_tags_that_are_none_are_refused(tags: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="tag names"):
        required(*tags)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match="finite"):
        think_format(value=float("nan"))


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<", "<think></think>", "<answer>", "x"])
def test_long_completions_are_scanned_in_linear_time(piece: str) -> None:
    text = "<think>" + piece * (10**6 // len(piece))
    start = time.thread_time()
    assert not has_think_format(text)
    assert not has_blocks(text, ("think", "answer"))
    assert time.thread_time() - start < 0.2
