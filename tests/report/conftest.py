"""A run written by hand, small enough that every number of its report can be worked out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from maieutic.config import parse_config, write_toml
from maieutic.evaluate import Evaluation, Problem, Sample
from maieutic.run.directory import RunDirectory
from maieutic.run.store import Store
from maieutic.types import Finish, Group, Message, Rollout, Score, Span, Step, Task

CONFIG: dict[str, Any] = {
    "name": "demo",
    "model": {"small": {}},
    "tasks": {"train": {"taskset": "arithmetic"}, "test": {"taskset": "arithmetic", "split": "test"}},
    "stages": [{"algorithm": "sft", "steps": 2}, {"name": "rl", "algorithm": "grpo", "steps": 10}],
    "evaluation": {"tasks": "test", "samples": 4},
}

#: A prompt of 2 tokens; "3 + 4 =" (4) by the model, "7" (1) by the tool, "apples" and the stop token by the model.
SPANS = (Span("prompt", 0, 2), Span("assistant", 2, 6), Span("tool", 6, 7), Span("assistant", 7, 9))
EVIL = '3 + 4 = 7 <script>alert(1)</script>\x1b[2J & "quotes"'


def evaluation(correct: Sequence[int], said: str = "so it is", ids: str = "p") -> dict[str, Any]:
    """Problem i has 4 samples, the first correct[i] of which are correct; its greedy one is correct if most are."""

    def sample(right: bool) -> Sample:
        return Sample(f"{said} {'4' if right else '5'}", "4" if right else "5", right, Finish.STOP, 10)

    problems = tuple(
        Problem(f"{ids}{i}", sample(c > 2), tuple(sample(s < c) for s in range(4))) for i, c in enumerate(correct)
    )
    return json.loads(Evaluation("test", problems).to_json())


def rollout(task: Task, sibling: int, text: str) -> Rollout:
    mask = (False, False, True, True, True, True, False, True, True)
    return Rollout(task.id, (1, 2, 3, 4, 5, 6, 7, 8, 0), mask, (0.0,) * 9, Finish.STOP, text, SPANS, sibling)


def step(index: int, texts: Sequence[str] = ("wrong one", "right one"), **metrics: float) -> Step:
    """One group: the texts, with rewards 0, 1, … in this order; 0 is wrong."""
    task = Task(f"t/{index}", (Message("user", f"question {index}?"),), answer="7")
    rollouts = tuple(rollout(task, i, text) for i, text in enumerate(texts))
    scores = tuple(Score(float(i), correct=i > 0, parts={"answer": float(i)}) for i in range(len(texts)))
    return Step(index, (Group(task, rollouts, scores, id=index),), (), None, metrics)


def fill(directory: RunDirectory, store: Store, steps: int) -> None:
    """All of sft (2 steps, 1.5 s each) and `steps` of rl (2 s each), with the evaluations that go with them."""
    store.write_evaluation("start", 0, "test", evaluation([0, 0, 1, 4], "before"))
    for i in range(2):
        store.write_step("sft", Step(i, (), (), None, {"loss": 2.0 - i}), seconds=1.5)
    store.write_evaluation("sft", 1, "test", evaluation([0, 0, 1, 4], "between"))
    for i in range(steps):
        texts = ("wrong one", "right one", EVIL) if i == 3 else ("wrong one", "right one")
        metrics = {"reward/mean": i / 10, "reward/parts/answer": i / 20, "policy/sampler_mismatch_nats": 2e-6}
        store.write_step("rl", step(i, texts, **metrics, constant=3.0), seconds=2.0)
    if steps == 10:
        store.write_evaluation("rl", 9, "test", evaluation([0, 1, 4, 4], "after"))
        directory.finish({"model": "m"})


@pytest.fixture
def write_evaluation() -> Callable[..., dict[str, Any]]:
    """`evaluation`, for tests that add one."""
    return evaluation


@pytest.fixture
def write_step() -> Callable[..., Step]:
    """`step`, for tests that add one."""
    return step


def words_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words as a run's start model has it: 1, 2 the prompt, 0 the stop token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<stop>", "how", "many", "3", "+", "4", "=", "7", "apples"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<stop>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<stop>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def write_tokenizer() -> Callable[[Path], None]:
    """`words_tokenizer`, for tests that need one."""
    return words_tokenizer


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(steps)`: a run that came so far in its second stage; None: nothing but its config."""

    def make(steps: int | None = 10, name: str = "demo", **changes: Any) -> Path:
        path = tmp_path / name
        config = write_toml(parse_config({**CONFIG, **changes}))
        with RunDirectory.create(path, config, resume=False) as directory:
            if steps is not None:
                with Store(directory.database) as store:
                    fill(directory, store, steps)
        return path

    return make
