"""The process of one run of a comparison: `python -m maieutic.compare.worker OUT SEED ARM`.

It says how far it is, and what went wrong, as marked lines of JSON on stdout, and stops at the end of a step when its
stdin is closed: so it never outlives for long whoever started it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from maieutic.compare.places import MARK, SHARED, failure_file, model_of, plan_file, run_folder
from maieutic.compare.plan import Plan
from maieutic.config import Config
from maieutic.errors import MaieuticError, NumericalError
from maieutic.evaluate import Evaluation
from maieutic.report import write_report
from maieutic.report.reading import is_held
from maieutic.run.build import start_model
from maieutic.run.directory import RunDirectory
from maieutic.run.durable import write_text
from maieutic.run.runner import Runner, config_text
from maieutic.types import Step

#: Seconds to wait for a process that was orphaned to finish its step and let the run go.
PATIENCE = 60.0


class Reporting:
    """A watch that writes lines of JSON: the share of the run that is done."""

    def __init__(self, stages: int) -> None:
        self.stages, self.begun, self.steps = stages, 0, 0

    def stage(self, name: str, algorithm: str, done: int, steps: int | None) -> None:
        """A stage begins."""
        del algorithm
        self.begun += 1
        self.steps = steps or 0
        self._say(name, done / steps if steps else 0.0)

    def step(self, stage: str, step: Step, seconds: float) -> None:
        """A step is done."""
        del seconds
        spent = step.metrics.get("budget/spent")
        self._say(stage, (step.index + 1) / self.steps if self.steps else float(spent or 0.0))

    def evaluating(self, stage: str, name: str, done: int, total: int) -> None:
        """Some problems are answered; the share of a run that this is, nobody knows."""

    def evaluated(self, stage: str, name: str, evaluation: Evaluation) -> None:
        """All problems are answered."""

    def _say(self, stage: str, share: float) -> None:
        say(stage=stage, share=min(1.0, (self.begun - 1 + min(1.0, share)) / self.stages))


def say(**told: Any) -> None:
    """A line for whoever started this process; nothing where nobody listens any more."""
    with suppress(BrokenPipeError):  # the run goes on to the end of its step, and stops because stdin is closed too
        print(MARK + json.dumps(told), flush=True)


def main(arguments: list[str]) -> int:
    """Carry out the run, or the rest of it. Returns the exit code of what went wrong, 0 for nothing."""
    out, seed, name = Path(arguments[0]), int(arguments[1]), arguments[2]
    folder = run_folder(out, seed, name)
    try:
        plan = Plan.from_json(plan_file(out).read_text(encoding="utf-8"))
        run(plan, config_of(plan, out, seed, name), folder, shared=name == SHARED)
    except MaieuticError as error:
        if isinstance(error, NumericalError):
            write_text(failure_file(folder), json.dumps({"code": error.exit_code, "message": str(error)}) + "\n")
        say(error=str(error), code=error.exit_code)
        return error.exit_code
    return 0


def config_of(plan: Plan, out: Path, seed: int, name: str) -> Config:
    """The config of the run. Raises RunError for an arm whose start is not complete."""
    if name == SHARED:
        return plan.start_config(seed)
    return plan.arm_config(plan.arm(name), seed, model_of(out, seed) if plan.start else None)


def run(plan: Plan, config: Config, folder: Path, *, shared: bool) -> None:
    """Run the config in the folder, or go on with it."""
    resume = (folder / "config.toml").is_file()
    waited = time.monotonic()
    while resume and is_held(RunDirectory.open(folder)) and time.monotonic() - waited < PATIENCE:
        time.sleep(0.2)
    with RunDirectory.create(folder, config_text(config, folder, resume=resume), resume=resume) as directory:
        runner = Runner(config, directory, Reporting(len(config.stages)))
        threading.Thread(target=_stop_when_closed, args=(runner,), daemon=True).start()
        if shared and config.model.small is not None:
            # its tokenizer has to know the words of the arms' tasks too
            practice = [arm.stage for arm in plan.arms]
            known = config.model_copy(update={"stages": [*config.stages, *practice]})
            start_model(known, runner.tasksets, folder / "start")
        runner.run()
    write_report(folder)


def _stop_when_closed(runner: Runner) -> None:
    sys.stdin.read()
    runner.stop.set()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
