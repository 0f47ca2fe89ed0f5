"""Is what a GPU computes right? The first part of the benchmark `gpu`: JSON lines on stdout, one for each check.

    python -m benchmarks._gpu_checks [--device cuda] [--sizes 4M]

    {"check": "…", "verdict": "PASS" | "FAIL" | "TOLD", "found": 0.0012, "accepted": 0.02, "unit": "nats", "note": ""}

A check that breaks off is a FAIL with what it said; the next ones run. `TOLD` is a figure for which nothing is
promised. Models are random ones of few layers: what goes wrong on a device does so in any layer.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from benchmarks._operations import Lengths
from benchmarks._shapes import LARGE, SIZES, Size, random_model
from benchmarks.update import batch_of
from maieutic.algorithms import grpo
from maieutic.backends.local import LocalLearner, LocalSampler, Optimiser
from maieutic.backends.local import flexible as flexible_attention
from maieutic.backends.local.cache import Admission
from maieutic.backends.local.evaluate import PackedForward, PaddedForward
from maieutic.backends.local.narrow import narrow_for
from maieutic.backends.local.replay import ReplayedDecoder, Stepper
from maieutic.backends.local.static import STEPS
from maieutic.backends.local.trunk import Trunk
from maieutic.models.causal import CausalModel
from maieutic.protocols import Completion, Sampling
from maieutic.types import Batch

PASS, FAIL, TOLD = "PASS", "FAIL", "TOLD"

#: Few layers of the shape of each large size, and a vocabulary that takes no time.
SHALLOW = {name: replace(size, layers=2, vocabulary=4096) for name, size in LARGE.items()}


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found, and what is accepted (None: nothing is promised)."""

    check: str
    found: float
    accepted: float | None
    unit: str
    note: str = ""
    verdict: str = ""

    def judged(self) -> Result:
        """With its verdict: the figure may be what is accepted, and not more."""
        if self.accepted is None:
            return replace(self, verdict=TOLD)
        return replace(self, verdict=PASS if self.found <= self.accepted else FAIL)


def model_of(size: Size, device: str, precision: str) -> CausalModel:
    """The same random model each time, in float32."""
    return replace(random_model(size, device=device), precision=precision)


def decoder_of(model: CausalModel, numbers: torch.dtype) -> ReplayedDecoder:
    """Decoding over static buffers."""
    trunk = Trunk(model.module)
    body = narrow_for(trunk, numbers)
    assert body is not None, "the model is not of the common form; see what was logged"
    return ReplayedDecoder(trunk, body, next(model.module.parameters()).device)


def example(size: Size) -> Batch:
    """Three groups of rows of different lengths."""
    groups = [Lengths(40, (30, 90, 7, 61)), Lengths(200, (130, 20)), Lengths(3, (70,))]
    return batch_of(groups, size.vocabulary, grpo())


def gradients(model: CausalModel, batch: Batch, padded: bool = False, again: bool = False) -> dict[str, Tensor]:
    """Of GRPO's loss, on the CPU."""
    learner = LocalLearner(
        model,
        Optimiser(),
        forward=PaddedForward(model.module) if padded else None,
        micro_batch_tokens=300,
        gradient_checkpointing=again,
    )
    learner.accumulate(batch, grpo().loss.terms, needs=grpo().loss.needs)
    return {name: w.grad.detach().double().cpu() for name, w in learner.weights().items() if w.grad is not None}


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The length of the difference, relative to the length."""
    wrong = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return math.sqrt(wrong / sum(float(each.square().sum()) for each in expected.values()))


def replays(size: Size, device: str) -> Iterator[Result]:
    """Steps replayed against the same steps asked for one by one, from the same state."""
    for numbers, accepted in ((torch.float32, 1e-5), (torch.bfloat16, 1e-3)):
        model = model_of(size, device, "auto")
        decoder = decoder_of(model, numbers)
        with torch.inference_mode():
            decoder.begin()
            decoder.admit([Admission(range(1, 30), range(5), 90, 5), Admission(range(7, 11), range(5, 8), 90)], 120, 8)
            stepper = decoder.stepper()
            assert isinstance(stepper, Stepper)
            stepper.load(rows_of([(29, 0.7)] * 4 + [(29, 0.0)] + [(3, 1.0)] * 3))
            before = [each.clone() for each in stepper.live.state()]
            found = [each.copy() for each in stepper.launch(8, 30 + STEPS, STEPS).read()]
            why = stepper.plainly
            for kept, was in zip(stepper.live.state(), before, strict=True):
                kept.copy_(was)
            stepper.plainly = "asked for one by one"
            expected = stepper.launch(8, 30 + STEPS, STEPS).read()
        name = f"steps replayed and asked for, {str(numbers).removeprefix('torch.')}"
        yield Result(f"{name}: tokens that differ", float((found[0] != expected[0]).sum()), 0, "tokens", why)
        yield Result(f"{name}: log-probs", float(abs(found[1] - expected[1]).max()), accepted, "nats")
        yield Result(f"{name}: graphs captured", float(bool(why)), 0 if device == "cuda" else None, "failures", why)


def rows_of(lengths: list[tuple[int, float]]) -> np.ndarray:
    """Rows whose next token goes where their prompt of that length ends, at a temperature."""
    fields = [("token", "i8"), ("position", "i8"), ("count", "i8"), ("key", "u8"), ("temperature", "f4")]
    return np.array([(7 + i, n, 1, 2**60 * (i + 1), t) for i, (n, t) in enumerate(lengths)], fields)


def mismatches(size: Size, device: str) -> Iterator[Result]:
    """Log-probs of the sampler against those of the learner, on what was sampled."""
    for precision, numbers, accepted in (
        ("float32", torch.float32, 1e-4),
        ("bfloat16", torch.bfloat16, 0.02),
    ):
        model = model_of(size, device, precision)
        batch = sampled(model, numbers, size)
        learner = LocalLearner(model, Optimiser())
        difference = (learner.logprobs(batch) - batch.sampler_logprobs).abs()[batch.mask]
        name = f"sampler and learner, {precision}"
        yield Result(f"{name}: mean difference of log-probs", float(difference.mean()), accepted, "nats")
        yield Result(f"{name}: largest", float(difference.max()), None, "nats")
    exact = LocalLearner(model_of(size, device, "float32"), Optimiser()).logprobs(batch)
    rounding = (exact - batch.sampler_logprobs).abs()[batch.mask]
    yield Result("bfloat16 sampler and float32 learner: mean", float(rounding.mean()), None, "nats")
    yield Result("bfloat16 sampler and float32 learner: largest", float(rounding.max()), None, "nats")


def sampled(model: CausalModel, numbers: torch.dtype, size: Size) -> Batch:
    """What the sampler wrote, as the learner wants it."""
    engine = LocalSampler(model.module, decoder_of(model, numbers), max_rows=12)
    lengths, prompt = (100, 37, 64, 20), 24

    async def together() -> list[list[Completion]]:
        calls = [
            engine.sample(range(5 + i, 5 + i + prompt), Sampling(length, key=str(i)), 4)
            for i, length in enumerate(lengths)
        ]
        return await asyncio.gather(*calls)

    made = [one for group in asyncio.run(together()) for one in group]
    batch = batch_of([Lengths(prompt, (length,) * 4) for length in lengths], size.vocabulary, grpo())
    tokens, logprobs = batch.tokens.clone(), torch.zeros(batch.tokens.shape)
    for row, one in enumerate(made):
        stop = prompt + len(one.tokens)
        tokens[row, :prompt] = torch.arange(5 + row // 4, 5 + row // 4 + prompt)
        tokens[row, prompt:stop] = torch.tensor(one.tokens)
        logprobs[row, prompt:stop] = torch.tensor(one.logprobs)
    return replace(batch, tokens=tokens, sampler_logprobs=logprobs)


def packing(size: Size, device: str) -> Iterator[Result]:
    """Rows packed against rows padded: log-probs and gradients; and in bfloat16 against float32."""
    batch = example(size)
    model = model_of(size, device, "float32")
    padded = LocalLearner(model, Optimiser(), forward=PaddedForward(model.module)).logprobs(batch)
    slopes = gradients(model_of(size, device, "float32"), batch, padded=True)
    for precision, of_scores, of_slopes in (("float32", 1e-4, 1e-4), ("bfloat16", 0.05, 0.05)):
        learner = LocalLearner(model_of(size, device, precision), Optimiser())
        forward = learner.forward
        assert isinstance(forward, PackedForward), "rows are not packed; see what was logged"
        kind = "FlexAttention" if forward.flexible else "blocks" if device == "cuda" else "segments"
        difference = float((learner.logprobs(batch) - padded).abs()[batch.mask].max())
        name = f"packed in {precision} ({kind}) and padded in float32"
        yield Result(f"{name}: log-probs", difference, of_scores, "nats")
        found = gradients(model_of(size, device, precision), batch)
        yield Result(f"{name}: gradients", apart(found, slopes), of_slopes, "relative")
    again = gradients(model_of(size, device, "bfloat16"), batch, again=True)
    yield Result("layers run again in the backward pass: gradients", apart(again, found), 1e-2, "relative")


def kernels(_size: Size, device: str) -> Iterator[Result]:
    """FlexAttention, compiled, for the heads of every large size; with the seconds that it takes to compile."""
    kernel: Any = flexible_attention.compiled() if device == "cuda" else flex_attention
    for name, size in LARGE.items():
        heads = (size.heads, size.kv_heads, size.width // size.heads)
        start = time.perf_counter()
        found = flexible_attention.difference(kernel, torch.device(device), torch.bfloat16, heads)
        took = f"{time.perf_counter() - start:.1f} s with compiling"
        yield Result(f"FlexAttention, heads of {name}", found, flexible_attention.AGREES, "relative", took)


def shapes(_size: Size, device: str) -> Iterator[Result]:
    """Coarse copies against the module's own forward, in the shapes of the large sizes with two layers."""
    for name, size in SHALLOW.items() if device == "cuda" else ():
        model = model_of(size, device, "auto")
        refused = narrow_for(Trunk(model.module), torch.bfloat16) is None
        yield Result(f"copies of {name} (2 layers) are refused", float(refused), 0, "failures")


def resuming(size: Size, device: str) -> Iterator[Result]:
    """A learner that was saved and loaded against one that went on: weights after two more steps."""
    batch, algorithm = example(size), grpo()

    def steps(learner: LocalLearner, count: int) -> None:
        for _ in range(count):
            learner.step(batch, algorithm.loss.terms, needs=algorithm.loss.needs)

    optimiser = Optimiser(learning_rate=1e-3)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first = LocalLearner(model_of(size, device, "auto"), optimiser)
        steps(first, 1)
        with tempfile.TemporaryDirectory() as folder:
            first.save(Path(folder))
            steps(first, 2)
            second = LocalLearner(model_of(size, device, "auto"), optimiser)
            second.load(Path(folder))
        steps(second, 2)
    finally:
        torch.use_deterministic_algorithms(False)
    pairs = zip(first.weights().values(), second.weights().values(), strict=True)
    worst = max(float((a - b).detach().abs().max()) for a, b in pairs)
    said = "to the bit" if worst == 0 else "not to the bit: some sum was in another order"
    yield Result("saved and resumed, two steps later: weights", worst, 1e-3, "", said)


def moving(size: Size, device: str) -> Iterator[Result]:
    """After an update the sampler writes with the new weights: its copies against a fresh decoder's."""
    model = model_of(size, device, "auto")
    numbers = torch.bfloat16 if device == "cuda" else torch.float32
    decoder = decoder_of(model, numbers)
    engine = LocalSampler(model.module, decoder)
    asyncio.run(engine.sample(range(5, 25), Sampling(20, key="a"), 4))
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.mul_(1.1)
    again = asyncio.run(engine.sample(range(5, 25), Sampling(20, key="a"), 4))
    fresh = LocalSampler(model.module, decoder_of(replace(model, module=copy.deepcopy(model.module)), numbers))
    expected = asyncio.run(fresh.sample(range(5, 25), Sampling(20, key="a"), 4))
    differ = sum(a.tokens != b.tokens for a, b in zip(again, expected, strict=True))
    yield Result("sampling after an update: completions that differ from a fresh sampler's", float(differ), 0, "of 4")


Check = Callable[[Size, str], Iterator[Result]]

CHECKS: tuple[Check, ...] = (
    replays, mismatches, packing, shapes, moving, resuming, kernels,
)  # fmt: skip


def run(size: Size, device: str, checks: Sequence[Check] = CHECKS) -> Iterator[Result]:
    """Every check; one that breaks off is a failure and does not take the others along."""
    for check in checks:
        print(f"gpu: checking: {(check.__doc__ or check.__name__).splitlines()[0]}", file=sys.stderr)
        try:
            for result in check(size, device):
                yield result.judged()
        except Exception as error:  # noqa: BLE001 - whatever broke, it is said, and the next check runs
            said = (str(error).strip() or "?").splitlines()[0]
            yield Result(check.__name__, math.nan, None, "", f"{type(error).__name__}: {said}", FAIL)


def main(arguments: list[str] | None = None) -> int:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="4M")
    given = parser.parse_args(arguments)
    for result in run(SIZES[given.size], given.device):
        print(json.dumps(asdict(result)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
