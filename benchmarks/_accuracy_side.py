"""maieutic's side of the benchmark `accuracy`: GRPO for so many steps, weights kept now and then, one JSON line.

    python -m benchmarks._accuracy_side --model DIR --data problems.jsonl --out DIR --learning-rate 5e-4

What a user would write: a backend, a policy, tasks, a roller, a source, an algorithm and the loop. The loss counts
every token alike (TRL's "dapo"). Rows without an advantage stay out of the update, which changes no gradient
(`spare_rows` of a config).
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks._accuracy_both import Record, parse, read_problems, right  # isort: skip  (its clock starts here)

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors.torch import save_file

from maieutic.algorithms import grpo
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.core.sparing import Sparing
from maieutic.core.weights import token_mean
from maieutic.models.causal import load_causal
from maieutic.rewards.compose import answer_reward
from maieutic.rollout import Roller
from maieutic.sources import Order, Sampled
from maieutic.train import train
from maieutic.types import Message, Task, Verdict


def judge(task: Task, text: str) -> Verdict:
    """The reward that both programs give."""
    return Verdict(right(text, task.answer or ""), None)


def tasks_of(path: Path) -> list[Task]:
    """The problems: their text is the prompt as it stands."""
    rows = read_problems(path)
    return [Task(f"problem/{i}", (Message("user", r["prompt"]),), r["answer"]) for i, r in enumerate(rows)]


def in_order(tasks: Sequence[Task], seed: int) -> list[Task]:
    """The tasks laid so that a source of this seed meets them in the order given, in its first epoch."""
    order = Order(len(tasks), seed)
    laid = {order[visit]: task for visit, task in enumerate(tasks)}
    return [laid[index] for index in range(len(tasks))]


def save_weights(module: Any, path: Path) -> None:
    """Every weight by its name, tied ones once."""
    save_file({name: weight.detach().contiguous() for name, weight in module.named_parameters()}, path)


def run(given: Namespace) -> Record:
    """The steps."""
    model = load_causal(given.model, template="plain", dtype="float32", precision=given.precision, device="cpu")
    backend = LocalBackend(threads=given.threads)
    policy = backend.policy(model, Optimiser(learning_rate=given.learning_rate, betas=(0.9, 0.999)))
    policy = replace(policy, learner=Sparing(policy.learner))
    roller = Roller(
        policy.sampler, policy.chat, answer_reward(judge), max_completion_length=given.max_completion, seed=given.seed
    )
    tasks = in_order(tasks_of(given.data), given.seed)
    source = Sampled(tasks, roller, prompts=given.prompts, num_generations=given.generations, seed=given.seed)
    algorithm = replace(grpo(), weigh=token_mean())
    record = Record(given, lambda path: save_weights(model.module, path))
    for step in train(source, policy, algorithm, steps=given.steps):
        lengths = [rollout.completion_length for group in step.groups for rollout in group.rollouts]
        record.step(step.metrics["reward/mean"], fmean(lengths))
    return record


def main(arguments: list[str] | None = None) -> int:
    """Run the steps and print the line."""
    print(run(parse(__doc__, arguments)).told())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
