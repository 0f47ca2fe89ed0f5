"""docs/judges.md: its examples run and print what they say, its config is one, its options are there; and
examples/judge.toml runs, against a server that answers as its model would."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from misbehaving import Server, chat_json, says, send

from maieutic.cli import main
from maieutic.config import parse_config
from maieutic.endpoint.reply import PASSING, Outcome
from maieutic.models.small import SmallModel, build_small
from maieutic.rewards.lift import FailureBudget
from maieutic.run.judges import JUDGES
from maieutic.run.store import Store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "judges.md").read_text()
SERVER = "http://127.0.0.1:8000/v1"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)


@pytest.mark.parametrize("index", [0, 1])
def test_the_examples_print_what_the_page_says(index: int, server: Server, tmp_path: Path) -> None:
    server.behaviours = [says("No: 7 · 13. <score>9</score>")]
    code = blocks("python")[index].replace(SERVER, server.url)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=250
    )
    assert done.stdout == blocks("text")[index]
    assert len(server.bodies) == index  # the first needs no server, the second asks once


def test_the_config_is_one() -> None:
    (text,) = blocks("toml")
    made = tomllib.loads(text)
    made |= {"tasks": {"train": {"taskset": "arithmetic"}}, "model": {"path": "x"}}
    config = parse_config({**made, "stages": [{**stage, "steps": 1} for stage in made["stages"]]})
    options = config.stages[0].reward_options["judge"]
    assert set(options) <= set(inspect.signature(JUDGES["judge"]).parameters)


def test_the_options_are_those_of_the_code_and_all_of_them() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ?(.*?) ?\| (.*?) \|$", PAGE, re.M)
    told: dict[str, set[str]] = {name: set() for name in JUDGES}
    for names, _, of in rows:
        for judge in JUDGES:
            if of.startswith("all three") or f"`{judge}`" in of:
                told[judge] |= set(re.findall(r"`(\w+)`", names))
    for judge, make in JUDGES.items():
        takes = set(inspect.signature(make).parameters)
        # given by the stage, and where a model in this process is put
        assert told[judge] == takes - {"taskset", "max_failures", "device"}, judge


def test_the_defaults_and_outcomes_are_those_of_the_code() -> None:
    judge = inspect.signature(JUDGES["judge"]).parameters
    assert [judge[n].default for n in ("retries", "concurrent", "max_tokens", "samples")] == [4, 16, 1024, 1]
    quiz = inspect.signature(JUDGES["quiz"]).parameters
    assert [quiz[n].default for n in ("questions", "attempts", "temperature", "max_tokens")] == [10, 3, 0.7, 2048]
    listed = re.search(r"is its `outcome` \((.*?)\)", PAGE, re.S)
    assert listed is not None
    names = re.findall(r"`([^`]+)`", listed.group(1))
    assert set(names) == {outcome.value for outcome in Outcome} - {"answered"}
    assert set(names[:5]) == {outcome.value for outcome in PASSING}
    assert FailureBudget().max_share == 0.1


def test_the_example_config_runs(server: Server, tmp_path: Path) -> None:
    """The quiz has one question, which every text answers by "the first of its options as written"."""

    def answer(request, body) -> None:
        prompt = body["messages"][0]["content"]
        if prompt.startswith("Write a quiz"):
            row = {"text": "What is it?", "options": ["a report", "a poem", "a law", "a menu"], "answer": 0}
            send(request, 200, chat_json(json.dumps({"questions": [row]})))
        elif prompt.startswith("Answer the quiz"):
            (letter,) = re.findall(r"^  ([A-D])\) a report$", prompt, re.M)
            send(request, 200, chat_json(f"[{letter}]"))
        else:
            send(request, 200, chat_json("<score>5</score>"))

    server.behaviours = [answer]
    spec = SmallModel(layers=1, width=16, heads=2, kv_heads=1, context=2048)
    words = ["Good morning. Revenue of the mill rose 12 %."]
    folder = build_small(tmp_path / "tiny", spec, words, tokenizer="bpe", vocabulary_size=300)
    where = [f"--set=stages.0.reward_options.{name}.{key}" for name in ("quiz", "judge") for key in ("url", "cache")]
    values = [server.url, "false", server.url, "false"]
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        done = main([
            "train", "examples/judge.toml", "--run", str(tmp_path / "run"), *map("=".join, zip(where, values)),
            "--set", f"model.path={folder}", "--set", "threads=1", "--set", "stages.0.steps=2",
            "--set", "stages.0.num_generations=2", "--set", "stages.0.max_completion_length=16",
            "--set", "stages.0.optimiser.warmup_steps=0",
        ])  # fmt: skip
    finally:
        os.chdir(before)
    assert done == 0
    with Store.open_reader(tmp_path / "run" / "run.db") as store:
        parts = [rollout.score.parts for rollout in store.recent(100)]
        asked = [value for _, value in store.metrics("grpo", "asked/quiz/requests")]
    assert len(parts) == 2 * 3 * 2
    assert {part["judge"] for part in parts} == {0.5}
    assert {part["quiz"] for part in parts} <= {0.0, 1.0}
    assert asked[0] > asked[1]  # three quizzes were made in the first step, none in the second
