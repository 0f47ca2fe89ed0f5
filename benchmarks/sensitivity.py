"""Study 2: how much each hyper-parameter of GRPO matters, and how often a run diverges. 11 settings, three seeds.

    python -m benchmarks sensitivity [--runs DIR] [--jobs N] [--quick] [--json FILE]

`maieutic sweep benchmarks/studies/sensitivity.toml`, then the table of docs/studies/sensitivity.md: of each setting its
final pass@1, and how far from the centre it is, paired by seed (a seed's settings go on from the same start). Some
quarter of an hour on two quiet cores; runs are kept, so the command may be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.svamp import machine
from maieutic.cli import main as maieutic
from maieutic.core.intervals import Interval, t_interval

STUDY = Path(__file__).parent / "studies" / "sensitivity.toml"
#: What `--quick` sets: two settings, two steps (seeds are three, without which nothing is said of any setting).
QUICK = [
    "grid={num_generations = [4, 8]}", "stage.budget.samples=128", "stage.prompts=8",
    "tasks.demonstrations.size=640", "tasks.test.size=16", "evaluation.samples=8",
]  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """Markdown: a row a setting; intervals are Student's over seeds, differences paired with the first setting."""
    (results,) = found["tasksets"].values()
    centre, *others = results["settings"]
    lines = ["| changed | mean pass@1 | median | quartiles | − centre | diverged |", "|---" * 6 + "|"]
    for setting in (centre, *others):
        changed = [f"{key} = {value:g}" for key, value in setting["values"].items() if value != centre["values"][key]]
        away = [own["final"] - centre["by_seed"][seed]["final"] for seed, own in setting["by_seed"].items()]
        cells = [
            ", ".join(changed) or "nothing (the centre)",
            _shares(t_interval([own["final"] for own in setting["by_seed"].values()])),
            f"{100 * setting['median']:.1f}",
            "–".join(f"{100 * quartile:.1f}" for quartile in setting["quartiles"]),
            _points(t_interval(away)) if changed else "–",
            f"{sum(own['diverged'] is not None for own in setting['by_seed'].values())} of {len(away)}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shares(mean: Interval) -> str:
    return f"{100 * mean.value:.1f} ({100 * max(0.0, mean.low):.1f}–{100 * min(1.0, mean.high):.1f})"


def _points(difference: Interval) -> str:
    return f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def main(arguments: list[str] | None = None) -> int:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two settings, two steps, in RUNS/quick")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    runs = given.runs / "quick" if given.quick else given.runs
    runs.mkdir(parents=True, exist_ok=True)
    out = given.json or runs / "sensitivity.json"
    options = ["--out", str(runs / "sensitivity"), "--jobs", str(given.jobs), "--json", str(out)]
    settings = [word for setting in QUICK if given.quick for word in ("--set", setting)]
    if code := maieutic(["sweep", str(STUDY), *options, *settings]):
        return code
    print(machine())
    print("\n" + table(json.loads(out.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
