"""Teachers that learn from what a student makes of their explanations, and the students that they teach.

    python -m benchmarks teaching [--seeds N] [--quick] [--runs DIR] [--json FILE]

A small model is shown chains of somebody who misreads three kinds of sentence and writes explanations like them. Then
reinforcement learning: it is given question and solution, and its reward is what a frozen student makes of what it
writes (arXiv 2506.08388). Students are fine-tuned on explanations from before and after, from a teacher with fewer
parameters than they have, and practise themselves afterwards. Everything is made here from nothing; parts are kept in
DIR, so the command may be stopped and given again.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import _teaching_parts as parts
from benchmarks._results import folder_of, points, study_parser, write_json
from benchmarks.step_supervision import rounded
from benchmarks.svamp import machine
from maieutic.core.crossed import crossed
from maieutic.core.intervals import paired_difference

#: (new, old): which students are compared on the same problems.
PAIRS = (
    ("after", "before"), ("ranked", "before"), ("after", "ranked"), ("small", "before"), ("after", "demonstrator"),
    ("base + RL", "base"), ("after + RL", "after"), ("after + RL", "base + RL"),
)  # fmt: skip
MEANINGS = {
    "base": "fine-tuned a little on the demonstrator's work",
    "demonstrator": "base, then the demonstrator's chains before known solutions",
    "before": "base, then explanations of the teacher before RL",
    "ranked": "the same, the best of a few by the reward",
    "after": "base, then explanations of the teacher after RL",
    "small": "base, then those of a smaller teacher after RL",
    "base + RL": "base, then GRPO on answers",
    "after + RL": "after, then the same GRPO (cold start)",
}


def make(seed: parts.Seed) -> dict[str, Any]:
    """Everything of a seed, in order, and what it is worth."""

    def say(text: str) -> None:
        print(f"seed {seed.seed}: {text}", file=sys.stderr, flush=True)

    layers, width = seed.sizes.small
    start = parts.blank(seed, "blank", 2, 128, seed.seed)
    judge = parts.imitation(seed, "judge", parts.blank(seed, "blank-judge", 2, 128, 76 + seed.seed))
    texts = parts.copies(seed, judge)
    say(f"judge: derivation {texts['derivation']['reward']:.2f}, copy {texts['the solution itself']['reward']:.2f}")
    before, after = parts.teacher(seed, "teacher", start, judge)
    blank = parts.blank(seed, "blank-small", layers, width, 2000 + seed.seed)
    small_before, small_after = parts.teacher(seed, "teacher-small", blank, judge)
    teachers = {"before": before, "after": after, "small, before": small_before, "small, after": small_after}
    judged = {name: parts.judged(seed, name.replace(", ", "-"), model, judge) for name, model in teachers.items()}
    for name, found in judged.items():
        say(f"teacher {name}: reward {statistics.fmean(found['reward']):.2f}, right {found['right']:.2f}")
    base = parts.imitation(seed, "lite", start)
    students: dict[str, str] = {"base": base, "demonstrator": parts.demonstrated(seed, "student-demonstrator", base)}
    shown: dict[str, Any] = {}
    arms = {"before": (before, None), "ranked": (before, judge), "after": (after, None), "small": (small_after, None)}
    for name, (model, rank) in arms.items():
        students[name], shown[name] = parts.distilled(seed, f"distil-{name}", model, base, rank)
        say(f"student {name}: {shown[name]['right']:.2f} of what it was shown is right")
    for name in ("base", "after"):
        students[f"{name} + RL"] = parts.practised(seed, f"rl-{name}", students[name])
    exams = {name: parts.examined(seed, name.replace(" + ", "-"), model) for name, model in students.items()}
    for name, exam in exams.items():
        say(f"student {name}: pass@1 {100 * exam.metrics()['pass@1'].value:.1f}")
    return {
        "texts": texts, "teachers": judged, "shown": shown,
        "students": {name: exam.values("pass@1").tolist() for name, exam in exams.items()},
        "greedy": {name: exam.values("greedy").tolist() for name, exam in exams.items()},
        "parameters": {"teacher": parts.parameters(after), "small": parts.parameters(small_after),
                       "student": parts.parameters(base)},
        "seconds": json.loads((seed.folder / "seconds.json").read_text()),
    }  # fmt: skip


def differences(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """ "new − old" → their difference: of each seed, paired by problem; and reckoning with other seeds and problems.
    Teachers by reward (after RL − before), students by pass@1."""
    found = {}
    pairs: dict[str, Callable[[Mapping[str, Any]], tuple[list[float], list[float]]]] = {
        "teacher's reward, after − before": lambda r: _two(r, "teachers", "after", "before"),
        "small teacher's reward, after − before": lambda r: _two(r, "teachers", "small, after", "small, before"),
    }
    for new, old in PAIRS:
        pairs[f"{new} − {old}"] = lambda r, new=new, old=old: (r["students"][new], r["students"][old])  # type: ignore[misc]
    for name, two in pairs.items():
        bounds = None if "reward" in name else (-1.0, 1.0)
        each = [paired_difference(*two(result), bounds=bounds).to_dict() for result in results]
        apart = [[a - b for a, b in zip(*two(result), strict=True)] for result in results]
        found[name] = {"seeds": each, "both": crossed(apart, bounds=bounds).to_dict()}
    return found


def _two(result: Mapping[str, Any], table: str, new: str, old: str) -> tuple[list[float], list[float]]:
    return result[table][new]["reward"], result[table][old]["reward"]


def table(results: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: explanations that nobody sampled, teachers, students, and the differences."""
    seeds = " | ".join(f"seed {i + 1}" for i in range(len(results)))
    lines = [
        "| explanation, judged by the frozen student | reward | r_SS mean | −lpS mean | −lpS max |",
        "|---" * 5 + "|",
    ]
    for kind in results[0]["texts"]:
        row = [statistics.fmean(r["texts"][kind][key] for r in results)
               for key in ("reward", "solution/mean", "kl/mean", "kl/max")]  # fmt: skip
        lines.append(f"| {kind} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    keys = ("solution/mean", "solution/min", "kl/mean", "kl/max", "match")
    lines += ["", f"| teacher | reward | {' | '.join(keys)} | right | ends right | tokens |", "|---" * 10 + "|"]
    for name in results[0]["teachers"]:
        rows = [r["teachers"][name] for r in results]
        values = [statistics.fmean(statistics.fmean(row["reward"]) for row in rows)]
        values += [statistics.fmean(row["parts"][key] for row in rows) for key in keys]
        values += [statistics.fmean(row[key] for row in rows) for key in ("right", "ends", "tokens")]
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    lines += [
        "",
        f"| student, pass@1 % | {seeds} | mean | what it was shown is right, % |",
        "|---" * (len(results) + 3) + "|",
    ]
    for name in results[0]["students"]:
        values = [100 * statistics.fmean(r["students"][name]) for r in results]
        told = [100 * r["shown"][name]["right"] for r in results if name in r["shown"]]
        cells = " | ".join(f"{value:.1f}" for value in values)
        right = f"{statistics.fmean(told):.1f}" if told else "–"
        lines.append(f"| {name}: {MEANINGS[name]} | {cells} | {statistics.fmean(values):.1f} | {right} |")
    lines += ["", f"| difference | {seeds} | seeds and problems |", "|---" * (len(results) + 2) + "|"]
    for name, each in found.items():
        form = (1, 2) if "reward" in name else (100, 1)
        cells = " | ".join(points(one, *form) for one in each["seeds"])
        lines.append(f"| {name} | {cells} | {points(each['both'], *form)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing, and print the tables."""
    given = study_parser(__doc__, "teaching", "one seed, few and short problems").parse_args(arguments)
    torch.set_num_threads(1)
    sizes = parts.QUICK if given.quick else parts.Sizes()
    runs = folder_of(given, "teaching", sizes)
    if runs is None:
        return 2
    results: list[dict[str, Any]] = []
    for number in range(1, (given.seeds or (1 if given.quick else 3)) + 1):
        results.append(make(parts.Seed(runs / str(number), number, sizes)))
        found = differences(results)
        if given.json:
            data = {"machine": machine(), "sizes": asdict(sizes), "seeds": results, "differences": found}
            write_json(given.json, rounded(data), indent=None)
    print(machine())
    print("\n" + table(results, found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
