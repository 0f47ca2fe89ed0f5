"""Seconds and samples until a held-out pass@1 is reached, GRPO by maieutic and by TRL from the same checkpoint.

    python -m benchmarks accuracy [--work DIR] [--threads 1] [--jobs 1] [--trl-python PYTHON] [--target 0.55]
                                  [--precision bfloat16] [--quick] [--json FILE]

`make bench-trl` builds the environment that TRL is run in. Both programs start from one Qwen2 of 1.3 million
parameters, fine-tuned once on arithmetic problems solved by somebody who misreads sentences, and practise on the same
problems in the same order with the same reward (`_accuracy_both.py`): GRPO with β = 0, every token alike, one optimiser
step a batch, temperature 1, AdamW (0.9, 0.999) without weight decay, gradients of length 1 at most, at a constant rate.
Each of the same rates is tried by both, with the same seeds. They are run in turn, each in a fresh process. TRL's
settings are `_accuracy_trl.py`'s. Weights are float32; --precision bfloat16 lets both make products in bfloat16.

Every few steps the weights are kept, off the clock, and examined afterwards by one examiner, maieutic's sampler on
held-out problems, several samples each at temperature 1. The clock runs from before the first step to the end of the
step, saving and examining left out; starting up is told beside. With one thread it is the processor's, which other
programs lengthen little; with more it is the wall's, and the machine should be quiet. Both are kept. The target is
reached at the first of two successive examinations at or above it; between that one and the one before, seconds and
samples are read off a straight line. A program's best rate is that with the least median of seconds to the target over
seeds; a run that does not get there counts as endless. `ratio` is the median over seeds of TRL's over ours, each at its
best rate.

Runs are kept in --work, so the command may be stopped and given again, or given with another --target. The whole takes
about an hour of one core. With --jobs 2 two runs are carried out at once: then only the processor's seconds compare.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from benchmarks._accuracy_both import arguments_of
from benchmarks._results import write_json
from benchmarks.step import OURS, THEIRS, Peer, describe_machine, describe_versions, find_peer, run_program
from maieutic.errors import ConfigError

if TYPE_CHECKING:
    from benchmarks._accuracy_start import Examiner, Recipe

PROGRAM = Path(__file__).with_name("_accuracy_trl.py")

#: A run: its program, rate and seed, `curve` (a point an examination), what starting took, and what each step did.
Run = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What both programs do. `every` so many steps they are examined: `samples` of each of `held_out` problems."""

    steps: int = 48
    every: int = 6
    prompts: int = 16
    generations: int = 8
    length: int = 96
    rates: tuple[float, ...] = (5e-5, 1e-4, 2e-4)
    seeds: tuple[int, ...] = (1, 2, 3)
    held_out: int = 300
    samples: int = 3
    micro: int = 32
    precision: str = "float32"
    start: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        """How the start is made: `_accuracy_start.Recipe` with what `start` says."""
        from benchmarks._accuracy_start import Recipe

        return replace(Recipe(), **self.start)


USUAL = Study()
TARGET = 0.55
QUICK = Study(
    steps=2, every=1, prompts=2, generations=4, length=24, rates=(5e-4,), seeds=(1,), held_out=16, samples=1, micro=8,
    start={
        "layers": 1, "width": 64, "heads": 4, "mlp": 128, "events": (1, 2), "demonstrations": 320, "misreading": 0.5,
    },
)  # fmt: skip


def reached(curve: Sequence[Mapping[str, float]], target: float, key: str) -> float | None:
    """`key` ("seconds", "cpu_seconds", "samples") where the curve's pass@1 reaches the target, by the rule above."""
    above = [point["pass@1"] >= target for point in curve]
    at = next((i for i in range(len(curve) - 1) if above[i] and above[i + 1]), None)
    if at is None or at == 0:
        return None if at is None else float(curve[0][key])
    before, first = curve[at - 1], curve[at]
    share = (target - before["pass@1"]) / (first["pass@1"] - before["pass@1"])
    return float(before[key] + share * (first[key] - before[key]))


def endless(values: Sequence[float | None]) -> float:
    """Their median, where None is more than any number."""
    return median(math.inf if value is None else value for value in values)


def arrivals(runs: Sequence[Run], target: float, key: str) -> dict[str, dict[float, list[float | None]]]:
    """Program → rate → where each seed, in order, reached the target."""
    found: dict[str, dict[float, list[float | None]]] = {}
    for run in sorted(runs, key=lambda run: (run["learning_rate"], run["seed"])):
        of_rate = found.setdefault(run["program"], {}).setdefault(run["learning_rate"], [])
        of_rate.append(reached(run["curve"], target, key))
    return found


def best_rates(runs: Sequence[Run], target: float, clock: str) -> dict[str, float | None]:
    """Of each program, the rate with the least median; None where at no rate half of the seeds got there."""
    best: dict[str, float | None] = {}
    for program, rates in arrivals(runs, target, clock).items():
        rate = min(rates, key=lambda rate: endless(rates[rate]))
        best[program] = None if math.isinf(endless(rates[rate])) else rate
    return best


def compared(runs: Sequence[Run], target: float, clock: str) -> dict[str, Any]:
    """At this target: each program's best rate, and TRL's seconds and samples over ours, a number a seed."""
    best = best_rates(runs, target, clock)
    ours, theirs = best.get(OURS), best.get(THEIRS)
    found: dict[str, Any] = {"target": target, "best_rate": best, "ratio": {}, "ratios": {}}
    for name, key in {"seconds": clock, "samples": "samples", "wall_seconds": "seconds"}.items():
        there = arrivals(runs, target, key)
        pairs = [] if ours is None or theirs is None else list(zip(there[OURS][ours], there[THEIRS][theirs]))
        each = [over(b, a) for a, b in pairs]
        found["ratios"][name] = [None if math.isinf(ratio) else ratio for ratio in each]
        middle = median(each) if each else math.inf
        found["ratio"][name] = None if math.isinf(middle) else middle
    return found


def over(theirs: float | None, ours: float | None) -> float:
    """Theirs over ours, where None is endless: 0 where only ours is, and endless where theirs is or ours is nothing."""
    if ours is None and theirs is not None:
        return 0.0
    return theirs / ours if ours and theirs is not None else math.inf


def agreement(runs: Sequence[Run]) -> dict[str, Any] | None:
    """TRL's pass@1 less ours after the same steps at the same rate and seed: the mean of each pair of runs, of all."""
    curves = {(run["program"], run["learning_rate"], run["seed"]): run["curve"] for run in runs}
    pairs = {
        f"{rate:g}/{seed}": fmean(b["pass@1"] - a["pass@1"] for a, b in zip(curve[1:], curves[THEIRS, rate, seed][1:]))
        for (program, rate, seed), curve in curves.items()
        if program == OURS and (THEIRS, rate, seed) in curves
    }
    return {"mean": fmean(pairs.values()), "pairs": pairs} if pairs else None


def paces(runs: Sequence[Run], clock: str) -> dict[str, list[float]]:
    """Program → seconds a step of each run."""
    found: dict[str, list[float]] = {}
    for run in runs:
        last = run["curve"][-1]
        found.setdefault(run["program"], []).append(last[clock] / last["step"])
    return found


def report(runs: Sequence[Run], target: float, threads: int) -> dict[str, Any]:
    """What `--json` writes."""
    clock = "cpu_seconds" if threads == 1 else "seconds"
    lowest = min(run["curve"][0]["pass@1"] for run in runs)
    others = [mark / 20 for mark in range(1, 20) if mark / 20 > lowest + 0.05]
    return {
        **compared(runs, target, clock),
        "clock": "processor" if threads == 1 else "wall",
        "agreement": agreement(runs),
        "seconds_per_step": {program: median(each) for program, each in paces(runs, clock).items()},
        "other_targets": [compared(runs, other, clock) for other in others],
        "runs": list(runs),
    }


def do(study: Study, work: Path, peer: Peer | None, threads: int, jobs: int = 1) -> list[Run]:
    """Every run of the study, found in `work` or carried out there, `jobs` at once."""
    from benchmarks._accuracy_start import prepare, write_problems

    _same_study(study, work, threads)
    recipe = study.recipe()
    prepare(recipe, work, threads)
    write_problems(work, recipe, study.seeds, study.steps * study.prompts, study.held_out)
    start_passes(study, work, threads)
    (work / "runs").mkdir(exist_ok=True)
    peers = [None] if peer is None else [None, peer]

    def find(seed: int, rate: float, peer: Peer | None) -> Run:
        file = work / "runs" / f"{OURS if peer is None else THEIRS}-{rate:g}-{seed}.json"
        if not file.exists():
            _write(file, one(study, work, peer, rate, seed, threads))
        return dict(json.loads(file.read_text(encoding="utf-8")))

    with ThreadPoolExecutor(jobs) as pool:
        found = [pool.submit(find, *each) for each in product(study.seeds, study.rates, peers)]
        return [each.result() for each in found]


def _same_study(study: Study, work: Path, threads: int) -> None:
    """Raise where `work` holds runs of another study."""
    note, told = work / "study.json", json.dumps({**asdict(study), "threads": threads}, indent=1)
    work.mkdir(parents=True, exist_ok=True)
    if note.exists() and note.read_text(encoding="utf-8") != told:
        raise ConfigError(
            f"got --work {work}, which holds runs with other settings (study.json there); expected a folder of these "
            "or a new one. Give another --work, or remove that folder"
        )
    note.write_text(told, encoding="utf-8")


def _write(file: Path, run: Run) -> None:
    """Whole or not at all."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(run), encoding="utf-8")
    os.replace(temporary, file)


def one(study: Study, work: Path, peer: Peer | None, rate: float, seed: int, threads: int) -> Run:
    """Carry out a run, ours where there is no peer, and examine what it kept."""
    name = OURS if peer is None else THEIRS
    out = work / "weights" / f"{name}-{rate:g}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    settings = {
        "model": work / "start", "data": work / f"practice-{seed}.jsonl", "out": out, "steps": study.steps,
        "every": study.every, "prompts": study.prompts, "generations": study.generations,
        "max_completion": study.length, "learning_rate": rate, "micro": study.micro, "threads": threads, "seed": seed,
        "precision": study.precision,
    }  # fmt: skip
    paths = {key: value.resolve() for key, value in settings.items() if isinstance(value, Path)}
    program = [sys.executable, "-m", "benchmarks._accuracy_side"] if peer is None else [peer.python, peer.program]
    told = run_program([*program, *arguments_of({**settings, **paths})], threads)
    points = curve(study, work, told["steps"], out, threads)
    shutil.rmtree(out)
    last = points[-1]
    took = f"{last['cpu_seconds']:.0f} s of the processor, {last['seconds']:.0f} s of the wall"
    print(f"accuracy: {name}, rate {rate:g}, seed {seed}: pass@1 {last['pass@1']:.3f} after {took}", file=sys.stderr)
    return {"program": name, "learning_rate": rate, "seed": seed, "curve": points, **told}


def examiner(study: Study, work: Path, threads: int) -> Examiner:
    """Of this study."""
    from benchmarks._accuracy_start import Examiner

    return Examiner(work / "start", work / "held-out.jsonl", study.samples, study.length, threads)


def start_passes(study: Study, work: Path, threads: int) -> float:
    """pass@1 of the start; examined once."""
    note = work / "start-pass.json"
    if not note.exists():
        note.write_text(json.dumps(examiner(study, work, threads)()), encoding="utf-8")
    return float(json.loads(note.read_text(encoding="utf-8")))


def curve(
    study: Study, work: Path, steps: Sequence[Mapping[str, float]], out: Path, threads: int
) -> list[dict[str, float]]:
    """A point for the start and one for each weights that were kept in `out`."""
    examine, start = examiner(study, work, threads), start_passes(study, work, threads)
    points = [{"step": 0.0, "samples": 0.0, "seconds": 0.0, "cpu_seconds": 0.0, "pass@1": start}]
    for step in steps:
        weights = out / f"{step['step']}.safetensors"
        if weights.exists():
            samples = step["step"] * study.prompts * study.generations
            clocks = {key: step[key] for key in ("step", "seconds", "cpu_seconds")}
            points.append({**clocks, "samples": samples, "pass@1": examine(weights)})
    return points


def table(made: Mapping[str, Any]) -> str:
    """Markdown: every rate, then the best ones seed by seed, then the mean curves."""
    runs, target = made["runs"], made["target"]
    clock = "cpu_seconds" if made["clock"] == "processor" else "seconds"
    seconds, samples = arrivals(runs, target, clock), arrivals(runs, target, "samples")
    lines = [
        f"Until {100 * target:.0f} % pass@1, seeds in order; seconds are the {made['clock']}'s.", "",
        "| program | rate | seconds | samples | best |", "|---" * 5 + "|",
    ]  # fmt: skip
    for program, rates in seconds.items():
        for rate, each in rates.items():
            drawn, mark = samples[program][rate], "yes" if rate == made["best_rate"][program] else ""
            lines.append(f"| {program} | {rate:g} | {_all(each, '.1f')} | {_all(drawn, ',.0f')} | {mark} |")
    lines += ["", "| TRL / maieutic, each at its best rate | median | seeds |", "|---" * 3 + "|"]
    for name, each in made["ratios"].items():
        lines.append(f"| {name} | {_all([made['ratio'][name]], '.2f')} | {_all(each, '.2f')} |")
    steps = sorted({point["step"] for run in runs for point in run["curve"]})
    lines += ["", "| pass@1 after steps, mean over seeds | " + " | ".join(map(str, steps)) + " |"]
    lines.append("|---" * (len(steps) + 1) + "|")
    for program, rates in seconds.items():
        for rate in rates:
            of = [run["curve"] for run in runs if (run["program"], run["learning_rate"]) == (program, rate)]
            means = [fmean(p["pass@1"] for c in of for p in c if p["step"] == step) for step in steps]
            lines.append(f"| {program} {rate:g} | " + " | ".join(f"{100 * mean:.1f}" for mean in means) + " |")
    return "\n".join(lines)


def _all(values: Sequence[float | None], form: str) -> str:
    return " · ".join("–" if value is None else format(value, form) for value in values)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="where runs are kept")
    parser.add_argument("--threads", type=int, default=1, help="of each program")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--target", type=float, default=TARGET, help="pass@1, 0 to 1")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    parser.add_argument("--trl-python", type=Path, help="the Python that has trl (default: .venv-trl/bin/python)")
    parser.add_argument("--alone", action="store_true", help="measure maieutic by itself")
    parser.add_argument("--quick", action="store_true", help="two steps of a tiny model, in WORK/quick")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Carry out the study and print its tables."""
    given = parse(arguments)
    if min(given.threads, given.jobs) < 1 or not 0 <= given.target <= 1:
        raise ConfigError(
            f"got --threads {given.threads}, --jobs {given.jobs}, --target {given.target}; expected at least 1 thread, "
            "1 job, and a target of 0 to 1"
        )
    peer = find_peer(PROGRAM, given.trl_python, given.alone)
    machine, versions = describe_machine(given.threads), describe_versions(peer)
    study, work = (QUICK, given.work / "quick") if given.quick else (USUAL, given.work)
    study = replace(study, precision=given.precision)
    made = {
        **report(do(study, work, peer, given.threads, given.jobs), given.target, given.threads),
        "study": asdict(study), "machine": machine, "versions": versions,
    }  # fmt: skip
    if given.json:
        write_json(given.json, made)
    told = ", ".join(f"{name} {value}" for name, value in machine.items())
    print(f"{told}\nversions: {versions}\n\n{table(made)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
