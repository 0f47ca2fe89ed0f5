"""Whether tree searches with a judge of steps beat the plurality vote at equal tokens: the game of 24, three seeds.

    python -m benchmarks search [--seeds N] [--budgets 1,4,8,16] [--quick] [--trial [SEED]]
                                [--runs DIR] [--json FILE] [--pictures DIR]

A small model learns to play by imitation; judges of steps learn from its own solutions, with exact labels and with
labels by continuations. Then beams, Monte-Carlo tree search and trees of thoughts spend as many tokens on each held-out
problem as the vote and the best of n do. A judge that is never wrong shows what searches could do. Everything is made
from nothing; parts and rows are kept in DIR, so the command may be stopped and given again. With --trial the settings
of the searches are tried, on validation problems and one seed, at the largest of the budgets.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import _search_parts as parts
from benchmarks._results import write_json
from benchmarks._step_pictures import Panel, draw
from benchmarks.step_supervision import rounded
from benchmarks.svamp import machine
from maieutic.core.crossed import crossed
from maieutic.core.intervals import paired_difference
from maieutic.core.selection import best_of_value, vote_value
from maieutic.run.durable import write_text
from maieutic.search.found import Cost
from maieutic.search.results import Solved
from maieutic.types import Finish

#: The two countings of votes: all right answers as one, which favours it, and each expression as it is spelled.
VOTE, SPELLED = "vote, right ones as one", "vote, as spelled"
Values = dict[str, dict[str, list[float]]]
Found = Mapping[tuple[str, int], Sequence[Solved]]


def make_parts(seed: parts.Seed) -> dict[str, float]:
    """The start and the judges of a seed, in order; processor seconds of each part."""
    work: dict[str, Callable[[Path], Any]] = {
        "start": partial(parts.make_start, seed),
        "labels": partial(parts.make_labels, seed),
        "practice.jsonl": partial(parts.make_practice, seed),
        **{labels.replace(", ", "-"): partial(parts.make_judge, seed, labels) for labels in parts.LABELS},
    }
    seconds = {}
    for name, step in work.items():
        seconds[name] = seed.part(name, step)
        print(f"seed {seed.seed}: {name}, {seconds[name]:.0f} s", file=sys.stderr, flush=True)
    return seconds


def make(seed: parts.Seed) -> tuple[Found, dict[str, float]]:
    """Everything of a seed: what was found, and processor seconds of each part."""
    seconds = make_parts(seed)
    found, seconds["searches"] = parts.make_found(seed)
    print(f"seed {seed.seed}: searches, {seconds['searches']:.0f} s", file=sys.stderr, flush=True)
    for size in seed.sizes.budgets:
        name = f"scores-{size}"
        seconds[name] = seed.part(name, partial(parts.make_scores, seed, found["vote", size]))
    return found, seconds


def examine(seed: parts.Seed, found: Found) -> dict[str, Any]:
    """Of each rule at each budget how often it is right, a number a problem; what it cost; how well judges judge."""
    rules: Values = {}
    for size in seed.sizes.budgets:
        said = json.loads((seed.folder / f"scores-{size}").read_text(encoding="utf-8"))
        for i, row in enumerate(found["vote", size]):
            scores = {labels: said[labels][i] for labels in parts.LABELS}
            for rule, value in chosen(row, scores).items():
                rules.setdefault(rule, {}).setdefault(str(size), []).append(round(value, 4))
    for (label, size), rows in found.items():
        if label != "vote":
            rules.setdefault(label, {})[str(size)] = [int(row.correct) for row in rows]
    costs: dict[str, dict[str, Any]] = {label: {} for label, _ in found}
    for (label, size), rows in found.items():
        total = sum((row.cost for row in rows), Cost())
        costs[label][str(size)] = {name: value / len(rows) for name, value in asdict(total).items()} | ends(rows)
    return {"rules": rules, "costs": costs, "judges": parts.judged(seed, found["vote", size], said)}


def chosen(row: Solved, scores: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """How often each way of choosing among the independent samples of a problem is right, ties at random."""
    answers, correct = [each.answer for each in row.tried], [each.correct for each in row.tried]
    values = {
        "any of them (pass@n)": float(any(correct)),
        SPELLED: float(row.correct),
        VOTE: vote_value(answers, correct),
    }
    for labels, of_steps in scores.items():
        weights = [steps[-1] for steps in of_steps]
        values[f"best of n by {labels}"] = best_of_value(weights, correct, answers)
        values[f"weighted vote by {labels}"] = vote_value(answers, correct, weights)
    return values


def ends(rows: Sequence[Solved]) -> dict[str, float]:
    """How searches ended, shares of problems: no candidate was finished; a right one was there and not chosen."""
    finished = [any(each.finish is Finish.STOP for each in row.tried) for row in rows]
    missed = [not row.correct and any(each.correct for each in row.tried) for row in rows]
    return {"unfinished": 1 - sum(finished) / len(rows), "not_chosen": sum(missed) / len(rows)}


def rivals(rule: str) -> dict[str, str]:
    """With what a tree search is compared: both votes, and the same judge's choice among whole samples."""
    judge = rule.partition(" by ")[2]
    same = {} if judge == "perfect" else {name: f"{name} by {judge}" for name in ("best of n", "weighted vote")}
    return {"vote": VOTE, "vote, as spelled": SPELLED, **same}


def differences(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rule → rival → budget → difference: of each seed, paired by problem; of all, problem by problem on the mean over
    seeds; and reckoning with other seeds and other problems (`core.crossed`)."""
    found: dict[str, Any] = {}
    for rule, by_size in results[0]["rules"].items():
        if rule in (VOTE, SPELLED) or rule.startswith("any"):
            continue
        for name, rival in rivals(rule).items():
            if rival == rule:
                continue
            for size in by_size:
                new, old = ([each["rules"][of][size] for each in results] for of in (rule, rival))
                means = [[statistics.fmean(column) for column in zip(*rows, strict=True)] for rows in (new, old)]
                apart = [[x - y for x, y in zip(a, b, strict=True)] for a, b in zip(new, old, strict=True)]
                found.setdefault(rule, {}).setdefault(name, {})[size] = {
                    "seeds": [paired_difference(a, b).to_dict() for a, b in zip(new, old, strict=True)],
                    "all": paired_difference(*means).to_dict(),
                    "both": crossed(apart, bounds=(-1.0, 1.0)).to_dict(),
                }
    return found


def table(results: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    """Markdown: how often each rule is right at each budget, differences, costs, and how well the judges judge."""
    sizes = list(results[0]["rules"][VOTE])
    head = " | ".join(f"{size} × {parts.SOLUTION}" for size in sizes)
    lines = [f"| right, % | {head} |", "|---" * (len(sizes) + 1) + "|"]
    for rule in results[0]["rules"]:
        values = [statistics.fmean(statistics.fmean(each["rules"][rule][size]) for each in results) for size in sizes]
        lines.append(f"| {rule} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
    for kind, said in (("all", "these seeds"), ("both", "seeds and problems")):
        lines += ["", f"| points, {said} | − | {head} |", "|---" * (len(sizes) + 2) + "|"]
        for rule, by_rival in found.items():
            for rival, by_size in by_rival.items():
                cells = " | ".join(_points(by_size[size][kind]) for size in sizes)
                lines.append(f"| {rule} | {rival} | {cells} |")
    lines += ["", *_costs(results, sizes), "", *_judges(results)]
    return "\n".join(lines)


def _costs(results: Sequence[Mapping[str, Any]], sizes: Sequence[str]) -> list[str]:
    names = [*Cost.__dataclass_fields__, "unfinished", "not_chosen"]
    lines = ["| a problem | budget | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for label in results[0]["costs"]:
        for size in sizes:
            means = [statistics.fmean(each["costs"][label][size][name] for each in results) for name in names]
            cells = " | ".join(f"{value:.3g}" if value < 1 else f"{value:,.1f}" for value in means)
            lines.append(f"| {label} | {int(size) * parts.SOLUTION} | {cells} |")
    return lines


def _judges(results: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| judge | step | right, % | AUC | within a problem |", "|---" * 5 + "|"]
    for labels, by_step in results[0]["judges"].items():
        for step in by_step:
            share, area, pairs = (
                statistics.fmean(each["judges"][labels][step][name] for each in results)
                for name in ("share", "auc", "pair_accuracy")
            )
            cells = " | ".join("–" if math.isnan(each) else f"{each:.3f}" for each in (area, pairs))
            lines.append(f"| {labels} | {step} | {100 * share:.1f} | {cells} |")
    return lines


def _points(value: Mapping[str, Any]) -> str:
    if value["low"] is None:
        return f"{100 * value['value']:+.1f}"
    shown = f"{100 * value['value']:+.1f} ({100 * value['low']:+.1f} to {100 * value['high']:+.1f})"
    return f"**{shown}**" if value["low"] > 0 else shown


def picture(results: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against tokens: medians over seeds, lowest to highest."""
    shown = (VOTE, "weighted vote by exact, many", "beams apart, vote by exact, many", "mcts, widening by exact, many",
             "beam by exact, many", "beam by perfect")  # fmt: skip
    curves = {
        rule: [
            [(int(size) * parts.SOLUTION, statistics.fmean(values)) for size, values in each["rules"][rule].items()]
            for each in results
        ]
        for rule in shown
    }
    return draw(Panel("The game of 24", "tokens a problem", "right answers", curves, percent=True, doubling=True))


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="seeds 0 … N − 1 (3; with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="one seed, a start that has learned little, few problems")
    parser.add_argument("--trial", type=int, nargs="?", const=0, metavar="SEED", help="try settings, and end")
    parser.add_argument("--budgets", metavar="N,N", help="in solutions (1,4,8,16; with --quick 1,4)")
    parser.add_argument("--runs", type=Path, help="where everything is kept (runs/search, or runs/search-quick)")
    parser.add_argument("--json", type=Path, help="where what was found is written")
    parser.add_argument("--pictures", type=Path, help="where the picture is drawn")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = parts.QUICK if given.quick else parts.Sizes()
    runs = given.runs or Path("runs") / ("search-quick" if given.quick else "search")
    runs.mkdir(parents=True, exist_ok=True)
    told, note = (
        json.dumps({key: value for key, value in asdict(sizes).items() if key != "budgets"}),
        runs / "sizes.json",
    )
    if note.exists() and note.read_text() != told:
        print(f"{runs} holds a study of other sizes; give another --runs", file=sys.stderr)
        return 2
    write_text(note, told)
    if given.budgets:
        sizes = replace(sizes, budgets=tuple(sorted({int(each) for each in given.budgets.split(",")})))
    if given.trial is not None:
        seed = parts.Seed(runs / str(given.trial), given.trial, sizes)
        make_parts(seed)
        print(parts.trial(seed, sizes.budgets[-1]))
        return 0
    results = []
    for number in range(given.seeds or (1 if given.quick else 3)):
        seed = parts.Seed(runs / str(number), number, sizes)
        found, seconds = make(seed)
        results.append({**examine(seed, found), "seconds": seconds})
        apart = differences(results)
        if given.json:
            data = {"machine": machine(), "sizes": asdict(sizes), "seeds": results, "differences": apart}
            write_json(given.json, rounded(data), indent=None)
    if given.pictures:
        given.pictures.mkdir(parents=True, exist_ok=True)
        write_text(given.pictures / "search.svg", picture(results))
    print(machine())
    print("\n" + table(results, apart))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
