"""vLLM itself, its CPU build, as a teacher: it says what our own scorer says, and students learn from it.

It needs an environment of its own, which `make vllm` builds (3.4 GB), and takes a minute or two to start; where it is
not there, these tests are skipped, and tests/teachers has the same against a stand-in.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import pad

from maieutic.backends.local import LocalBackend
from maieutic.config import parse_config
from maieutic.endpoint import Endpoint, Outcome
from maieutic.endpoint.client import http_library
from maieutic.errors import DataError, ModelError
from maieutic.models.causal import CausalModel, load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.pack import pack
from maieutic.run.recording import record, write_solutions
from maieutic.run.runner import resume_or_begin
from maieutic.run.store import Store
from maieutic.sources import demonstration, solution_of
from maieutic.tasks.arithmetic import arithmetic
from maieutic.teachers import EndpointTeacher, RecordedTeacher
from maieutic.teachers.records import Origin, fingerprint
from maieutic.teachers.written import Writer
from maieutic.types import Batch, Example

PYTHON = Path(__file__).parents[2] / ".vllm" / "bin" / "python"
SECONDS = 600  # for a start on a machine that is busy with something else

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM's own environment is not there; `make vllm` builds it"),
]


def config_of(algorithm: str, *, seed: int = 0, steps: int = 8, **stage: Any) -> dict[str, Any]:
    """Heads of width 32: vLLM's attention on a CPU takes no narrower ones."""
    return {
        "threads": 1, "seed": seed,
        "model": {"small": {"layers": 2, "width": 64, "heads": 2, "kv_heads": 1, "context": 128}},
        "tasks": {"train": {"taskset": "arithmetic", "difficulty": 1, "limit": 64}},
        "stages": [{
            "algorithm": algorithm, "steps": steps, "prompts": 8, "optimiser": {"learning_rate": 3e-3}, **stage,
        }],
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers that was shown some sums, and is still unsure of most."""
    run = tmp_path_factory.mktemp("taught") / "run"
    resume_or_begin(parse_config(config_of("sft", seed=1, steps=12)), run, resume=False)
    return run / "checkpoints/sft/step-000012/model"


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where vLLM serves it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    settings = {
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    # the `vllm` command is broken in this build; in a session of its own, for it starts processes that are to end too
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", "teacher",
               "--dtype", "float32", "--enforce-eager", "--max-logprobs", "-1",
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    with log.open("w") as out:
        running = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **settings}, cwd=log.parent, start_new_session=True
        )
    try:
        _wait(running, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def _wait(running: subprocess.Popen[bytes], where: str, log: Path) -> None:
    http, ends = http_library(), time.monotonic() + SECONDS
    while time.monotonic() < ends and running.poll() is None:
        try:
            if http.get(where, timeout=5.0).status_code == 200:
                return
        except http.TransportError:
            time.sleep(0.5)
    pytest.fail(f"vLLM did not start within {SECONDS} s:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def model(folder: Path) -> CausalModel:
    return load_causal(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def batch(model: CausalModel) -> Batch:
    """Eight solutions."""
    tasks = arithmetic(difficulty=1)
    rows = [demonstration(tasks[i], solution_of(tasks[i]), model.chat) for i in range(8)]
    return pack([Example(row, 1.0, group=i, unit=i) for i, row in enumerate(rows)])


def teacher_of(url: str, student: CausalModel, top_k: int | None) -> EndpointTeacher:
    return EndpointTeacher(Endpoint(url, "teacher", timeout_seconds=SECONDS), student.tokenizer, top_k, "the student")


@pytest.mark.parametrize("top_k", [20, None])
def test_it_says_what_our_own_scorer_says(url: str, model: CausalModel, batch: Batch, top_k: int | None) -> None:
    there, here = teacher_of(url, model, top_k), LocalBackend().teacher(model, model, top_k)
    torch.testing.assert_close(there.logprobs(batch), here.logprobs(batch), rtol=0, atol=1e-4)
    ids, logprobs = there.top(batch)
    own_ids, own_logprobs = here.top(batch)
    torch.testing.assert_close(logprobs, own_logprobs, rtol=0, atol=1e-4)
    # the same ids, but for neighbours whose log-probs differ by less than both engines' rounding
    tied = torch.zeros_like(ids, dtype=torch.bool)
    near = own_logprobs.diff(dim=-1).abs() < 1e-4
    tied[..., 1:] |= near
    tied[..., :-1] |= near
    tied[..., -1] = True  # the next one is not there to be compared with
    assert torch.equal(ids[~tied], own_ids[~tied])
    assert float(tied[batch.mask][..., :5].float().mean()) < 0.05
    assert there.limit == 127


def test_whole_distributions_at_another_temperature(url: str, model: CausalModel, batch: Batch) -> None:
    warm = replace(batch, temperature=0.6)
    there, here = teacher_of(url, model, None), LocalBackend().teacher(model, model, None)
    torch.testing.assert_close(there.logprobs(warm), here.logprobs(warm), rtol=0, atol=3e-4)


def test_another_vocabulary_is_refused(url: str, batch: Batch, tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(100)]
    stranger = load_causal(build_small(tmp_path / "m", SmallModel(layers=1, width=16, heads=2), vocabulary=words))
    with pytest.raises(ModelError, match=r"have different vocabularies: the token \d+ is .* and 'w\d+' to the other"):
        teacher_of(url, stranger, 5).top(batch)


def test_rows_that_it_cannot_read(url: str, model: CausalModel, batch: Batch) -> None:
    wide = {name: pad(getattr(batch, name), (0, 128)) for name in ("tokens", "mask", "sampler_logprobs")}
    long = replace(batch, lengths=batch.lengths * 0 + 128, **wide)
    with pytest.raises(DataError, match=r"row of 128 tokens; .* has 127 positions"):
        teacher_of(url, model, 5).logprobs(long)


RUNS = [("distil", {}), ("gkd", {"num_generations": 2, "max_completion_length": 16}),
        ("on_policy_distillation", {"num_generations": 4, "max_completion_length": 12})]  # fmt: skip


@pytest.mark.parametrize(("algorithm", "stage"), RUNS, ids=[name for name, _ in RUNS])
def test_a_run_comes_nearer_to_what_it_serves(url: str, tmp_path: Path, algorithm: str, stage: dict[str, Any]) -> None:
    spec = {"url": url, "model": "teacher", "request": {"timeout_seconds": float(SECONDS), "prompt_price": 2.0}}
    resume_or_begin(parse_config(config_of(algorithm, teacher=spec, steps=10, **stage)), tmp_path / "run", resume=False)
    with Store.open_reader(tmp_path / "run" / "run.db") as store:
        named = ("distil/kl", "asked/teacher/requests", "asked/teacher/price", "asked/teacher/prompt_tokens")
        kls, requests, price, tokens = ([v for _, v in store.metrics(algorithm, name)] for name in named)
    assert sum(kls[-3:]) < 0.8 * sum(kls[:3])
    rows = 8 * stage.get("num_generations", 1)
    assert all(1 <= each <= rows + 2 for each in requests)
    assert price == pytest.approx([2e-6 * each for each in tokens])


def test_what_it_says_is_recorded_and_what_it_writes_is_kept(url: str, model: CausalModel, tmp_path: Path) -> None:
    tasks, vocabulary = arithmetic(difficulty=1), model.tokenizer.get_vocab()
    origin = Origin("teacher", fingerprint(vocabulary), len(vocabulary), 5)
    record(teacher_of(url, model, 5), tasks, model.chat, tmp_path / "said", origin, limit=6)
    rows = [demonstration(tasks[i], solution_of(tasks[i]), model.chat) for i in range(6)]
    batch = pack([Example(row, 1.0, group=i, unit=i) for i, row in enumerate(rows)])
    said = RecordedTeacher(tmp_path / "said", vocabulary).logprobs(batch)
    torch.testing.assert_close(said, LocalBackend().frozen(model).logprobs(batch), rtol=0, atol=1e-4)

    endpoint = Endpoint(url, "teacher", timeout_seconds=SECONDS)
    writer = Writer(endpoint, tasks, samples=4, right_only=False, temperature=0.7, max_tokens=40)
    told = write_solutions(writer, tmp_path / "solutions.jsonl", {}, limit=4)
    kept = [json.loads(line)["solution"] for line in (tmp_path / "solutions.jsonl").read_text().splitlines()]
    assert told["kept"] == len(kept) > 0
    assert told["failed"] == 0
    assert told["bill"]["completion_tokens"] > 0


def test_what_is_no_token_is_refused(url: str) -> None:
    reply = asyncio.run(Endpoint(url, "teacher", timeout_seconds=SECONDS).judge([1, 100_000, 5]))
    assert reply.outcome is Outcome.REFUSED
    assert "vocab" in reply.note
