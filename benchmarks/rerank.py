"""What reward models are worth for choosing among 16 samples: best of 16 and weighted votes against the plurality.

    python -m benchmarks rerank [--seeds N] [--quick] [--runs DIR] [--json FILE]

A small model is fine-tuned on the work of somebody who misreads three kinds of sentence, so that it is wrong in ways
that agree with each other. On its solutions of practice problems an outcome model learns which are right, a process
model from how many of the continuations of each step are (Math-Shepherd). Both then choose among 16 samples of each
held-out problem. Everything is made here from nothing; parts are kept in DIR, so the command may be stopped and given
again.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import _rerank_parts as parts
from benchmarks._results import folder_of, points, study_parser, write_json
from benchmarks.step_supervision import rounded
from benchmarks.svamp import machine
from maieutic.core.crossed import crossed
from maieutic.core.intervals import paired_difference
from maieutic.core.judging import auc, expected_calibration_error, pair_accuracy
from maieutic.core.selection import best_of, best_of_value, vote_value
from maieutic.evaluate import Evaluation, Problem
from maieutic.rewards.aggregate import aggregate

#: How the process model's scores of steps become one.
AGGREGATES = ("min", "prod", "last")
#: Name of a scorer → (outcome scores, process scores, sample) → one number a sample.
SCORERS = ("ORM", *(f"PRM {how}" for how in AGGREGATES), "likelihood")


def make(seed: parts.Seed) -> dict[str, float]:
    """Everything of a seed, in order; processor seconds of each part."""
    folder, sizes = seed.folder, seed.sizes
    work: dict[str, Callable[[Path], Any]] = {
        "start": partial(parts.make_start, seed),
        "solutions.jsonl": partial(parts.make_solutions, seed),
        "labels": partial(parts.make_labels, seed),
        "outcome": partial(parts.make_model, seed, "outcome", folder / "solutions.jsonl", sizes.outcome_epochs),
        "process": partial(parts.make_model, seed, "process", folder / "labels" / "steps.jsonl", sizes.process_epochs),
        "examination": partial(parts.make_examination, seed),
        "scores": partial(parts.make_scores, seed),
    }
    seconds = {}
    for name, step in work.items():
        seconds[name] = seed.part(name, step)
        print(f"seed {seed.seed}: {name}, {seconds[name]:.0f} s", file=sys.stderr, flush=True)
    return seconds


def scores_of(problem: Problem, said: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, list[float]]:
    """Scorer → a score of each sample of a problem."""
    found = {"ORM": [each[-1] for each in said["outcome"]]}
    found |= {f"PRM {how}": [aggregate(how, each) for each in said["process"]] for how in AGGREGATES}
    mean = [-math.inf if sample.logprob is None else sample.logprob for sample in problem.samples]
    return found | {"likelihood": [math.exp(value) for value in mean]}


def examine(seed: parts.Seed) -> dict[str, Any]:
    """Of each rule how often it is right, a number a problem, and how well the scorers judge."""
    found = Evaluation.from_json((seed.folder / "examination").read_text(encoding="utf-8"))
    said = json.loads((seed.folder / "scores").read_text(encoding="utf-8"))
    rules: dict[str, list[float]] = {}
    flat: dict[str, list[float]] = {name: [] for name in SCORERS}
    for i, problem in enumerate(found.problems):
        answers = [sample.answer for sample in problem.samples]
        correct = [sample.correct for sample in problem.samples]
        values = {
            "pass@1": sum(correct) / len(correct),
            "any of them (pass@n)": float(any(correct)),
            "plurality": vote_value(answers, correct),
        }
        scores = scores_of(problem, {kind: rows[i] for kind, rows in said.items()})
        for name, given in scores.items():
            flat[name] += given
            values[f"best by {name}"] = best_of_value(given, correct, answers)
            values[f"vote by {name}"] = vote_value(answers, correct, given)
        for rule, value in values.items():
            rules.setdefault(rule, []).append(value)
    labels = [float(sample.correct) for problem in found.problems for sample in problem.samples]
    prompts = [problem.task_id for problem in found.problems for _ in problem.samples]
    judged = {
        name: {
            "auc": auc(given, labels),
            "pair_accuracy": pair_accuracy(given, labels, prompts),
            "ece": expected_calibration_error(given, labels),
        }
        for name, given in flat.items()
    }
    held = {kind: json.loads((seed.folder / kind / "training" / "run.complete").read_text()) for kind in said}
    held = {kind: {key: each[key] for key in ("data", "steps", "held_out")} for kind, each in held.items()}
    cost = json.loads((seed.folder / "labels" / "cost.json").read_text())
    return {"rules": rules, "judged": judged, "held_out": held, "cost": cost,
            "alike": alike(found.problems, said["outcome"])}  # fmt: skip


def alike(problems: Sequence[Problem], said: Sequence[Sequence[Sequence[float]]]) -> dict[str, float]:
    """How alike samples are, means over the problems that have right and wrong ones: samples that are right, different
    texts among the right and among the wrong ones; the share of a draw among different texts that is right; and of the
    outcome model's wrong choices the share whose answer no other sample has."""
    rows, alone = [], []
    for problem, scores in zip(problems, said, strict=True):
        right = {s.text for s in problem.samples if s.correct}
        wrong = {s.text for s in problem.samples if not s.correct}
        if not right or not wrong:
            continue
        rows.append((problem.correct, len(right), len(wrong), len(right) / (len(right) + len(wrong))))
        best = problem.samples[best_of([each[-1] for each in scores], [s.answer for s in problem.samples])]
        if not best.correct:
            alone.append(sum(s.answer == best.answer for s in problem.samples) == 1)
    names = ("right_samples", "right_texts", "wrong_texts", "right_of_texts")
    found = dict(zip(names, map(statistics.fmean, zip(*rows)), strict=True))
    return {"problems": float(len(rows)), **found, "wrong_choices_alone": sum(alone) / max(1, len(alone))}


def differences(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rule → its difference to the plurality: of each seed, paired by problem; of all seeds, problem by problem on the
    mean over seeds; and reckoning with other seeds and other problems (`core.crossed`)."""
    found = {}
    for rule in [r for r in results[0]["rules"] if r.startswith(("best", "vote"))]:
        new, old = ([each["rules"][name] for each in results] for name in (rule, "plurality"))
        each = [paired_difference(a, b).to_dict() for a, b in zip(new, old, strict=True)]
        means = [[statistics.fmean(column) for column in zip(*rows, strict=True)] for rows in (new, old)]
        apart = [[x - y for x, y in zip(a, b, strict=True)] for a, b in zip(new, old, strict=True)]
        wide = crossed(apart, bounds=(-1.0, 1.0))
        found[rule] = {"seeds": each, "all": paired_difference(*means).to_dict(), "both": wide.to_dict()}
    return found


def table(results: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: how often each rule is right, its difference to the plurality, and how well the scorers judge."""
    names = " | ".join(f"seed {i + 1}" for i in range(len(results)))
    lines = [f"| right, % | {names} | mean | − plurality, all seeds |", "|---" * (len(results) + 3) + "|"]
    for rule in results[0]["rules"]:
        values = [100 * statistics.fmean(each["rules"][rule]) for each in results]
        shown = " | ".join(f"{value:.1f}" for value in values)
        apart = points(found[rule]["all"]) if rule in found else "–"
        lines.append(f"| {rule} | {shown} | {statistics.fmean(values):.1f} | {apart} |")
    lines += ["", f"| − plurality, points | {names} | seeds and problems |", "|---" * (len(results) + 2) + "|"]
    for rule, each in found.items():
        cells = " | ".join(points(one) for one in each["seeds"])
        lines.append(f"| {rule} | {cells} | {points(each['both'])} |")
    lines += ["", "| scores of samples | AUC | within a problem | calibration error |", "|---|---|---|---|"]
    for name in SCORERS:
        row = [statistics.fmean(r["judged"][name][m] for r in results) for m in ("auc", "pair_accuracy", "ece")]
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")
    lines += ["", "| how alike samples are | mean |", "|---|---|"]
    for name in results[0]["alike"]:
        lines.append(f"| {name} | {statistics.fmean(each['alike'][name] for each in results):.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing, and print the tables."""
    given = study_parser(__doc__, "rerank", "one seed, few and short problems").parse_args(arguments)
    torch.set_num_threads(1)
    sizes = parts.QUICK if given.quick else parts.Sizes()
    runs = folder_of(given, "rerank", sizes)
    if runs is None:
        return 2
    results = []
    for number in range(1, (given.seeds or (1 if given.quick else 3)) + 1):
        seed = parts.Seed(runs / str(number), number, sizes)
        seconds = make(seed)
        results.append({**examine(seed), "seconds": seconds})
        found = differences(results)
        if given.json:
            data = {"machine": machine(), "sizes": asdict(sizes), "seeds": results, "differences": found}
            write_json(given.json, rounded(data), indent=None)
    print(machine())
    print("\n" + table(results, found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
