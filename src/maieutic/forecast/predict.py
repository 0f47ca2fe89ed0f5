"""What a stage will take: memory phase by phase, seconds phase by phase, tokens; and what to do where it will not fit.

Phases are those of `maieutic.clock`, as the times of a run are stored:

    sampling/prefill, sampling/decode   the policy writes
    annotate                            models score the batch before the update
    update                              forward, backward, optimiser
    evaluation                          of the stage's model, at its end; validations while it goes on

How long rewards take is known only once they were measured. Where a stage samples one step ahead, a second process
takes memory of its own, and a step is as long as the longer of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from maieutic.core.cost import FORWARD, FORWARD_AND_BACKWARD
from maieutic.forecast import work
from maieutic.forecast.memory import Memory, laid_out
from maieutic.forecast.needs import micro_batch, requests_of, rows_of, stage_memory, written_at_once
from maieutic.forecast.sizes import Sizes
from maieutic.forecast.stage import Asked, Lengths, StageInputs
from maieutic.forecast.work import Machine, Work

#: Seconds by the count of `work`, as a share of those that were measured: what `python -m benchmarks.forecast` says,
#: the median over its models (one core of an AMD EPYC, 2026-11-22).
EFFICIENCY: Mapping[str, float] = {
    "sampling/prefill": 0.60,
    "sampling/decode": 0.90,
    "annotate": 0.90,
    "update": 0.90,
}

PREFILL, DECODE, ANNOTATE, UPDATE = EFFICIENCY


@dataclass(frozen=True)
class Tokens:
    """Of one step: rollouts, tokens that the policy writes, tokens that go through an update (None: it depends)."""

    samples: float
    generated: float
    trained: float | None


@dataclass(frozen=True)
class StageForecast:
    """A stage before it starts.

    seconds      of a step, by phase; None where it is not known before.
    reward       of a step, where it was measured; it is no part of a step's seconds where it was not.
    evaluation   seconds of all evaluations and validations of the stage.
    rows         written together.
    """

    inputs: StageInputs
    memory: Memory
    seconds: Mapping[str, float | None]
    operations: Mapping[str, float | None]
    evaluation: float
    tokens: Tokens
    rows: int
    steps: int | None
    reward: float | None = None

    @property
    def step_seconds(self) -> float | None:
        """Of a step, what is known of it."""
        known = {name: value for name, value in self.seconds.items() if value is not None}
        if len(known) < len(self.seconds):
            return None
        sampling = sum(value for name, value in known.items() if name.startswith("sampling"))
        rest = sum(known.values()) - sampling
        sampling += self.reward or 0.0
        return max(sampling, rest) if self.inputs.overlap else sampling + rest

    @property
    def total_seconds(self) -> float | None:
        """Of the whole stage, its evaluations with it."""
        if self.step_seconds is None or self.steps is None:
            return None
        return self.steps * self.step_seconds + self.evaluation


def forecast(
    inputs: StageInputs,
    machine: Machine,
    process: int,
    factors: Mapping[str, float] | None = None,
    reward: float | None = None,
) -> StageForecast:
    """What a stage will take. `process`: bytes of a Python with torch and no model. Where it was measured: `factors`,
    phase → how much longer it took than predicted, and `reward`, the seconds of a step's rewards that are waited for.
    """
    works, given, steps = phase_works(inputs), factors or {}, steps_of(inputs)
    seconds = {
        name: None if each is None else each.seconds(machine) / EFFICIENCY[name] * given.get(name, 1.0)
        for name, each in works.items()
    }
    times = [asked.times + ((steps or 0) // asked.every if asked.every else 0) for asked in inputs.evaluations]
    each = [_evaluation(inputs, asked, machine, given) for asked in inputs.evaluations]
    return StageForecast(
        inputs=inputs,
        memory=stage_memory(inputs, process),
        seconds=seconds,
        operations={name: None if each is None else each.operations for name, each in works.items()},
        evaluation=sum(many * one for many, one in zip(times, each, strict=True)),
        tokens=step_tokens(inputs),
        rows=rows_of(inputs),
        steps=steps,
        reward=reward,
    )


def step_tokens(inputs: StageInputs) -> Tokens:
    """Of one step: every row counts as if it stood alone, as `maieutic.core.cost` counts."""
    lengths = inputs.lengths
    written = inputs.share * inputs.drawn * inputs.rows if inputs.samples else 0.0
    each = lengths.prompt + lengths.completion
    trained = None if inputs.passes is None else inputs.passes * inputs.rows * each
    return Tokens(written, written * lengths.completion * lengths.chosen, trained)


def steps_of(inputs: StageInputs) -> int | None:
    """How many steps the stage has: those of its config, or those after which its budget is spent under these lengths;
    None where an update's tokens are not known before."""
    if inputs.steps is not None or inputs.budget is None:
        return inputs.steps
    kind, amount = inputs.budget
    tokens, each = step_tokens(inputs), inputs.lengths.prompt + inputs.lengths.completion
    scored = len(inputs.beside.scorers) * inputs.rows * each
    spent: dict[str, float | None] = {
        "samples": tokens.samples,
        "generated_tokens": tokens.generated,
        "trained_tokens": tokens.trained,
    }
    if tokens.trained is not None:
        through = FORWARD * (tokens.samples * each + scored) + FORWARD_AND_BACKWARD * tokens.trained
        spent["flops"] = inputs.counted * through
    cost = spent.get(kind)
    return math.ceil(amount / cost) if cost else None


def phase_works(inputs: StageInputs) -> dict[str, Work | None]:
    """What each phase of a step has to do, on average over the steps."""
    sizes, lengths, beside = inputs.sizes, inputs.lengths, inputs.beside
    found: dict[str, Work | None] = {}
    if inputs.samples:
        times, arranged = inputs.share * inputs.drawn, laid_out(sizes) if inputs.on_cpu else 0
        written = _writing(sizes, lengths, inputs.groups, inputs.rows, rows_of(inputs), arranged)
        found |= {name: each.times(times) for name, each in written.items()}
    if beside.scorers:
        found[ANNOTATE] = work.together([_scoring(inputs, each, heads) for each, heads in beside.scorers])
    if inputs.passes != 0:
        found[UPDATE] = _update(inputs)
    return found


def _writing(
    sizes: Sizes, lengths: Lengths, groups: int, rows: int, at_once: int, arranged: int = 0
) -> dict[str, Work]:
    """Prompts are read and `rows` completions written, `at_once` so many; of episodes, turn by turn."""
    prompt, mean, most = lengths.prompt, lengths.completion, lengths.reached or lengths.longest
    if lengths.turns == 1:
        read = work.prefill(sizes, groups, prompt, arranged)
        return {PREFILL: read, DECODE: work.decode(sizes, rows, at_once, prompt, mean, most)}
    read = work.reread(sizes, rows, prompt, mean, lengths.turns, arranged)
    # the first token of each turn comes of what was read; half of what is said lies before a token, on average
    own, longest = (max(1.0, lengths.chosen * each - lengths.turns + 1) for each in (mean, most))
    before = prompt + (1 - lengths.chosen) * mean / 2
    return {PREFILL: read, DECODE: work.decode(sizes, rows, at_once, before, own, longest)}


def _update(inputs: StageInputs) -> Work | None:
    if inputs.passes is None:
        return None
    models = [(inputs.sizes, True)] + ([(inputs.beside.separate, False)] if inputs.beside.separate else [])
    parts = []
    for sizes, heads in models:
        once = _scoring(inputs, sizes, heads, inputs.together)
        parts += [once.times(inputs.passes), work.backward(sizes, once).times(inputs.passes)]
        parts.append(work.optimiser_step(sizes, inputs.optimiser).times(_optimiser_steps(inputs)))
    return work.together(parts)


def _optimiser_steps(inputs: StageInputs) -> float:
    known = inputs.optimiser_steps
    return known if known is not None else inputs.rows * (inputs.passes or 0.0) / inputs.together


def _scoring(inputs: StageInputs, sizes: Sizes, heads: bool, rows: int | None = None) -> Work:
    """A forward pass of a model over a step's rows, in micro-batches (of so many rows at most)."""
    lengths = inputs.lengths
    tokens, keys, predictions = work.read_once(
        sizes, inputs.groups, inputs.siblings, lengths.prompt, lengths.completion
    )
    largest = micro_batch(inputs, sizes, rows)
    passes = max(1.0, tokens / largest.tokens)
    return work.scoring(sizes, tokens, keys, predictions if heads else 0.0, passes)


def _evaluation(inputs: StageInputs, asked: Asked, machine: Machine, factors: Mapping[str, float]) -> float:
    """Seconds of one evaluation: the greedy sample of each problem and its others are two prompts."""
    sizes, lengths, requests = inputs.sizes, asked.lengths, requests_of(asked)
    rows = written_at_once(inputs, requests)
    total = sum(request.rows for request in requests)
    parts = _writing(sizes, lengths, sum(request.groups for request in requests), total, rows)
    return sum(each.seconds(machine) / EFFICIENCY[name] * factors.get(name, 1.0) for name, each in parts.items())
