"""What happened in a run, read from its store, beside what would have been foreseen."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from maieutic.config import START, Config, read_config
from maieutic.core.cost import COSTS
from maieutic.errors import RunError
from maieutic.forecast.predict import DECODE, PREFILL, StageForecast
from maieutic.forecast.stage import StageInputs
from maieutic.run.directory import RunDirectory
from maieutic.run.memory import PEAK_DEVICE, PEAK_RSS
from maieutic.run.store import Store

#: What a step's seconds are looked up under, beside the phases that are foreseen; a phase has those within it, too.
REWARD, SAMPLING, STEP = "reward", "sampling", "step"

TIME, EVALUATION, VALIDATION = "time/", "time/evaluation/", "validation"


@dataclass(frozen=True)
class Happened:
    """A stage as it went: means over its steps, the first one left out where there are others (it loads and warms up).

    seconds      of a step by phase, as they are named in `predict`; "reward" and "step" beside them. Empty for a run
                 of an older version, which noted no times.
    length       tokens of a completion, on average; 0 where nothing was sampled.
    longest      the longest completion of a step, on average.
    memory       bytes at the most: of the process, or of the GPU.
    """

    stage: str
    steps: int
    seconds: Mapping[str, float]
    length: float
    longest: float
    samples: float
    generated: float
    trained: float
    evaluation: float
    memory: int


def read_run(folder: Path) -> tuple[Config, list[Happened]]:
    """The config of a run and its stages as far as they went. Raises RunError for a run without a step."""
    directory = RunDirectory.open(folder)
    config = read_config(directory.config)
    if not directory.database.exists():
        raise RunError(f"the run {folder} has not made a step yet; ask again when it has, or plan its config")
    with Store.open_reader(directory.database) as store:
        found = [_stage(store, stage.name, first=stage is config.stages[0]) for stage in config.stages]
    found = [each for each in found if each.steps]
    if not found:
        raise RunError(f"the run {folder} has not made a step yet; ask again when it has, or plan its config")
    return config, found


def _stage(store: Store, stage: str, first: bool) -> Happened:
    names, steps = store.metric_names(stage), store.steps(stage)
    after = steps[0].step if len(steps) > 1 else -1

    def mean(name: str) -> float:
        values = [value for step, value in store.metrics(stage, name) if step > after]
        return sum(values) / max(1, sum(each.step > after for each in steps))

    seconds = {name.removeprefix(TIME): mean(name) for name in names if _is_phase(name)}
    if not seconds:
        told = [each.seconds for each in steps if each.step > after]
        seconds = {STEP: statistics.fmean(told)} if told else {}
    if SAMPLING in seconds and DECODE in seconds:  # what it does beside decoding is foreseen with the prompts
        seconds[PREFILL] = seconds[SAMPLING] - seconds[DECODE]
    if VALIDATION in seconds:  # it is foreseen with the evaluations
        seconds[STEP] -= seconds[VALIDATION]
    peaks = [value for name in (PEAK_DEVICE, PEAK_RSS) for _, value in store.metrics(stage, name) if name in names]
    return Happened(
        stage=stage,
        steps=len(steps),
        seconds=seconds,
        length=mean("completions/mean_length"),
        longest=mean("completions/max_length"),
        samples=mean(COSTS["samples"]),
        generated=mean(COSTS["generated_tokens"]),
        trained=mean(COSTS["trained_tokens"]),
        evaluation=sum(_evaluations(store, each) for each in ([START, stage] if first else [stage])),
        memory=int(max(peaks, default=0)),
    )


def _evaluations(store: Store, stage: str) -> float:
    """Seconds of a stage's evaluations and validations, all together."""
    names = [name for name in store.metric_names(stage) if name.startswith(EVALUATION) or name == TIME + VALIDATION]
    return sum(value for name in names for _, value in store.metrics(stage, name))


def _is_phase(name: str) -> bool:
    return name.startswith(TIME) and not name.startswith(EVALUATION)


def as_it_went(inputs: StageInputs, happened: Happened) -> StageInputs:
    """The stage with completions as long and rollouts as many as there were, so that a comparison judges the forecast
    and not the guess; the longest that completions may be stays the bound of memory."""
    if not inputs.samples or not happened.length:
        return inputs
    drawn = happened.samples / (inputs.rows * inputs.share)
    chosen = inputs.lengths.chosen  # lengths are stored of what the policy wrote
    return replace(inputs.at_length(happened.length / chosen, reached=happened.longest / chosen), drawn=max(1.0, drawn))


@dataclass(frozen=True)
class Line:
    """One thing, foreseen and as it went: `Line("update", "s", 0.8, 1.0)`. None: not known before, or not noted."""

    what: str
    unit: str
    predicted: float | None
    happened: float | None

    @property
    def ratio(self) -> float | None:
        """Happened over predicted: above 1 where it took more."""
        return self.happened / self.predicted if self.predicted and self.happened else None


def lines(forecast: StageForecast, happened: Happened) -> list[Line]:
    """Phase by phase, and the whole; memory at its peak."""
    found = [Line(name, "s", value, happened.seconds.get(name)) for name, value in forecast.seconds.items()]
    if PREFILL in forecast.seconds:
        found.append(Line(REWARD, "s", None, happened.seconds.get(REWARD)))
    found.append(Line(STEP, "s", forecast.step_seconds, happened.seconds.get(STEP)))
    if forecast.evaluation:
        found.append(Line("evaluation", "s", forecast.evaluation, happened.evaluation or None))
    found.append(Line("samples", "", forecast.tokens.samples or None, happened.samples or None))
    found.append(Line("generated tokens", "", forecast.tokens.generated or None, happened.generated or None))
    found.append(Line("trained tokens", "", forecast.tokens.trained, happened.trained or None))
    peak = max(forecast.memory.peak(phase) for phase in forecast.memory.phases if phase != "evaluation")
    found.append(Line("peak memory", "B", float(peak), float(happened.memory) or None))
    return found


def factors(forecast: StageForecast, happened: Happened) -> dict[str, float]:
    """Phase → how much longer it took than predicted: what a forecast of the same stage is corrected by."""
    pairs = ((name, value, happened.seconds.get(name)) for name, value in forecast.seconds.items())
    return {name: took / value for name, value, took in pairs if value and took}
