"""Problems that people wrote: fine-tuning against RL with answers only, MAWPS + ASDiv-A → SVAMP, three seeds.

    python -m benchmarks.svamp [--seeds 1 2 3] [--data DIR] [--runs DIR] [--quick] [--json FILE]

For each seed `examples/svamp.toml` is run as it stands (fine-tuning, then GRPO from it), and beside it fine-tuning
alone for three times as long: what more imitation would have given. Runs are kept and resumed, so the command may be
stopped and given again. The table it prints is the one in docs/results.md. Settings were chosen on seed 0 (another
split), so seed 0 is not among the seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

from benchmarks._results import percent, points, write_json
from maieutic.config import Config, read_config
from maieutic.core.intervals import t_interval
from maieutic.evaluate import Evaluation, difference
from maieutic.run.directory import RunDirectory
from maieutic.run.runner import Runner, Silent, resume_or_begin

EXAMPLE = Path(__file__).parents[1] / "examples" / "svamp.toml"
METRICS = ("greedy", "pass@1", "pass@8", "vote@8", "strict@8")
TASKSETS = ("heldout", "svamp")


def config_of(seed: int, data: Path, *, longer: bool, quick: bool) -> Config:
    """The example with this seed (of weights, order, sampling and split); `longer`: fine-tuning alone, three times."""
    overrides = [f"seed={seed}", f"evaluation.seed={seed}"]
    overrides += [f"tasks.{name}.path={data}" for name in ("demonstrations", "practice", "heldout", "svamp")]
    overrides += [f"tasks.{name}.seed={seed}" for name in ("demonstrations", "practice", "heldout")]
    if quick:
        overrides += [
            "stages.0.epochs=1",
            "stages.1.steps=3",
            "stages.1.optimiser.warmup_steps=0",
            "evaluation.limit=40",
            "threads=1",
        ]
    config = read_config(EXAMPLE, overrides)
    if longer:
        first = config.stages[0]
        only = first.model_copy(update={"epochs": 3 * float(first.epochs or 1)})
        config = config.model_copy(update={"stages": [only]})
    return config


def run(config: Config, folder: Path) -> dict[tuple[str, str], Evaluation]:
    """Run or finish a run, and return its evaluations by (stage, taskset)."""
    if not (folder / "run.complete").exists():
        resume_or_begin(config, folder, resume=(folder / "config.toml").exists(), watch=Silent())
    runner = Runner(config, RunDirectory.open(folder), Silent())
    found = {(s.name, t): runner.evaluation(s.name, t) for s in config.stages for t in TASKSETS}
    return {key: value for key, value in found.items() if value is not None}


def study(seeds: list[int], data: Path, runs: Path, *, quick: bool) -> dict[str, Any]:
    """All arms for all seeds: metrics with intervals, paired differences to both baselines, seconds."""
    results: dict[str, Any] = {"machine": machine(), "seeds": {}}
    for seed in seeds:
        both = run(config_of(seed, data, longer=False, quick=quick), runs / f"svamp-{seed}")
        longer = run(config_of(seed, data, longer=True, quick=quick), runs / f"svamp-{seed}-longer")
        seconds = {
            name: json.loads((runs / folder / "run.complete").read_text())["seconds"]
            for name, folder in (("svamp", f"svamp-{seed}"), ("longer", f"svamp-{seed}-longer"))
        }
        here: dict[str, Any] = {"seconds": seconds}
        for taskset in TASKSETS:
            arms = {"sft": both["sft", taskset], "sft ×3": longer["sft", taskset], "rl": both["rl", taskset]}
            here[taskset] = {
                "arms": {a: {m: v.to_dict() for m, v in e.metrics(8).items()} for a, e in arms.items()},
                "rl − sft": {m: difference(arms["rl"], arms["sft"], m, 8).to_dict() for m in METRICS},
                "rl − sft ×3": {m: difference(arms["rl"], arms["sft ×3"], m, 8).to_dict() for m in METRICS},
                "problems": len(arms["rl"].problems),
            }
        results["seeds"][seed] = here
    return results


def machine() -> str:
    """Processor and versions, for the record."""
    import torch

    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(results: dict[str, Any]) -> str:
    """Markdown: one block a taskset; a row an arm and seed, then the differences, then the mean over seeds."""
    lines = []
    for taskset in TASKSETS:
        lines += ["", f"**{taskset}**", "", "| seed | arm | " + " | ".join(METRICS) + " |", "|---" * 7 + "|"]
        for seed, here in results["seeds"].items():
            for arm, values in here[taskset]["arms"].items():
                lines.append(f"| {seed} | {arm} | " + " | ".join(percent(values[m]) for m in METRICS) + " |")
            for name in ("rl − sft", "rl − sft ×3"):
                lines.append(
                    f"| {seed} | {name} | " + " | ".join(points(here[taskset][name][m]) for m in METRICS) + " |"
                )
        for name in ("rl − sft", "rl − sft ×3"):
            cells = []
            for m in METRICS:
                values = [here[taskset][name][m]["value"] for here in results["seeds"].values()]
                cells.append(points(t_interval(values).to_dict()) if len(values) > 1 else "–")
            lines.append(f"| all | {name} | " + " | ".join(cells) + " |")
    seconds = [here["seconds"] for here in results["seeds"].values()]
    for arm, stage in (("svamp", "sft"), ("svamp", "rl"), ("longer", "sft")):
        median = statistics.median(s[arm][stage] for s in seconds)
        lines.append(f"\nseconds of {stage} ({arm}), median over seeds: {median:.0f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/svamp"), help="SVAMP.json and the training csv"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/svamp-study"))
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    runs = given.runs / "quick" if given.quick else given.runs
    results = study(given.seeds[:1] if given.quick else given.seeds, given.data.resolve(), runs, quick=given.quick)
    if given.json:
        write_json(given.json, results)
    print(results["machine"])
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
