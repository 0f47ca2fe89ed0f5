"""Trained tokens a second of an optimiser step, packed beside padded, against prompts, lengths and the micro-batch.

    python -m benchmarks update [--sizes 0.4M 4M 110M] [--quick] [--json FILE]

`LocalLearner.step` with GRPO's loss on groups of 8 rows whose completions end anywhere between a quarter of the longest
and the longest, as a policy's do: without padding and every prompt once (what the library does), and by the module's
own forward over padded rows. Optimiser and clipping are in it. Both are run in turn; the best of several times counts.

`of peak` is the share of the rate of a large matrix product, measured in the same run, at which the operations that
*have* to be done were done: 6 a weight and token, head and attention included, every prompt once, no padding
(`_operations.update`). The same operations are counted for both ways, so their shares differ as their times do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._clock import Clock, best_in_turn
from benchmarks._operations import Lengths, Shape, shape_of, update
from benchmarks._results import write_json
from benchmarks._shapes import SIZES, random_model
from benchmarks.svamp import machine
from maieutic.algorithms import grpo
from maieutic.backends.local import LocalLearner, Optimiser
from maieutic.backends.local.evaluate import PaddedForward
from maieutic.backends.local.peak import peak
from maieutic.core.parts import Algorithm
from maieutic.types import Batch

SIBLINGS, PROMPT, BUDGET = 8, 64, 16384

#: Rows of a step and their longest completion, by size: a step of the largest is to take seconds, not minutes.
STEPS = {"tiny": (32, 16), "0.4M": (64, 128), "4M": (64, 128), "110M": (16, 64)}

#: What is varied, at the size of `VARIED`: tokens of the prompts, and of a micro-batch.
VARIED, PROMPTS, BUDGETS = "4M", (16, 256, 1024), (1024, 4096, 65536)


@dataclass(frozen=True, slots=True)
class Case:
    """One step: `rows` in groups of `SIBLINGS`, completions of up to `longest` tokens."""

    size: str
    rows: int
    longest: int
    prompt: int = PROMPT
    budget: int = BUDGET

    @property
    def groups(self) -> list[Lengths]:
        """Each group's completions go from a quarter of the longest to the longest in equal strides."""
        least = max(1, self.longest // 4)
        lengths = tuple(least + (self.longest - least) * i // (SIBLINGS - 1) for i in range(SIBLINGS))
        return [Lengths(self.prompt, lengths)] * (self.rows // SIBLINGS)

    def report(self, seconds: dict[str, float], shape: Shape, fastest: float) -> dict[str, Any]:
        """Rates and shares, as they go into the JSON; `fastest` is the peak in operations a second."""
        groups = self.groups
        trained = sum(sum(group.completions) for group in groups)
        prompts = sum(group.prompt for group in groups)
        operations = update(shape, groups).total
        made: dict[str, Any] = {
            **asdict(self),
            "trained_tokens": trained,
            "prompt_share": prompts / (prompts + trained),
            "gflop": operations / 1e9,
        }
        for way, taken in seconds.items():
            made[way] = {
                "seconds": taken,
                "tokens_per_second": trained / taken,
                "gflops": operations / taken / 1e9,
                "share_of_peak": operations / taken / fastest,
            }
        made["times_padded"] = seconds["padded"] / seconds["packed"]
        return made


def batch_of(groups: list[Lengths], vocabulary: int, algorithm: Algorithm) -> Batch:
    """Random tokens in rows of these lengths, with the advantages and weights of a step."""
    draw = torch.Generator().manual_seed(7)
    starts = torch.tensor([group.prompt for group in groups for _ in group.completions])
    ends = starts + torch.tensor([length for group in groups for length in group.completions])
    number = torch.tensor([i for i, group in enumerate(groups) for _ in group.completions])
    size, width = len(starts), int(ends.max())
    place = torch.arange(width)[None]
    mask = (place >= starts[:, None]) & (place < ends[:, None])
    prompts = torch.randint(0, vocabulary, (len(groups), width), generator=draw)[number]
    written = torch.randint(0, vocabulary, (size, width), generator=draw)
    tokens = torch.where(place < starts[:, None], prompts, torch.where(mask, written, 0))
    logprobs = -mask.float()
    batch = Batch(
        tokens, mask, ends, logprobs, torch.ones(size), torch.zeros(mask.shape), torch.ones(size, dtype=torch.bool),
        number, torch.arange(size),
    )  # fmt: skip
    batch = batch.with_(advantages=torch.randn(size, 1, generator=draw) * mask)
    return batch.with_(weights=algorithm.weigh(batch))


def measure(case: Case, clock: Clock, *, repeats: int, most: float) -> tuple[dict[str, float], Shape]:
    """Seconds of a step both ways, and the shape of the model."""
    algorithm = grpo()
    optimiser = Optimiser(learning_rate=1e-6)
    learners = {}
    for way in ("packed", "padded"):
        model = random_model(SIZES[case.size], device=clock.device)
        forward = PaddedForward(model.module) if way == "padded" else None
        learners[way] = LocalLearner(model, optimiser, micro_batch_tokens=case.budget, forward=forward)
    batch = batch_of(case.groups, SIZES[case.size].vocabulary, algorithm)

    def step(learner: LocalLearner) -> None:
        learner.step(batch, algorithm.loss.terms, needs=algorithm.loss.needs)

    works = {way: (lambda learner=learner: step(learner)) for way, learner in learners.items()}
    return best_in_turn(works, clock.of, repeats=repeats, most=most), shape_of(learners["packed"].model.module)


def cases(sizes: list[str], quick: bool) -> Iterator[Case]:
    """A step of each size; then prompts and budgets are varied at one of them."""
    for size in sizes:
        rows, longest = STEPS[size]
        yield Case(size, rows // 4 if quick else rows, longest)
    if VARIED in sizes:
        rows, longest = STEPS[VARIED]
        rows = rows // 4 if quick else rows
        for prompt in PROMPTS[:2] if quick else PROMPTS:
            yield Case(VARIED, rows, longest, prompt)
        for budget in BUDGETS[:1] if quick else BUDGETS:
            yield Case(VARIED, rows, longest, budget=budget)


def sweep(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for."""
    clock = Clock(given.device)
    fastest = peak(device=given.device, seconds=0.2)
    found = []
    for case in cases(given.sizes, given.quick):
        seconds, shape = measure(case, clock, repeats=given.repeats, most=given.seconds)
        found.append(case.report(seconds, shape, fastest))
        print(
            f"{case.size}, {case.rows} rows, prompts of {case.prompt}, micro-batches of {case.budget}: "
            f"{found[-1]['packed']['tokens_per_second']:,.0f} tokens/s packed, {found[-1]['times_padded']:.2f} times "
            "padded",
            file=sys.stderr,
        )
    return {
        "machine": machine(),
        "device": given.device,
        "clock": clock.name,
        "peak_gflops": fastest / 1e9,
        "points": found,
    }


def table(made: dict[str, Any]) -> str:
    """Markdown: a line for each point."""
    lines = [
        "| size | rows | prompt | completion | micro-batch | prompts' share | packed tokens/s | of peak "
        "| padded tokens/s | of peak | times |",
        "|---" * 11 + "|",
    ]
    for p in made["points"]:
        ways = " | ".join(
            f"{p[way]['tokens_per_second']:,.0f} | {p[way]['share_of_peak']:.2f}" for way in ("packed", "padded")
        )
        lines.append(
            f"| {p['size']} | {p['rows']} | {p['prompt']} | ≤ {p['longest']} | {p['budget']} | "
            f"{p['prompt_share']:.2f} | {ways} | {p['times_padded']:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, help="at most for a point, but at least three runs of each way")
    parser.add_argument("--quick", action="store_true", help="a quarter of the rows, fewer points, no large model")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    given.sizes = given.sizes or (["0.4M", "4M"] if given.quick else ["0.4M", "4M", "110M"])
    given.seconds = given.seconds or (4.0 if given.quick else 60.0)
    torch.set_num_threads(given.threads)
    made = sweep(given)
    if given.json:
        write_json(given.json, made)
    print(f"{made['machine']}, {made['device']}, {made['clock']} seconds; peak {made['peak_gflops']:.0f} GFLOP/s\n")
    print(table(made))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
