"""Every row of the table on the small arithmetic model: does it improve held-out pass@1 over the model it starts from?

    python -m benchmarks.learning [--rows grpo ppo …] [--runs DIR] [--jobs N] [--quick] [--json FILE]

One fine-tuned start (8,000 demonstrations of somebody who misreads), then each row alone from it: some 15,000 samples
for those that practise, as many demonstrations for those that imitate (perfect ones, or a teacher's judgement; the
teacher is the model that grpo made). Rows run side by side, one thread each; runs are kept and resumed. The table is in
docs/results.md. Its intervals are over problems (paired bootstrap): they say that this run learned, not how much
another seed would.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks._results import percent, points, write_json
from benchmarks.svamp import machine
from maieutic.algorithms import ALGORITHMS
from maieutic.config import parse_config
from maieutic.errors import RunError, UnknownName
from maieutic.evaluate import Evaluation, difference
from maieutic.run.directory import RunDirectory
from maieutic.run.runner import Runner, Silent

START = "sft-start"
ARITHMETIC = {"taskset": "arithmetic", "events": [3, 5]}


def rate(learning_rate: float, **more: Any) -> dict[str, Any]:
    """An AdamW that falls linearly."""
    return {"optimiser": {"learning_rate": learning_rate, "warmup_steps": 5, "schedule": "linear", **more}}


def muon(muon_learning_rate: float) -> dict[str, Any]:
    """Muon that falls as a cosine: what learns from many rows at once wants it."""
    spec = {"learning_rate": muon_learning_rate / 5, "muon_learning_rate": muon_learning_rate}
    return {"optimiser": {"kind": "muon", **spec, "schedule": "cosine", "final_fraction": 0.05}}


PRACTICE = {"tasks": "practice", "steps": 60, "prompts": 32, "num_generations": 8, "max_completion_length": 64}
ONLINE = {**PRACTICE, **rate(5e-4)}
ROUNDS = {**PRACTICE, "steps": 3, "prompts": 640, **muon(0.005)}
SHOWN = {"tasks": "perfect", "steps": 240, "prompts": 64, **rate(1e-3)}
TEACHER = {"teacher": {"path": "TEACHER"}}

#: Row → its stage. What a row must know beyond the defaults of its paper is what the model is small for.
STAGES: Mapping[str, dict[str, Any]] = {
    "sft": SHOWN,
    "rejection_sampling": {**ROUNDS, "steps": 1, "prompts": 1920},
    "star": {**ROUNDS, "hint": "{question} {answer}"},
    "rest_em": ROUNDS,
    "expert_iteration": ROUNDS,
    "rcrl": {**ROUNDS, "steps": 1, "prompts": 1920, **muon(0.02), "options": {"delimiter": ";", "epochs": 2}},
    "reinforce": ONLINE,
    "reinforce_plus_plus": ONLINE,
    "reinforce_plus_plus_baseline": ONLINE,
    "rloo": ONLINE,
    "ppo": {**PRACTICE, **rate(3e-4), "options": {"beta": 0.01, "lam": 1.0, "epochs": 2, "minibatches": 2},
            "critic": {"kind": "head", "learning_rate": 2e-3}},
    "trpo": {**PRACTICE, "options": {"max_kl": 1e-3}},
    "grpo": ONLINE,
    "dr_grpo": ONLINE,
    "dapo": ONLINE,
    "lite_ppo": ONLINE,
    "gdpo": {**ONLINE, "rewards": {"answer": 1.0, "think_format": 0.0}},
    "gspo": {**ONLINE, "options": {"minibatches": 4}},
    "gspo_token": {**ONLINE, "options": {"minibatches": 4}},
    "cispo": ONLINE,
    "sapo": ONLINE,
    "orpo": {**ONLINE, "options": {"pairs": "disjoint"}},
    "dpo": {**ONLINE, "options": {"pairs": "disjoint"}},
    "ipo": {**ONLINE, "options": {"pairs": "disjoint"}},
    "simpo": {**ONLINE, "options": {"pairs": "disjoint"}},
    "rpo": {**ONLINE, "options": {"pairs": "disjoint"}},
    "distil": {**SHOWN, **TEACHER},
    "gkd": {**ONLINE, **TEACHER},
    "on_policy_distillation": {**ONLINE, **TEACHER},
}  # fmt: skip
#: What `--quick` carries out, unless rows are named: one of each family.
QUICK_ROWS = ("sft", "star", "ppo", "grpo", "dpo", "distil")


def config(name: str, model: dict[str, Any], stage: dict[str, Any], quick: bool) -> dict[str, Any]:
    """The tables of one run."""
    tables = {
        "name": name,
        "threads": 1,
        "model": model,
        "tasks": {
            "demonstrations": {**ARITHMETIC, "demonstrations": "imperfect", "misreading": 0.8, "size": 8000},
            "perfect": {**ARITHMETIC, "size": 60_000, "start": 24_000},
            "practice": {**ARITHMETIC, "size": 60_000, "start": 24_000},
            "test": {**ARITHMETIC, "split": "test", "size": 300},
        },
        "stages": [{"name": name, "checkpoint_every": 1000, **stage}],
        "evaluation": {"tasks": "test", "samples": 16, "k": 8, "max_completion_length": 64},
    }
    if quick:
        tables["stages"][0] |= {"steps": 1, "prompts": 8}
        tables["stages"][0].pop("epochs", None)
        tables["stages"][0]["optimiser"] = {**stage.get("optimiser", {}), "schedule": "constant", "warmup_steps": 0}
        tables["evaluation"] |= {"limit": 3, "samples": 8}
    return tables


def start_config(quick: bool) -> dict[str, Any]:
    """The run that makes the start: fine-tuning from scratch."""
    words = {"layers": 2, "width": 128, "context": 160, "extra_words": ["[GOOD]", "[BAD]"]}
    muon = {"kind": "muon", "learning_rate": 5e-3, "muon_learning_rate": 0.02, "schedule": "cosine"}
    stage = {"algorithm": "sft", "tasks": "demonstrations", "epochs": 1, "prompts": 32, "optimiser": muon}
    return config(START, {"small": words}, stage, quick)


def run(tables: dict[str, Any], runs: Path) -> Evaluation:
    """Run or finish one run in a process of its own, and return its final evaluation."""
    folder = runs / tables["name"]
    if not (folder / "run.complete").exists():
        file = runs / f"{tables['name']}.toml"
        file.write_text(tomli_w.dumps(tables))
        again = ["--resume"] if (folder / "config.toml").exists() else []
        done = subprocess.run(
            [sys.executable, "-m", "maieutic", "-q", "train", file, "--run", folder, *again],
            capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            raise RunError(f"the run of {tables['name']} failed: {done.stderr.strip()[-2000:]}")
    stage = tables["stages"][0]["name"]
    found = Runner(parse_config(tables), RunDirectory.open(folder), Silent()).evaluation(stage, "test")
    if found is None:
        raise RunError(f"the run in {folder} has no evaluation; remove it and give the command again")
    return found


def model_of(runs: Path, name: str) -> str:
    """The model that a finished run ended with."""
    return json.loads((runs / name / "run.complete").read_text())["model"]


def learn(rows: list[str], runs: Path, jobs: int, quick: bool) -> dict[str, Any]:
    """All rows from the start, and what each gained over it."""
    runs.mkdir(parents=True, exist_ok=True)
    start = run(start_config(quick), runs)
    begun = {"path": model_of(runs, START)}

    def one(name: str) -> tuple[str, Evaluation]:
        stage = json.loads(json.dumps(STAGES[name]).replace('"TEACHER"', json.dumps(teacher)))
        made = run(config(name, begun, {"algorithm": name, **stage}, quick), runs)
        print(f"{name:<30} pass@1 {made.metrics(8)['pass@1'].value:.3f}", file=sys.stderr, flush=True)
        return name, made

    teacher = ""
    if any("teacher" in STAGES[name] for name in rows):
        one("grpo")
        teacher = model_of(runs, "grpo")
    with ThreadPoolExecutor(jobs) as pool:
        found = dict(pool.map(one, rows))
    table = {name: {"start": start, "end": made} for name, made in found.items()}
    return {
        "machine": machine(),
        "problems": len(start.problems),
        "rows": {
            name: {
                "pass@1": both["end"].metrics(8)["pass@1"].to_dict(),
                "pass@8": both["end"].metrics(8)["pass@8"].to_dict(),
                "gain": difference(both["end"], both["start"], "pass@1").to_dict(),
                "pass@8 gain": difference(both["end"], both["start"], "pass@8").to_dict(),
                "seconds": sum(json.loads((runs / name / "run.complete").read_text())["seconds"].values()),
            }
            for name, both in table.items()
        },
        "start": {metric: value.to_dict() for metric, value in start.metrics(8).items()},
    }


def table(made: dict[str, Any]) -> str:
    """Markdown."""
    begun = made["start"]
    lines = ["| row | pass@1 | gain over the start | pass@8 gain | seconds |", "|---|---|---|---|---|"]
    lines.append(f"| the start | {percent(begun['pass@1'])} | | pass@8 {percent(begun['pass@8'])} | |")
    for name, row in made["rows"].items():
        gains = f"{points(row['gain'])} | {points(row['pass@8 gain'])}"
        lines.append(f"| {name} | {percent(row['pass@1'])} | {gains} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the rows and print the table; exit with 1 where a row's gain is not above zero."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", help="(all; with --quick one of each family)")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="one step each, to see that it runs, in RUNS/quick")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    rows = given.rows or list(QUICK_ROWS if given.quick else ALGORITHMS)
    for name in rows:
        if name not in STAGES:
            raise UnknownName("row", name, STAGES)
    made = learn(rows, given.runs / "quick" if given.quick else given.runs, given.jobs, given.quick)
    if given.json:
        write_json(given.json, made)
    print(made["machine"])
    print(table(made))
    flat = [name for name, row in made["rows"].items() if not row["gain"]["low"] > 0]
    if flat and not given.quick:
        print(f"\nno gain above zero: {', '.join(flat)}", file=sys.stderr)
    return 1 if flat and not given.quick else 0


if __name__ == "__main__":
    raise SystemExit(main())
