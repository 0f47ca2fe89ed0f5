"""Fuzz: generated texts through every verifier, format reward and penalty: nothing raises, nothing is over its limit.

    python -m benchmarks fuzz [--texts 1000000] [--only NAME …] [--seconds S] [--latex 100] [--progress FILE] [--quick]
                              [--json FILE]

Texts are those of `benchmarks/_fuzz_texts.py`, and those of `_fuzz_tasks.py` for what reads answers in a way of its
own: grids, guesses, moves, options, games. `--only taskset game` calls those whose names begin so. A call that took
more than `LIMIT` is made again and timed by the processor time of its thread, for the machine may have been busy. One
text in `--latex` is also compared by math-verify, which runs in a process of its own with a second's limit: each time
it had to be killed, the next comparison must work.
What is found is written to `--progress` every `EVERY` texts, and the command goes on from there when it is given again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import _fuzz_tasks
from benchmarks._fuzz_calls import Judge, rewarded, rollout, verified
from benchmarks._fuzz_texts import EXPRESSIONS, task, text
from benchmarks._results import write_json
from maieutic.calculator import evaluate
from maieutic.guards import measures
from maieutic.rewards import (
    AnswerVerifier,
    canonical,
    extract_flexible,
    extract_strict,
    required,
    think_format,
    traits,
)
from maieutic.rewards.answers import equivalent
from maieutic.rewards.latex import Equivalence, compare
from maieutic.rewards.penalties import PENALTIES
from maieutic.rewards.shaping import SHAPING
from maieutic.tasks.verify import AnswerAfterMarker, NumberAfterMarker, ProgramValue
from maieutic.types import Group, Score, Task, Verdict

#: Seconds of processor time of a call; seconds that a LaTeX comparison has, and after which it must have ended, the
#: start of its process included (60 s at most, twice).
LIMIT, LATEX, ENDED = 0.5, 1.0, 150.0

LATEX_NAME = "verifier LaTeX"

#: Texts between two writings of the progress.
EVERY = 500


@dataclass
class Progress:
    """What was found so far; JSON."""

    seed: int
    latex: int
    only: list[str] = field(default_factory=list)
    done: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    correct: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    slowest: dict[str, list[float]] = field(default_factory=dict)
    characters: int = 0
    killed: int = 0
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        beside = path.with_name(f".{path.name}.tmp")
        beside.write_text(json.dumps(asdict(self)))
        os.replace(beside, path)


def read_progress(path: Path, seed: int, latex: int, only: Sequence[str] = ()) -> Progress:
    """What an earlier call found, nothing where there was none. SystemExit where it was asked for something else."""
    if path.exists():
        found = Progress(**json.loads(path.read_text()))
        if (found.seed, found.latex, found.only) == (seed, latex, list(only)):
            return found
        raise SystemExit(
            f"{path} holds the progress of seed {found.seed}, latex {found.latex}, only {found.only or 'everything'}; "
            "choose another --progress"
        )
    return Progress(seed, latex, list(only))


#: Readers of answers that people write, and of worked solutions.
VERIFIERS: Mapping[str, Callable[[Task, str], Verdict]] = {
    "strict": AnswerVerifier(),
    "flexible": AnswerVerifier(strict=False),
    "tolerance": AnswerVerifier(tolerance=1e-3),
    "arithmetic": NumberAfterMarker(),
    "GSM8K": NumberAfterMarker(hashes=4),
    "SVAMP": NumberAfterMarker(ProgramValue().tolerance),
    "programs": ProgramValue(),
    "files": AnswerAfterMarker(),
}


def judges() -> dict[str, Judge]:
    """Everything that reads a model's text without leaving this process."""
    found = {f"verifier {name}": verified(verifier) for name, verifier in VERIFIERS.items()}
    for name, judge in {"think": think_format(), "think, prefilled": think_format(prefilled=True),
                        "think answer": required("think", "answer")}.items():  # fmt: skip
        found[f"format {name}"] = rewarded(judge, 0.0, 1.0)
    options: Mapping[str, dict[str, Any]] = {"soft_overlong": {"max_completion_length": 500}}
    for name, make in {**SHAPING, **PENALTIES}.items():
        low = -10.0 if name == "too_long" else -1.0
        found[f"penalty {name}"] = rewarded(make(**options.get(name, {})), low, 0.0)
    found |= {
        "extract_strict": lambda _, said: extract_strict(said) is not None,
        "extract_flexible": lambda _, said: extract_flexible(said) is not None,
        "canonical": lambda _, said: canonical(said) is not None,
        "equivalent": lambda asked, said: equivalent(said[:2000], str(asked.answer)),
        "alternatives": lambda _, said: traits.alternatives(said) > 1,
        "calculator": lambda _, said: evaluate(said, {}) is not None,
        "guards": lambda asked, said: bool(measures([Group(asked, (rollout(said),), (Score(0.0, False),))])),
    }
    return found


def chosen(known: Mapping[str, Judge], only: Sequence[str]) -> dict[str, Judge]:
    """Those whose names begin with one of `only`; all of them where there is none."""
    return {name: judge for name, judge in known.items() if not only or name.startswith(tuple(only))}


class Fuzz:
    """Calls judges and keeps account."""

    def __init__(self, progress: Progress) -> None:
        """Raises SystemExit where nothing is called what `progress.only` says."""
        self.progress = progress
        self.judges, self.own = chosen(judges(), progress.only), chosen(_fuzz_tasks.judges(), progress.only)
        wanted = not progress.only or LATEX_NAME.startswith(tuple(progress.only))
        self.latex = AnswerVerifier(latex=True, latex_seconds=LATEX) if wanted else None
        for prefix in progress.only:
            if not any(name.startswith(prefix) for name in (*self.judges, *self.own, LATEX_NAME)):
                known = ", ".join([*judges(), *_fuzz_tasks.judges(), LATEX_NAME])
                raise SystemExit(f"--only {prefix!r}: nothing is called so; there are {known}")

    def one(self, index: int) -> None:
        """One text of each kind through everything that reads its kind."""
        progress = self.progress
        if self.judges or self.latex:
            said, asked = text(progress.seed, index), task(index)
            progress.characters += len(said)
            for name, judge in self.judges.items():
                self._call(name, judge, asked, said, index)
            if self.latex and index % progress.latex == 0:
                self._latex(self.latex, task(index // progress.latex, EXPRESSIONS), said, index)
        if self.own:
            said = _fuzz_tasks.text(progress.seed, index)
            progress.characters += len(said)
            for name, judge in self.own.items():
                self._call(name, judge, task(index), said, index)
        progress.done = index + 1

    def _call(self, name: str, judge: Judge, asked: Task, said: str, index: int) -> None:
        clock = time.perf_counter()
        try:
            right = judge(asked, said)
            seconds = time.perf_counter() - clock
            if seconds > LIMIT:  # or the machine was busy: by the processor's own clock, which takes long to read
                clock = time.thread_time()
                judge(asked, said)
                seconds = time.thread_time() - clock
        except Exception as error:  # noqa: BLE001  (what is looked for)
            self._fail(name, index, f"{type(error).__name__}: {str(error)[:200]}")
            return
        if seconds > LIMIT:
            self._fail(name, index, f"took {seconds:.2f} s of the processor; its limit is {LIMIT}")
        self._count(name, right, seconds, index)

    def _latex(self, verifier: AnswerVerifier, asked: Task, said: str, index: int) -> None:
        clock = time.monotonic()
        verdict = verifier(asked, said)
        seconds = time.monotonic() - clock
        if seconds > ENDED and verifier(asked, said) and time.monotonic() - clock - seconds > ENDED:
            self._fail(LATEX_NAME, index, f"took {seconds:.0f} s, twice; it has {LATEX}")
        if Equivalence.TIMEOUT.value in verdict.why:
            self.progress.killed += 1
            asked_again = (compare("x+x", "2x", timeout_seconds=60.0) for _ in range(5))  # a busy machine starts slowly
            if Equivalence.EQUAL not in asked_again:
                self._fail(LATEX_NAME, index, "after it was killed, x+x is not 2x")
        self._count(LATEX_NAME, verdict.correct, seconds, index)

    def _count(self, name: str, right: bool, seconds: float, index: int) -> None:
        progress = self.progress
        progress.calls[name] = progress.calls.get(name, 0) + 1
        progress.correct[name] = progress.correct.get(name, 0) + bool(right)
        if seconds > progress.slowest.get(name, [0.0])[0]:
            progress.slowest[name] = [seconds, float(index)]

    def _fail(self, name: str, index: int, what: str) -> None:
        self.progress.failures.append({"judge": name, "index": index, "what": what})
        print(f"text {index}, {name}: {what}", file=sys.stderr)


def fuzz(progress: Progress, texts: int, seconds: float, write: Callable[[Progress], None]) -> Progress:
    """Go on until so many texts are done, or so many seconds have passed; `write` is called now and then."""
    work, clock = Fuzz(progress), time.monotonic()
    before = progress.seconds
    while progress.done < texts and time.monotonic() - clock < seconds:
        work.one(progress.done)
        if progress.done % EVERY == 0 or progress.done == texts:
            progress.seconds = before + time.monotonic() - clock
            write(progress)
            print(f"\r{progress.done:,} of {texts:,} texts, {len(progress.failures)} failures", end="", file=sys.stderr)
    progress.seconds = before + time.monotonic() - clock
    write(progress)
    print(file=sys.stderr)
    return progress


def table(progress: Progress) -> str:
    """Markdown."""
    lines = ["| reads | texts | accepted | slowest call, ms |", "|---|---|---|---|"]
    for name, calls in progress.calls.items():
        slowest, _ = progress.slowest.get(name, [0.0, 0.0])
        lines.append(f"| {name} | {calls:,} | {progress.correct[name]:,} | {1000 * slowest:,.1f} |")
    said = (
        f"{progress.done:,} texts ({progress.characters / 1e6:,.0f} million characters), "
        f"{sum(progress.calls.values()):,} calls: {len(progress.failures)} failures. The LaTeX process was killed and "
        f"replaced {progress.killed} times."
    )
    return "\n".join([*lines, "", said])


def main(arguments: list[str] | None = None) -> int:
    """Fuzz and print; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names of what is called begin so")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--latex", type=int, default=100, help="one text in so many goes through LaTeX")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", type=Path, default=Path("runs/fuzz.json"))
    parser.add_argument("--quick", action="store_true", help="two thousand texts, written nowhere")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if given.quick:
        found = fuzz(
            Progress(given.seed, given.latex, given.only),
            min(given.texts, 2000),
            min(given.seconds, 40.0),
            lambda _: None,
        )
    else:
        given.progress.parent.mkdir(parents=True, exist_ok=True)
        found = read_progress(given.progress, given.seed, given.latex, given.only)
        found = fuzz(found, given.texts, given.seconds, lambda progress: progress.write(given.progress))
    if given.json:
        write_json(given.json, asdict(found), indent=None)
    print(table(found))
    return int(bool(found.failures))


if __name__ == "__main__":
    raise SystemExit(main())
