"""maieutic's side of the benchmark `step`: whole GRPO steps on a model and problems, one JSON line at the end.

    python -m benchmarks._step_side --model DIR --data problems.jsonl --steps 5 --prompts 16 --generations 8

It takes the settings of the peer's program and is run like it, in a fresh process. It is what a user would write: a
backend, a policy, tasks, a roller, a source, an algorithm and the loop. A step is timed from the end of one to the end
of the next, and the first is warm-up. The loss counts every token alike (TRL's "dapo"), a reward is 1 where the last
number is the answer. At the end it measures how fast this process, with its threads, makes matrix products of the
model's shapes, and says how long the operations of a step would take at these rates (`limit`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks._operations import Lengths, Operations, Shape, rollout, shape_of, update
from maieutic.algorithms import grpo
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.backends.local.peak import matrix_rate
from maieutic.clock import listening
from maieutic.core.parts import Algorithm
from maieutic.core.weights import token_mean
from maieutic.models.causal import load_causal
from maieutic.protocols import Policy
from maieutic.rewards.compose import answer_reward
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.train import train
from maieutic.types import Group, Message, Task, Verdict

#: Of a product with weights `[K, N]`: operations a second.
Rate = Callable[[int, int], float]

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

#: Rows of the products by which the update's rate is measured, at most: more go no faster.
MOST_ROWS = 2048


def last_number(task: Task, text: str) -> Verdict:
    """Correct where the last number of the text is the answer."""
    found = NUMBER.findall(text.replace(",", ""))
    right = bool(found) and float(found[-1]) == float(task.answer or "nan")
    return Verdict(right, found[-1] if found else None)


def read_tasks(path: Path) -> list[Task]:
    """The problems: their text is the prompt as it stands."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Task(f"problem/{i}", (Message("user", r["prompt"]),), str(r["answer"])) for i, r in enumerate(rows)]


def set_up(given: argparse.Namespace) -> tuple[Sampled, Policy, Algorithm, Shape]:
    """All that the loop needs, and the shape of the model."""
    model = load_causal(given.model, template="plain", dtype="float32", device=given.device, precision=given.precision)
    if given.full_length:  # nothing but its length ends a completion
        model.chat.stop_ids = frozenset()
    backend = LocalBackend(device=given.device, threads=given.threads, sampling_precision=given.sampling_precision)
    policy = backend.policy(model, Optimiser(learning_rate=given.learning_rate, betas=(0.9, 0.999)))
    roller = Roller(
        policy.sampler,
        policy.chat,
        answer_reward(last_number),
        max_completion_length=given.max_completion,
        temperature=given.temperature,
        seed=given.seed,
    )
    tasks = read_tasks(given.data)
    source = Sampled(tasks, roller, prompts=given.prompts, num_generations=given.generations, seed=given.seed)
    return source, policy, replace(grpo(), weigh=token_mean()), shape_of(model.module)


def lengths_of(groups: Sequence[Group]) -> list[Lengths]:
    """What a step wrote and learned from."""
    return [
        Lengths(group.rollouts[0].prompt_length, tuple(r.completion_length for r in group.rollouts)) for group in groups
    ]


def limit_seconds(shape: Shape, done: Operations, rate: Rate) -> float:
    """How long these operations take at the least, where products with weights `[K, N]` go at `rate(K, N)` a second.

    Each weight has its part of the products' operations, by its size. Attention is held against the fastest of these
    rates: its own products are smaller.
    """
    rates = {(each.inner, each.columns): rate(each.inner, each.columns) for each in (*shape.products, shape.head)}
    whole = sum(each.weights for each in shape.products)
    seconds = sum(done.products * each.weights / whole / rates[each.inner, each.columns] for each in shape.products)
    seconds += done.head / rates[shape.head.inner, shape.head.columns]
    return seconds + done.attention / max(rates.values())


def limit_of(shape: Shape, lengths: Sequence[Lengths], rate: Callable[[int, int, int], float]) -> dict[str, float]:
    """Of a step: operations, and the seconds that rollouts and update take where `[M, K] @ [K, N]` goes at
    `rate(M, K, N)`.

    A decode step's products have as many rows as completions are written together: all of them, which favours the
    machine, for towards the end there are fewer. The update's have as many as its tokens.
    """
    rows = sum(len(each.completions) for each in lengths)
    tokens = min(MOST_ROWS, sum(each.prompt + sum(each.completions) for each in lengths))
    written, learned = rollout(shape, lengths), update(shape, lengths)
    return {
        "operations": written.total + learned.total,
        "rollout_seconds": limit_seconds(shape, written, partial(rate, rows)),
        "update_seconds": limit_seconds(shape, learned, partial(rate, tokens)),
    }


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The steps, and what they took."""
    source, policy, algorithm, shape = set_up(given)
    marks: list[tuple[float, float]] = []
    phases: list[dict[str, float]] = []
    written: list[list[Lengths]] = []
    measures: list[Mapping[str, float]] = []
    with listening() as heard:
        for step in train(source, policy, algorithm, steps=given.steps + 1):
            marks.append((time.perf_counter(), time.process_time()))
            phases.append(heard.read().seconds)
            written.append(lengths_of(step.groups))
            measures.append(step.metrics)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = ([b[clock] - a[clock] for a, b in pairwise(marks)] for clock in (0, 1))
    on_gpu = torch.device(given.device).type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    rate = cache(partial(matrix_rate, dtype=dtype, device=given.device, laid_out=True))
    limits = [limit_of(shape, lengths, rate) for lengths in written[1:]]
    return {
        "program": "maieutic",
        "seconds_per_step": median(wall),
        "all_seconds": wall,
        "cpu_seconds_per_step": median(cpu),
        "completions_per_step": given.prompts * given.generations,
        "mean_completion_tokens": fmean(n for lengths in written[1:] for each in lengths for n in each.completions),
        "rewards": [each["reward/mean"] for each in measures],
        "sampler_mismatch_max": max(each["policy/sampler_mismatch_max"] for each in measures),
        "phases": {name: median(each.get(name, 0.0) for each in phases[1:]) for name in phases[-1]},
        "limit": {name: median(each[name] for each in limits) for name in limits[0]},
        "peak_rss_mib": peak,
        "peak_device_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()},
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line: the peer's, as far as it speaks of the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one warm-up step")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--max-completion", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto", help="of products; weights stay float32")
    parser.add_argument("--sampling-precision", default="same")
    parser.add_argument("--full-length", action="store_true", help="never stop before the limit")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the steps and print the line."""
    print(json.dumps(run(parse(arguments))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
