"""Seconds of a training step with the next one's rollouts sampled beside it, against one process with as many threads.

    python -m benchmarks overlap [--sizes 0.4M 4M] [--threads 2] [--quick] [--json FILE]

GRPO on `arithmetic` from an untrained model, all as a run does it. Three ways, in turn, in blocks of a few steps:

    alone, 1 thread        sample, update, sample, update, …
    alone, N threads       the same with all threads
    overlap, N/2 each      another process samples the next step's rollouts during the update

A block of the last way ends when the batch that is ahead is there, so that each block has as many samplings as updates.
The median over blocks counts, and the ratio of medians is what to look at, where all cores are free: with others at
work on them, every way is slowed, and those that want two cores most. What others disturb little are the processor
seconds of a step: those of one process alone, and of each of the two that overlap. `at best` is what they allow where
two cores are free, the former by the longer of the latter.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# as the command line does it, before torch is loaded: threads that wait for each other by spinning keep others waiting
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

from benchmarks._results import write_json
from benchmarks.svamp import machine
from maieutic.ahead import Ahead
from maieutic.clock import listening, within
from maieutic.config import parse_config
from maieutic.run.build import make_backend, make_stage_algorithm, start_model
from maieutic.run.setup import Setup, set_up
from maieutic.run.tasksets import Tasksets

#: Shapes of the models, by their number of weights.
SIZES: Mapping[str, dict[str, int]] = {
    "tiny": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "context": 128},
    "0.4M": {"layers": 2, "width": 128, "heads": 4, "kv_heads": 2, "context": 256},
    "4M": {"layers": 5, "width": 256, "heads": 4, "kv_heads": 2, "context": 256},
}

#: Shares of a step that are told.
PHASES = ("sampling", "update")


@dataclass(frozen=True, slots=True)
class Way:
    """How steps are made: `Way("overlap, 1 each", threads=1, overlap=True)`; `threads` are those of each process."""

    name: str
    threads: int
    overlap: bool = False


@dataclass(frozen=True)
class Steps:
    """Steps of a run, made when they are asked for."""

    way: Way
    setup: Setup
    made: Iterator[Any]

    def block(self, count: int) -> None:
        """So many steps, samplings included."""
        torch.set_num_threads(self.way.threads)
        for _ in range(count):
            next(self.made)
        self.wait()

    def wait(self) -> None:
        """Until nothing is ahead that is not there yet."""
        if isinstance(self.setup.source, Ahead):
            with tempfile.TemporaryDirectory() as folder:
                self.setup.source.save(Path(folder))


def config_of(size: str, way: Way, given: argparse.Namespace) -> dict[str, Any]:
    """The run, as a user would write it."""
    return {
        "threads": way.threads,
        "model": {"small": SIZES[size]},
        "tasks": {"train": {"taskset": "arithmetic", "limit": 2000}},
        "stages": [
            {
                "algorithm": "grpo", "steps": 10_000, "prompts": given.prompts, "num_generations": given.siblings,
                "max_completion_length": given.length, "overlap": way.overlap,
                "optimiser": {"learning_rate": 1e-4},
            }
        ],
    }  # fmt: skip


@contextmanager
def steps_of(size: str, way: Way, given: argparse.Namespace, folder: Path) -> Iterator[Steps]:
    """The steps of one way; the second process ends with the block."""
    config = parse_config(config_of(size, way, given))
    stage, tasksets = config.stages[0], Tasksets(config)
    model = start_model(config, tasksets, folder / size)
    backend, algorithm = make_backend(config), make_stage_algorithm(stage)
    with closing(set_up(config, stage, backend, model, model, tasksets, algorithm, stage.steps)) as setup:
        yield Steps(way, setup, setup.train(10_000, 0))


def seconds_of(work: Callable[[], object]) -> float:
    """By the clock on the wall: two processes are at it."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def used(pid: int | None) -> float:
    """Processor seconds that a process has used so far (Linux; 0 elsewhere, and of none)."""
    file = Path(f"/proc/{pid}/stat")
    if pid is None or not file.exists():
        return 0.0
    fields = file.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processor_seconds(steps: Steps, count: int) -> dict[str, float]:
    """Processor seconds of a step, by its parts: sampling and update in this process, all of the other one."""
    pid = getattr(steps.setup.source, "pid", None)
    there = used(pid)
    with listening(clock=time.process_time) as heard:
        steps.block(count)
        read = heard.read()
    parts = {name: within(read.seconds, name) for name in PHASES} | {"here": read.total, "there": used(pid) - there}
    return {name: seconds / count for name, seconds in parts.items()}


def measure(size: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds a step of each way: each block's, their median; and the parts of a step of one process."""
    half = max(1, given.threads // 2)
    ways = [
        Way("alone, 1 thread", 1),
        Way(f"alone, {given.threads} threads", given.threads),
        Way(f"overlap, {half} each", half, True),
    ]
    with ExitStack() as stack:
        sides = [stack.enter_context(steps_of(size, way, given, folder)) for way in ways]
        for side in sides if given.repeats else sides[::2]:
            side.block(2)  # the second process begins, memory is taken
        alone = processor_seconds(sides[0], 2 * given.block)
        beside = processor_seconds(sides[2], 2 * given.block)
        taken: dict[str, list[float]] = {way.name: [] for way in ways}
        for block in range(given.repeats):
            for side in sides:
                taken[side.way.name].append(seconds_of(lambda side=side: side.block(given.block)) / given.block)
            said = ", ".join(f"{name} {values[-1]:.3f} s" for name, values in taken.items())
            print(f"{size}, block {block + 1} of {given.repeats}: {said} a step", file=sys.stderr)
    medians = {name: statistics.median(values) if values else math.nan for name, values in taken.items()}
    one, all_, both = medians.values()
    return {
        "size": size, "prompts": given.prompts, "siblings": given.siblings, "length": given.length,
        "seconds": taken, "medians": medians, "processor_seconds": {"alone": alone, "overlap": beside},
        "at_best": alone["here"] / max(beside["here"], beside["there"]),
        "times_one_thread": one / both, "times_all_threads": all_ / both,
    }  # fmt: skip


def table(made: dict[str, Any]) -> str:
    """Markdown: a line for each size."""
    names = list(made["points"][0]["medians"])
    lines = [
        "| size | rows × tokens | " + " | ".join(f"{name}, s a step" for name in names)
        + " | times one thread | times all threads | processor s alone (sampling, update) | here, there | at best |",
        "|---" * (len(names) + 7) + "|",
    ]  # fmt: skip
    for p in made["points"]:
        alone, beside = p["processor_seconds"].values()
        parts = f"{alone['here']:.3f} ({', '.join(f'{alone[name]:.3f}' for name in PHASES)})"
        parts += f" | {beside['here']:.3f}, {beside['there']:.3f}"
        lines.append(
            f"| {p['size']} | {p['prompts'] * p['siblings']} × {p['length']} | "
            + " | ".join(f"{p['medians'][name]:.3f}" for name in names)
            + f" | {p['times_one_thread']:.2f} | {p['times_all_threads']:.2f} | {parts} | {p['at_best']:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES))
    parser.add_argument("--threads", type=int, default=2, help="in all")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--siblings", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="of completions, in tokens")
    parser.add_argument("--block", type=int, help="steps")
    parser.add_argument("--repeats", type=int, help="blocks of each way (0: processor seconds only)")
    parser.add_argument("--quick", action="store_true", help="the smaller size, few blocks")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    given.sizes = given.sizes or (["0.4M"] if given.quick else ["0.4M", "4M"])
    given.block = given.block or (3 if given.quick else 5)
    given.repeats = (3 if given.quick else 9) if given.repeats is None else given.repeats
    with tempfile.TemporaryDirectory() as folder:
        points = [measure(size, given, Path(folder)) for size in given.sizes]
    made = {"machine": machine(), "cores": os.cpu_count(), "points": points}
    if given.json:
        write_json(given.json, made)
    print(f"{made['machine']}, {made['cores']} cores\n")
    print(table(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
