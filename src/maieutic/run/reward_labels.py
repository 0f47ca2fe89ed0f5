"""Step labels written to a file, able to stop anywhere and go on to the same bytes.

OUT              a row a solution (`reward_models.labelling`), in the layout "steps" of `tasks.judged`
OUT.state.json   what was asked, how far it came (tasks, bytes) and what it has cost; gone on from with `resume`
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maieutic.core.cost import Spent
from maieutic.errors import ConfigError, DataError
from maieutic.loops import run_async
from maieutic.reward_models.labelling import Labelled, Labeller
from maieutic.run.durable import write_text
from maieutic.run.runner import Interrupted

#: Tasks that are asked at once, for the engine to batch.
CHUNK = 32

Watch = Callable[[int, int], None]


def write_labels(
    labeller: Labeller, out: Path, settings: Mapping[str, Any], *, tasks: int, hard: bool = False, resume: bool = False,
    watch: Watch = lambda *_: None, stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:  # fmt: skip
    """Label solutions of the first `tasks` tasks; returns what was written and what it cost.

    `settings` say how, and are compared when it goes on. `stop` is asked after each handful of tasks. Raises
    ConfigError where `out` is there already and `resume` is not asked for, or was begun with other settings;
    Interrupted when it was asked to stop.
    """
    note = out.with_name(f"{out.name}.state.json")
    told = json.loads(json.dumps({**settings, "tasks": tasks, "hard": hard}))
    state = _begun(out, note, told, resume)
    labeller.cost.solutions, labeller.cost.labels = Spent(*state["solutions"]), Spent(*state["labels"])
    labeller.cost.asked, labeller.cost.prefixes = state["asked"], state["prefixes"]
    done = state["done"]
    with out.open("ab") as file:
        file.truncate(state["bytes"])
        while done < tasks:
            watch(done, tasks)
            chunk = range(done, min(done + CHUNK, tasks))
            for index, solutions in zip(chunk, run_async(_chunk(labeller, chunk)), strict=True):
                rows = [each.to_row(labeller.taskset[index], hard) for each in solutions]
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
            done = chunk.stop
            cost = labeller.cost
            write_text(note, json.dumps({
                "settings": told, "done": done, "bytes": out.stat().st_size, "solutions": cost.solutions,
                "labels": cost.labels, "asked": cost.asked, "prefixes": cost.prefixes,
            }))  # fmt: skip
            if stop() and done < tasks:
                raise Interrupted(f"stopped after {done} of {tasks} tasks; go on with --resume")
    watch(tasks, tasks)
    return {"file": str(out), "tasks": tasks, **counted(out), "cost": labeller.cost.to_dict()}


def counted(out: Path) -> dict[str, Any]:
    """What is in a file of labels: `solutions`, how many are `correct`; `steps`, how many have a label and the labels'
    mean; and at which step (from 1) the first error is, with how many solutions."""
    solutions = correct = steps = 0
    labels: list[float] = []
    first: dict[str, int] = {}
    with out.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            solutions, correct, steps = solutions + 1, correct + int(row["label"]), steps + len(row["steps"])
            labels += [label for label in row["labels"] if label is not None]
            if row["first_error"] is not None:
                place = str(row["first_error"] + 1)
                first[place] = first.get(place, 0) + 1
    if not solutions:
        raise DataError(f"{out}: every solution failed or was empty; `maieutic sample` shows what the model writes")
    mean = sum(labels) / len(labels) if labels else None
    found = {"solutions": solutions, "correct": correct, "steps": steps, "labelled": len(labels), "mean_label": mean}
    return {**found, "first_error_at": dict(sorted(first.items(), key=lambda each: int(each[0])))}


def _begun(out: Path, note: Path, told: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """How far an earlier attempt came; nothing where there was none."""
    fresh = {"done": 0, "bytes": 0, "solutions": (), "labels": (), "asked": 0, "prefixes": 0}
    if not resume:
        if out.exists():
            raise ConfigError(f"{out} is there already; go on with --resume, or choose another file")
        return fresh
    if not note.is_file():
        if out.exists():
            raise ConfigError(f"{out} was not begun by `maieutic reward label` ({note.name} is missing)")
        return fresh
    state: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    other = sorted(key for key in told.keys() | state["settings"].keys() if told.get(key) != state["settings"].get(key))
    if other:
        was, now = ({key: of.get(key) for key in other} for of in (state["settings"], told))
        raise ConfigError(f"{out} was begun with {was}; got {now}. Give the same to go on, or another file")
    return state


async def _chunk(labeller: Labeller, chunk: range) -> list[list[Labelled]]:
    return list(await asyncio.gather(*(labeller(labeller.taskset[index]) for index in chunk)))
