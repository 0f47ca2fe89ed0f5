"""A real server, `transformers serve`, with a judge that knows two words: it says what it says without a server."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maieutic.algorithms import sft
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.endpoint import Endpoint, LocalRespondent, Outcome, Remembered
from maieutic.endpoint.client import http_library
from maieutic.models.causal import load_causal, save_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.rewards.judge import Judge
from maieutic.sources import Recorded
from maieutic.tasks import file
from maieutic.train import train
from maieutic.types import Finish, Message, Rollout, Task

TEMPLATE = "rate it : {candidate}"
SAID = {"good": "<score>8</score>", "bad": "<score>2</score>"}
SECONDS = 280  # for a start on a machine that is busy with something else


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was taught to answer "good" with 8 and "bad" with 2."""
    folder = tmp_path_factory.mktemp("judge")
    rows = [{"prompt": f"rate it : {word}", "answer": said, "solution": said} for word, said in SAID.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
    spec = SmallModel(layers=1, width=32, heads=2, kv_heads=1, context=64)
    words = [f"{row['prompt']} {row['solution']}" for row in rows]
    model = load_causal(build_small(folder / "base", spec, words, seed=1))
    policy = LocalBackend().policy(model, Optimiser(learning_rate=2e-2))
    losses = [
        step.metrics["loss"]
        for step in train(Recorded(file(folder / "rows.jsonl"), policy.chat, batch=16), policy, sft(), steps=25)
    ]
    assert losses[-1] < 0.05
    save_causal(model, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def served(judge_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `transformers serve` with that model, on this machine only."""
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}: pip install 'maieutic[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log"
    command = [Path(sys.executable).with_name("transformers"), "serve", judge_folder, "--host", "127.0.0.1"]
    with log.open("w") as out:
        running = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"], stdout=out, stderr=out,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        _wait(running, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        running.kill()
        running.wait()


def _wait(running: subprocess.Popen[bytes], url: str, log: Path) -> None:
    http, ends = http_library(), time.monotonic() + SECONDS
    while time.monotonic() < ends and running.poll() is None:
        try:
            if http.get(url, timeout=5.0).status_code == 200:
                return
        except http.TransportError:
            time.sleep(0.2)
    pytest.fail(f"transformers serve did not start within {SECONDS} s:\n{log.read_text()[-2000:]}")


def rollouts(*texts):
    return [Rollout("t", (1, 2), (False, True), (0.0, -0.1), Finish.STOP, text) for text in texts]


def test_a_judge_that_is_served_says_what_it_says_here(served, judge_folder, tmp_path):
    task, group = Task("t", (Message("user", "?"),)), rollouts("good", "bad", "good", "bad")
    model = load_causal(judge_folder)
    endpoint = Remembered(Endpoint(served, str(judge_folder), timeout_seconds=200.0), tmp_path / "answers.db")
    local = LocalRespondent(LocalBackend().sampler(model), model.chat)
    for respondent in (endpoint, local):
        judge = Judge(respondent, template=TEMPLATE, max_tokens=8)
        scores = asyncio.run(judge(task, group))
        assert [score.reward for score in scores] == [0.8, 0.2, 0.8, 0.2]
        assert all(score.asked["judge/seconds"] >= 0 for score in scores if "judge/requests" in score.asked)
    assert endpoint.counts() == (2, 0)  # four rollouts, two texts
    assert endpoint.respondent.bill.requests == 2
    assert endpoint.respondent.bill.prompt_tokens == 2 * len(model.chat.prompt([Message("user", "rate it : good")]))


def test_what_the_server_will_not_do_is_said(served, judge_folder):
    """Another model, another path, log-probs (which it ignores), a schema (which it ignores as well, and answers)."""

    async def go():
        hello = [Message("user", "rate it : good")]
        there = Endpoint(served, str(judge_folder), timeout_seconds=200.0)
        return await asyncio.gather(
            Endpoint(served, "another/model", timeout_seconds=200.0).chat(hello),
            Endpoint(served.removesuffix("/v1"), str(judge_folder)).chat(hello),
            there.complete("rate it", max_tokens=2, logprobs=2),
            there.chat(hello, max_tokens=8, schema={"type": "object"}),
        )

    other, path, logprobs, schema = asyncio.run(go())
    assert (other.outcome, path.outcome) == (Outcome.REFUSED, Outcome.REFUSED)
    assert "another/model" in other.note
    assert "HTTP 404" in path.note
    assert logprobs.outcome is Outcome.NOT_UNDERSTOOD
    assert (schema.outcome, schema.text) == (Outcome.ANSWERED, SAID["good"])
