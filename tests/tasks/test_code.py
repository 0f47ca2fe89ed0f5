"""Code tasks: the three layouts, what is read of a completion, and a run of rewards over them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from maieutic.config import read_config
from maieutic.errors import ConfigError, DataError
from maieutic.rewards.compose import answer_reward
from maieutic.run.rewards import make_reward
from maieutic.run.tasksets import Tasksets
from maieutic.tasks import PassesTests, code
from maieutic.tasks.code import last_block
from maieutic.types import Finish, Rollout, Verdict

MBPP = {
    "task_id": 601,
    "text": "Find the best pair.",
    "code": "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
    "def best(ps):\n    return max(p.a + p.b for p in ps)",
    "test_list": ["assert best([Pair(5, 24), Pair(1, 2)]) == 29", "assert best([Pair(0, 1)]) == 1"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
SIMPLE = {
    "task_id": 7,
    "prompt": "Square.",
    "code": "def sq(x):\n    return x * x",
    "test_imports": ["import math"],
    "test_list": ["assert sq(2) == 4", "assert math.isclose(sq(0.5), 0.25)", "assert sq(-3) == 9", "assert sq(1) == 1"],
}
HUMAN_EVAL = {
    "task_id": "HumanEval/32",
    "prompt": "import math\nfrom typing import List\n\n\ndef poly(xs: list, x: float):\n"
    "    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\n\n\n"
    'def zero(xs: List[float]) -> float:\n    """ x with poly(xs, x) = 0 for xs = [a, b] """\n',
    "entry_point": "zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n    import random\n    rng = random.Random(42)\n"
    "    for _ in range(20):\n        xs = [rng.randint(-10, 10), rng.randint(1, 10)]\n"
    "        assert math.fabs(poly(xs, candidate(xs))) < 1e-4\n",
}
ASSERTS = {
    "task_id": "HumanEval/23",
    "prompt": 'def strlen(s: str) -> int:\n    """ Length. """\n',
    "entry_point": "strlen",
    "canonical_solution": "    return len(s)\n",
    "test": "def check(candidate):\n    assert candidate('') == 0\n    assert candidate('ab') == 2\n"
    "    assert True, 'x'\n",
}
PLAIN = {
    "prompt": "Add.",
    "function": "add",
    "solution": "def add(a, b):\n    return a + b",
    "tests": [{"args": [1, 2], "expected": 3}, {"args": [[1], [2]], "expected": [1, 2]}, "assert add(2, b=2) == 4"],
}
SCRIPT = {"prompt": "Double.", "tests": [{"input": "4\n", "output": "8\n"}, {"input": "1", "output": "2"}],
          "solution": "print(2 * int(input()))"}  # fmt: skip


def made(tmp_path, *rows: Mapping[str, Any], **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return code(path, **options)


def fenced(program: str) -> str:
    return f"Here it is:\n\n```python\n{program}\n```\n"


def test_the_reference_of_every_layout_passes(tmp_path):
    tasks = made(tmp_path, MBPP, SIMPLE, HUMAN_EVAL, ASSERTS, PLAIN, SCRIPT)
    assert [task.id for task in tasks] == [
        "rows/601", "rows/7", "rows/HumanEval/32", "rows/HumanEval/23", "rows/4", "rows/5",
    ]  # fmt: skip
    for task in tasks:
        verdict = tasks.verifier(task, task.meta["solution"])
        assert verdict.correct, verdict
        assert verdict.share == 1.0
        assert json.loads(json.dumps(dict(task.meta))) == task.meta, "a task can be written down"


def test_a_share_of_the_tests_is_a_share_of_the_reward(tmp_path):
    task = made(tmp_path, SIMPLE)[0]
    half = PassesTests()(task, fenced("def sq(x): return x * x if x > 0.7 else 0"))
    assert (half.correct, half.share, half.parts) == (False, 0.5, {"tests": 0.5, "timed_out": 0.0})
    assert half.why == "AssertionError"
    assert half.answer == "def sq(x): return x * x if x > 0.7 else 0\n"
    nothing = PassesTests(all_or_nothing=True)(task, fenced("def sq(x): return x * x if x > 0.7 else 0"))
    assert (nothing.correct, nothing.share) == (False, 0.0)
    slow = made(tmp_path, SIMPLE, seconds=0.2).verifier(task, fenced("def sq(x):\n    while True: pass"))
    assert slow.parts == {"tests": 0.0, "timed_out": 1.0}


def test_prompts_name_the_function_and_show_no_expected_value(tmp_path):
    hidden = made(tmp_path, SIMPLE, MBPP, PLAIN, ASSERTS)
    texts = [task.prompt[-1].content for task in hidden]
    assert "Write the Python function `sq(x)`." in texts[0]
    assert "`best(ps)`" in texts[1]
    assert "`add(a, b)`" in texts[2]
    assert "def strlen(s: str) -> int:" in texts[3]
    assert not any("assert" in text for text in texts)
    shown = made(tmp_path, SIMPLE, examples=1)[0]
    assert "```python\nassert sq(2) == 4\n```" in shown.prompt[-1].content
    assert len(shown.meta["tests"]) == 3, "what was shown does not count"
    assert made(tmp_path, SIMPLE, system="Be brief.")[0].prompt[0].content == "Be brief."


def test_a_body_alone_is_completed_and_helpers_of_the_prompt_win(tmp_path):
    tasks = made(tmp_path, HUMAN_EVAL, ASSERTS)
    assert tasks.verifier(tasks[0], fenced("    return -xs[0] / xs[1]")).correct
    assert tasks.verifier(tasks[0], fenced("def zero(xs: List[float]): return -xs[0] / xs[1]")).correct
    assert not tasks.verifier(tasks[0], fenced("def poly(xs, x): return 0\ndef zero(xs): return 77")).correct
    assert not tasks.verifier(tasks[0], fenced("import math\nmath.fabs = lambda x: 0\ndef zero(xs): return 77")).correct
    assert tasks.verifier(tasks[1], fenced("def strlen(s): return 0")).share == 0.5


def test_what_the_reference_does_not_define_no_program_may(tmp_path):
    row = {**SIMPLE, "test_imports": [], "test_list": ["assert close(sq(2), 4)"]}
    task = made(tmp_path, row)[0]
    verdict = PassesTests()(task, fenced("def sq(x): return 0\ndef close(a, b): return True"))
    assert not verdict.correct
    assert "NameError" in verdict.why


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```py\na\n```\nand\n```python\nb\n```\nso", "b\n"),
        ("```python\na\n```\n```bash\nls\n```\n", "a\n"),
        ("```python\na\n```\n```text\n42", "a\n"),
        ("```python title=x\na\n", "a\n"),
        ("```python\na\n```\n```python\nb", "a\n"),
        ("<think>```python\na\n```</think>no", None),
        ("<think>x</think>```python\na\n```<think>```python\nb\n```", "a\n"),
        ("  ```python\n  a\n  ```", "  a\n"),
        ("no block", None),
        ("```bash\nls\n```", None),
        ("", None),
    ],
)
def test_the_last_block_of_python_counts(text, program):
    assert last_block(text) == program


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x"}, "no tests; expected test_list"),
        ({"prompt": "", "tests": ["assert f(1)"]}, "no prompt"),
        ({"prompt": "x", "tests": ["assert f("]}, "not Python"),
        ({"prompt": "x", "tests": ["assert True"]}, "test nothing"),
        ({"prompt": "x", "tests": [7]}, "got the test 7"),
        ({"prompt": "x", "tests": [{"args": [1], "expected": 2}]}, "got the test"),
        ({"prompt": "x", "tests": "assert f(1)"}, "expected a list"),
        ({**ASSERTS, "test": "assert 1"}, "without def check"),
        ({**SIMPLE, "code": "def ("}, "not Python"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_with_their_line(tmp_path, row, said):
    with pytest.raises(DataError, match=said) as caught:
        made(tmp_path, SIMPLE, row)
    assert "rows.jsonl:2: " in str(caught.value)


def test_settings_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'share'"):
        made(tmp_path, SIMPLE, reward="shares")
    with pytest.raises(ConfigError, match="seconds"):
        made(tmp_path, SIMPLE, seconds=0)
    with pytest.raises(DataError, match="unique"):
        made(tmp_path, SIMPLE, SIMPLE)


def rollout(text: str) -> Rollout:
    return Rollout("rows/7", (1, 2), (False, True), (0.0, -1.0), Finish.STOP, text)


def test_a_config_with_the_plain_reward_just_works(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(SIMPLE) + "\n", encoding="utf-8")
    config = tmp_path / "run.toml"
    config.write_text(
        f'[model]\nsmall = {{}}\n[tasks.train]\ntaskset = "code"\npath = "{path}"\n'
        '[[stages]]\nalgorithm = "grpo"\nsteps = 1\nrewards = { answer = 1.0 }\n'
    )
    read = read_config(config)
    tasks = Tasksets(read)["train"]
    judge = make_reward(read.stages[0], tasks)
    texts = [fenced("def sq(x): return x * x"), fenced("def sq(x): return 4"), "none"]
    scores = asyncio.run(judge(tasks[0], [rollout(text) for text in texts]))
    assert [score.reward for score in scores] == [1.0, 0.25, 0.0]
    assert [score.correct for score in scores] == [True, False, False]
    assert scores[1].parts == {"answer": 0.25, "answer/answer": 0.25, "answer/tests": 0.25, "answer/timed_out": 0.0}
    assert scores[2].note == "answer: no Python block"


def test_shares_lie_between_wrong_and_correct():
    def verifier(task, text):
        return Verdict(text == "1", share=float(text), parts={"tests": float(text)})

    judge = answer_reward(verifier, correct=3.0, wrong=-1.0)
    scores = asyncio.run(judge(None, [rollout(text) for text in ("0", "0.25", "1")]))  # type: ignore[arg-type]
    assert [score.reward for score in scores] == [-1.0, 0.0, 3.0]  # −1 + (3 + 1) · share
