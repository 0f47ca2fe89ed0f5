"""What a teacher says, written to disk: log-probs of shown solutions, or solutions of its own. Both can stop anywhere
and go on, and what is there already is not asked for again."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from maieutic.endpoint import Bill
from maieutic.errors import ConfigError, DataError
from maieutic.loops import run_async
from maieutic.pack import pack
from maieutic.protocols import Chat, Taskset, Teacher
from maieutic.run.durable import room_for, write_text
from maieutic.run.runner import Interrupted
from maieutic.sources import demonstration, solution_of
from maieutic.teachers.recording import said_of
from maieutic.teachers.records import Origin, Records, key_of
from maieutic.teachers.written import Counts, Writer, Written
from maieutic.types import Example

#: Solutions in a part of a recording, and tasks that are asked for texts at once.
PART, CHUNK = 256, 32

Watch = Callable[[int, int], None]


def record(
    teacher: Teacher, tasks: Taskset, chat: Chat, folder: Path, origin: Origin, *, limit: int | None = None,
    part: int = PART, watch: Watch = lambda *_: None, stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:  # fmt: skip
    """Let the teacher speak of the solutions of the first `limit` tasks (all) as the `chat` format writes them.

    Returns counts of sequences that are in the `folder` now, new ones, positions among these, and rows that are longer
    than the teacher can read, which are left out. Raises ConfigError for a folder that was begun otherwise, DataError
    where nothing could be recorded, Interrupted when it was asked to stop.
    """
    records = Records.begin(folder, origin)
    reads: int | None = getattr(teacher, "limit", None)
    size = len(tasks) if limit is None else min(limit, len(tasks))
    new = positions = too_long = 0
    for first in range(0, size, part):
        watch(first, size)
        shown = [_shown(tasks, index, chat) for index in range(first, min(first + part, size))]
        fitting = [row for row in shown if reads is None or len(row.rollout.tokens) <= reads]
        too_long += len(shown) - len(fitting)
        if fitting:
            batch = pack(fitting)
            keys = [key_of(batch.tokens[row, :length]) for row, length in enumerate(batch.lengths.tolist())]
            missing = {key: row for row, key in enumerate(keys) if key not in records}
            if missing:
                said = said_of(teacher, batch.rows(batch.lengths.new_tensor(list(missing.values()))))
                places = sum(len(each.places) for each in said.values())
                with room_for(folder, partial(int, 8 * places * (1 + origin.top_k))):
                    records.add(said)
                new, positions = new + len(said), positions + places
        if stop() and first + part < size:
            raise Interrupted(f"stopped after {first + part} of {size} tasks; the same command goes on")
    watch(size, size)
    if not len(records):
        raise DataError(
            f"nothing was recorded: all {too_long} solutions are longer than the {reads} tokens that the teacher can "
            "read. Shorten them, or take a teacher with a longer context"
        )
    return {"sequences": len(records), "new": new, "positions": positions, "too_long": too_long}


def _shown(tasks: Taskset, index: int, chat: Chat) -> Example:
    task = tasks[index]
    rollout = demonstration(task, solution_of(task), chat, tasks.tool)
    return Example(rollout, 1.0, group=index, unit=index)


def write_solutions(
    writer: Writer, out: Path, settings: Mapping[str, Any], *, limit: int | None = None, resume: bool = False,
    watch: Watch = lambda *_: None, stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:  # fmt: skip
    """Let the teacher write solutions of the first `limit` tasks (all) to `out`, a file of tasks with solutions.

    OUT.state.json says how far it came. Returns what became of all texts, tasks with at least one, and the bill.
    Raises ConfigError where `out` is there already and `resume` is not asked for, or was begun with other settings;
    DataError where nothing was kept; Interrupted when it was asked to stop.
    """
    size = len(writer.tasks) if limit is None else min(limit, len(writer.tasks))
    note = out.with_name(f"{out.name}.state.json")
    told = json.loads(json.dumps({**settings, "tasks": size}))
    state = _begun(out, note, told, resume)
    counts, bill = Counts(**state["counts"]), Bill(*state["bill"])
    done, solved = state["done"], state["solved"]
    with out.open("ab") as file:
        file.truncate(state["bytes"])
        while done < size:
            watch(done, size)
            chunk = range(done, min(done + CHUNK, size))
            for written in run_async(_chunk(writer, chunk)):
                rows = written.rows(writer.teacher.name)
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                counts, bill = counts.plus(written.counts), bill.plus(written.bill)
                solved += bool(rows)
            file.flush()
            os.fsync(file.fileno())
            done = chunk.stop
            reached = {"done": done, "solved": solved, "bytes": out.stat().st_size}
            write_text(note, json.dumps({"settings": told, **reached, "counts": asdict(counts), "bill": bill}))
            if stop() and done < size:
                raise Interrupted(f"stopped after {done} of {size} tasks; go on with --resume")
    watch(size, size)
    if not counts.kept:
        raise DataError(f"nothing was kept of what {writer.teacher.name} wrote: {asdict(counts)}")
    return {"file": str(out), "tasks": size, "solved": solved, **asdict(counts), "bill": bill._asdict()}


async def _chunk(writer: Writer, chunk: range) -> list[Written]:
    return list(await asyncio.gather(*(writer(writer.tasks[index]) for index in chunk)))


def _begun(out: Path, note: Path, told: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """How far an earlier attempt came; nothing where there was none."""
    if not out.exists() or (resume and note.is_file()):
        if not out.exists() or not resume:
            return {"done": 0, "solved": 0, "bytes": 0, "counts": {}, "bill": ()}
        state: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        other = {
            key: (state["settings"].get(key), told[key]) for key in told if state["settings"].get(key) != told[key]
        }
        if other:
            raise ConfigError(f"{out} was begun with other settings (before, now): {other}. Give the same to go on")
        return state
    why = "was not begun by `maieutic teacher write`" if resume else "is there already"
    raise ConfigError(f"{out} {why}; choose another file" + ("" if resume else ", or go on with --resume"))
