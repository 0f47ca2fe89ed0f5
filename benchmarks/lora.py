"""What an adapter beside its base costs in sampling, updates and switches, against the bare base and a merged copy.

    python -m benchmarks lora [--sizes 4M 110M] [--rank 16] [--rows 64] [--quick] [--json FILE]

Four ways to run one random decoder, in turn on the same prompts and rows; the best of several times counts, and times
are given as multiples of the bare base's:

    base      without an adapter; its update trains all weights
    merged    an adapter added into the weights, once: the same, in other numbers
    peft      the adapter beside its base, by the forward of peft's own layers
    adapter   the same as the local backend runs it: in an update by fewer operations (`maieutic.models.lora.quick`),
              and while a batch is decoded laid out with its weight, as plain weights are (`backends.local.lean`)

The update of the last two trains the adapter alone, so it may take less than the base's. `products` is what the
adapter's products add to those of the layers and the head, by count of operations. A switch goes to another adapter and
back: `active`, and peft's own `set_adapter`, in microseconds. With one thread on a CPU, time is the processor's.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from benchmarks._clock import Clock, best_in_turn
from benchmarks._operations import Lengths, shape_of
from benchmarks._results import write_json
from benchmarks._shapes import SIZES, random_model
from benchmarks.svamp import machine
from benchmarks.update import batch_of
from maieutic.algorithms import grpo
from maieutic.backends.local import LocalBackend, LocalLearner, Optimiser
from maieutic.models.adapters import active, adapter_weights, copied
from maieutic.models.causal import POLICY, CausalModel
from maieutic.models.lora import LoRA, add_lora, merged
from maieutic.protocols import Sampling

PROMPT, SIBLINGS = 32, 8
WAYS = ("base", "merged", "peft", "adapter")
#: Tokens of a completion where sampling is measured, and the rows of an update where they are not those of sampling.
COMPLETION = {"tiny": 4, "0.4M": 64, "4M": 64, "110M": 12}
UPDATED = {"110M": 16}
SWITCHES = 20


def adapted(size: str, rank: int) -> CausalModel:
    """The random decoder with an adapter that says something."""
    model = random_model(SIZES[size])
    module = add_lora(model.module.requires_grad_(True), LoRA(rank=rank))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapter_weights(module, POLICY).items():
            if "lora_B" in name:
                weight.copy_(0.01 * torch.randn(weight.shape, generator=draw))
    return replace(model, module=module.eval(), adapter=True)


def with_pefts_forward(module: nn.Module) -> nn.Module:
    """Every layer is given its own class's forward as its own, which the local backend then leaves alone."""
    for part in module.modules():
        if hasattr(part, "lora_A"):
            part.forward = MethodType(type(part).forward, part)  # type: ignore[method-assign]
    return module


def models(size: str, rank: int) -> dict[str, CausalModel]:
    """The four ways, by name."""
    made = {"base": random_model(SIZES[size]), **{way: adapted(size, rank) for way in WAYS[1:]}}
    whole = merged(made["merged"].module).requires_grad_(True)
    made["merged"] = replace(made["merged"], module=whole, adapter=False)
    with_pefts_forward(made["peft"].module)
    return made


def share_of_products(size: str, rank: int) -> float:
    """Operations of the adapter's products, as a share of those of the layers and the head."""
    shape = shape_of(random_model(SIZES[size]).module)
    added = sum(each.times * rank * (each.inner + each.columns) for each in shape.products)
    return added / sum(each.weights for each in (*shape.products, shape.head))


def sampling(model: CausalModel, rows: int, completion: int) -> Callable[[], None]:
    """Writes `rows` completions of that length."""
    sampler = LocalBackend().sampler(model)
    draw = torch.Generator().manual_seed(rows)
    prompts = torch.randint(0, 32, (max(1, rows // SIBLINGS), PROMPT), generator=draw).tolist()

    async def everything() -> int:
        own = min(rows, SIBLINGS)
        calls = [sampler.sample(each, Sampling(completion, key=str(i)), own) for i, each in enumerate(prompts)]
        return sum(len(each.tokens) for made in await asyncio.gather(*calls) for each in made)

    def run() -> None:
        assert asyncio.run(everything()) == len(prompts) * min(rows, SIBLINGS) * completion

    return run


def updating(model: CausalModel, rows: int, completion: int) -> Callable[[], None]:
    """One optimiser step on that many rows."""
    algorithm = grpo()
    learner = LocalLearner(model, Optimiser(learning_rate=1e-6))
    groups = [Lengths(PROMPT, (completion,) * min(rows, SIBLINGS))] * max(1, rows // SIBLINGS)
    batch = batch_of(groups, 32, algorithm)

    def run() -> None:
        learner.step(batch, algorithm.loss.terms, needs=algorithm.loss.needs)

    return run


def switches(model: CausalModel, clock: Clock, repeats: int) -> dict[str, float]:
    """Microseconds to another adapter and back, both ways."""
    module: Any = copied(model, "other").module

    def ours() -> None:
        for _ in range(SWITCHES):
            with active(module, "other"):
                pass

    def pefts() -> None:
        for _ in range(SWITCHES):
            module.set_adapter("other")
            module.set_adapter(POLICY)

    taken = best_in_turn({"active": ours, "set_adapter": pefts}, clock.of, repeats=repeats, most=5.0)
    return {name: 1e6 * seconds / SWITCHES for name, seconds in taken.items()}


def measure(size: str, given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Everything of one size."""
    made, completion = models(size, given.rank), COMPLETION[size]
    rows = given.rows if size not in UPDATED else min(given.rows, UPDATED[size])
    if given.quick:
        completion, rows = max(4, completion // 4), max(SIBLINGS, rows // 4)
    timed = {"clock": clock.of, "repeats": given.repeats, "most": given.seconds}
    written = best_in_turn({way: sampling(model, given.rows, completion) for way, model in made.items()}, **timed)
    learned = best_in_turn({way: updating(model, rows, completion) for way, model in made.items()}, **timed)
    print(f"{size}: measured", file=sys.stderr)
    return {
        "size": size,
        "rows": given.rows,
        "updated_rows": rows,
        "completion": completion,
        "products": share_of_products(size, given.rank),
        "sampling_seconds": written,
        "update_seconds": learned,
        "sampling": {way: written[way] / written["base"] for way in WAYS},
        "update": {way: learned[way] / learned["base"] for way in WAYS},
        "switch_microseconds": switches(made["adapter"], clock, given.repeats),
    }


def table(made: dict[str, Any]) -> str:
    """Markdown: two lines for each size."""
    lines = [
        f"| size | what | rows | {' | '.join(WAYS)} | products | switch | set_adapter |",
        "|---" * (len(WAYS) + 6) + "|",
    ]
    for point in made["points"]:
        for what, rows in (("sampling", point["rows"]), ("update", point["updated_rows"])):
            ratios = " | ".join(f"{point[what][way]:.2f}" for way in WAYS)
            switch = " | ".join(f"{point['switch_microseconds'][name]:,.0f} µs" for name in ("active", "set_adapter"))
            lines.append(f"| {point['size']} | {what} | {rows} | {ratios} | +{point['products']:.1%} | {switch} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(COMPLETION))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, help="at most for a point, but at least three runs of each way")
    parser.add_argument("--quick", action="store_true", help="the smaller size, short completions")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    given.sizes = given.sizes or (["4M"] if given.quick else ["4M", "110M"])
    given.seconds = given.seconds or (8.0 if given.quick else 60.0)
    torch.set_num_threads(given.threads)
    clock = Clock("cpu")
    points = [measure(size, given, clock) for size in given.sizes]
    made = {"machine": machine(), "clock": clock.name, "rank": given.rank, "points": points}
    if given.json:
        write_json(given.json, made)
    print(f"{made['machine']}, {made['clock']} seconds, rank {given.rank}; multiples of the base's time\n")
    print(table(made))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
