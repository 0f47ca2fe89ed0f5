"""Study 1: seven ways to learn from the same number of samples, on two tasks, each from two starts. Three seeds.

    python -m benchmarks starts [--only arithmetic-sft …] [--runs DIR] [--jobs N] [--data DIR] [--quick] [--json FILE]

Four comparisons (`benchmarks/studies/*.toml`, `maieutic compare`), then the tables of docs/studies/starts.md. About an
hour on two cores; runs are kept, so the command may be stopped and given again. `--json` names a folder, which takes a
file for each comparison, or a file (.json) for all of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._results import write_json
from benchmarks.svamp import machine
from maieutic.cli import main as maieutic

STUDIES = Path(__file__).parent / "studies"
WEAK = ["tasks.demonstrations.size=3000", "tasks.demonstrations.misreading=0.95"]
#: Comparison → its file and what is set in it.
COMPARISONS: Mapping[str, tuple[str, list[str]]] = {
    "arithmetic-sft": ("arithmetic.toml", []),
    "arithmetic-weak": ("arithmetic.toml", WEAK),
    "written-sft": ("written.toml", []),
    "written-weak": ("written.toml", ["start.0.epochs=1"]),
}
#: What `--quick` sets, and of which comparisons: one seed, some steps of each arm, all of it in seconds.
QUICK = [
    "seeds=[1]", "budget.samples=128", "stage.prompts=8", "tasks.demonstrations.size=640", "tasks.test.size=24",
    "tasks.validation.size=8", "evaluation.samples=8", "arms.4.prompts=8", "arms.5.prompts=16", "arms.6.prompts=16",
    *(f"{place}.optimiser.{setting}" for place in ("stage", "arms.2")
      for setting in ("warmup_steps=0", 'schedule="constant"')),
]  # fmt: skip
QUICK_ONLY = ["arithmetic-sft"]
SHOWN = ("greedy", "pass@1", "pass@8", "vote@8", "strict@8", "rerank@8", "unique")
SHARES = ("greedy", "pass", "vote", "strict", "rerank")
COSTS = {"samples": "samples", "generated_tokens": "tokens generated", "trained_tokens": "tokens trained"}


def run(name: str, runs: Path, jobs: int, data: Path, more: Sequence[str] = ()) -> dict[str, Any]:
    """Carry a comparison out (with `more` settings), or read what it found."""
    file, settings = COMPARISONS[name]
    settings = [*settings, *more]
    out = runs / f"{name}.json"
    arguments = ["compare", str(STUDIES / file), "--out", str(runs / name), "--jobs", str(jobs), "--json", str(out)]
    if file == "written.toml":
        tasks = ("demonstrations", "practice", "validation", "test", "svamp")
        settings = settings + [f"tasks.{task}.path={data}" for task in tasks]
    for setting in settings:
        arguments += ["--set", setting]
    if code := maieutic(arguments):
        raise SystemExit(code)
    found = json.loads(out.read_text())
    return {key: value for key, value in found.items() if key not in ("out", "page")}


def tables(name: str, found: Mapping[str, Any]) -> str:
    """Markdown: for each taskset its arms and what they gained; then what they cost.

    The verdict in sentences is in `found` (`maieutic compare` prints it); here what it claims is bold.
    """
    lines = [f"## {name}"]
    for taskset, results in found["tasksets"].items():
        rows = {"start": results["start"], **results["arms"]}
        shown = [metric for metric in SHOWN if all(metric in values for values in rows.values())]
        lines += ["", f"**{taskset}**", "", "| | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
        for arm, values in rows.items():
            lines.append(f"| {arm} | " + " | ".join(_cell(metric, values[metric]) for metric in shown) + " |")
        gains = {(gain["new"], gain["metric"]): gain for gain in results["gains"]}
        metrics = list(dict.fromkeys(metric for _, metric in gains))
        pairs = {pair["new"]: pair for pair in results["pairs"]}
        old = next(iter(pairs.values()))["old"] if pairs else ""
        lines += ["", "| | " + " | ".join(f"{m} − start" for m in metrics) + f" | {found['metric']} − {old} |"]
        lines.append("|---" * (len(metrics) + 2) + "|")
        for arm in results["arms"]:
            cells = [_points(gains.get((arm, metric))) for metric in metrics] + [_points(pairs.get(arm))]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| cost, mean over seeds | " + " | ".join(COSTS.values()) + " | 10¹² FLOPs | seconds |",
        "|---" * 6 + "|",
    ]
    for arm, costs in found["costs"].items():
        amounts = [f"{costs.get(key, 0):,.0f}" for key in COSTS]
        lines.append(
            f"| {arm} | {' | '.join(amounts)} | {costs.get('flops', 0) / 1e12:.1f} | {costs.get('seconds', 0):.0f} |"
        )
    return "\n".join(lines)


def _cell(metric: str, value: Mapping[str, Any]) -> str:
    """A share in per cent; a number of different correct solutions as it is."""
    return _percent(value) if metric.partition("@")[0] in SHARES else f"{value['value']:.2f}"


def _percent(value: Mapping[str, Any]) -> str:
    if value["low"] is None:  # one seed
        return f"{100 * value['value']:.1f}"
    low, high = max(0.0, value["low"]), min(1.0, value["high"])  # Student's t of a few seeds knows of no bounds
    return f"{100 * value['value']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _points(value: Mapping[str, Any] | None) -> str:
    """A difference in points; in bold where it may be claimed."""
    if value is None or value["low"] is None:
        return "–" if value is None else f"{100 * value['value']:+.1f}"
    mark = "**" if value["claimed"] else ""
    return f"{mark}{100 * value['value']:+.1f}{mark} ({100 * value['low']:+.1f} to {100 * value['high']:+.1f})"


def main(arguments: list[str] | None = None) -> int:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(COMPARISONS), help="(all; with --quick the first)")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/svamp"))
    parser.add_argument("--quick", action="store_true", help="one seed, one or two steps, in RUNS/quick")
    parser.add_argument("--json", type=Path, help="a folder for what was found, a file each; or one file, *.json")
    given = parser.parse_args(arguments)
    runs, more = (given.runs / "quick", QUICK) if given.quick else (given.runs, [])
    only = given.only or (QUICK_ONLY if given.quick else list(COMPARISONS))
    runs.mkdir(parents=True, exist_ok=True)
    found = {name: run(name, runs, given.jobs, given.data.resolve(), more) for name in only}
    if given.json and given.json.suffix == ".json":
        write_json(given.json, found, indent=None)
    elif given.json:
        for name, results in found.items():
            write_json(given.json / f"{name}.json", results, indent=None)
    print(machine())
    for name, results in found.items():
        print("\n" + tables(name, results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
