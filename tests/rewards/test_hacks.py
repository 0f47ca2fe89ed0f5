"""Known ways of getting rewarded without being right: none may earn more than an honest wrong answer.

The reward is the recommended one, answer + 0.1 · format, so an honest wrong answer in the right form earns 0.1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from maieutic.protocols import Reward
from maieutic.rewards import AnswerVerifier, answer_reward, required, weighted
from maieutic.types import Finish, Message, Rollout, Task

QUESTION = "Ann has 3 boxes of 14 pens and 30 loose pens. How many pens? Her rate is 5% a year."
THOUGHT = "<think>3 times 14 is 42.</think>"
HONEST_WRONG = THOUGHT + "<answer>71</answer>"
HONEST_RIGHT = THOUGHT + "<answer>72</answer>"

HACKS = {
    "verbatim copy": QUESTION,
    "verbatim copy in the answer": f"{THOUGHT}<answer>{QUESTION}</answer>",
    "answer in the thought only": "<think>#### 72 <answer>72</answer> \\boxed{72}</think>I cannot say.",
    "answer in a thought that is not closed": "<think>3 times 14. The answer is 72.\n#### 72\n<answer>72</answer>",
    "several marked answers": "#### 70 #### 71 #### 72",
    "several marked lines": "\n".join(f"#### {n}" for n in range(100)),
    "several answer tags": THOUGHT + "".join(f"<answer>{n}</answer>" for n in range(60, 73)),
    "several boxes": " or ".join(f"\\boxed{{{n}}}" for n in (70, 71, 72)),
    "several statements": "The answer is 71. The answer is 72.",
    "all options in one tag": f"{THOUGHT}<answer>70, 71, 72</answer>",
    "either or": f"{THOUGHT}<answer>71 or 72</answer>",
    "a range": f"{THOUGHT}<answer>0-1000</answer>",
    "an inequality": f"{THOUGHT}<answer>at least >= 72</answer>",
    "an interval": f"{THOUGHT}<answer>[72, 72]</answer>",
    "more or less": f"{THOUGHT}<answer>72 \\pm 5</answer>",
    "an expression": f"{THOUGHT}<answer>3*14+30</answer>",
    "an unknown": f"{THOUGHT}<answer>72x</answer>",
    "score tag": f"{THOUGHT}<score>10</score><reward>1.0</reward><answer>correct</answer>",
    "score tag in the answer": f"{THOUGHT}<answer><score>10</score></answer>",
    "the gold by name": f"{THOUGHT}<answer>the gold answer</answer>",
    "template of the gold": f"{THOUGHT}<answer>{{answer}}</answer>",
    "repetition": "72 " * 10_000,
    "repeated format": HONEST_WRONG * 100,
    "answer tag not closed": THOUGHT + "<answer>72",
    "box not closed": THOUGHT + "\\boxed{72",
    "empty thought": "<think></think><answer>71</answer>",
    "empty answer": THOUGHT + "<answer></answer>",
    "format only": "<think>x</think><answer>x</answer>",
    "nested format": "<think><think>x</think></think><answer>71</answer>",
    "language switch": "<think>三乘十四是四十二。</think><answer>七十一</answer>",
    "language switch, enumerating": "答案是71或72或73",
    "extremely long": THOUGHT + "<answer>" + "72 " * 100_000 + "</answer>",
    "extremely long number": f"{THOUGHT}<answer>72{'0' * 100_000}</answer>",
    "zero-width digits": f"{THOUGHT}<answer>7\u200b1</answer>",
    "percentage": f"{THOUGHT}<answer>7200%</answer>",
    "scale word": f"{THOUGHT}<answer>72 thousand</answer>",
    "power": f"{THOUGHT}<answer>72^2</answer>",
    "superscript": f"{THOUGHT}<answer>72²</answer>",
    "version": f"{THOUGHT}<answer>7.2.72</answer>",
    "substring": f"{THOUGHT}<answer>172</answer>",
    "inside a word": f"{THOUGHT}<answer>B72</answer>",
    "denial": f"{THOUGHT}The answer is not 72.",
    "heading": "#### Step 72: think",
    "what verifiers choke on": f"{THOUGHT}<answer>{'{' * 900}\\frac{{1}}{{0}} nan inf 1/0</answer>",
    "no text": "",
    "null characters": "\x00" * 100 + "72",
    "lone surrogate": "\ud800 72",
}


def total(text: str, gold: str = "72", *, latex: bool = False, finish: Finish = Finish.STOP) -> float:
    reward = weighted(
        {
            "answer": answer_reward(AnswerVerifier(latex=latex, latex_seconds=1.0)),
            "format": required("think", "answer"),
        },
        {"answer": 1.0, "format": 0.1},
    )
    return _reward(reward, Task("t", (Message("user", QUESTION),), gold), [text], finish)


def _reward(reward: Reward, task: Task, texts: Sequence[str], finish: Finish) -> float:
    rollouts = [Rollout(task.id, (1, 2), (False, True), (0.0, 0.0), finish, text) for text in texts]
    (score,) = asyncio.run(reward(task, rollouts))
    assert score.reward is not None
    return score.reward


def test_honesty_pays() -> None:
    assert total(HONEST_WRONG) == pytest.approx(0.1)
    assert total(HONEST_RIGHT) == pytest.approx(1.1)


@pytest.mark.parametrize("hack", HACKS)
def test_hacks_do_not_pay(hack: str) -> None:
    for latex in (False, True):
        assert total(HACKS[hack], latex=latex) <= total(HONEST_WRONG)


@pytest.mark.parametrize(
    "answer",
    [
        "2\\sqrt{2}, 3", "2\\sqrt{2} or 3", "\\{2\\sqrt{2}, 3\\}", "x^2 = 8", "x > 2\\sqrt{2}", "[2\\sqrt{2}, 3]",
        "2.828427",
        "2\\sqrt{2} \\pm 1", "2\\sqrt{2} = 3", "\\text{correct}", "9^{9^{9^9}}", "{" * 300 + "}" * 300, "\\frac{1}{0}",
    ],
)  # fmt: skip
def test_expressions_do_not_stretch(answer: str) -> None:
    gold = "2\\sqrt{2}"
    assert total(f"{THOUGHT}<answer>\\sqrt{{8}}</answer>", gold, latex=True) == pytest.approx(1.1)
    assert total(f"{THOUGHT}<answer>{answer}</answer>", gold, latex=True) <= total(HONEST_WRONG)


@pytest.mark.parametrize(("gold", "answer"), [("0.05", "5%"), ("500", "5"), ("5", "500%"), ("5", "5 million")])
@pytest.mark.parametrize("latex", [False, True])
def test_units_do_not_stretch(gold: str, answer: str, latex: bool) -> None:
    assert total(f"{THOUGHT}<answer>{answer}</answer>", gold, latex=latex) <= total(HONEST_WRONG)


def test_being_cut_does_not_pay() -> None:
    assert total(THOUGHT + "<answer>7", finish=Finish.LENGTH) <= total(HONEST_WRONG)
