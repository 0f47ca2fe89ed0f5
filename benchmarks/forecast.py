"""What `maieutic plan` foresees of each phase against what it takes: efficiencies, and the memory of an update.

    python -m benchmarks forecast [--sizes 0.4M 4M 110M] [--quick] [--json FILE]

Random decoders write, score and learn from completions of equal length. For each phase stand the seconds by the count
of `maieutic.forecast.work` at the rates that are measured in the same run, those that were taken (the best of several
times; with one thread on a CPU the processor's), and the first as a share of the second: its efficiency. The median of
each phase over all points is what `maieutic.forecast.predict.EFFICIENCY` holds, so that a forecast is right in the
middle. The memory is that of the tensors which an update keeps for its backward pass, counted, against the formula.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._clock import Clock, best_in_turn
from benchmarks._results import write_json
from benchmarks._shapes import SIZES, random_model
from benchmarks.svamp import machine
from maieutic.backends.local import LocalBackend, LocalLearner, Optimiser
from maieutic.forecast import memory, work
from maieutic.forecast.measure import Measured
from maieutic.forecast.predict import ANNOTATE, DECODE, EFFICIENCY, PREFILL, UPDATE
from maieutic.forecast.sizes import Sizes, sizes_of
from maieutic.protocols import Policy, Sampling
from maieutic.types import Batch, Outputs


@dataclass(frozen=True, slots=True)
class Point:
    """What a step is made of: `groups` prompts with `siblings` completions each, in tokens."""

    size: str
    groups: int
    siblings: int
    prompt: int
    completion: int


POINTS = (
    Point("tiny", 2, 8, 16, 32), Point("tiny", 16, 8, 16, 32),
    Point("0.4M", 2, 8, 32, 48), Point("0.4M", 16, 8, 32, 48), Point("0.4M", 64, 8, 32, 24),
    Point("4M", 1, 8, 64, 96), Point("4M", 8, 8, 64, 96), Point("4M", 16, 8, 32, 48),
    Point("110M", 1, 4, 32, 16), Point("110M", 2, 8, 32, 16),
)  # fmt: skip
#: Tokens of a micro-batch at most: `evaluate.EASE` is less.
BUDGET = 1 << 20
QUICK = (Point("tiny", 2, 4, 8, 8), Point("0.4M", 4, 8, 16, 24))


@dataclass(frozen=True, slots=True)
class Found:
    """A phase at a point: seconds by the count, seconds taken, and what they are made of."""

    point: Point
    phase: str
    counted: float
    taken: float

    @property
    def efficiency(self) -> float:
        """Below 1 where it takes longer than what is counted."""
        return self.counted / self.taken


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that an update keeps for its backward pass: by the formula, and counted."""

    point: Point
    predicted: int
    counted: int


def batch_of(point: Point, vocabulary: int) -> Batch:
    """The rows that an update of that shape has."""
    rows, length = point.groups * point.siblings, point.prompt + point.completion
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokens = torch.randint(1, vocabulary, (rows, length))
    for first in range(0, rows, point.siblings):
        tokens[first : first + point.siblings, : point.prompt] = tokens[first, : point.prompt].clone()
    mask = torch.zeros(rows, length, dtype=torch.bool)
    mask[:, point.prompt :] = True
    zeros = torch.zeros(rows, length)
    made = Batch(
        tokens, mask, torch.full((rows,), length), zeros, torch.zeros(rows), zeros, torch.ones(rows, dtype=torch.bool),
        torch.arange(point.groups).repeat_interleave(point.siblings), torch.arange(rows),
    )  # fmt: skip
    return made.with_(weights=torch.ones(rows, length) / rows)


def write(policy: Policy, point: Point, tokens: int) -> None:
    """Sample completions of so many tokens: none of these prompts has a stop token."""

    async def all_of_them() -> None:
        prompts = [[1 + (7 * group + i) % 50 for i in range(point.prompt)] for group in range(point.groups)]
        calls = [
            policy.sampler.sample(prompt, Sampling(tokens, temperature=1.0, key=str(number)), point.siblings)
            for number, prompt in enumerate(prompts)
        ]
        await asyncio.gather(*calls)

    asyncio.run(all_of_them())


def negative_logprobs(outputs: Outputs, _batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of which all is learned."""
    return -outputs.logprobs, {}


def works_of(sizes: Sizes, point: Point) -> dict[str, work.Work]:
    """What each phase is counted as."""
    rows = point.groups * point.siblings
    told = (point.prompt, float(point.completion), float(point.completion))
    tokens, keys, predictions = work.read_once(sizes, point.groups, point.siblings, *told[:2])
    largest = memory.micro_batch(sizes, BUDGET, point.groups, point.prompt, point.completion, point.siblings)
    once = work.scoring(sizes, tokens, keys, predictions, max(1.0, tokens / largest.tokens))
    return {
        PREFILL: work.prefill(sizes, point.groups, point.prompt, memory.laid_out(sizes)),
        DECODE: work.decode(sizes, rows, rows, *told),
        ANNOTATE: once,
        UPDATE: work.together([once, work.backward(sizes, once), work.optimiser_step(sizes, "adamw")]),
    }


def measure(point: Point, known: Measured, *, repeats: int, most: float) -> tuple[list[Found], Kept]:
    """All phases at a point."""
    model = random_model(SIZES[point.size])
    sizes = sizes_of(model.module)
    backend = LocalBackend(max_rows=4096, micro_batch_tokens=BUDGET)
    policy = backend.policy(model, Optimiser(learning_rate=1e-9))
    learner: Any = policy.learner
    batch = batch_of(point, sizes.vocabulary)
    todo: Mapping[str, Callable[[], object]] = {
        "one": partial(write, policy, point, 1),
        "all": partial(write, policy, point, point.completion),
        ANNOTATE: partial(learner.logprobs, batch),
        UPDATE: partial(learner.step, batch, negative_logprobs),
    }
    taken = best_in_turn(todo, Clock("cpu").of, repeats=repeats, most=most)
    taken[PREFILL], taken[DECODE] = taken["one"], taken["all"] - taken["one"]
    found = [Found(point, name, each.seconds(known), taken[name]) for name, each in works_of(sizes, point).items()]
    largest = max(learner.forward.split(batch, BUDGET), key=len)
    run = memory.micro_batch(sizes, BUDGET, point.groups, point.prompt, point.completion, point.siblings)
    predicted = memory.activations(sizes, run) + memory.logits(sizes, run)[0]
    return found, Kept(point, predicted, kept_bytes(learner, batch.rows(largest)))


def kept_bytes(learner: LocalLearner, batch: Batch) -> int:
    """Bytes of the distinct tensors that are saved for the backward pass, weights left out; and of the logits that
    compiled scores keep beside them, to put their gradient in the same place."""
    own = {weight.untyped_storage()._cdata for weight in learner.model.module.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage  # held, so that no other one takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = learner.outputs(batch)
    return sum(storage.nbytes() for storage in saved.values()) + sum(_kept_logits(outputs.logprobs.grad_fn))


def _kept_logits(node: Any) -> Iterator[int]:
    """Bytes of the logits that the operations behind a result hold."""
    seen, found = set(), [node]
    while found:
        one = found.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        found += [before for before, _ in one.next_functions]
        logits = getattr(one, "logits", None)
        if logits is not None:
            yield logits.untyped_storage().nbytes()


def report(found: list[Found], kept: list[Kept]) -> dict[str, float]:
    """Print the table and return the median efficiency of each phase."""
    print(
        f"{'model':>6} {'rows':>5} {'tokens':>9}  {'phase':<18} {'counted ms':>11} {'taken ms':>10} {'efficiency':>11}"
    )
    for each in found:
        p = each.point
        print(
            f"{p.size:>6} {p.groups * p.siblings:>5} {p.prompt:>4}+{p.completion:<4}  {each.phase:<18} "
            f"{1000 * each.counted:>11.1f} {1000 * each.taken:>10.1f} {each.efficiency:>11.2f}"
        )
    medians = {}
    print()
    for phase, held in EFFICIENCY.items():
        own = [each.efficiency for each in found if each.phase == phase]
        medians[phase] = statistics.median(own)
        print(f"{phase:<18} median {medians[phase]:.2f}, from {min(own):.2f} to {max(own):.2f}; in use {held:.2f}")
    print("\nkept for the backward pass, MB")
    for one in kept:
        p, ratio = one.point, one.counted / one.predicted
        print(
            f"{p.size:>6} {p.groups * p.siblings:>5} {p.prompt:>4}+{p.completion:<4}  "
            f"foreseen {one.predicted / 1e6:9.2f}  counted {one.counted / 1e6:9.2f}  ratio {ratio:.3f}"
        )
    return medians


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks forecast", description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), help="models (default: all points)")
    parser.add_argument("--quick", action="store_true", help="two small points")
    parser.add_argument("--json", metavar="FILE", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    points = [p for p in (QUICK if given.quick else POINTS) if given.sizes is None or p.size in given.sizes]
    if not points:
        parser.error(f"no point has a model of {', '.join(given.sizes)}; leave --quick or --sizes out")
    known = Measured()
    found: list[Found] = []
    kept: list[Kept] = []
    for number, point in enumerate(points, 1):
        print(f"{number}/{len(points)} {point}", file=sys.stderr)
        phases, held = measure(point, known, repeats=3 if given.quick else 7, most=5.0 if given.quick else 25.0)
        found += phases
        kept.append(held)
    medians = report(found, kept)
    if given.json:
        rows = [{**asdict(each.point), "phase": each.phase, "counted": each.counted, "taken": each.taken,
                 "efficiency": each.efficiency} for each in found]  # fmt: skip
        told = {"machine": machine(), "phases": rows, "medians": medians, "kept": [asdict(one) for one in kept]}
        write_json(given.json, told)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
