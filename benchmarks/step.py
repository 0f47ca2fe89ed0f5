"""Seconds of a whole GRPO step, rollouts to update, beside TRL's GRPOTrainer on the same model, problems and cores.

    make bench-trl ARGS=…         builds .venv-trl once, from benchmarks/requirements-trl.txt, and then does this:
    python -m benchmarks step [--only 4M-16x8-natural …] [--threads 2] [--repeats 3] [--quick] [--json FILE]

Both programs are fresh processes, run in turn (ours, TRL's, ours, TRL's, …) with the same number of threads, on the
same model folder and the same `problems.jsonl`. A step: prompts are sampled from at temperature 1, judged (1 where the
last number is the answer), and learned from with one optimiser step of GRPO (β = 0, every token alike, TRL's "dapo");
TRL in micro-batches of 16 rows, maieutic in its own, by tokens. A process's first step is warm-up. Compared are medians
over repeats of medians over steps, with the range over repeats beside; each repeat has a seed of its own, the same for
both programs. `ratio` is how many times TRL's throughput ours is: in steps a second where all completions have the same
length, and in their tokens a second where the model ends them, for then two programs that draw other random numbers
write more or less (`ratio_of_steps` says it in steps). With one thread the seconds are the processor's,
which other programs lengthen little; with more they are the wall's, and the machine should be quiet.

A case is named `size-PROMPTSxGENERATIONS-mode`. Sizes: 4M and 110M parameters (Qwen2; `_step_models.py` makes them, in
minutes, and keeps them). `natural`: completions end where the model ends them, to which it was fine-tuned by maieutic
on worked solutions of 14 to 130 tokens. `full`: only the limit of 128 tokens ends them. (TRL reports shorter ones even
so: what follows an end of text is generated and computed, and then left out of its loss.)

Both compute in float32; `--precision bfloat16` gives both bfloat16 products (ours keep float32 weights, TRL's are
bfloat16 too), `--sampling-precision int8` lets ours sample in bytes besides. Either wants a processor that has them.

`share_of_limit` is how long a step's operations take at the rates of the model's matrix products, measured in our
process after its steps, as a share of what the step took: 1 would be a step of nothing but matrix products. On top of
the JSON stand figures of the first batch that was run (16 x 8 of the small model): `ratio` of both modes, and of full
length `seconds`, `share_of_limit` and `peak_rss_ratio` (our memory over TRL's). `cases` has everything.

The peer is a program of its own (`--peer`), run by a Python that has trl (`--trl-python`). It takes --model, --data,
--steps, --prompts, --generations, --micro, --max-completion, --temperature, --learning-rate, --threads, --seed,
--dtype, --cpu and --full-length, and prints one JSON line with seconds_per_step, cpu_seconds_per_step,
mean_completion_tokens and peak_rss_mib.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._results import write_json
from maieutic.errors import ConfigError

ROOT = Path(__file__).parents[1]
PEER = ROOT.parent / "shared" / "bench" / "trl_grpo.py"
TRL_PYTHON = ROOT / ".venv-trl" / "bin" / "python"

OURS, THEIRS = "maieutic", "trl"

#: Rows of TRL's micro-batches.
MICRO = 16

#: Problems that both programs draw from.
PROBLEMS = 512

Measured = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison: `steps` timed steps a process, of `prompts` x `generations` completions of `length` at most."""

    size: str
    prompts: int
    generations: int
    full: bool
    length: int = 128
    steps: int = 3

    @property
    def batch(self) -> str:
        """Its size and completions."""
        return f"{self.size}-{self.prompts}x{self.generations}"

    @property
    def mode(self) -> str:
        """What ends completions."""
        return "full" if self.full else "natural"

    @property
    def name(self) -> str:
        """By which it is asked for."""
        return f"{self.batch}-{self.mode}"


def _cases() -> dict[str, Case]:
    made = [
        Case(size, prompts, 8, full, steps=3 if size == "4M" else 1)
        for size in ("4M", "110M")
        for prompts in (16, 32, 64)
        for full in (False, True)
    ]
    return {case.name: case for case in made}


CASES: Mapping[str, Case] = _cases()
#: What runs unless cases are named: a large model in large batches takes hours.
USUAL = tuple(name for name, case in CASES.items() if case.size == "4M" or case.prompts == 16)
QUICK = tuple(Case("4M", 4, 4, full, length=32, steps=1) for full in (False, True))


@dataclass(frozen=True, slots=True)
class Peer:
    """TRL's side: a program and the Python that runs it."""

    program: Path
    python: Path

    def versions(self) -> dict[str, str]:
        """What it runs on. Raises `ConfigError` for a Python without trl."""
        code = (
            "import json; from importlib.metadata import version; "
            "print(json.dumps({n: version(n) for n in ('trl', 'torch', 'transformers')}))"
        )
        found = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=False)
        if found.returncode:
            raise ConfigError(f"got --trl-python {self.python}; expected a Python with trl.\n{found.stderr[-500:]}")
        return dict(json.loads(found.stdout))


def find_peer(program: Path | None, python: Path | None, alone: bool = False) -> Peer | None:
    """The peer to run; None (said on stderr) where there is no environment for it, or nobody wants it.

    Raises `ConfigError` where one was asked for and cannot be run, with what is missing.
    """
    if alone:
        return None
    if python is None and not TRL_PYTHON.exists():
        print(
            f"step: no {TRL_PYTHON}, so maieutic is measured alone. `make bench-trl` builds that environment; or give "
            "--trl-python",
            file=sys.stderr,
        )
        return None
    python = python or TRL_PYTHON
    if not python.exists():
        raise ConfigError(
            f"got --trl-python {python}, which does not exist; expected the Python of an environment with trl"
        )
    program = program or PEER
    if not program.exists():
        raise ConfigError(
            f"got no peer program at {program}; expected one that runs TRL's GRPOTrainer (its flags and what it prints "
            "are in `python -m benchmarks step --help`). Give it as --peer FILE, or measure maieutic by itself with "
            "--alone"
        )
    return Peer(program.resolve(), python.absolute())


def alternate(programs: Mapping[str, Callable[[int], Measured]], repeats: int) -> dict[str, list[Measured]]:
    """What each program measured, `repeats` times (it is told which): all of them in turn, then all again."""
    found: dict[str, list[Measured]] = {name: [] for name in programs}
    for repeat in range(repeats):
        for name, run in programs.items():
            found[name].append(run(repeat))
    return found


def settings(case: Case, model: Path, problems: Path, threads: int, seed: int) -> list[str]:
    """The arguments that both programs take."""
    given: dict[str, object] = {
        "--model": model.resolve(),
        "--data": problems.resolve(),
        "--steps": case.steps,
        "--prompts": case.prompts,
        "--generations": case.generations,
        "--max-completion": case.length,
        "--temperature": 1.0,
        "--learning-rate": 1e-6,
        "--threads": threads,
        "--seed": seed,
    }
    pairs = [str(part) for pair in given.items() for part in pair]
    return [*pairs, "--full-length"] if case.full else pairs


def run_program(command: Sequence[str | Path], threads: int) -> Measured:
    """Run a program in a fresh process to its end; the last line that it prints is what it measured.

    Raises `ConfigError` when it fails, with the end of what it said.
    """
    asked = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **asked})
    if done.returncode or not done.stdout.strip():
        raise ConfigError(f"{' '.join(map(str, command))} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def measure(case: Case, model: Path, problems: Path, peer: Peer | None, given: argparse.Namespace) -> Measured:
    """A case, with everything that its processes said."""
    own = ["--precision", given.precision, "--sampling-precision", given.sampling_precision]
    commands: dict[str, list[str | Path]] = {OURS: [sys.executable, "-m", "benchmarks._step_side", *own]}
    if peer is not None:
        micro = str(min(MICRO, case.prompts * case.generations))
        numbers = ["--dtype", given.precision]
        commands[THEIRS] = [peer.python, peer.program, *numbers, "--micro", micro, "--cpu"]

    def program(name: str) -> Callable[[int], Measured]:
        def run(repeat: int) -> Measured:
            told = settings(case, model, problems, given.threads, given.seed + repeat)
            found = run_program([*commands[name], *told], given.threads)
            said = f"{found['seconds_per_step']:.2f} s a step, {found['cpu_seconds_per_step']:.2f} of the processor"
            print(f"step: {case.name}, {name}: {said}", file=sys.stderr)
            return found

        return run

    runs = alternate({name: program(name) for name in commands}, 1 if given.quick else given.repeats)
    return summary(case, runs, given.threads)


def summary(case: Case, runs: Mapping[str, Sequence[Measured]], threads: int) -> Measured:
    """Medians over the runs of each program, their range, and what they compare to."""
    clock = "cpu_seconds_per_step" if threads == 1 else "seconds_per_step"
    each = {name: [found[clock] for found in made] for name, made in runs.items()}
    seconds = {name: median(values) for name, values in each.items()}
    memory = {name: median(found["peak_rss_mib"] for found in made) for name, made in runs.items()}
    ours, both = runs[OURS], THEIRS in runs
    pace = {name: _pace(case, made, clock) for name, made in runs.items()}
    pairs = [a / b for a, b in zip(pace[OURS], pace.get(THEIRS, []))]
    limit = median(found["limit"]["rollout_seconds"] + found["limit"]["update_seconds"] for found in ours)
    return {
        "name": case.name,
        "batch": case.batch,
        "mode": case.mode,
        **asdict(case),
        "clock": "processor" if threads == 1 else "wall",
        "seconds": {OURS: seconds[OURS], THEIRS: seconds.get(THEIRS)},
        "range": {name: [min(values), max(values)] for name, values in each.items()},
        "ratio": median(pace[OURS]) / median(pace[THEIRS]) if both else None,
        "ratio_of_steps": seconds[THEIRS] / seconds[OURS] if both else None,
        "ratio_range": [min(pairs), max(pairs)] if both else None,
        "mean_completion_tokens": {
            name: median(found["mean_completion_tokens"] for found in made) for name, made in runs.items()
        },
        "limit_seconds": limit,
        "share_of_limit": limit / seconds[OURS],
        "peak_rss_mib": memory,
        "peak_rss_ratio": memory[OURS] / memory[THEIRS] if both else None,
        "runs": {name: list(made) for name, made in runs.items()},
    }


def _pace(case: Case, made: Sequence[Measured], clock: str) -> list[float]:
    """Of each run: tokens of completions a second, as the model ends them; of full length, steps a second."""
    return [(1.0 if case.full else found["mean_completion_tokens"]) / found[clock] for found in made]


def report(cases: Sequence[Measured], machine: Mapping[str, Any], versions: Mapping[str, Any]) -> Measured:
    """What `--json` writes: the first batch's figures on top, everything below."""
    first = {case["mode"]: case for case in cases if case["batch"] == cases[0]["batch"]}
    head = first.get("full") or cases[0]
    return {
        "ratio": {mode: first[mode]["ratio"] if mode in first else None for mode in ("natural", "full")},
        "seconds": head["seconds"],
        "share_of_limit": head["share_of_limit"],
        "peak_rss_ratio": head["peak_rss_ratio"],
        "cases": list(cases),
        "machine": machine,
        "versions": versions,
    }


def table(made: Mapping[str, Any]) -> str:
    """Markdown, a row a case."""
    lines = [
        "| case | clock | maieutic, s a step | TRL, s a step | TRL / maieutic | tokens a completion, ours and TRL's "
        "| of limit | memory, MiB: ours and TRL's |",
        "|---" * 8 + "|",
    ]
    for case in made["cases"]:
        tokens, memory = case["mean_completion_tokens"], case["peak_rss_mib"]
        ratio = "–" if case["ratio"] is None else f"**{case['ratio']:.2f}** ({_range(case['ratio_range'])})"
        lines.append(
            f"| {case['name']} | {case['clock']} | {_seconds(case, OURS)} | {_seconds(case, THEIRS)} | {ratio} "
            f"| {_both(tokens, '.1f')} | {case['share_of_limit']:.2f} | {_both(memory, ',.0f')} |"
        )
    return "\n".join(lines)


def _seconds(case: Mapping[str, Any], name: str) -> str:
    value = case["seconds"][name]
    return "–" if value is None else f"{value:.2f} ({_range(case['range'][name])})"


def _range(ends: Sequence[float]) -> str:
    return f"{ends[0]:.2f}–{ends[1]:.2f}"


def _both(values: Mapping[str, float], form: str) -> str:
    return " · ".join(format(values[name], form) if name in values else "–" for name in (OURS, THEIRS))


def describe_machine(threads: int) -> dict[str, Any]:
    """Where it was measured, and how much else the machine did."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "threads": threads,
        "load": os.getloadavg()[0],
    }


def _processor() -> str:
    """Its name, where the system says it."""
    said = Path("/proc/cpuinfo")
    lines = said.read_text(encoding="utf-8").splitlines() if said.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe_versions(peer: Peer | None) -> dict[str, Any]:
    """Of what was compared."""
    from importlib.metadata import version

    ours = {name: version(name) for name in ("maieutic", "torch", "transformers")}
    return {OURS: ours, THEIRS: None if peer is None else peer.versions()}


def compare(given: argparse.Namespace) -> Measured:
    """All cases that were asked for."""
    from benchmarks._step_models import RECIPES, prepare, quick, write_problems

    peer = find_peer(given.peer, given.trl_python, given.alone)
    machine, versions = describe_machine(given.threads), describe_versions(peer)
    cases = QUICK if given.quick else [CASES[name] for name in given.only]
    if given.steps is not None:
        cases = [replace(case, steps=given.steps) for case in cases]
    folder = given.models or given.runs / "models"
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Measured] = []
    for case in cases:
        recipe, name = (
            (quick(RECIPES[case.size]), f"{case.size}-quick") if given.quick else (RECIPES[case.size], case.size)
        )
        model = prepare(name, recipe, folder, given.threads)
        problems = write_problems(PROBLEMS, folder / f"{name}.jsonl", recipe.events)
        found.append(measure(case, model, problems, peer, given))
    return report(found, machine, versions)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(USUAL), metavar="CASE")
    parser.add_argument("--threads", type=int, default=2, help="of each program")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each program")
    parser.add_argument(
        "--steps", type=int, help="timed steps of a process (default: 3 of the small model, 1 of the large)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer", type=Path, help="TRL's program (default: ../shared/bench/trl_grpo.py)")
    parser.add_argument("--trl-python", type=Path, help="the Python that runs it (default: .venv-trl/bin/python)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of both programs")
    parser.add_argument("--sampling-precision", choices=("same", "bfloat16", "int8"), default="same", help="of ours")
    parser.add_argument("--alone", action="store_true", help="measure maieutic by itself")
    parser.add_argument("--runs", type=Path, default=Path("runs/step"))
    parser.add_argument("--models", type=Path, help="where models are kept (default: RUNS/models)")
    parser.add_argument("--quick", action="store_true", help="the small model, a few short completions, once")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Compare and print the table."""
    given = parse(arguments)
    if min(given.threads, given.repeats, 1 if given.steps is None else given.steps) < 1:
        raise ConfigError(
            f"got --threads {given.threads}, --repeats {given.repeats}, --steps {given.steps}; expected at least 1 each"
        )
    made = compare(given)
    if given.json:
        write_json(given.json, made)
    told = ", ".join(f"{name} {value}" for name, value in made["machine"].items())
    print(f"{told}\nversions: {made['versions']}\n\n{table(made)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
