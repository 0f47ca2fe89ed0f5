"""Does searching add to training? Eight ways to train × nine ways to answer on one task, at counted costs.

    python -m benchmarks synergy [--rows base grpo …] [--quick] [--seed N] [--runs DIR] [--json FILE] [--pictures DIR]

Rows: a small model fine-tuned on the work of somebody who misreads (`base`), and what it becomes by worked solutions
(`sft`), rejection sampling (`rft`), preferences (`orpo`), expert iteration (`ei`), GRPO, a teacher's solutions
(`distilled`), and GRPO after those. Columns: its greedy answer; five choices among the same k samples (plurality, more
than half, any, best by an outcome model, vote weighted by a process model); three searches (a beam of steps and MCTS
with the process model, at the tokens of the k samples, the latter's trees also by vote; budget forcing with "Wait").
Both reward models are trained once, on the base's solutions. Every part is kept in DIR, so the command may be stopped
and given again. A quarter of an hour of one processor; --quick half a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import _synergy_parts as parts
from benchmarks._results import write_json
from benchmarks._synergy_pictures import heat_map
from benchmarks.step_supervision import rounded
from benchmarks.svamp import machine
from maieutic.core.intervals import Interval, bootstrap, wilson
from maieutic.core.judging import pair_accuracy
from maieutic.core.selection import best_of_value, vote_value
from maieutic.errors import DataError
from maieutic.evaluate import Problem
from maieutic.rewards.aggregate import aggregate
from maieutic.run.durable import write_text

Floats = NDArray[np.float64]

#: Columns in order. Those of the middle choose among the same samples; `ANY` is what none of them can exceed.
ANY = "pass@k"
SAME = ("vote@k", "strict@k", ANY, "best of k", "weighted vote@k")
#: The plurality of what the trees of `mcts` found.
TREES = "mcts, vote"
COLUMNS = ("greedy", *SAME, "beam", "mcts", TREES, "wait")
#: Against this of a row gains over its greedy answer are held.
SKILL = "vote@k"
#: Processor seconds that parts take, roughly: only their proportions matter, for the time left.
WEIGHTS: Mapping[str, float] = {"run": 30, "solutions.jsonl": 30, "labels": 60, "outcome": 15, "process": 25,
                                "scores": 5, "beam": 12, "mcts": 25, "wait": 5}  # fmt: skip


class Progress:
    """Says which part is done and how long the rest may take, by the parts' weights and the wall's clock."""

    def __init__(self, names: Sequence[str]) -> None:
        self.waiting = {name: WEIGHTS.get(name.split(": ")[-1], 10.0) for name in names}
        self.all, self.done, self.begun = sum(self.waiting.values()), 0.0, time.monotonic()

    def __call__(self, name: str, seconds: float) -> None:
        """A part is there now; those that were there before are not spoken of."""
        if name not in self.waiting:
            return
        self.done += self.waiting.pop(name)
        rest = sum(self.waiting.values())
        left = (time.monotonic() - self.begun) / self.done * rest
        share = self.done / self.all
        print(f"{share:4.0%}  {name}, {seconds:.0f} s; about {left / 60:.0f} min left", file=sys.stderr, flush=True)


def planned(work: parts.Work, rows: Sequence[str]) -> list[str]:
    """The parts that are still to be made, by their names."""
    learnt = {"base", *rows}
    learnt |= {"distilled"} if "distilled + grpo" in learnt else set()
    names = [f"{row}: run" for row in learnt | ({"teacher"} if "distilled" in learnt else set())]
    names += ["teacher's solutions"] if "distilled" in learnt else []
    names += [f"judges: {name}" for name in ("start", "solutions.jsonl", "labels", "outcome", "process")]
    names += [f"{row}: {name}" for row in rows for name in ("scores", *parts.SEARCHES)]
    return [name for name in names if not (work.folder / "seconds" / name).exists()]


def same_samples(
    problem: Problem, outcome: Sequence[Sequence[float]], process: Sequence[Sequence[float]]
) -> Mapping[str, float]:
    """Column → P(its choice among the problem's samples is right), ties broken at random.

    `outcome` and `process` are what the models say of each sample. Raises DataError where a choice would be right more
    often than any sample is: a mistake in the choosing.
    """
    answers, correct = [sample.answer for sample in problem.samples], [sample.correct for sample in problem.samples]
    values = {
        "vote@k": vote_value(answers, correct),
        "strict@k": float(2 * sum(correct) > len(correct)),
        ANY: float(any(correct)),
        "best of k": best_of_value([each[-1] for each in outcome], correct, answers),
        "weighted vote@k": vote_value(answers, correct, [aggregate("prod", each) for each in process]),
    }
    bounded(problem.task_id, values)
    return values


def bounded(task_id: str, values: Mapping[str, float]) -> None:
    """Raise DataError unless every choice among the samples is at most what any of them is, and more than half being
    right is at most what the plurality is."""
    for low, high in [(name, ANY) for name in SAME] + [("strict@k", "vote@k")]:
        if values[low] > values[high]:
            raise DataError(
                f"{task_id}: got {low} {values[low]:g} above {high} {values[high]:g}; expected at most as much, since "
                "both choose among the same samples"
            )


def cells(work: parts.Work, row: str) -> dict[str, dict[str, list[float]]]:
    """Column → `values` and `tokens`, one number a problem; the row's model is made if it is not there."""
    parts.run(work, row)
    said = work.timed(f"{row}: scores", partial(parts.scores, work, row))
    problems = parts.examination(work, row).problems
    chosen = [same_samples(p, said["outcome"][i], said["process"][i]) for i, p in enumerate(problems)]
    spent = [float(sum(sample.tokens for sample in problem.samples)) for problem in problems]
    sure = [problem.greedy for problem in problems if problem.greedy is not None]
    found = {"greedy": {"values": [float(s.correct) for s in sure], "tokens": [float(s.tokens) for s in sure]}}
    found |= {name: {"values": [each[name] for each in chosen], "tokens": spent} for name in SAME}
    for name in parts.SEARCHES:
        solved = work.timed(f"{row}: {name}", partial(parts.search, work, row, name))
        found[name] = {
            "values": [float(each.correct) for each in solved],
            "tokens": [float(each.cost.generated) for each in solved],
            "judged": [float(each.cost.judged) for each in solved],
        }
        if name == "mcts":
            voted = [vote_value([t.answer for t in each.tried], [t.correct for t in each.tried]) for each in solved]
            found[TREES] = {**found[name], "values": voted}
    return found


def right_first(work: parts.Work, row: str) -> dict[str, float | None]:
    """Reward model → of a right and a wrong sample of one problem, how often the right one has the higher score; None
    where no problem has both."""
    said, problems = parts.scores(work, row), parts.examination(work, row).problems
    labels = [float(sample.correct) for problem in problems for sample in problem.samples]
    prompts = [problem.task_id for problem in problems for _ in problem.samples]
    given = {
        "outcome": [each[-1] for rows in said["outcome"] for each in rows],
        "process": [aggregate("prod", each) for rows in said["process"] for each in rows],
    }
    found = {name: pair_accuracy(scores, labels, prompts) for name, scores in given.items()}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def interval(values: Sequence[float]) -> Interval:
    """Wilson's of right and wrong, else the bootstrap over problems."""
    if set(values) <= {0.0, 1.0}:
        return wilson(sum(values), len(values))
    return bootstrap(values, bounds=(0.0, 1.0))


def shrinking(grid: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], draws: int = 2000) -> dict[str, Any]:
    """Column → how its gain over greedy goes with the row's vote@k: the correlation over rows, with the interval of
    other problems (bootstrap, the same problems in all rows), and the slope, points a point.

    Letters: `R` rows, `N` problems, `D` draws.
    """
    table = {column: np.array([grid[row][column]["values"] for row in grid]) for column in COLUMNS}  # [R, N]
    n = table[SKILL].shape[1]
    index = np.random.default_rng(0).integers(0, n, (draws, n))  # [D, N]
    skill, greedy = (table[name][:, index].mean(-1).T for name in (SKILL, "greedy"))  # [D, R]
    found = {}
    for column in COLUMNS[1:]:
        gain = table[column].mean(-1) - table["greedy"].mean(-1)
        value, slope = correlation(table[SKILL].mean(-1)[None], gain[None])
        drawn, _ = correlation(skill, table[column][:, index].mean(-1).T - greedy)
        kept = drawn[np.isfinite(drawn)]
        low, high = np.quantile(kept, [0.025, 0.975]) if len(kept) else (np.nan, np.nan)
        numbers = {"correlation": value[0], "low": low, "high": high, "slope": slope[0]}
        found[column] = {name: float(x) if np.isfinite(x) else None for name, x in numbers.items()}
    return found


def correlation(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Pearson's of each draw over its rows, and the slope of y over x; `[D, R]` → `[D]`, NaN where nothing varies."""
    a, b = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    both, own, other = (a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / np.sqrt(own * other), both / own


def grid(work: parts.Work, rows: Sequence[str]) -> dict[str, Any]:
    """Make what is missing, and say what was found."""
    parts.run(work, "base")
    parts.judges(work)
    found = {row: cells(work, row) for row in rows}
    summary = {
        row: {
            column: {**interval(each["values"]).to_dict(), "tokens": statistics.fmean(each["tokens"]),
                     "judged": statistics.fmean(each.get("judged", [float(work.scale.judges.n)]))}
            for column, each in columns.items()
        }
        for row, columns in found.items()
    }  # fmt: skip
    spent = {row: parts.costs(work, row) for row in found}
    if (parts.run_folder(work, "teacher") / "run.complete").exists():
        spent |= {"teacher": parts.costs(work, "teacher"), "teacher writes": parts.writing_cost(work)}
    seconds = {note.name: float(note.read_text()) for note in sorted((work.folder / "seconds").iterdir())}
    return {
        "machine": machine(), "seed": work.seed, "scale": asdict(work.scale), "k": work.scale.judges.n,
        "problems": work.scale.judges.held_out, "rows": summary, "shrinking": shrinking(found),
        "costs": spent, "judges": judged(work), "seconds": seconds,
        "right first": {row: right_first(work, row) for row in found},
        "values": {row: {column: each["values"] for column, each in columns.items()} for row, columns in found.items()},
    }  # fmt: skip


def judged(work: parts.Work) -> dict[str, Any]:
    """What the reward models learned from, how well they do on solutions held out, and what the labels cost."""
    folder = work.judged.folder
    told = {
        kind: json.loads((folder / kind / "training" / "run.complete").read_text()) for kind in ("outcome", "process")
    }
    found: dict[str, Any] = {
        kind: {key: each[key] for key in ("data", "steps", "held_out")} for kind, each in told.items()
    }
    return found | {"labels": json.loads((folder / "labels" / "cost.json").read_text())}


def table(found: Mapping[str, Any]) -> str:
    """Markdown: how often each cell is right, its tokens, gains and how they go with skill, costs, and judges."""
    k, rows = found["k"], found["rows"]
    names = [column.replace("@k", f"@{k}").replace("of k", f"of {k}") for column in COLUMNS]
    head = [f"| {' | '.join(['right, %', *names])} |", "|---" * (len(names) + 1) + "|"]
    lines = head + [
        f"| {row} | " + " | ".join(_percent(each[column]) for column in COLUMNS) + " |" for row, each in rows.items()
    ]
    lines += ["", f"| {' | '.join(['tokens a problem', *names])} |", head[1]]
    lines += [
        f"| {row} | " + " | ".join(f"{each[c]['tokens']:.0f}" for c in COLUMNS) + " |" for row, each in rows.items()
    ]
    lines += ["", f"| {' | '.join(['− greedy, points', *names[1:]])} |", "|---" * len(names) + "|"]
    for row, each in rows.items():
        gains = [f"{100 * (each[column]['value'] - each['greedy']['value']):+.1f}" for column in COLUMNS[1:]]
        lines.append(f"| {row} | " + " | ".join(gains) + " |")
    lines.append(
        f"| correlation with vote@{k} | " + " | ".join(_correlation(found["shrinking"][c]) for c in COLUMNS[1:]) + " |"
    )
    slopes = [found["shrinking"][c]["slope"] for c in COLUMNS[1:]]
    lines.append("| slope | " + " | ".join("–" if s is None else f"{s:+.2f}" for s in slopes) + " |")
    lines += [
        "",
        "| cost of the row's own run | samples | tokens generated | tokens trained | 10¹² FLOPs |",
        "|---" * 5 + "|",
    ]
    for row, each in found["costs"].items():
        amounts = [f"{each.get(key, 0):,.0f}" for key in ("samples", "generated_tokens", "trained_tokens")]
        lines.append(f"| {row} | {' | '.join(amounts)} | {each['flops'] / 1e12:.2f} |")
    lines += ["", "| a right sample before a wrong one, % of pairs | outcome model | process model |", "|---|---|---|"]
    for row, each in found["right first"].items():
        shares = ["–" if share is None else f"{100 * share:.0f}" for share in (each["outcome"], each["process"])]
        lines.append(f"| {row} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _percent(value: Mapping[str, float]) -> str:
    return f"{100 * value['value']:.1f} ({100 * value['low']:.0f}–{100 * value['high']:.0f})"


def _correlation(value: Mapping[str, float | None]) -> str:
    middle, low, high = (value[name] for name in ("correlation", "low", "high"))
    if middle is None or low is None or high is None:
        return "–"
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=parts.ROWS, default=list(parts.ROWS))
    parser.add_argument("--quick", action="store_true", help="few and short problems, little training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, help="where everything is kept (runs/synergy, or runs/synergy-quick)")
    parser.add_argument("--json", type=Path, help="where what was found is written")
    parser.add_argument("--pictures", type=Path, help="a folder for the heat map, as SVG")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    scale = parts.QUICK if given.quick else parts.Scale()
    runs = given.runs or Path("runs") / ("synergy-quick" if given.quick else "synergy")
    runs.mkdir(parents=True, exist_ok=True)
    told, note = json.dumps({"seed": given.seed, **asdict(scale)}), runs / "scale.json"
    if note.exists() and note.read_text() != told:
        print(f"{runs} holds a study of another seed or scale; give another --runs", file=sys.stderr)
        return 2
    write_text(note, told)
    work = parts.Work(runs, given.seed, scale)
    found = rounded(grid(replace(work, say=Progress(planned(work, given.rows))), given.rows))
    if given.json:
        write_json(given.json, found, indent=None)
    if given.pictures:
        given.pictures.mkdir(parents=True, exist_ok=True)
        write_text(given.pictures / "synergy.svg", heat_map(found["rows"], COLUMNS, found["k"]))
    print(found["machine"])
    print("\n" + table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
