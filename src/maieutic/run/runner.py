"""Running a config: its stages one after the other, everything stored, able to stop anywhere and go on.

    for each stage:  load the model of the stage before ─► loop, storing each step ─► checkpoint ─► evaluate

After a kill the run goes back to its newest whole checkpoint, forgets what was stored after it, and does the rest
again. Sampling, order of tasks and shuffles are functions of (seed, visit), so the rest comes out the same, bit for
bit, on the same machine.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import platform
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from maieutic.clock import listening, phase
from maieutic.config import START, Config, StageConfig, read_config, write_toml
from maieutic.core.cost import FORWARD
from maieutic.environments.conditioned import as_trained
from maieutic.errors import ConfigError, RunError
from maieutic.evaluate import Evaluation, evaluate_sync
from maieutic.run.budget import Spending, planned_steps
from maieutic.run.build import (
    check_labels,
    load_model,
    make_backend,
    make_stage_algorithm,
    start_model,
)
from maieutic.run.checkpoints import Checkpoint, Checkpoints
from maieutic.run.directory import RunDirectory
from maieutic.run.frozen import check_adapters
from maieutic.run.guarding import Guarding, changes_only_guards, rules_of, truth_of
from maieutic.run.interrupt import interrupted
from maieutic.run.memory import with_memory
from maieutic.run.overlap import cores_of
from maieutic.run.setup import Setup, set_up
from maieutic.run.store import Store
from maieutic.run.tasksets import Tasksets
from maieutic.run.timing import Times, finisher, machine_peak
from maieutic.run.validation import Validation
from maieutic.types import Step

if TYPE_CHECKING:
    from maieutic.core.parts import Algorithm

log = logging.getLogger(__name__)


class Watch(Protocol):
    """Someone who looks on while a run goes: a progress bar, a test, nobody."""

    def stage(self, name: str, algorithm: str, done: int, steps: int | None) -> None: ...

    def step(self, stage: str, step: Step, seconds: float) -> None: ...

    def evaluating(self, stage: str, name: str, done: int, total: int) -> None: ...

    def evaluated(self, stage: str, name: str, evaluation: Evaluation) -> None: ...


class Silent:
    """A watch that says nothing."""

    def stage(self, name: str, algorithm: str, done: int, steps: int | None) -> None: ...

    def step(self, stage: str, step: Step, seconds: float) -> None: ...

    def evaluating(self, stage: str, name: str, done: int, total: int) -> None: ...

    def evaluated(self, stage: str, name: str, evaluation: Evaluation) -> None: ...


class Interrupted(RunError):
    """The user asked to stop; everything up to here is saved."""

    exit_code = 130


@dataclass
class Runner:
    """One run of one config in one directory; `acknowledge` are the alarms past which it goes on."""

    config: Config
    directory: RunDirectory
    watch: Watch
    acknowledge: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.tasksets = Tasksets(self.config)
        self.checkpoints = Checkpoints(self.directory.checkpoints, keep=self.config.keep_checkpoints)
        self.best = Checkpoints(self.directory.best, keep=1)
        self.stop = threading.Event()

    def run(self) -> dict[str, Any]:
        """Run all stages that are not done yet and return the summary, which is also kept in the directory.

        Of a run that is complete the summary is returned and nothing is touched.
        """
        done = self.directory.summary()
        if done is not None:
            log.info("the run %s is complete: nothing is left to do", self.directory.path)
            return done
        self.backend = make_backend(self.config)
        names = [stage.name for stage in self.config.stages]
        with Store(self.directory.database) as self.store, interrupted(self.stop):
            newest = self._rewind(names)
            self._note_beginning(names, newest)
            self.peak = machine_peak(self.store, names[0], self.backend.device)
            check_adapters(self.config)
            model = self.first = start_model(self.config, self.tasksets, self.directory.path / "start")
            check_labels(self.config, model)
            begin = 0 if newest is None else names.index(newest.stage)
            if self.config.evaluation is not None and self.config.evaluation.at_start:
                self._evaluate(START, 0, model)
            for index, stage in enumerate(self.config.stages):
                if index < begin:
                    model = self._model_of(stage)
                    continue
                self._stage(stage, model, newest if index == begin else None)
                model = self._model_of(stage)
            summary = self.summary(model)
        self.directory.finish(summary)
        return summary

    def evaluation(self, stage: str, name: str) -> Evaluation | None:
        """What was measured after a stage, if it was."""
        with Store.open_reader(self.directory.database) as store:
            found = store.evaluation(stage, name)
        return None if found is None else Evaluation.from_json(json.dumps(found))

    def summary(self, model: str) -> dict[str, Any]:
        """Where the model is, the seconds of each stage, and what was measured."""
        k = self.config.evaluation.k if self.config.evaluation else None
        stages: dict[str, Any] = {}
        for found in self.store.evaluations():
            table = Evaluation.from_json(json.dumps(found.result)).metrics(k)
            stages.setdefault(found.stage, {})[found.name] = {key: value.to_dict() for key, value in table.items()}
        seconds = {s.name: sum(x.seconds for x in self.store.steps(s.name)) for s in self.config.stages}
        return {"model": model, "evaluations": stages, "seconds": seconds}

    def _rewind(self, names: list[str]) -> Checkpoint | None:
        """Back to the newest whole checkpoint: the store and the checkpoints forget what came after it."""
        newest = self.checkpoints.latest()
        if newest is not None and newest.stage not in names:
            raise RunError(
                f"the newest checkpoint of {self.directory.path} is of stage {newest.stage!r}, which this config does "
                f"not have (it has {', '.join(names)}); resume with the config the run was begun with"
            )
        self.checkpoints.rewind(newest)
        if newest is None:
            self.store.rewind(names[0], -1, later=names[1:])
        else:
            self.store.rewind(newest.stage, newest.step - 1, later=names[names.index(newest.stage) + 1 :])
        return newest

    def _note_beginning(self, names: list[str], newest: Checkpoint | None) -> None:
        """An event that says where the run goes on from, and with which versions."""
        stage, step = (names[0], -1) if newest is None else (newest.stage, newest.step - 1)
        again = any(event.kind in ("begun", "resumed") for event in self.store.events())
        place = "the beginning" if newest is None else f"step {newest.step} of stage {stage!r}"
        kind, message = ("resumed", f"resumed from {place}") if again else ("begun", "begun")
        versions = {name: importlib.metadata.version(name) for name in ("maieutic", "torch", "transformers")}
        if importlib.util.find_spec("numba") is not None:  # with it, sums of a decode step go in another order
            versions["numba"] = importlib.metadata.version("numba")
        about = {"python": platform.python_version(), "machine": platform.machine(), **versions}
        self.store.write_event(stage, step, kind, message, about)

    def _validation(self, stage: StageConfig) -> Validation:
        return Validation(stage, self.store, self.best, partial(self._progress, stage.name))

    def _progress(self, stage: str, name: str, done: int, total: int) -> None:
        if self.stop.is_set():
            raise Interrupted(
                f"stopped while evaluating stage {stage!r} on {name!r}; go on with --run {self.directory.path} --resume"
            )
        self.watch.evaluating(stage, name, done, total)

    def _model_of(self, stage: StageConfig) -> str:
        best = self._validation(stage).model()
        if best is not None:
            return str(best)
        checkpoint = self.checkpoints.latest(stage.name)
        if checkpoint is None:
            raise RunError(
                f"stage {stage.name!r} of {self.directory.path} has no whole checkpoint left, and a later stage starts "
                "from its model; begin the run again in another folder"
            )
        return str(checkpoint.path / "model")

    def _stage(self, stage: StageConfig, model: str, newest: Checkpoint | None) -> None:
        taskset = self.tasksets[stage.tasks]
        algorithm = make_stage_algorithm(stage)
        steps = planned_steps(stage, algorithm, len(taskset))
        spending, validation = Spending(stage, self.store, steps), self._validation(stage)
        done = 0 if newest is None else newest.step
        guarding = self._guarding(stage, algorithm, validation, done)
        self.watch.stage(stage.name, algorithm.name, done, steps)
        ended = spending.ended(done) or validation.flat() or guarding.stopped
        if not ended or validation.owes(done):
            setup = set_up(self.config, stage, self.backend, model, self.first, self.tasksets, algorithm, steps)
            with closing(setup), cores_of(self.config, stage):
                if newest is not None:
                    setup.load(newest)
                self._validate(stage, validation, setup, done)
                if not (spending.ended(done) or validation.flat() or guarding.stopped):
                    self._steps(stage, setup, spending, validation, guarding, done)
        if stage.evaluate and self.config.evaluation is not None:
            self._evaluate(stage.name, self.store.last_step(stage.name) or 0, self._model_of(stage))

    def _guarding(self, stage: StageConfig, algorithm: Algorithm, validation: Validation, done: int) -> Guarding:
        """The stage's guards, told of the steps that are done. Raises Paused where one of them still waits."""
        taskset, held = self.tasksets[stage.tasks], stage.validation
        rules = rules_of(self.config, stage) if algorithm.samples else ()
        problems = 0 if held is None else min(held.limit or sys.maxsize, len(self.tasksets[held.tasks]))
        guarding = Guarding(stage, self.store, rules, truth_of(stage, taskset), validation, problems)
        if done:
            guarding.acknowledge(self.acknowledge, done - 1)
        guarding.check(self.directory.path)
        return guarding

    def _steps(
        self,
        stage: StageConfig,
        setup: Setup,
        spending: Spending,
        validation: Validation,
        guarding: Guarding,
        done: int,
    ) -> None:
        """The steps from `done` to the stage's end."""
        clock, stopping = time.perf_counter(), False
        finish = finisher(self.backend.device, self.config.exact_phases)
        with listening(FORWARD * setup.parameters, finish=finish) as heard:
            times = Times(heard, self.peak)
            for made in setup.train(spending.steps, done):
                step = with_memory(times.add(spending.add(guarding.measure(made))), self.backend.device)
                seconds = time.perf_counter() - clock
                self._store_step(stage, step, seconds, setup.source.state(), setup.source.samples)
                self.watch.step(stage.name, step, seconds)
                guarding.look(step)
                done, halted = step.index + 1, guarding.halting is not None
                last, stopping = spending.ended(done), self.stop.is_set()
                # weights whose gradient is not finite must not push the last sound ones out
                due = done % stage.checkpoint_every == 0 and not step.metrics.get("optim/skipped")
                if last or stopping or halted or due or validation.due(done):
                    with phase("checkpoint"):
                        self.checkpoints.write(stage.name, done, setup.save, setup.state())
                if stopping:
                    break
                self._validate(stage, validation, setup, done)
                if last or halted or validation.flat():
                    break
                clock = time.perf_counter()
            self.store.write_metrics(stage.name, done - 1, times.last())
        if stopping:
            raise Interrupted(
                f"stopped after step {done} of stage {stage.name!r}; everything is saved, "
                f"go on with --run {self.directory.path} --resume"
            )
        guarding.check(self.directory.path)

    def _validate(self, stage: StageConfig, validation: Validation, setup: Setup, done: int) -> None:
        """What the stage's validation has to do after so many steps, if anything."""
        if stage.validation is None or not validation.due(done):
            return
        with phase("validation"):
            made = validation.after(done, setup, self.tasksets[stage.validation.tasks])
        if made is not None:
            self.watch.evaluated(stage.name, made.name, made)
        if made is not None and validation.flat():
            said = f"{stage.validation.metric} on {made.name} has stopped rising: the stage ends after {done} steps"
            log.info("stage %r: %s", stage.name, said)
            self.store.write_event(stage.name, done - 1, "flat", said)

    def _store_step(
        self, stage: StageConfig, step: Step, seconds: float, source: dict[str, Any], sampled: bool
    ) -> None:
        """All of a step in one transaction; of demonstrations only the ledger, for they are in the data already."""
        ledger = [(group.id, group.task.id) for group in step.groups if not group.hinted]
        kept = step if sampled else Step(step.index, (), (), None, step.metrics)
        with phase("store"):
            self.store.write_step(stage.name, kept, ledger=ledger, seconds=seconds, source=source)

    def _evaluate(self, stage: str, step: int, model: str) -> None:
        spec = self.config.evaluation
        assert spec is not None
        for name in spec.names:
            if self.store.evaluation(stage, name) is not None:
                continue
            clock = time.perf_counter()
            loaded = load_model(self.config, model)
            sampler, chat = as_trained(self.backend.sampler(loaded), loaded.chat, model)
            made = evaluate_sync(
                sampler,
                chat,
                self.tasksets[name],
                max_tokens=spec.max_completion_length,
                samples=spec.samples,
                temperature=spec.temperature,
                limit=spec.limit and min(spec.limit, len(self.tasksets[name])),
                seed=spec.seed,
                name=name,
                on_progress=partial(self._progress, stage, name),
            )
            times = {f"time/evaluation/{name}": time.perf_counter() - clock}
            self.store.write_evaluation(stage, step, name, json.loads(made.to_json()), times)
            self.watch.evaluated(stage, name, made)


def config_text(config: Config, folder: Path, *, resume: bool) -> str:
    """The config as TOML; as the run that is resumed has it, where both say the same: a new default is no change."""
    written = folder / "config.toml"
    if resume and written.is_file():
        try:
            if read_config(written) == config:
                return written.read_text(encoding="utf-8")
        except ConfigError:
            pass  # of another version: the run's directory says which lines differ
    return write_toml(config)


def resume_or_begin(config: Config, folder: Path, *, resume: bool, watch: Watch | None = None) -> dict[str, Any]:
    """Run a config in a folder (`resume`: go on with the run that is there) and return its summary."""
    text, allowed = config_text(config, folder, resume=resume), resume and changes_only_guards(config, folder)
    with RunDirectory.create(folder, text, resume=resume, allow_config_change=allowed) as directory:
        return Runner(config, directory, watch or Silent()).run()
