"""A run of as many rollouts as asked for, made up and written to a run's folder, and the time to read a page of it.

The folder is like that of `maieutic train`: config, database, lock; what is in it is made up, for nothing here depends
on what a model wrote. Its rows are written by the same `Store.write_step` that a run calls, a step of 8 groups of 8.
"""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from maieutic.cli import main as maieutic
from maieutic.config import parse_config, write_toml
from maieutic.evaluate import Evaluation, Problem, Sample
from maieutic.pack import pack
from maieutic.report.html import page
from maieutic.report.reading import Order, read_rollouts, read_run
from maieutic.run.directory import RunDirectory
from maieutic.run.store import Store
from maieutic.types import Example, Finish, Group, Message, Rollout, Score, Span, Step, Task

STAGE, GROUPS, SIBLINGS, PROMPT = "rl", 8, 8, 24

#: Completions have from so many to so many tokens.
SHORTEST, LONGEST = 16, 48

#: What a GRPO run with a reward of two parts writes at every step.
METRICS = (
    "beside/reward", "beside/reward_hidden", "clip_ratio/high", "clip_ratio/low", "completions/clipped_ratio",
    "completions/max_length", "completions/mean_length", "cost/flops", "cost/generated_tokens", "cost/prompt_tokens",
    "cost/samples", "cost/trained_tokens", "loss", "memory/peak_rss_bytes", "optim/grad_norm", "optim/learning_rate",
    "optim/skipped", "policy/entropy", "policy/kl_to_old", "policy/ratio", "policy/ratio_limited",
    "policy/sampler_mismatch_max", "policy/sampler_mismatch_nats", "rate/decode_share_of_peak",
    "rate/decode_tokens_per_second", "rate/flops_per_second", "rate/prefill_share_of_peak",
    "rate/prefill_tokens_per_second", "rate/sampling_tokens_per_second", "rate/share_of_peak",
    "rate/update_share_of_peak", "rate/update_tokens_per_second", "reward/correct", "reward/frac_zero_std",
    "reward/mean", "reward/parts/answer", "reward/parts/format", "reward/std", "rollouts/count", "rollouts/errors",
    "rollouts/unscorable", "rows/count", "rows/coverage", "time/checkpoint", "time/credit", "time/other", "time/pack",
    "time/publish", "time/reward", "time/sampling", "time/sampling/decode", "time/sampling/prefill", "time/select",
    "time/step", "time/store", "time/update", "time/update/backward", "time/update/forward", "time/update/optimiser",
    "train/skipped",
)  # fmt: skip


def made_step(index: int) -> Step:
    """Step number `index`: 64 rollouts of 8 tasks with log-probs, advantages and a reward of two parts."""
    draw = random.Random(index)
    groups = tuple(_group(index * GROUPS + number, draw) for number in range(GROUPS))
    examples = tuple(
        Example(rollout, score.reward or 0.0, group.id, group.id)
        for group in groups
        for rollout, score in zip(group.rollouts, group.scores, strict=True)
    )
    batch = pack(examples)
    batch = batch.with_(advantages=(batch.rewards - batch.rewards.mean())[:, None] * batch.mask)
    return Step(index, groups, examples, batch, {name: draw.random() for name in METRICS})


def _group(visit: int, draw: random.Random) -> Group:
    number = visit % 60_000
    text = f"Ann has {number} apples, buys {visit % 97} more and gives half of them away. How many does she have?"
    task = Task(f"made-up/train/{number}", (Message("user", text),), answer=str((number + visit % 97) // 2))
    rollouts, scores = [], []
    for sibling in range(SIBLINGS):
        length = draw.randint(SHORTEST, LONGEST)
        tokens = tuple(draw.randrange(2048) for _ in range(PROMPT + length))
        logprobs = (0.0,) * PROMPT + tuple(-draw.random() for _ in range(length))
        spans = (Span("prompt", 0, PROMPT), Span("assistant", PROMPT, PROMPT + length))
        chosen = (False,) * PROMPT + (True,) * length
        said = " ".join(str(token) for token in tokens[PROMPT:])
        rollouts.append(Rollout(task.id, tokens, chosen, logprobs, Finish.STOP, said, spans, sibling, visit // GROUPS))
        right = draw.random() < 0.5
        scores.append(Score(right + 0.1 * draw.random(), right, {"answer": float(right), "format": draw.random()}))
    return Group(task, tuple(rollouts), tuple(scores), id=visit)


def begin(folder: Path, rollouts: int) -> None:
    """Make the run's folder, unless it is there."""
    if (folder / "config.toml").exists():
        return
    steps = max(1, rollouts // (GROUPS * SIBLINGS))
    config = parse_config(
        {
            "name": "long",
            "model": {"small": {}},
            "tasks": {"train": {"taskset": "arithmetic"}, "test": {"taskset": "arithmetic", "split": "test"}},
            "stages": [{"name": STAGE, "algorithm": "grpo", "steps": steps, "prompts": GROUPS}],
            "evaluation": {"tasks": "test", "samples": 8, "at_start": True},
        },
        "the made-up run's config",
    )
    RunDirectory.create(folder, write_toml(config), resume=False).close()


def fill(folder: Path, rollouts: int, say: Callable[[str], None]) -> dict[str, float]:
    """Write steps until the run has `rollouts`, going on where an earlier call stopped; what it took.

    `seconds` are of the processor and inside of `write_step` only; `written` is 0 where all were there.
    """
    begin(folder, rollouts)
    clock = written = 0.0
    with Store(folder / "run.db") as store:
        done = store.last_step(STAGE)
        steps = rollouts // (GROUPS * SIBLINGS)
        if done is None:
            store.write_evaluation("start", 0, "test", made_evaluation("before"))
        for index in range(0 if done is None else done + 1, steps):
            step = made_step(index)
            ledger = [(group.id, group.task.id) for group in step.groups]
            start = time.process_time()
            store.write_step(STAGE, step, ledger=ledger, seconds=1.0, source={"visits": (index + 1) * GROUPS})
            clock += time.process_time() - start
            written += GROUPS * SIBLINGS
            if index % 500 == 499:
                say(f"{(index + 1) * GROUPS * SIBLINGS:,} of {rollouts:,} rollouts written")
        if store.evaluation(STAGE, "test") is None:
            store.write_evaluation(STAGE, steps - 1, "test", made_evaluation("after"))
    return {"written": written, "seconds": clock, "bytes": float((folder / "run.db").stat().st_size)}


def made_evaluation(said: str) -> dict[str, Any]:
    """200 problems, 8 samples and a greedy one each."""
    draw = random.Random(said)

    def sample(problem: int) -> Sample:
        right = draw.random() < 0.5
        return Sample(f"{said} {problem}", str(problem if right else -1), right, Finish.STOP, 20)

    problems = tuple(Problem(f"made-up/test/{i}", sample(i), tuple(sample(i) for _ in range(8))) for i in range(200))
    return json.loads(Evaluation("test", problems).to_json())


def readings(folder: Path) -> Mapping[str, Callable[[], object]]:
    """What people read of a run, by what it is called: each a call that opens the database anew."""

    def show(*more: str) -> None:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            maieutic(["show", str(folder), "--no-report", *more])

    def rollout_page(**asked: Any) -> None:
        with Store.open_reader(folder / "run.db") as store:
            store.recent(50, **asked)

    middle = read_run(folder).at.done // 2
    return {
        "the run (stages, curves, evaluations)": lambda: read_run(folder),
        "the best rollouts": lambda: read_rollouts(folder, Order.BEST, 3),
        "the worst rollouts of the stage": lambda: read_rollouts(folder, Order.WORST, 3, stage=STAGE),
        "a page of 50 rollouts, the last": rollout_page,
        "a page of 50 rollouts of a step": lambda: rollout_page(stage=STAGE, step=middle),
        "a page of 50 rollouts of the stage": lambda: rollout_page(stage=STAGE),
        "maieutic show": show,
        "maieutic show --step": lambda: show("--step", str(middle)),
        "the report's page": lambda: page(read_run(folder)),
    }


def read(folder: Path, repeats: int) -> dict[str, float]:
    """Processor seconds of each reading: the least of `repeats`."""
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for name, reading in readings(folder).items():
        taken = []
        for _ in range(repeats):
            start = time.process_time()
            reading()
            taken.append(time.process_time() - start)
        found[name] = min(taken)
    return found
