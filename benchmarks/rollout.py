"""Tokens a second of rollouts, against rows, lengths and sizes, beside `generate` and the limits of the machine.

    python -m benchmarks rollout [--sizes 0.4M 4M 110M] [--rows 1 2 4 …] [--lengths 16 64 …] [--quick] [--json FILE]

Random decoders write completions of a given length: `LocalSampler`, and Hugging Face's `generate` on the same module,
prompts and number of rows (its ordinary cache, which grows; sampling at temperature 1; no log-probs asked of it). Both
are run in turn; the best of several times counts. Beside each point stand two limits, measured in the same run:

    the products   the rate of each weight's product at exactly that number of rows, combined by operations
    the memory     weights once a decode step and every key and value that is seen, at the rate of a large copy

`share` is the time that the decode steps' products alone would take at their rate, of the time that was taken:
attention and prompts count as time and not as work. `of memory` is the same for the bytes; above 1 where caches hold
the weights. With one thread on a CPU, time is the processor's, so that other programs disturb less. `share_at_64` in
the JSON holds, for each size, the share at 64 rows.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from benchmarks._clock import Clock, best_in_turn
from benchmarks._operations import Lengths, Shape, Work, forward, rollout, rollout_bytes, shape_of
from benchmarks._results import write_json
from benchmarks._shapes import SIZES, random_module
from benchmarks.svamp import machine
from maieutic.backends.local import LocalSampler
from maieutic.backends.local.check import decoder_for
from maieutic.backends.local.peak import bandwidth, matrix_rate, peak
from maieutic.protocols import Sampling

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LENGTHS = (16, 64, 256, 1024)
PROMPT, SIBLINGS = 32, 8

#: The number of rows at which the target stands, and of the sweep over lengths.
TARGET_ROWS, TARGET_SHARE = 64, 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine can do: rates of products by rows, in operations a second, and bytes a second."""

    shape: Shape
    bandwidth: float
    rate: Callable[[int, int, int], float]

    def products(self, rows: int) -> float:
        """Operations a second of one decode step's products, each at the rate of its own shape and `rows`."""
        work = [(each, 2.0 * rows * each.weights) for each in (*self.shape.products, self.shape.head)]
        seconds = sum(operations / self.rate(rows, each.inner, each.columns) for each, operations in work)
        return sum(operations for _, operations in work) / seconds


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: `seconds` of both engines for `rows` completions of `completion` tokens."""

    size: str
    rows: int
    completion: int
    seconds: float
    generate: float

    def report(self, limits: Limits) -> dict[str, Any]:
        """Rates and shares, as they go into the JSON; operations in 10⁹ a second."""
        groups = lengths_of(self.rows, self.completion)
        work = rollout(limits.shape, groups)
        steps = self.rows * (self.completion - 1)
        decoded = forward(limits.shape, Work(steps, 0, steps))  # the first token of each row is the prompt's
        limit = limits.products(self.rows)
        tokens = self.rows * self.completion
        return {
            **asdict(self),
            "prompt": PROMPT,
            "siblings": min(SIBLINGS, self.rows),
            "tokens_per_second": tokens / self.seconds,
            "generate_tokens_per_second": tokens / self.generate,
            "times_generate": self.generate / self.seconds,
            "gflops": work.total / self.seconds / 1e9,
            "gemm_gflops": limit / 1e9,
            "share": decoded.total / limit / self.seconds,
            "share_of_memory": rollout_bytes(limits.shape, groups) / limits.bandwidth / self.seconds,
        }


def lengths_of(rows: int, completion: int, prompt: int = PROMPT) -> list[Lengths]:
    """So many rows, `SIBLINGS` to a prompt (the last one's may be fewer)."""
    return [Lengths(prompt, (completion,) * min(SIBLINGS, rows - first)) for first in range(0, rows, SIBLINGS)]


def measure(
    module: nn.Module, rows: int, completion: int, clock: Clock, *, repeats: int, most: float
) -> dict[str, float]:
    """Seconds of both engines. Raises AssertionError where one wrote fewer tokens than it was asked for."""
    config: Any = module.config
    groups = lengths_of(rows, completion)
    draw = torch.Generator().manual_seed(rows)
    prompts = torch.randint(0, config.vocab_size, (len(groups), PROMPT), generator=draw)
    repeated = prompts.repeat_interleave(torch.tensor([len(g.completions) for g in groups]), 0).to(clock.device)
    sampler = LocalSampler(module, decoder_for(module), max_rows=max(rows, 1))
    settings = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=completion, pad_token_id=0)

    async def everything() -> int:
        calls = [
            sampler.sample(prompt, Sampling(max_tokens=completion, key=str(number)), len(group.completions))
            for number, (prompt, group) in enumerate(zip(prompts.tolist(), groups, strict=True))
        ]
        return sum(len(each.tokens) for made in await asyncio.gather(*calls) for each in made)

    def ours() -> None:
        assert asyncio.run(everything()) == rows * completion

    def theirs() -> None:
        with torch.inference_mode():
            written = module.generate(repeated, attention_mask=torch.ones_like(repeated), generation_config=settings)  # type: ignore[operator]
        assert written.shape == (rows, PROMPT + completion)

    return best_in_turn({"seconds": ours, "generate": theirs}, clock.of, repeats=repeats, most=most)


def points_of(completion: int, rows: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(rows, completion) of the sweep over rows, then of the one over lengths, none twice."""
    return list(dict.fromkeys([*((each, completion) for each in rows), *((TARGET_ROWS, each) for each in lengths)]))


def sweep(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for."""
    clock, dtype, seconds = Clock(given.device), getattr(torch, given.dtype), given.limit_seconds
    rate = cache(lambda *sides: matrix_rate(*sides, dtype=dtype, device=given.device, seconds=seconds, laid_out=True))
    moved = bandwidth(device=given.device, seconds=seconds)
    found: list[dict[str, Any]] = []
    for name in given.sizes:
        size = SIZES[name]
        module = random_module(size, device=given.device, dtype=dtype)
        limits = Limits(shape_of(module), moved, rate)
        for rows, completion in points_of(given.completion or size.completion, given.rows, given.lengths):
            taken = measure(module, rows, completion, clock, repeats=given.repeats, most=given.seconds)
            found.append(Point(name, rows, completion, **taken).report(limits))
            said = found[-1]
            print(
                f"{name}, {rows} rows of {completion}: {said['tokens_per_second']:,.0f} tokens/s, "
                f"share {said['share']:.2f}, {said['times_generate']:.2f} times generate",
                file=sys.stderr,
            )
    at = {p["size"]: p["share"] for p in reversed(found) if p["rows"] == TARGET_ROWS}
    return {
        "machine": machine(),
        "device": given.device,
        "dtype": given.dtype,
        "clock": clock.name,
        "peak_gflops": peak(dtype=dtype, device=given.device, seconds=seconds) / 1e9,
        "bandwidth_gbytes": moved / 1e9,
        "points": found,
        "target_share": TARGET_SHARE,
        "share_at_64": dict(reversed(at.items())),
    }


def table(made: dict[str, Any]) -> str:
    """Markdown: a line for each point, then how the target stands."""
    lines = [
        "| size | rows | completion | tokens/s | GFLOP/s | products alone | share | of memory | generate | times |",
        "|---" * 10 + "|",
    ]
    for p in made["points"]:
        lines.append(
            f"| {p['size']} | {p['rows']} | {p['completion']} | {p['tokens_per_second']:,.0f} | {p['gflops']:.1f} | "
            f"{p['gemm_gflops']:.1f} | {p['share']:.2f} | {p['share_of_memory']:.2f} | "
            f"{p['generate_tokens_per_second']:,.0f} | {p['times_generate']:.2f} |"
        )
    told = ", ".join(f"{name} {share:.2f}" for name, share in made["share_at_64"].items())
    lines += ["", f"Share at {TARGET_ROWS} rows (to be at least {made['target_share']}): {told or 'not measured'}."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES))
    parser.add_argument("--rows", nargs="+", type=int)
    parser.add_argument("--completion", type=int, help="tokens, in the sweep over rows")
    parser.add_argument("--lengths", nargs="*", type=int, help=f"completions, at {TARGET_ROWS} rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, help="at most for a point, but at least three runs of each engine")
    parser.add_argument("--limit-seconds", type=float, default=0.2, help="of measuring each limit")
    parser.add_argument("--quick", action="store_true", help="few points of the two smaller sizes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    given.sizes = given.sizes or (["0.4M", "4M"] if given.quick else ["0.4M", "4M", "110M"])
    given.rows = given.rows or ([1, 8, 64] if given.quick else list(ROWS))
    if given.lengths is None:
        given.lengths = [128] if given.quick else list(LENGTHS)
    if given.quick:
        given.completion = given.completion or 32
    given.seconds = given.seconds or (2.0 if given.quick else 30.0)
    torch.set_num_threads(given.threads)
    made = sweep(given)
    if given.json:
        write_json(given.json, made)
    print(
        f"{made['machine']}, {made['device']}, {made['dtype']}, {made['clock']} seconds; peak "
        f"{made['peak_gflops']:.0f} GFLOP/s, memory {made['bandwidth_gbytes']:.1f} GB/s\n"
    )
    print(table(made))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
