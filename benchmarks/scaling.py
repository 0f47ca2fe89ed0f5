"""What a run costs as it grows: in tasks, siblings, completion length, and rollouts stored; and whether memory stays.

    python -m benchmarks scaling [--parts tasks siblings length store memory] [--folder DIR] [--quick] [--json FILE]

    tasks      drawing a step's tasks from 10² to 10⁶ of them, and the state of a curriculum that left all of them out
    siblings   rollouts and an optimiser step of 64 rows in groups of 1 to 32 that share a prompt of 256 tokens
    length     completions of 512 to 8,192 tokens: rollouts, and an optimiser step on one group of them
    store      10⁶ rollouts in a run's database: to write them, on disk, and to read a page of what people look at
    memory     resident memory over 10⁴ training steps, each stored: toy, tiny model, one with kernels

The made-up run of `store` stays in DIR (runs/scaling unless given) and is gone on with: the first time takes minutes.
Times are the processor's (one thread); the best of several counts.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks._clock import Clock, best_in_turn
from benchmarks._long_run import fill, read
from benchmarks._memory import ENGINES, training
from benchmarks._operations import Lengths, rollout, shape_of, update
from benchmarks._results import write_json
from benchmarks._shapes import SIZES, random_model
from benchmarks.svamp import machine
from benchmarks.update import batch_of
from maieutic.algorithms import grpo
from maieutic.backends.local import LocalLearner, LocalSampler, Optimiser
from maieutic.backends.local.check import decoder_for
from maieutic.curriculum import Curriculum
from maieutic.protocols import Sampling
from maieutic.sources import Order
from maieutic.tasks.arithmetic import arithmetic
from maieutic.tasks.taskset import Tasks

#: What a page may take.
LIMIT = 1.0

#: Tasks of a step of `tasks`; rows, prompt and completions of `siblings`; rows of `length`.
DRAWN, ROWS, PROMPT, COMPLETION, LONG_ROWS = 32, 64, 256, 64, 8


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def tasks(quick: bool) -> list[dict[str, Any]]:
    """Seconds of an epoch's order and of a step's tasks after it; and the state of a curriculum that knows them all."""
    clock = Clock("cpu")
    made = []
    for count in (100, 10_000) if quick else (100, 10_000, 1_000_000):
        taskset = arithmetic("train", size=count)
        order = Order(count, seed=0)
        visits = itertools.cycle(range(count))
        curriculum = Curriculum()
        curriculum.restore({"until": {f"arithmetic/train/{number}": 3 * count for number in range(count)}})

        def step(taskset: Tasks = taskset, order: Order = order, visits: Iterator[int] = visits) -> None:
            for _ in range(DRAWN):
                taskset[order[next(visits)]]

        works: dict[str, Callable[[], object]] = {
            "order_seconds": partial(first_draw, count),
            "step_seconds": step,
            "state_seconds": partial(written_state, curriculum),
        }
        taken = best_in_turn(works, clock.of, repeats=5, most=10.0)
        state = len(written_state(curriculum))
        made.append({"tasks": count, **taken, "epoch_steps": -(-count // DRAWN), "state_bytes": state})
        say(f"{count:,} tasks: {taken['order_seconds']:.4f} s an epoch, {taken['step_seconds']:.4f} s a step")
    return made


def first_draw(count: int) -> int:
    """The first task of a fresh epoch over so many."""
    return Order(count, seed=0)[0]


def written_state(curriculum: Curriculum) -> str:
    """A curriculum as a checkpoint holds it."""
    return json.dumps(curriculum.state())


def write_all(sampler: LocalSampler, prompts: Sequence[Sequence[int]], siblings: int, completion: int) -> None:
    """Sample completions of exactly that many tokens for every prompt."""

    async def everything() -> None:
        calls = [
            sampler.sample(prompt, Sampling(max_tokens=completion, key=str(number)), siblings)
            for number, prompt in enumerate(prompts)
        ]
        for written in await asyncio.gather(*calls):
            assert all(len(each.tokens) == completion for each in written)

    asyncio.run(everything())


def costs(
    groups: Sequence[Lengths], size: str, repeats: int, most: float, *, trained: Sequence[Lengths] | None = None
) -> dict[str, float]:
    """Seconds and operations of rollouts of these lengths, and of an optimiser step on them (or on `trained`)."""
    trained = groups if trained is None else trained
    model, algorithm = random_model(SIZES[size]), grpo()
    vocabulary, shape = SIZES[size].vocabulary, shape_of(model.module)
    sampler = LocalSampler(model.module, decoder_for(model.module))
    learner = LocalLearner(model, Optimiser(learning_rate=1e-6))
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, vocabulary, (group.prompt,), generator=draw).tolist() for group in groups]
    siblings, completion = len(groups[0].completions), groups[0].completions[0]
    batch = batch_of(list(trained), vocabulary, algorithm)
    works: dict[str, Callable[[], object]] = {
        "rollout_seconds": lambda: write_all(sampler, prompts, siblings, completion),
        "update_seconds": lambda: learner.step(batch, algorithm.loss.terms, needs=algorithm.loss.needs),
    }
    return {
        **best_in_turn(works, Clock("cpu").of, repeats=repeats, most=most),
        "rollout_gflop": rollout(shape, groups).total / 1e9,
        "update_gflop": update(shape, trained).total / 1e9,
        "tokens": float(sum(sum(group.completions) for group in groups)),
        "trained_tokens": float(sum(sum(group.completions) for group in trained)),
    }


def siblings(quick: bool) -> list[dict[str, Any]]:
    """The same rows in larger and larger groups: the prompt is run once a group."""
    size, rows = ("0.4M", 16) if quick else ("4M", ROWS)
    made = []
    for each in (1, 4, 16) if quick else (1, 2, 4, 8, 16, 32):
        groups = [Lengths(PROMPT, (COMPLETION,) * each)] * (rows // each)
        found = costs(groups, size, repeats=2 if quick else 3, most=3.0 if quick else 30.0)
        made.append({"siblings": each, "size": size, "rows": rows, "prompt": PROMPT, **found})
        say(f"groups of {each}: {found['rollout_seconds']:.2f} s rollouts, {found['update_seconds']:.2f} s update")
    return made


def length(quick: bool) -> list[dict[str, Any]]:
    """Longer and longer completions, 8 rows of one group; the update is of one group of two such rows."""
    made = []
    for each in (64, 256) if quick else (512, 2048, 8192):
        groups, trained = [Lengths(32, (each,) * LONG_ROWS)], [Lengths(32, (each,) * 2)]
        found = costs(groups, "0.4M", repeats=2 if quick else 3, most=4.0 if quick else 120.0, trained=trained)
        made.append({"completion": each, "size": "0.4M", "rows": LONG_ROWS, **found})
        rates = found["tokens"] / found["rollout_seconds"], found["trained_tokens"] / found["update_seconds"]
        say(f"completions of {each:,}: {rates[0]:,.0f} tokens/s written, {rates[1]:,.0f} trained")
    return made


def store(quick: bool, folder: Path) -> list[dict[str, Any]]:
    """Runs of ten times as many rollouts each; what was written by an earlier call is not timed again."""
    made = []
    for count in (640, 6_400) if quick else (10_000, 100_000, 1_000_000):
        found = fill(folder / f"rollouts-{count}", count, say)
        pages = read(folder / f"rollouts-{count}", repeats=2 if quick else 5)
        made.append({
            "rollouts": count,
            "bytes_a_rollout": found["bytes"] / count,
            "written_a_second": found["written"] / found["seconds"] if found["seconds"] else None,
            "slowest_page": max(pages.values()),
            "pages": pages,
        })  # fmt: skip
        say(f"{count:,} rollouts: the slowest page takes {max(pages.values()):.3f} s")
    return made


def memory(quick: bool) -> list[dict[str, Any]]:
    """Each engine over so many steps, in a process of its own: what was freed before would hide what grows."""
    made = []
    for engine, steps in ({"toy": 200} if quick else dict.fromkeys(ENGINES, 10_000)).items():
        with ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as fresh:
            made.append(fresh.submit(training, engine, steps, say).result())
    return made


def table(made: dict[str, Any]) -> str:
    """Markdown: a table for each part."""
    drawn = {name: "\n".join(TABLES[name](made[name])) for name in TABLES if name in made}
    return "\n\n".join(f"**{name}**\n\n{text}" for name, text in drawn.items())


def _tasks_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"| tasks | order of an epoch, ms | the same, ms a step | {DRAWN} tasks, ms | curriculum of all, ms | bytes |",
        "|---" * 6 + "|",
    ]
    return lines + [
        f"| {r['tasks']:,} | {1e3 * r['order_seconds']:.1f} | {1e3 * r['order_seconds'] / r['epoch_steps']:.3f} | "
        f"{1e3 * r['step_seconds']:.2f} | {1e3 * r['state_seconds']:.1f} | {r['state_bytes']:,} |"
        for r in rows
    ]


def _against_first(rows: Sequence[dict[str, Any]], key: str, per: str) -> list[str]:
    """Cost a token of each row over that of the first, measured and by operations."""
    cells = []
    for what, tokens in (("rollout", "tokens"), ("update", "trained_tokens")):
        for unit in ("seconds", "gflop"):
            first, *_ = each = [row[f"{what}_{unit}"] / row[tokens] for row in rows]
            cells.append([f"{value / first:.2f}" for value in each])
    lines = [
        f"| {per} | rollout tokens/s | seconds a token | operations a token | trained tokens/s | seconds a token "
        "| operations a token |",
        "|---" * 7 + "|",
    ]
    for number, row in enumerate(rows):
        rates = [row["tokens"] / row["rollout_seconds"], row["trained_tokens"] / row["update_seconds"]]
        shown = [f"{rates[0]:,.0f}", cells[0][number], cells[1][number]]
        shown += [f"{rates[1]:,.0f}", cells[2][number], cells[3][number]]
        lines.append(f"| {row[key]:,} | {' | '.join(shown)} |")
    return lines


def _store_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| | " + " | ".join(f"{row['rollouts']:,}" for row in rows) + " |", "|---" * (1 + len(rows)) + "|"]
    rates = ["–" if row["written_a_second"] is None else f"{row['written_a_second']:,.0f}" for row in rows]
    lines.append(f"| rollouts written a second | {' | '.join(rates)} |")
    lines.append(f"| bytes a rollout | {' | '.join(format(row['bytes_a_rollout'], ',.0f') for row in rows)} |")
    for name in rows[0]["pages"]:
        lines.append(f"| {name}, s | {' | '.join(format(row['pages'][name], '.3f') for row in rows)} |")
    slowest = rows[-1]["slowest_page"]
    return [*lines, "", f"The slowest page takes {slowest:.2f} s (to stay below {LIMIT:g})."]


def _memory_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| engine | steps | resident first, MiB | last | bytes a step |", "|---" * 5 + "|"]
    return lines + [
        f"| {r['engine']} | {r['steps']:,} | {r['first_mib']:.1f} | {r['last_mib']:.1f} | "
        f"{r['bytes_a_step']:,.0f} ± {r['error']:,.0f} |"
        for r in rows
    ]


#: How each part is shown.
TABLES: dict[str, Callable[[Sequence[dict[str, Any]]], list[str]]] = {
    "tasks": _tasks_table,
    "siblings": lambda rows: _against_first(rows, "siblings", "siblings"),
    "length": lambda rows: _against_first(rows, "completion", "completion"),
    "store": _store_table,
    "memory": _memory_table,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the tables; exit with 1 when a page of a run takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--folder", type=Path, help="where the made-up runs are kept (default: runs/scaling)")
    parser.add_argument("--quick", action="store_true", help="small numbers; the made-up runs are thrown away")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    made: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or (Path(temporary) if given.quick else Path("runs/scaling"))
        parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "tasks": lambda: tasks(given.quick),
            "siblings": lambda: siblings(given.quick),
            "length": lambda: length(given.quick),
            "store": lambda: store(given.quick, folder),
            "memory": lambda: memory(given.quick),
        }
        for name in given.parts:
            made[name] = parts[name]()
    if given.json:
        write_json(given.json, made)
    print(made["machine"] + "\n")
    print(table(made))
    return int("store" in made and made["store"][-1]["slowest_page"] >= LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
