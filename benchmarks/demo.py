"""The demo on several seeds: what RL adds to fine-tuning, with intervals, and how long it takes.

    python -m benchmarks.demo [--seeds 0 1 2] [--runs DIR] [--quick] [--json FILE]

Runs `maieutic demo` as a user would, one seed after the other, and prints the table of docs/results.md. Finished runs
are read, unfinished ones are taken up. `--quick`: the first seed, of a demo that learns for seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._results import write_json
from maieutic.config import write_toml
from maieutic.run.demo import demo_config

METRICS = ("greedy", "pass@1", "pass@8", "vote@8", "strict@8")


def shorten(seed: int, folder: Path) -> None:
    """Begin a demo of a few steps in the folder, if there is none: `maieutic demo` goes on with it."""
    if (folder / "config.toml").exists():
        return
    whole = demo_config(seed)
    (sft, rl), (taught, tested) = whole.stages, (whole.tasks[name] for name in ("demonstrations", "test"))
    tasks = {
        "demonstrations": taught.model_copy(update={"limit": 3200}),
        "test": tested.model_copy(update={"limit": 40}),
    }
    short = {"stages": [sft, rl.model_copy(update={"steps": 6})], "tasks": {**whole.tasks, **tasks}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(write_toml(whole.model_copy(update=short)), encoding="utf-8")


def demo(seed: int, folder: Path) -> dict[str, Any]:
    """The figures of `maieutic demo --seed SEED --json FILE`."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, "-m", "maieutic", "demo", "--seed", str(seed), "--run", str(folder)]
        subprocess.run([*command, "--json", out.name], check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(out.name).read_text())


def table(results: dict[int, dict[str, Any]]) -> str:
    """Markdown: stages and the paired difference, a block of rows a seed."""
    lines = ["| seed | | " + " | ".join(METRICS) + " | seconds |", "|---" * (len(METRICS) + 3) + "|"]
    for seed, found in results.items():
        for stage in ("sft", "rl"):
            cells = [_cell(found["stages"][stage][m], "{:.1f} ({:.1f}–{:.1f})") for m in METRICS]
            lines.append(f"| {seed} | {stage} | " + " | ".join(cells) + f" | {found['seconds'][stage]:.0f} |")
        cells = [_cell(found["difference"][m], "{:+.1f} ({:+.1f} to {:+.1f})") for m in METRICS]
        lines.append(f"| {seed} | rl − sft | " + " | ".join(cells) + f" | {found['seconds']['total']:.0f} in all |")
    return "\n".join(lines)


def _cell(value: dict[str, float], form: str) -> str:
    return form.format(100 * value["value"], 100 * value["low"], 100 * value["high"])


def main(arguments: list[str] | None = None) -> int:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/demo-study"))
    parser.add_argument("--quick", action="store_true", help="the first seed only, a few steps, in RUNS/quick")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    seeds, runs = (given.seeds[:1], given.runs / "quick") if given.quick else (given.seeds, given.runs)
    if given.quick:
        shorten(seeds[0], runs / f"seed-{seeds[0]}")
    results = {seed: demo(seed, runs / f"seed-{seed}") for seed in seeds}
    if given.json:
        write_json(given.json, results)
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
