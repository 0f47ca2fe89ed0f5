"""What step-by-step supervision is worth, and what it costs when it is paid wrongly: four demonstrations, five seeds.

    python -m benchmarks step_supervision [--only a b c d] [--quick] [--seeds N] [--json FILE] [--pictures DIR]

    a   right answers by wrong reasoning: what an outcome reward cannot see
    b   a key at the start of a chain: updates until it is taken, by the length of the chain
    c   what a policy does with rewards of steps: sums of scores pay for steps, potentials do not
    d   one score after 500 words: where the credit goes, and what becomes of repetition

Everything is trained by the library's loop (`benchmarks/_step_worlds.py`), on one thread. Each run is written to FILE
when it is done, so the command may be stopped and given again. With --pictures the curves are drawn there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import _step_worlds as worlds
from benchmarks._results import write_json
from benchmarks._step_judge import judge_study
from benchmarks._step_pictures import Panel, draw, smoothed
from benchmarks.svamp import machine
from maieutic.core.intervals import t_interval

CHAINS, QUICK_CHAINS = (4, 8, 16, 32), (4, 8)
#: Rates of the policy that every arm of b tries, on the two seeds of the trial, which are in no table.
RATES, TRIAL_SEEDS, TRIAL_CHAIN = (1e-3, 3e-3, 1e-2), (101, 102), 16

#: What is told of the trained judge of a.
JUDGED = {
    "caught": "right answers by wrong steps, texts that it has not seen: below .5 at the first wrong step, %",
    "at_first_wrong": "P(right) that it gives a first wrong step",
    "passed": "right answers without a wrong step: at least .5 at each step, %",
}

Runs = dict[str, Any]
Cell = tuple[str, Callable[[], Any]]


def cells(only: Sequence[str], seeds: Sequence[int], quick: bool, done: Mapping[str, Any]) -> Iterator[Cell]:
    """Name and work of each run, in order; those of b's table follow what its trial found."""
    if "a" in only:
        size = {"steps": 15, "imitation": 40, "n": 8} if quick else {"steps": 60, "imitation": 40, "n": 32}
        for arm in worlds.TRACE_ARMS:
            yield from ((f"a/{arm}/{seed}", partial(worlds.trace_study, arm, seed, **size)) for seed in seeds)
        if not quick:
            yield from ((f"a/judge/{seed}", partial(judge_study, seed, **size)) for seed in seeds)
    if "c" in only:
        size = {"steps": 40, "imitation": 20} if quick else {"steps": 200, "imitation": 20}
        for arm in worlds.PADDING_ARMS:
            yield from ((f"c/{arm}/{seed}", partial(worlds.padding_study, arm, seed, **size)) for seed in seeds)
    if "b" in only:
        for arm in worlds.DOOR_ARMS if not quick else ():
            for rate in RATES:
                for seed in TRIAL_SEEDS:
                    work = partial(worlds.door_study, arm, TRIAL_CHAIN, seed, rate=rate)
                    yield f"b/trial/{arm}/{rate:g}/{seed}", work
        for n in QUICK_CHAINS if quick else CHAINS:
            for arm in worlds.DOOR_ARMS:
                rate = 1e-2 if quick else best_rate(arm, done)
                for seed in seeds:
                    yield f"b/{n}/{arm}/{seed}", partial(worlds.door_study, arm, n, seed, rate=rate)
    if "d" in only:
        size = {"steps": 10, "length": 200} if quick else {"steps": 60, "length": 500}
        for arm in worlds.LATE_ARMS:
            yield from ((f"d/{arm}/{seed}", partial(worlds.late_study, arm, seed, **size)) for seed in seeds)


def best_rate(arm: str, done: Mapping[str, Any]) -> float:
    """The rate at which an arm needed fewest updates in the trial, summed over its seeds."""

    def cost(rate: float) -> float:
        return sum(done[f"b/trial/{arm}/{rate:g}/{seed}"]["updates"] or float("inf") for seed in TRIAL_SEEDS)

    return min(RATES, key=cost)


def of(done: Mapping[str, Any], study: str, arm: str, seeds: Sequence[int]) -> list[Any]:
    """The runs of an arm, one a seed; those that were not made are left out."""
    return [done[name] for seed in seeds if (name := f"{study}/{arm}/{seed}") in done]


def mean(values: Sequence[float], percent: bool = True) -> str:
    """The mean over seeds with its interval of 95 % (Student's t)."""
    found, scale = t_interval(values), 100 if percent else 1
    digits = 1 if percent else 2
    if len(values) < 2 or max(values) == min(values):
        return f"{scale * found.value:.{digits}f}"
    low, high = (scale * edge for edge in (found.low, found.high))
    if percent and min(values) >= 0:  # Student's t of a few seeds knows of no bounds
        low, high = max(0.0, low), min(100.0, high)
    return f"{scale * found.value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def tables(only: Sequence[str], seeds: Sequence[int], quick: bool, done: Mapping[str, Any]) -> str:
    """What was found, as Markdown."""
    parts = []
    if "a" in only:
        rows = []
        start = of(done, "a", "outcome", seeds)
        rows.append(["start", *(mean([r["before"][key] for r in start]) for key in ("correct", "trace_error"))])
        judges = of(done, "a", "judge", seeds)
        learned = {arm: of(done, "a", arm, seeds) for arm in worlds.TRACE_ARMS}
        learned |= {f"{way}, a trained judge": [r[way] for r in judges] for way in ("process", "both") if judges}
        for arm, runs in learned.items():
            rows.append([arm, *(mean([r["after"][key] for r in runs]) for key in ("correct", "trace_error"))])
        parts.append("### a\n\n" + table(("", "right answers, %", "of these with a wrong step, %"), rows))
        if judges:
            seen = {key: mean([r[key] for r in judges], key != "at_first_wrong") for key in JUDGED}
            parts.append("\n".join(f"* {JUDGED[key]}: {said}" for key, said in seen.items()))
    if "b" in only:
        parts.append("### b\n\n" + door_table(seeds, quick, done))
    if "c" in only:
        rows = []
        for arm in worlds.PADDING_ARMS:
            runs = of(done, "c", arm, seeds)
            rows.append([arm, mean([r["steps"] for r in runs], False), mean([r["success"] for r in runs])])
        parts.append("### c\n\n" + table(("", "steps of a completion", "right, %"), rows))
    if "d" in only:
        rows = []
        for arm in worlds.LATE_ARMS:
            runs = of(done, "d", arm, seeds)
            shares = [mean([r[key] for r in runs]) for key in ("success", "repetition")]
            credit = ([r[key] for r in runs if r[key] is not None] for key in ("blame", "deciding"))
            rows.append([arm, *shares, *(mean(c, p) if c else "–" for c, p in zip(credit, (False, True)))])
        head = (
            "",
            "right, %",
            "words said again, %",
            "their credit beside the others'",
            "credit of the deciding word, %",
        )
        parts.append("### d\n\n" + table(head, rows))
    return "\n\n".join(parts)


def door_table(seeds: Sequence[int], quick: bool, done: Mapping[str, Any]) -> str:
    """Medians, lowest and highest updates; a run that never got there counts as more than any."""
    rows = []
    for n in QUICK_CHAINS if quick else CHAINS:
        row = [str(n)]
        for arm in worlds.DOOR_ARMS:
            found = [r["updates"] or float("inf") for r in of(done, f"b/{n}", arm, seeds)]
            row.append(f"{statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f})")
        rows.append(row)
    rates = "" if quick else ", ".join(f"{arm} {best_rate(arm, done):g}" for arm in worlds.DOOR_ARMS)
    return table(("words", *worlds.DOOR_ARMS), rows) + (f"\n\nRates that the trial chose: {rates}." if rates else "")


def panels(only: Sequence[str], seeds: Sequence[int], quick: bool, done: Mapping[str, Any]) -> dict[str, Panel]:
    """File name → picture."""

    def curves(study: str, arms: Sequence[str], column: int) -> dict[str, list[Any]]:
        return {
            arm: [smoothed([(p[0], p[column]) for p in r["curve"]]) for r in of(done, study, arm, seeds)]
            for arm in arms
        }

    found = {}
    if "a" in only:
        found["trace-errors"] = Panel(
            "Right answers with a wrong step in them", "update", "share of the right answers",
            curves("a", worlds.TRACE_ARMS, 2), percent=True,
        )  # fmt: skip
    if "b" in only:
        chains = QUICK_CHAINS if quick else CHAINS
        by_seed = {
            arm: [[(n, done[f"b/{n}/{arm}/{seed}"]["updates"] or 400) for n in chains] for seed in seeds]
            for arm in worlds.DOOR_ARMS
        }
        found["key-door"] = Panel("Updates until the key is taken", "words of the chain", "updates", by_seed, log=True)
        last = chains[-1]
        found["key-door-curves"] = Panel(
            f"The key is taken: a chain of {last}", "update", "probability",
            {arm: [r["curve"] for r in of(done, f"b/{last}", arm, seeds)] for arm in worlds.DOOR_ARMS}, percent=True,
        )  # fmt: skip
    if "c" in only:
        arms = worlds.PADDING_ARMS
        found["padding-steps"] = Panel("Steps of a completion", "update", "steps", curves("c", arms, 1))
        found["padding-success"] = Panel("Right answers", "update", "share", curves("c", arms, 2), percent=True)
    if "d" in only:
        arms = worlds.LATE_ARMS
        found["late-success"] = Panel("Right answers", "update", "share", curves("d", arms, 1), percent=True)
        found["late-repetition"] = Panel(
            "Words said again", "update", "share of words", curves("d", arms, 2), percent=True
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(worlds.ARMS), default=list(worlds.ARMS))
    parser.add_argument("--quick", action="store_true", help="one seed, short runs")
    parser.add_argument("--seeds", type=int, help="seeds 1 … N (5; with --quick 1)")
    parser.add_argument("--json", type=Path, help="where runs are kept, and read from when the command is given again")
    parser.add_argument("--pictures", type=Path, help="a folder for the curves, as SVG")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = range(1, (given.seeds or (1 if given.quick else 5)) + 1)
    kept = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    if kept and kept["quick"] != given.quick:
        print(f"{given.json} holds runs of another length; give another --json", file=sys.stderr)
        return 2
    done: Runs = kept.get("runs", {})
    for name, work in cells(given.only, seeds, given.quick, done):
        if name in done:
            continue
        begun = time.process_time()
        done[name] = {**work(), "cpu_seconds": round(time.process_time() - begun, 1)}
        print(f"{name}: {done[name]['cpu_seconds']} s", file=sys.stderr, flush=True)
        if given.json:
            made = {"quick": given.quick, "machine": machine(), "runs": rounded(done)}
            write_json(given.json, made, indent=None)
    print(machine())
    print("\n" + tables(given.only, seeds, given.quick, done))
    for name, panel in panels(given.only, seeds, given.quick, done).items() if given.pictures else ():
        given.pictures.mkdir(parents=True, exist_ok=True)
        (given.pictures / f"{name}.svg").write_text(draw(panel), encoding="utf-8")
    return 0


def rounded(value: Any) -> Any:
    """Numbers to four significant digits: curves are to be looked at."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    raise SystemExit(main())
