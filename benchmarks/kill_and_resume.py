"""Kill a run at random moments, resume it, and compare it to the bit with one that was never killed.

    python -m benchmarks kill_and_resume --kills 20 --seed 0 --json kill_and_resume.json

A run of two stages (fine-tuning, then DAPO with refilled groups and a reward in a file of its own, each evaluated) is
made once as it is. Then it is made again and killed (`kill -9`) at moments drawn uniformly from the life of the first
one, and once on purpose in each of `PHASES`; it is resumed every time, and at last to its end. Both must have the same
weights, optimiser state, metrics, rollouts, ledger and evaluations. Only times of day and durations may differ.

A moment is found again by what the run has stored: "0.1 s after step 7" is the same moment on a busy machine. What a
process was doing when it was killed is read off its own stack, which it writes when asked by a signal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._results import write_json
from maieutic.run.checkpoints import Checkpoints
from maieutic.run.timing import TIMES

REWARD = '''
def even(completion):
    """1 where it writes an even number of digits: untrained models differ in it, so there is something to learn."""
    return float(sum(c.isdigit() for c in completion) % 2 == 0)
'''

CONFIG = """
name = "killed"
threads = 1
[model.small]
layers = 1
width = 32
heads = 2
kv_heads = 1
context = 128
[tasks.train]
taskset = "arithmetic"
limit = 200
[tasks.test]
taskset = "arithmetic"
split = "test"
limit = 20
[[stages]]
algorithm = "sft"
steps = 10
prompts = 8
checkpoint_every = 2
[stages.optimiser]
learning_rate = 5e-3
[[stages]]
algorithm = "dapo"
options = { epochs = 4 }
steps = 10
prompts = 4
num_generations = 4
max_completion_length = 24
checkpoint_every = 2
rewards = { "reward.py:even" = 1.0 }
[stages.optimiser]
learning_rate = 1e-3
[evaluation]
samples = 8
max_completion_length = 24
"""

#: `maieutic` that writes where it stands to the file named first whenever SIGUSR1 asks, and when it can begin to.
CHILD = """
import os, signal, sys

trace = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def tell(_number, frame):
    stack = []
    while frame is not None:
        stack.append(f"{frame.f_code.co_filename} in {frame.f_code.co_name}\\n")
        frame = frame.f_back
    os.write(trace, "".join([*stack, "end\\n"]).encode())


signal.signal(signal.SIGUSR1, tell)
os.write(trace, b"ready\\n")
from maieutic.cli import main

code = main()
signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the interpreter takes its handlers away before it ends
sys.exit(code)
"""

#: What a process is doing, by what its stack must hold; the first that fits. The rest is start-up.
STACKS = {
    "checkpoint": ("checkpoints.py", " in write\n"),
    "storing": ("store.py", " in write_"),
    "evaluation": ("runner.py", " in _evaluate\n"),
    "sampling": ("sources.py", " in next\n"),
    "update": ("core/update.py", " in run\n"),
    "loading": ("runner.py", " in _stage\n"),
    "building": ("run/build.py", " in start_model\n"),
    "going back": ("runner.py", " in _rewind\n"),
    "closing": ("cli/train.py", " in conclude\n"),
}
PHASES = ("start-up", "sampling", "update", "checkpoint", "evaluation")

Mark = tuple[str, int]
"""A stage and a step of it that is stored."""


@dataclass(frozen=True)
class Moment:
    """When to kill: at a share of the unbroken run's life, or when a step is stored; then in a phase if one is named.

    `Moment(0.4)`, `Moment(after=("dapo", 3), phase="update")`. In "start-up" is as soon as the run is taken up.
    """

    share: float = 0.0
    after: Mark | None = None
    phase: str = ""


@dataclass(frozen=True)
class Kill:
    """What a kill hit: the phase by the stack, and what the run had stored by then (None: nothing)."""

    phase: str
    stored: Mark | None
    half_written: bool
    lived_seconds: float
    on_purpose: bool


@dataclass(frozen=True)
class Verdict:
    """What became of the killed run: `differences` from the unbroken one, one a line; none is the promise kept."""

    kills: tuple[Kill, ...]
    differences: tuple[str, ...]
    unbroken_seconds: float
    killed_seconds: float


class Child:
    """`maieutic` in a process of its own, in `folder`, which can be asked what it is doing. What it says goes to files.

    Processes it starts (the one in which a reward runs) are left alone: they must end by themselves.
    """

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self.folder = folder
        self.begun = time.time()
        self.trace = folder / "trace.txt"
        self.trace.unlink(missing_ok=True)
        with (folder / "out.txt").open("a") as out, (folder / "err.txt").open("a") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(self.trace.name), *arguments],
                cwd=folder,
                stdout=out,
                stderr=err,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def phase(self, patience: float = 0.5) -> str:
        """What it is doing, by its stack; "start-up" also where it cannot say yet."""
        asked = self.trace.stat().st_size if self.trace.exists() else 0
        if not asked or not self.running():
            return "start-up"
        self.process.send_signal(signal.SIGUSR1)
        until = time.monotonic() + patience
        said = ""
        with self.trace.open(encoding="utf-8") as trace:
            trace.seek(asked)
            while not said.endswith("end\n") and time.monotonic() < until and self.running():
                time.sleep(0.001)
                said += trace.read()
        lines = said.splitlines(keepends=True)
        for name, (file, function) in STACKS.items():
            if any(file in line and function in line for line in lines):
                return name
        return "start-up"

    def check(self) -> None:
        """Wait for its end. Raises RuntimeError, with what it said, unless that is a good one."""
        if self.process.wait():
            said = (self.folder / "err.txt").read_text(encoding="utf-8")
            raise RuntimeError(f"maieutic ended with {self.process.returncode} in {self.folder}:\n{said[-2000:]}")

    def kill(self) -> float:
        """`kill -9`; returns how long it lived."""
        self.process.kill()
        self.process.wait()
        return time.time() - self.begun


class Run:
    """The run in `folder/run`, as it looks from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "run"
        self.database = self.path / "run.db"

    def arguments(self) -> list[str]:
        """How to begin it, or to go on with it where it has begun."""
        if (self.path / "config.toml").exists():
            return ["--quiet", "train", "--run", "run", "--resume"]
        return ["--quiet", "train", "config.toml", "--run", "run"]

    def held_by(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether that process has taken the run up."""
        try:
            return json.loads((self.path / "run.lock").read_text())["pid"] == process.pid
        except (OSError, ValueError):
            return False

    def stored(self) -> list[Mark]:
        """The steps that are stored, in order; read beside the process that writes them."""
        if not self.database.exists():
            return []
        try:
            with closing(sqlite3.connect(f"{self.database.absolute().as_uri()}?mode=ro", uri=True)) as db:
                return db.execute("SELECT stage, step FROM steps ORDER BY time").fetchall()
        except sqlite3.OperationalError:
            return []  # its tables are not made yet

    def damage(self) -> list[str]:
        """What a kill has broken: nothing, it is to be hoped. Looks at a copy, for a reader may mend what it reads."""
        wrong = [f"{each.path}: {each.damage()}" for each in Checkpoints(self.path / "checkpoints").all()
                 if each.damage()]  # fmt: skip
        if not self.database.exists():
            return wrong
        with tempfile.TemporaryDirectory() as copy:
            for path in self.path.glob("run.db*"):
                shutil.copy(path, copy)
            with closing(sqlite3.connect(Path(copy) / "run.db")) as db:
                wrong += [row[0] for row in db.execute("PRAGMA quick_check") if row[0] != "ok"]
        return wrong


#: What of each table must be the same. Times differ; row numbers may, because steps that were forgotten had some.
CONTENTS = {
    "steps": "SELECT stage, step, source FROM steps ORDER BY stage, step",
    "metrics": f"""SELECT * FROM metrics WHERE {" AND ".join(f"name NOT LIKE '{times}%'" for times in TIMES)}
        ORDER BY stage, name, step""",
    "tasks": "SELECT digest, id, prompt, answer FROM tasks ORDER BY digest",
    "rollouts": """SELECT stage, step, "group", sibling, digest, reward, correct, finish, version, temperature,
        prompt_length, text, note, score_note, parts, step_rewards, spans, tokens, mask, logprobs, advantages
        FROM rollouts JOIN tasks ON tasks.key = rollouts.task ORDER BY stage, step, "group", sibling""",
    "ledger": "SELECT stage, visit, step, task_id FROM ledger ORDER BY stage, visit",
    "evaluations": "SELECT stage, name, step, json FROM evaluations ORDER BY stage, name, step",
}


def contents(run: Run) -> dict[str, list[Any]]:
    """Everything that must be the same: the tables, and the SHA-256 of every file of every checkpoint."""
    with closing(sqlite3.connect(run.database)) as db:
        found = {name: db.execute(query).fetchall() for name, query in CONTENTS.items()}
    kept = Checkpoints(run.path / "checkpoints").all()
    found["checkpoints"] = sorted(
        (each.stage, each.step, json.dumps(each.state), name, digest)
        for each in kept
        for name, digest in each.files.items()
    )
    return found


def differences(unbroken: Run, killed: Run) -> list[str]:
    """What is not the same in both, one line each; and visits that are counted twice or left out."""
    a, b = contents(unbroken), contents(killed)
    said = [f"{name}: {_first(a[name], b[name])}" for name in a if a[name] != b[name]]
    said += [f"{name}: empty, so nothing was compared" for name in a if not a[name]]
    for stage in sorted({row[0] for row in b["ledger"]}):
        visits = [visit for at, visit, *_ in b["ledger"] if at == stage]
        if visits != list(range(len(visits))):
            said.append(f"ledger of {stage}: got visits {visits}; expected each from 0 on once")
    return said + killed.damage()


def _first(a: Sequence[Any], b: Sequence[Any]) -> str:
    """The first row in which two tables differ."""
    for row, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return f"row {row}: unbroken {str(x)[:200]}, killed {str(y)[:200]}"
    return f"unbroken has {len(a)} rows, killed {len(b)}"


@dataclass(frozen=True)
class Timeline:
    """The working life of the unbroken run: its seconds from the end of start-up, and when each step was stored.

    Start-up (imports, mostly) and the report at the end are left out: they are longer than the rest, and touch little.
    """

    seconds: float
    marks: Mapping[Mark, float]

    def when(self, moment: Moment) -> float:
        """The seconds at which a moment comes."""
        return self.marks[moment.after] if moment.after is not None else moment.share * self.seconds

    def place(self, moment: Moment) -> tuple[Mark | None, float]:
        """The last step stored before a moment (None: before the first one) and the seconds from there on."""
        if moment.after is not None:
            return moment.after, 0.0
        at = self.when(moment)
        before = [mark for mark, seconds in self.marks.items() if seconds <= at]
        return (before[-1], at - self.marks[before[-1]]) if before else (None, at)

    def passed(self, stored: Sequence[Mark]) -> int:
        """How many marks a run has reached."""
        return 1 + list(self.marks).index(stored[-1]) if stored else 0


def _prepare(folder: Path, config: str, files: Mapping[str, str]) -> Run:
    folder.mkdir(parents=True)
    for name, text in {"config.toml": config, **files}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return Run(folder)


def unbroken(config: str, folder: Path, files: Mapping[str, str]) -> tuple[Run, Timeline]:
    """The run as it is when nobody interferes, and its timeline."""
    run = _prepare(folder, config, files)
    child = Child(run.folder, run.arguments())
    _wait_for_work(child)
    begun = time.time()
    child.check()
    seconds = (run.path / "run.complete").stat().st_mtime - begun
    with closing(sqlite3.connect(run.database)) as db:
        stored = db.execute("SELECT stage, step, time FROM steps ORDER BY time").fetchall()
    return run, Timeline(seconds, {(stage, step): when - begun for stage, step, when in stored})


def _wait_for_work(child: Child) -> None:
    while child.running() and child.phase() == "start-up":
        time.sleep(0.02)


def _wait_for_moment(child: Child, run: Run, moment: Moment, timeline: Timeline) -> None:
    """Until the moment has come, or the next step is stored before it, as on a machine that got faster meanwhile."""
    mark, delay = timeline.place(moment)
    _wait_for_work(child)
    reached = 0 if mark is None else timeline.passed([mark])
    while child.running() and timeline.passed(run.stored()) < reached:
        time.sleep(0.01)
    until = time.monotonic() + delay
    while child.running() and time.monotonic() < until and timeline.passed(run.stored()) <= reached:
        time.sleep(min(0.01, max(0.0, until - time.monotonic())))


def _kill(run: Run, moment: Moment, timeline: Timeline) -> Kill | None:
    """Let the run go on until the moment, kill it, and say what was hit; None when it ended before."""
    child = Child(run.folder, run.arguments())
    if moment.phase == "start-up":
        while child.running() and not run.held_by(child.process):
            time.sleep(0.005)
    else:
        _wait_for_moment(child, run, moment, timeline)
    phase = child.phase()
    while moment.phase and child.running() and phase != moment.phase:
        time.sleep(0.002)
        phase = child.phase()
    if not child.running():
        child.check()
        return None
    lived = child.kill()
    half = any((run.path / "checkpoints").glob(".tmp-*"))
    stored = run.stored()
    return Kill(phase, stored[-1] if stored else None, half, round(lived, 3), bool(moment.phase))


def kill_and_resume(
    config: str, folder: Path, moments: Sequence[Moment], *, files: Mapping[str, str] | None = None
) -> Verdict:
    """Make a run (TOML `config`, `files` beside it) unbroken and killed at `moments` in turn; compare the two.

    Both go to `folder`, as `unbroken/run` and `killed/run`. Moments are taken in the order in which they come; one that
    the run does not live to see is left out of `kills`.
    """
    whole, timeline = unbroken(config, folder / "unbroken", files or {})
    broken = _prepare(folder / "killed", config, files or {})
    kills: list[Kill] = []
    damage: list[str] = []
    begun = time.monotonic()
    for moment in sorted(moments, key=timeline.when):
        kill = _kill(broken, moment, timeline)
        if kill is None:
            break
        kills.append(kill)
        damage += [f"after kill {len(kills)} ({kill.phase}): {wrong}" for wrong in broken.damage()]
    Child(broken.folder, broken.arguments()).check()
    seconds = time.monotonic() - begun
    return Verdict(tuple(kills), (*damage, *differences(whole, broken)), timeline.seconds, seconds)


def random_moments(count: int, seed: int, purposes: Sequence[str] = PHASES) -> list[Moment]:
    """`count` moments uniform over the life of `CONFIG`'s run, and one in each of `purposes`.

    Those on purpose come after a random moment of the first nine tenths, so that there is a step left to be hit;
    evaluations are rare, so theirs is the one after fine-tuning.
    """
    draw = random.Random(seed).uniform
    moments = [Moment(draw(0.0, 1.0)) for _ in range(count)]
    after = {"evaluation": ("sft", 9)}
    return moments + [Moment(draw(0.0, 0.9), after.get(phase), phase) for phase in purposes]


def main(arguments: Sequence[str]) -> int:
    """The command line; exits with 1 when the killed run is not the same as the unbroken one."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks kill_and_resume", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=20, help="kills at random moments (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--quick", action="store_true", help="4 kills at random moments, none on purpose")
    parser.add_argument("--folder", type=Path, help="where to leave both runs (default: nowhere)")
    parser.add_argument("--json", type=Path, help="write the result there")
    given = parser.parse_args(arguments)
    moments = random_moments(4, given.seed, ()) if given.quick else random_moments(given.kills, given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        verdict = kill_and_resume(CONFIG, folder, moments, files={"reward.py": REWARD})
    for kill in verdict.kills:
        stored = "nothing stored" if kill.stored is None else f"{kill.stored[0]} step {kill.stored[1]} stored"
        purpose = ", on purpose" if kill.on_purpose else ""
        print(f"killed after {kill.lived_seconds:6.2f} s in {kill.phase:<11} ({stored}{purpose})")
    hit = Counter(kill.phase for kill in verdict.kills)
    print(f"{len(verdict.kills)} kills: " + ", ".join(f"{name} {count}" for name, count in hit.most_common()))
    print("\n".join(verdict.differences) or "the same to the bit: weights, optimiser, metrics, rollouts, ledger, evals")
    if given.json is not None:
        result = {
            "benchmark": "kill_and_resume",
            "machine": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "processor": platform.machine(),
                "cores": os.cpu_count(),
            },
            "seed": given.seed,
            "same": not verdict.differences,
            "phases": dict(hit),
            **asdict(verdict),
            "config": CONFIG,
        }
        write_json(given.json, result)
    return int(bool(verdict.differences))
