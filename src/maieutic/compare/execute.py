"""Carrying out a plan: a process a run, as many at once as there are cores, able to stop anywhere and go on.

Runs that are complete are left alone, begun ones go on from their last checkpoint. One that fails is told and does not
stop the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from maieutic.compare.places import MARK, SHARED, Failure, complete, failed, log_file, plan_file, run_folder
from maieutic.compare.plan import Plan
from maieutic.config import Config, read_config
from maieutic.errors import RunError
from maieutic.run.durable import write_text
from maieutic.run.runner import Interrupted

#: `watch(share of everything, words)` is called now and then.
Watch = Callable[[float, str], None]

#: Seconds between two looks at what the processes said.
TICK = 0.25


@dataclass(frozen=True, slots=True)
class Job:
    """One run: `Job(1, "grpo")`."""

    seed: int
    name: str

    def __str__(self) -> str:
        return f"seed {self.seed} {self.name}"


def execute(
    plan: Plan, out: Path, *, jobs: int, watch: Watch, told: Callable[[Failure], None],
    heard: Callable[[], None] = lambda: None,
) -> list[Failure]:  # fmt: skip
    """Carry out what is left of the plan in the folder `out`; returns what failed, each of which `told` was told.

    Raises RunError, before anything is run, where the folder holds runs of another plan, and Interrupted after Ctrl-C
    (a second one does not wait for steps to end). `heard` is called at once when the first one comes.
    """
    check(plan, out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(plan_file(out), plan.to_json() + "\n")
    return _Execution(plan, out.resolve(), watch, told).run(jobs, heard)


def all_jobs(plan: Plan) -> list[Job]:
    """Every run of a plan, the shared starts first."""
    starts = [Job(seed, SHARED) for seed in plan.study.seeds] if plan.start else []
    return starts + [Job(seed, arm.name) for seed in plan.study.seeds for arm in plan.arms]


def check(plan: Plan, out: Path) -> None:
    """Raise RunError where a run in the folder was begun with other settings than the plan has for it."""
    for job in all_jobs(plan):
        written = run_folder(out, job.seed, job.name) / "config.toml"
        if not written.is_file():
            continue
        shared = job.name == SHARED
        wanted = plan.start_config(job.seed) if shared else plan.arm_config(plan.arm(job.name), job.seed, None)
        if _comparable(read_config(written), shared or not plan.start) != _comparable(wanted, shared or not plan.start):
            raise RunError(
                f"{written.parent} was begun with other settings than the file has now for {job}: its results would "
                "stand beside those of other settings. Choose another --out, or remove that folder"
            )


def _comparable(config: Config, own_model: bool) -> Config:
    """The config without what does not change its results (an arm's start lies where the study lies)."""
    update: dict[str, object] = {"name": ""}
    return config.model_copy(update=update if own_model else {**update, "model": None})


class _Execution:
    """The processes at work."""

    def __init__(self, plan: Plan, out: Path, watch: Watch, told: Callable[[Failure], None]) -> None:
        self.plan, self.out, self.watch, self.told = plan, out, watch, told
        self.shares = {job: float(self._complete(job)) for job in all_jobs(plan)}
        self.failures: list[Failure] = []
        self.live: dict[Job, subprocess.Popen[str]] = {}
        self.lock = threading.Lock()
        self.stopping = False

    def run(self, jobs: int, heard: Callable[[], None]) -> list[Failure]:
        """Until nothing is left to do."""
        pending = [job for job, share in self.shares.items() if share < 1]
        (self.out / "logs").mkdir(exist_ok=True)
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            running: dict[Future[Failure | None], Job] = {}
            try:
                while pending or running:
                    for job in self._ready(pending, jobs - len(running)):
                        pending.remove(job)
                        running[pool.submit(self._process, job)] = job
                    self._show()
                    done, _ = wait(running, timeout=TICK, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._finished(running.pop(future), future.result(), pending)
            except BaseException as error:
                self._stop(list(running), heard)
                if isinstance(error, KeyboardInterrupt):
                    raise Interrupted("interrupted; what was done is saved, and the same command goes on") from error
                raise
        self._show()
        return self.failures

    def _complete(self, job: Job) -> bool:
        return complete(run_folder(self.out, job.seed, job.name))

    def _ready(self, pending: Sequence[Job], room: int) -> list[Job]:
        """The jobs that can begin now: an arm waits for the start of its seed."""
        starts = {job.seed for job, share in self.shares.items() if job.name == SHARED and share >= 1}
        free = [job for job in pending if job.name == SHARED or not self.plan.start or job.seed in starts]
        return free[: max(0, room)]

    def _finished(self, job: Job, failure: Failure | None, pending: list[Job]) -> None:
        if failure is None:
            self.shares[job] = 1.0
            return
        self._fail(failure)
        if job.name == SHARED:
            for waiting in [each for each in pending if each.seed == job.seed]:
                pending.remove(waiting)
                self._fail(Failure(waiting.seed, waiting.name, failure.code, "not run, for its start failed"))

    def _fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        self.told(failure)

    def _process(self, job: Job) -> Failure | None:
        """Run one process to its end."""
        known = failed(self.out, job.seed, job.name)
        if known is not None:
            return known  # its numbers would go wrong in the same way again
        command = [sys.executable, "-m", "maieutic.compare.worker", str(self.out), str(job.seed), job.name]
        path, error = log_file(self.out, job.seed, job.name), ""
        with path.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip
            with self.lock:
                self.live[job] = process
                if self.stopping:
                    process.kill()
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith(MARK):
                    log.write(line)
                    continue
                said = json.loads(line.removeprefix(MARK))
                error = said.get("error", error)
                self.shares[job] = min(0.999, said.get("share", self.shares[job]))
            code = process.wait()
        with self.lock:
            del self.live[job]
        _close(process)
        if code == 0:
            return None
        return Failure(job.seed, job.name, code, error or f"its process ended with code {code}; see {path}")

    def _stop(self, running: list[Future[Failure | None]], heard: Callable[[], None]) -> None:
        """Let every process end its step; on a second Ctrl-C, and where there is no step yet, end them at once."""
        with self.lock:
            self.stopping = True
            processes = dict(self.live)
        try:
            heard()
            for job, process in processes.items():
                _close(process)
                if not self.shares[job]:
                    process.kill()  # it still loads, or examines the start: there is nothing to save
            wait(running)
        except KeyboardInterrupt:
            for process in processes.values():
                process.kill()
            wait(running)

    def _show(self) -> None:
        with self.lock:
            busy = [f"{job} {100 * self.shares[job]:.0f} %" for job in self.live]
        complete_now = sum(share >= 1 for share in self.shares.values())
        words = f"{complete_now} of {len(self.shares)} runs complete" + (f"; {', '.join(busy)}" if busy else "")
        share = sum(self.shares.values()) / len(self.shares)
        self.watch(share if complete_now == len(self.shares) else min(share, 0.99), words)


def _close(process: subprocess.Popen[str]) -> None:
    """Tell a process to stop at the end of its step."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
