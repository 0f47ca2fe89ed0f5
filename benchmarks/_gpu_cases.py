"""One case of the benchmark `gpu` in a process of its own: JSON lines on stdout, each as soon as it is known.

    python -m benchmarks._gpu_cases limits|decode|update|model [--size 0.5B] [--rows 1 64] [--device cuda] …

`decode` and `update` are given what the machine can do (`--bandwidth`, `--peak`, as `limits` measured it). `model`
writes the folder and problems that the comparison of whole steps runs on. On a CPU everything runs too, with small
sizes: to see that it does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._clock import Clock
from benchmarks._operations import Lengths, Shape, rollout_bytes, shape_of, update
from benchmarks._shapes import LARGE, SIZES, Size, random_model, random_module
from benchmarks.update import batch_of
from maieutic.algorithms import grpo
from maieutic.backends.local import LocalLearner, LocalSampler, Optimiser
from maieutic.backends.local.budget import is_out_of_memory
from maieutic.backends.local.evaluate import PackedForward
from maieutic.backends.local.narrow import narrow_for
from maieutic.backends.local.peak import bandwidth, peak
from maieutic.backends.local.replay import ReplayedDecoder
from maieutic.backends.local.trunk import Trunk
from maieutic.models.causal import CausalModel, save_causal
from maieutic.models.lora import LoRA, add_lora
from maieutic.protocols import Sampling

Found = dict[str, Any]

SIBLINGS = 8

#: Above so many parameters float32 weights, their gradients and AdamW's two moments (16 bytes each, and 2 of the copy
#: that is computed with) do not fit beside activations: an adapter is trained instead, with gradient checkpointing.
WHOLE = 5e9


def size_of(name: str) -> Size:
    """A shape by its name."""
    return {**SIZES, **LARGE}[name]


def limits(given: argparse.Namespace) -> Iterator[Found]:
    """What the machine can do: bytes a second, and operations a second of bfloat16 and float32 products."""
    yield {
        "machine": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "bandwidth": bandwidth(device=given.device, seconds=given.seconds),
        "peak": peak(dtype=numbers(given.device), device=given.device, seconds=given.seconds),
        "peak_float32": peak(device=given.device, seconds=given.seconds),
    }


def numbers(device: str) -> torch.dtype:
    """What products are computed in: on a CPU bfloat16 would only be slow."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def decode(given: argparse.Namespace) -> Iterator[Found]:
    """Rows of a given length: all of it, and its prompts alone; the difference is decoding."""
    clock, size = Clock(given.device), size_of(given.size)
    module = random_module(size, device=given.device)
    trunk = Trunk(module)
    body = narrow_for(trunk, numbers(given.device))
    if body is None:
        yield {"failed": "the model is not decoded over static buffers; see what was logged"}
        return
    shape = replace(shape_of(module), bytes_each=numbers(given.device).itemsize)
    for rows in given.rows:
        decoder = ReplayedDecoder(trunk, body, torch.device(given.device))
        engine = LocalSampler(module, decoder, max_rows=rows, cache_bytes=1 << 50)
        yield {"rows": rows, **fits(partial(written, engine, decoder, rows, given, clock, shape))}


def written(
    engine: LocalSampler, decoder: ReplayedDecoder, rows: int, given: argparse.Namespace, clock: Clock, shape: Shape
) -> Found:
    """Seconds, tokens a second and shares of what the memory could do, at so many rows."""
    draw = torch.Generator().manual_seed(rows)
    groups = [min(SIBLINGS, rows - first) for first in range(0, rows, SIBLINGS)]
    prompts = torch.randint(0, engine.rows.vocabulary, (len(groups), given.prompt), generator=draw).tolist()

    async def write(length: int) -> int:
        calls = [
            engine.sample(prompt, Sampling(length, key=str(i)), n)
            for i, (prompt, n) in enumerate(zip(prompts, groups, strict=True))
        ]
        return sum(len(one.tokens) for made in await asyncio.gather(*calls) for one in made)

    def run(length: int) -> float:
        return clock.of(lambda: asyncio.run(_asked(write(length), rows * length)))

    first = run(given.completion)  # captures what it needs
    whole = min(run(given.completion) for _ in range(given.repeats))
    graphs = decoder.captured
    prefill = min(run(1) for _ in range(given.repeats))
    decoding = max(whole - prefill, 1e-9)
    read = rollout_bytes(shape, [Lengths(given.prompt, (given.completion,) * n) for n in groups])
    read -= shape.weight_bytes  # the prompts' pass
    return {
        "prompt": given.prompt,
        "completion": given.completion,
        "seconds": whole,
        "first_seconds": first,
        "prefill_seconds": prefill,
        "tokens_per_second": rows * given.completion / whole,
        "decode_tokens_per_second": rows * (given.completion - 1) / decoding,
        "milliseconds_a_step": 1e3 * decoding / (given.completion - 1),
        "share_of_bandwidth": read / given.bandwidth / decoding,
        "graphs": graphs,
        "not_captured": decoder.plainly,
    }


async def _asked(writing: Any, tokens: int) -> None:
    made = await writing
    assert made == tokens, f"{made} tokens were written instead of {tokens}"


def learn(given: argparse.Namespace) -> Iterator[Found]:
    """Optimiser steps of GRPO on groups whose completions end anywhere; in turn packed by one kernel and in blocks."""
    clock = Clock(given.device)
    model = random_model(size_of(given.size), device=given.device)
    weights = sum(weight.numel() for weight in model.module.parameters())
    whole = weights < WHOLE
    if not whole:
        model = adapted(model)
    learner = LocalLearner(
        model, Optimiser(learning_rate=1e-6), micro_batch_tokens=given.budget, gradient_checkpointing=not whole
    )
    forward = learner.forward
    if not isinstance(forward, PackedForward):
        yield {"failed": "rows are not packed; see what was logged"}
        return
    about = {"trained": "all weights" if whole else "a LoRA of rank 16, with gradient checkpointing"}
    ways = [True, False] if forward.flexible else [False]
    for flexible in ways[: 1 if given.quick else 2]:
        forward.flexible = flexible
        attention = "flex" if flexible else "segments" if given.device == "cpu" else "blocks"
        yield {**about, "attention": attention, **fits(lambda: learned(learner, given, clock))}


def adapted(model: CausalModel) -> CausalModel:
    """The model with an adapter, which alone is trained."""
    model.module.requires_grad_(False)
    return replace(model, module=add_lora(model.module, LoRA(rank=16)), adapter=True)


def learned(learner: LocalLearner, given: argparse.Namespace, clock: Clock) -> Found:
    """Seconds of a step, and its share of the products' peak."""
    algorithm = grpo()
    least = max(1, given.completion // 4)
    lengths = tuple(least + (given.completion - least) * i // (SIBLINGS - 1) for i in range(SIBLINGS))
    groups = [Lengths(given.prompt, lengths)] * (given.rows[0] // SIBLINGS)
    batch = batch_of(groups, size_of(given.size).vocabulary, algorithm)

    def step() -> None:
        learner.step(batch, algorithm.loss.terms, needs=algorithm.loss.needs)

    if given.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = clock.of(step)
    seconds = min(clock.of(step) for _ in range(given.repeats))
    done = update(shape_of(learner.model.module), groups)
    trained = sum(sum(group.completions) for group in groups)
    return {
        "rows": given.rows[0],
        "prompt": given.prompt,
        "longest": given.completion,
        "seconds": seconds,
        "first_seconds": first,
        "tokens_per_second": (trained + sum(group.prompt for group in groups)) / seconds,
        "trained_tokens_per_second": trained / seconds,
        "teraflops": done.total / seconds / 1e12,
        "share_of_peak": done.total / seconds / given.peak,
        "micro_batch_tokens": learner.micro_batch_tokens,
        "peak_device_gib": torch.cuda.max_memory_allocated() / 2**30 if given.device == "cuda" else None,
    }


def fits(work: Callable[[], Found]) -> Found:
    """What the work found, or that there was no memory for it."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {"failed": f"memory ran out ({str(error).strip().splitlines()[0]})"}


def folder(given: argparse.Namespace) -> Iterator[Found]:
    """A random model with a tokenizer of numbered words, and problems that it will not solve."""
    size = size_of(given.size)
    save_causal(random_model(size, device=given.device), given.out)
    draw = torch.Generator().manual_seed(0)
    drawn = torch.randint(2, size.vocabulary, (64, given.prompt), generator=draw).tolist()
    lines = [json.dumps({"prompt": " ".join(f"w{i}" for i in words), "answer": "1"}) for words in drawn]
    (given.out / "problems.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    yield {"folder": str(given.out)}


KINDS: dict[str, Callable[[argparse.Namespace], Iterator[Found]]] = {
    "limits": limits,
    "decode": decode,
    "update": learn,
    "model": folder,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--size", choices=[*SIZES, *LARGE], default="0.5B")
    parser.add_argument("--rows", nargs="+", type=int, default=[64])
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--completion", type=int, default=256)
    parser.add_argument("--budget", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring each limit")
    parser.add_argument("--bandwidth", type=float, default=1.0)
    parser.add_argument("--peak", type=float, default=1.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the case."""
    given = parse(arguments)
    for found in KINDS[given.kind](given):
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
