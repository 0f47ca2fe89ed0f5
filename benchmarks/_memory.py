"""Resident memory of this process over many training steps, each of them stored as a run stores it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._shapes import SIZES, random_model
from maieutic.algorithms import grpo
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.backends.toy import ToyChat, ToySums, toy_policy
from maieutic.errors import ConfigError
from maieutic.protocols import Policy, Taskset
from maieutic.rollout import Roller
from maieutic.run.store import Store
from maieutic.sources import Sampled
from maieutic.tasks.taskset import Tasks
from maieutic.train import train
from maieutic.types import Message, Rollout, Score, Step, Task, Verdict

#: Where Linux says how many pages of a process are in memory, and what a page holds.
STATM, PAGE = Path("/proc/self/statm"), 4096

#: Samples over all steps, and the share of the steps at the beginning in which caches fill: they do not count.
SAMPLES, FILLING = 200, 0.2


def resident() -> int:
    """Bytes of this process in memory. Raises ConfigError where the system does not say."""
    try:
        return int(STATM.read_text().split()[1]) * PAGE
    except OSError as error:
        raise ConfigError(f"cannot read {STATM}: {error}; leave the part `memory` out on this system") from error


def slope(samples: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Bytes a step by least squares, and its standard error by leaving out a tenth at a time: memory moves in leaps.

    >>> slope([(0, 100), (10, 200), (20, 300)])[0]
    10.0
    """
    steps, sizes = np.array(samples, dtype=float).T

    def fitted(kept: np.ndarray) -> float:
        return round(float(np.polyfit(steps[kept], sizes[kept], 1)[0]), 9)

    every = np.arange(len(steps))
    blocks = np.array_split(every, min(10, len(steps)))
    left = np.array([fitted(np.setdiff1d(every, block)) for block in blocks])
    return fitted(every), float(np.sqrt((len(left) - 1) * left.var()))  # the jackknife's


async def _digits(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
    """1 for the right answer, and half of it for any answer that begins rightly, so that groups differ."""
    right = [r.text == task.answer for r in rollouts]
    near = [bool(task.answer) and r.text[:1] == str(task.answer)[:1] for r in rollouts]
    return [Score(0.5 * a + 0.5 * b, a, {"right": float(a), "near": float(b)}) for a, b in zip(right, near)]


@dataclass(frozen=True, slots=True)
class Engine:
    """What is trained, on which tasks, in completions of so many tokens."""

    tasks: Taskset
    policy: Policy
    tokens: int = 3


def toy() -> Engine:
    """The toy sums and the table that learns them."""
    tasks = ToySums(4)
    return Engine(tasks, toy_policy(ToyChat(tasks.vocabulary), 3, 64, learning_rate=0.01))


def local(size: str = "tiny", words: int = 1, tokens: int = 3) -> Engine:
    """The local backend with a random decoder; its prompts are numbered words, of up to `words` lengths."""
    items = [
        Task(f"w/{i}", (Message("user", " ".join([f"w{i % 60} w{i % 59} w{i % 53}"] * (1 + i % words))),), f"w{i % 60}")
        for i in range(5000)
    ]
    made = Tasks("words", items, verifier=lambda task, text: Verdict(text == task.answer))
    return Engine(made, LocalBackend().policy(random_model(SIZES[size]), Optimiser(learning_rate=1e-4)), tokens)


#: What is trained, by its name. "kernels" is large enough for compiled kernels and weights that are laid out, with
#: updates of ever new numbers of tokens.
ENGINES: Mapping[str, Callable[[], Engine]] = {
    "toy": toy,
    "local": local,
    "kernels": partial(local, "0.4M", words=17, tokens=20),
}


def steps_of(engine: str, steps: int) -> Iterator[tuple[Step, Sampled]]:
    """GRPO on 4 tasks of 4 rollouts a step, with the source that they came from."""
    made = ENGINES[engine]()
    roller = Roller(made.policy.sampler, made.policy.chat, _digits, made.tokens)
    source = Sampled(made.tasks, roller, prompts=4, num_generations=4)
    for step in train(source, made.policy, grpo(), steps=steps):
        yield step, source


def training(engine: str, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Train and store so many steps; resident memory by step, and how much of it came with each step."""
    every = max(1, steps // SAMPLES)
    samples = []
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "run.db") as store:
        for step, source in steps_of(engine, steps):
            ledger = [(group.id, group.task.id) for group in step.groups]
            store.write_step("rl", step, ledger=ledger, seconds=1.0, source=source.state())
            if step.index % every == every - 1:
                samples.append((step.index + 1, resident()))
            if step.index % max(1, steps // 10) == max(1, steps // 10) - 1:
                say(f"{engine}: {step.index + 1:,} of {steps:,} steps, {samples[-1][1] / 2**20:.1f} MiB resident")
    counted = [sample for sample in samples if sample[0] > FILLING * steps]
    grown, error = slope(counted)
    return {
        "engine": engine,
        "steps": steps,
        "samples": samples,
        "first_mib": counted[0][1] / 2**20,
        "last_mib": counted[-1][1] / 2**20,
        "bytes_a_step": grown,
        "error": error,
    }
