"""A reward that breaks in the middle of a run: the run ends with a clear report, its state is whole, and once the
reward is repaired the run goes on to the very weights of a run whose reward never broke."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from maieutic.cli import main
from maieutic.run.checkpoints import Checkpoints

CONFIG = """
name = "tiny"
threads = 1

[model]
small = {{ layers = 1, width = 16, heads = 2, kv_heads = 1, context = 128 }}

[tasks.train]
taskset = "arithmetic"
difficulty = 1
size = 64

[[stages]]
name = "rl"
algorithm = "grpo"
steps = 4
prompts = 8
num_generations = 2
max_completion_length = 6
checkpoint_every = 1
rewards = {{ "{rewards}:{name}" = 1.0 }}
reward_timeout_seconds = 5.0
max_reward_failures = 0.0
optimiser = {{ learning_rate = 1e-3, warmup_steps = 0 }}
evaluate = false
"""

#: One reward in three shapes; each breaks, as the file `broken` says, when it has been called for 42
#: completions: two of the first group once more, and 40 of 64.
REWARDS = """
import asyncio, os, time

HERE = os.path.dirname(os.path.abspath(__file__))

def broken():
    path = os.path.join(HERE, "broken")
    return open(path).read() if os.path.getsize(os.path.join(HERE, "seen")) > 42 and os.path.exists(path) else ""

def value(text):
    with open(os.path.join(HERE, "seen"), "a") as seen:
        seen.write(".")
    how = broken()
    if how == "raise":
        raise RuntimeError("the disk of the judge is full")
    while how == "hang":
        time.sleep(0.01)
    return float("nan") if how == "nan" else len(set(text)) / 10

def single(completion):
    return value(completion)

async def waited(completion):
    await asyncio.sleep(0)
    return value(completion)

def group(completions, **kwargs):
    scores = [value(c) for c in completions]
    return scores[:-1] if broken() == "count" else scores

def noisy(completion):
    return time.perf_counter_ns() % 1000 / 1000
"""


def train(folder: Path, name: str, *more: str) -> int:
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "tiny.toml").write_text(CONFIG.format(rewards=folder / "rewards.py", name=name))
    return main(["train", str(folder / "tiny.toml"), "--run", str(folder / "run"), *more])


def weights(folder: Path) -> bytes:
    newest = Checkpoints(folder / "run" / "checkpoints").latest()
    assert newest is not None
    assert newest.step == 4
    return (newest.path / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("unbroken")
    assert train(folder, "single") == 0
    return weights(folder)


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("single", "raise", "RuntimeError: the disk of the judge is full"),
        ("waited", "nan", "a value that is nan; expected a finite number"),
        ("waited", "hang", "no result within 1.5 s"),
        ("group", "count", "it returned 1 scores for 2 completions"),
    ],
)
def test_a_run_survives_its_reward(
    name: str, how: str, said: str, tmp_path: Path, unbroken: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").write_text(how)
    limit = ["--set", "stages.0.reward_timeout_seconds=1.5"] if how == "hang" else []
    assert train(tmp_path, name, *limit) == 5
    told = capsys.readouterr().err
    assert said in told
    assert "Remedy" in told
    (tmp_path / "broken").unlink()
    assert main(["train", "--run", str(tmp_path / "run"), "--resume"]) == 0
    assert weights(tmp_path) == unbroken


def test_a_reward_that_is_not_deterministic_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="maieutic.rewards"):
        assert train(tmp_path, "noisy", "--json", str(tmp_path / "out.json")) == 0
    told = [record.getMessage() for record in caplog.records if "not deterministic" in record.getMessage()]
    assert len(told) == 1
    assert "of 2 got another reward" in told[0]
    assert json.loads((tmp_path / "out.json").read_text())
