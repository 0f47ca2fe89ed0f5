"""Checkers by name, and the completions that they are to check: of a run, a file, or a model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maieutic.cli.models import load
from maieutic.cli.values import settings, taskset
from maieutic.errors import ConfigError, DataError

if TYPE_CHECKING:
    from maieutic.protocols import Reward, Taskset
    from maieutic.types import Task

#: Rollouts that are read at once.
PAGE = 500


@dataclass(frozen=True)
class Source:
    """Where completions come from: exactly one of `run`, `file` and `model`, or none."""

    run: Path | None
    file: Path | None
    model: str | None
    task: str | None
    options: Sequence[str]
    n: int
    samples: int
    length: int | None
    seed: int

    @property
    def given(self) -> bool:
        """Whether there is any. Raises ConfigError for two."""
        ways = {"--run": self.run, "--file": self.file, "--model": self.model}
        found = [option for option, way in ways.items() if way is not None]
        if len(found) > 1:
            raise ConfigError(f"got {' and '.join(found)}; expected one of them")
        if self.model is not None and self.task is None:
            raise ConfigError("got --model without --task; expected the taskset that it is to be asked")
        return bool(found)

    def taskset(self) -> Taskset | None:
        """The taskset, where one was named."""
        return None if self.task is None else taskset(self.task, settings(list(self.options)), split="test")


def checkers_of(names: Sequence[str], source: Source) -> tuple[list[str], dict[str, Reward]]:
    """Name → checker, as a reward. Raises ConfigError for two of the same name, UnknownName for what there is not."""
    from maieutic.cli.reward_try import made_reward
    from maieutic.rewards.answers import AnswerVerifier
    from maieutic.rewards.compose import answer_reward
    from maieutic.run.tasksets import VERIFIERS
    from maieutic.tasks.taskset import Tasks

    if len(set(names)) != len(names):
        raise ConfigError(f"got {names[0]!r} twice; expected two checkers that were written apart")
    tasks = source.taskset()
    if tasks is None and "answer" in names:
        raise ConfigError("got the checker 'answer', which is a taskset's own; name it: --task gsm8k")
    tasks = tasks or Tasks("audit", [], AnswerVerifier())
    made = {
        name: answer_reward(VERIFIERS[name]()) if name in VERIFIERS else made_reward(name, tasks, {}, None, None)
        for name in names
    }
    return list(names), made


def completions_of(
    source: Source, device: str, threads: int | None, template: str | None
) -> list[tuple[Task, str]]:  # fmt: skip
    """Tasks and texts. Raises DataError where there are none."""
    if source.run is not None:
        found = _of_run(source.run)
    elif source.file is not None:
        from maieutic.reward_models.verifiers import labelled
        from maieutic.tasks.files import read_rows

        found = labelled(read_rows(source.file))[0]
    else:
        found = _sampled(source, device, threads, template)
    if not found:
        raise DataError(f"{source.run or source.file or source.model}: got no completions to check")
    return found


def _of_run(run: Path) -> list[tuple[Task, str]]:
    from maieutic.run.store import Store
    from maieutic.types import Finish

    if not (run / "run.db").is_file():
        raise DataError(f"{run} is no run: there is no run.db in it")
    with Store.open_reader(run / "run.db") as store:
        pages = range(0, store.count_rollouts(), PAGE)
        kept = [each for offset in pages for each in store.rollouts(limit=PAGE, offset=offset)]
    return [(each.task, each.rollout.text) for each in kept if each.rollout.finish is not Finish.ERROR]


def _sampled(source: Source, device: str, threads: int | None, template: str | None) -> list[tuple[Task, str]]:
    from maieutic.cli.reward_probes import sampled

    tasks = source.taskset()
    assert tasks is not None, "`Source.given` has seen to it"
    speaker = load(str(source.model), device=device, threads=threads, template=template)
    length = speaker.length(source.length)
    probes = asyncio.run(sampled(speaker, tasks, source.n, source.samples, 1.0, length, f"audit/{source.seed}"))
    return [(probe.task, rollout.text) for probe in probes for rollout in probe.rollouts]
