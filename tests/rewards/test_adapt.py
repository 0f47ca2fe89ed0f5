"""Rewards that people have already: each family's, as its users write them (`users/`), run as they are."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest

from maieutic.errors import ConfigError
from maieutic.rewards.adapt import FAMILIES, recognise
from maieutic.rewards.lift import Ending, FailureBudget, Judgement, PlainReward, load_reward, reward
from maieutic.types import Finish, Message, Rollout, Task

USERS = Path(__file__).parent / "users"
TASK = Task(
    "sums/train/3",
    (Message("system", "Be brief."), Message("user", "2 + 2?")),
    "4",
    {"level": 2, "task": "math", "word": "four", "numbers": [1, 3]},
)


def rollouts(*texts: str) -> list[Rollout]:
    """Two tokens of a prompt, one token a word."""
    made = []
    for text in texts:
        n = len(text.split())
        tokens, mask = (1, 2, *range(10, 10 + n)), (False, False, *[True] * n)
        made.append(Rollout("t", tokens, mask, (0.0,) * len(tokens), Finish.STOP, text))
    return made


@functools.cache
def load(where: str) -> PlainReward:
    """Loaded once: each has a process of its own, which ends with this one."""
    file, _, name = where.partition(":")
    made = load_reward(f"{USERS / file}.py:{name}", budget=FailureBudget(1.0))
    assert isinstance(made, PlainReward)
    return made


def judge(made: PlainReward, *texts: str, task: Task = TASK) -> list[Judgement]:
    return asyncio.run(made.judge(task, rollouts(*texts)))


def rewards(judged: list[Judgement]) -> list[float | None]:
    return [each.score.reward for each in judged]


#: Function → its family, whether it sees conversations, completions, and the rewards worked by hand.
FUNCTIONS: list[tuple[str, str, bool, list[str], list[float | None]]] = [
    # the row has no column `solution`, so the gold answer stands for it
    ("trl_rewards:accuracy_reward", "TRL", True, ["<answer>4</answer>", " 4", "5"], [1.0, 1.0, 0.0]),
    ("trl_rewards:format_reward", "TRL", True, ["<think>x</think> <answer>4</answer>", "4"], [1.0, 0.0]),
    ("trl_rewards:reward_num_unique_chars", "TRL", False, ["aab", ""], [2.0, 0.0]),
    ("trl_rewards:reward_by_tokens", "TRL", False, ["one two three", "one"], [-1.5, -0.5]),  # two prompt tokens not
    ("trl_rewards:math_only", "TRL", False, ["4", "5"], [1.0, -1.0]),
    ("trl_rewards:async_reward", "TRL", False, ["It is 4.", "It is 5."], [1.0, 0.0]),
    ("verifiers_rewards:correct_answer_reward_func", "verifiers", False, ["\\boxed{4}", "4"], [1.0, 0.0]),
    ("verifiers_rewards:exact_match", "verifiers", True, ["so 4", "so 5"], [1.0, 0.0]),
    ("verifiers_rewards:turns_and_info", "verifiers", True, ["x"], [21.5]),  # 1 turn, level 2, an assistant's message
    ("verifiers_rewards:lcs_reward_func", "verifiers", False, ["4 it is", "no"], [1 / 3, 0.0]),
    ("verifiers_rewards:relative_length", "verifiers group", True, ["abcd", "ab"], [0.0, 0.5]),
    # 1.0 for the box of 4 and 0.2 for any box; the third function has weight 0
    ("verifiers_rewards:rubric", "verifiers rubric", True, ["\\boxed{4}", "\\boxed{5}", "4"], [1.2, 0.2, 0.0]),
    ("verl_rewards:compute_score", "verl", False, ["so #### 4", "#### 5", "4"], [1.0, 0.0, 0.0]),
    ("verl_rewards:my_reward_fn", "verl", False, ["4 ", "5"], [1.0, 0.0]),
    ("verl_rewards:with_details", "verl", False, ["= 4", "= 5"], [1.0, -1.0]),
    ("verl_rewards:judged", "verl", False, ["= 4", "= 5"], [1.0, 0.0]),
    ("verl_rewards:batched", "verl batch", False, ["= 4", "= 5"], [1.0, 0.0]),
    ("openrlhf_rewards:reward_func", "OpenRLHF", False, ["= 4", "= 5"], [1.0, 0.0]),
    ("openrlhf_rewards:tensor_only", "OpenRLHF", False, ["four", ""], [4.0, 0.0]),
    ("openrlhf_lists:plain_list", "OpenRLHF", False, ["content", "x"], [0.0, 1.0]),
    ("course_rewards:output_format_check", "course", False, ["a</think><guess>CRANE</guess>", "b"], [2.0, 0.0]),
    ("course_rewards:uses_the_word", "course", False, ["Four", "5"], [1.0, 0.0]),
    ("course_rewards:sum_reward", "course", False, ["1 + 3 = 4", "5"], [1.0 - 0.009, -0.001]),
    ("plain_rewards:right", "plain", False, ["4 ", "5"], [1.0, 0.0]),
    ("plain_rewards:short", "plain", False, ["12345", ""], [0.5, 1.0]),
    ("plain_rewards:similar", "plain", False, ["4", "5"], [1.0, 0.0]),
    ("plain_rewards:parts", "plain", False, ["4", "5"], [1.25, 0.25]),
    ("puzzle_rewards:puzzle", "reasoning-gym", False, ["I think #### 4", "5", ""], [1.0, 0.1, 0.0]),
    ("puzzle_rewards:by_method", "reasoning-gym", False, ["<answer> 4 </answer> Bye.", "5"], [1.0, 0.1]),
    ("puzzle_rewards:case_insensitive", "reasoning-gym", False, ["4"], [1.0]),
]


@pytest.mark.parametrize(
    ("where", "family", "conversational", "texts", "expected"), FUNCTIONS, ids=lambda v: str(v)[:40]
)
def test_it_runs_as_it_was_written(
    where: str, family: str, conversational: bool, texts: list[str], expected: list[float | None]
) -> None:
    made = load(where)
    before = made.budget.calls
    assert (made.form.family.name, made.form.conversational) == (family, conversational)
    judged = judge(made, *texts)
    assert rewards(judged) == pytest.approx(expected)
    assert {each.ending for each in judged} == {Ending.SCORED}, [each.detail for each in judged]
    assert made.budget.calls - before == (1 if made.form.family.group else len(texts))


def test_every_family_has_three() -> None:
    """Libraries with several ways to write a reward count once."""
    three = {family.name: 0 for family in FAMILIES}
    for _, family, *_ in FUNCTIONS:
        three[family] += 1
    of_library = {"verifiers": ("verifiers", "verifiers group", "verifiers rubric"), "verl": ("verl", "verl batch")}
    for family, count in three.items():
        joined = sum(three[name] for name in of_library.get(family.split()[0], (family,)))
        assert joined >= 3, (family, count)


def test_what_a_function_returns_beside_the_reward_is_kept() -> None:
    rubric = judge(load("verifiers_rewards:rubric"), "\\boxed{4}", "no")[1].score
    assert rubric.parts == {"correct_answer_reward_func": 0.0, "format_reward_func": 0.0, "relative_length": 7 / 9}
    verl = judge(load("verl_rewards:with_details"), "= 4")[0].score
    assert verl.parts == {"score": 1.0, "acc": 1.0}  # "pred" is no number
    openrlhf = [each.score.parts for each in judge(load("openrlhf_rewards:reward_func"), "= 4", "= 5")]
    assert openrlhf == [{"scores": 1.0, "accuracy": 0.5, "hits": 1.0}, {"scores": 0.0, "accuracy": 0.5, "hits": 0.0}]
    trl = judge(load("trl_rewards:async_reward"), "It is 4.", "It is 5.")[1].score
    assert (trl.parts, trl.note) == ({"accuracy": 0.5}, "extracted: 5")


def test_columns_of_the_row_come_before_names_for_the_answer() -> None:
    row = Task("t", TASK.prompt, "4", {"solution": "<answer>5</answer>", "task": "code"})
    assert rewards(judge(load("trl_rewards:accuracy_reward"), "<answer>5</answer>", "4", task=row)) == [1.0, 0.0]
    judged = judge(load("trl_rewards:math_only"), "4", "5", task=row)
    assert {each.ending for each in judged} == {Ending.UNSCORABLE}
    verl = Task("t", TASK.prompt, "4", {"data_source": "openai/gsm8k", "extra_info": {"split": "train"}})
    assert rewards(judge(load("verl_rewards:my_reward_fn"), "x" * 30, task=verl)) == [0.3]


def test_a_column_that_the_task_lacks_is_named() -> None:
    made = load("trl_rewards:math_only")
    (failed,) = judge(made, "4", task=Task("t", TASK.prompt, "4"))
    assert failed.ending is Ending.FAILED
    assert "it asks for 'task', which this task lacks; there is answer" in failed.score.note
    (failed,) = judge(load("course_rewards:uses_the_word"), "4", task=Task("t", TASK.prompt, "4"))
    assert "it asks for 'word', which this task lacks" in failed.score.note


def test_what_it_sees_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(completions, **kwargs):\n    return [float(len(c)) for c in completions]\n")
    where = f"{tmp_path / 'f.py'}:f"
    assert rewards(judge(load_reward(where), "abc")) == [3.0]  # type: ignore[arg-type]
    told = load_reward(where, conversational=True)
    assert rewards(judge(told, "abc")) == [1.0]  # type: ignore[arg-type]  # one message


def test_a_decorated_function_is_recognised_too() -> None:
    @reward
    def lengths(completions: list[str], **kwargs: Any) -> list[float]:
        return [float(len(c)) for c in completions]

    assert lengths.form.family.name == "TRL"
    assert rewards(judge(lengths, "a", "ab")) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            lambda completions, queries, labels: [],
            r"more than one family: TRL \(completions\) and OpenRLHF \(queries\)",
        ),
        (lambda solution_str, completions: [], "more than one family: TRL .* and verl"),
        (lambda example, state: 0, "more than one family: course .* and verifiers"),
        (lambda completion, words: 0, "got parameter 'words'; expected any of answer, completion, prompt, task"),
        (lambda solution_str, ground_truth, tokenizer: 0, "got parameter 'tokenizer'; .*family 'verl'"),
        (lambda completion, state, judge_of_mine: 0, "got parameter 'judge_of_mine'; .*family 'verifiers'"),
        (lambda *completions: 0, r"got parameter '\*completions', which has no name"),
        (dict, "got the class dict|parameters cannot be read"),
        ("text", "got str, expected a function"),
    ],
)
def test_what_fits_no_family_or_several_is_refused_with_all_of_them(function: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        recognise(function, "f")
    assert "Remedy" in str(caught.value)
    for family in FAMILIES:
        assert family.form in str(caught.value)
