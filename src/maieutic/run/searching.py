"""Searches of many problems, stored as they are found: stopped or killed, they go on where they were.

    OUT/settings.json            how all of it was asked
    OUT/found/METHOD@BUDGET.jsonl    a row a problem (`search.results.Solved`), in the order in which they ended

What is found of a problem depends on the seed and its id only, so that what was stored and what is found later are of
one piece.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maieutic.environments.inline import interjection
from maieutic.errors import ConfigError, PromptTooLong
from maieutic.loops import run_async
from maieutic.protocols import Chat, Sampler, Sampling, Taskset
from maieutic.run.durable import write_text
from maieutic.run.runner import Interrupted
from maieutic.search.data import demonstrations, preferences, step_labels, waits
from maieutic.search.found import Cost, Question, Read, Search
from maieutic.search.methods import make_search
from maieutic.search.results import Solved, solved
from maieutic.types import Group, Task

#: Problems in flight at once, for the engine to batch.
CONCURRENCY = 32

#: (method's label, budget, problems done, of how many) as it goes.
Watch = Callable[[str, int, int, int], None]


@dataclass(frozen=True)
class Method:
    """A search by name with options: `Method("wait", {"times": 4})`. `label` is what it is called in tables."""

    name: str
    options: Mapping[str, Any]
    label: str

    def make(self, sampler: Sampler, chat: Chat, read: Read) -> Search:
        """The search. Errors as `make_search`."""
        return make_search(self.name, sampler, chat, read, **self.options)


@dataclass(frozen=True)
class Asking:
    """Everything that is the same for all methods and budgets. `limit`: the first so many tasks."""

    tasks: Taskset
    sampler: Sampler
    chat: Chat
    max_tokens: int
    temperature: float = 1.0
    seed: int = 0
    limit: int | None = None

    @property
    def size(self) -> int:
        """How many problems there are."""
        return len(self.tasks) if self.limit is None else min(self.limit, len(self.tasks))

    def question(self, task: Task) -> Question:
        """The task as a search sees it."""
        interject, ids = interjection(self.chat, self.tasks.tool)
        sampling = Sampling(
            self.max_tokens, self.temperature, self.chat.stop_ids, f"{self.seed}/search/{task.id}", interject, ids
        )
        return Question(self.chat.prompt(task.prompt), sampling)

    async def solve(self, method: Method, budget: int, task: Task) -> Solved:
        """What the method finds of a task. A prompt that does not fit the model is an error of that problem alone."""
        search = method.make(self.sampler, self.chat, lambda text: self.tasks.verifier(task, text).answer)
        try:
            found = await search.solve(self.question(task), budget)
        except PromptTooLong as error:
            return Solved(task.id, 0, (), Cost(), error=str(error))
        return solved(task, found, self.tasks.verifier)


def search_all(
    asking: Asking,
    methods: Sequence[Method],
    budgets: Sequence[int],
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    watch: Watch = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[tuple[str, int], list[Solved]]:
    """Every method at every budget on every problem, in the order of the tasks.

    What is stored in `out` is not asked again; `settings` say how it was asked, and must be the same. `stop` is asked
    before each problem. Raises ConfigError for another's folder, Interrupted when it was asked to stop.
    """
    if out is not None:
        _begin(out, settings or {})
    for method in methods:  # before anything slow: a missing option of the last one should not be found out last
        method.make(asking.sampler, asking.chat, lambda _: None)
    arms = {}
    for budget in budgets:
        for method in methods:
            arms[method.label, budget] = _arm(asking, method, budget, out, watch, stop)
    return arms


def _arm(
    asking: Asking, method: Method, budget: int, out: Path | None, watch: Watch, stop: Callable[[], bool]
) -> list[Solved]:
    place = None if out is None else out / "found" / f"{name_of(method.label, budget)}.jsonl"
    known = {} if place is None else _stored(place)
    order = [asking.tasks[i] for i in range(asking.size)]
    missing = [task for task in order if task.id not in known]
    done = len(order) - len(missing)
    watch(method.label, budget, done, len(order))

    def keep(row: Solved) -> None:
        nonlocal done
        known[row.task_id], done = row, done + 1
        if place is not None:
            with place.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(row.to_row(), ensure_ascii=False, default=str) + "\n")
        watch(method.label, budget, done, len(order))

    async def work(tasks: Iterator[Task]) -> None:
        for task in tasks:
            if stop():
                return
            keep(await asking.solve(method, budget, task))

    async def all_of_them() -> None:
        queue = iter(missing)
        jobs = [asyncio.create_task(work(queue)) for _ in range(min(CONCURRENCY, len(missing)))]
        try:
            await asyncio.gather(*jobs)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    run_async(all_of_them())
    if done < len(order):
        kept = "nothing is kept without --out" if place is None else "go on with the same command"
        raise Interrupted(f"stopped after {done} of {len(order)} problems of {method.label} at {budget} tokens; {kept}")
    return [known[task.id] for task in order]


def _begin(out: Path, settings: Mapping[str, Any]) -> None:
    told = json.loads(json.dumps(settings, default=str))
    note = out / "settings.json"
    (out / "found").mkdir(parents=True, exist_ok=True)
    if not note.exists():
        write_text(note, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        return
    was = json.loads(note.read_text(encoding="utf-8"))
    other = sorted(key for key in told.keys() | was.keys() if told.get(key) != was.get(key))
    if other:
        before, now = ({key: of.get(key) for key in other} for of in (was, told))
        raise ConfigError(f"{out} was begun with {before}; got {now}. Give the same to go on, or another folder")


def name_of(label: str, budget: int) -> str:
    """A method at a budget as part of a file's name."""
    return f"{re.sub(r'[^A-Za-z0-9._=-]+', '+', label)}@{budget}"


def _stored(place: Path) -> dict[str, Solved]:
    """The rows of a file; a last line that a kill cut in the middle is taken away."""
    if not place.exists():
        return {}
    content = place.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with place.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    rows = [Solved.from_row(json.loads(line)) for line in whole.decode("utf-8").split("\n") if line]
    return {row.task_id: row for row in rows}


def groups(asking: Asking, rows: Sequence[Solved]) -> list[Group]:
    """What was found as groups, in the same order; of problems in which nothing was, there are none."""
    known = {asking.tasks[i].id: asking.tasks[i] for i in range(asking.size)}
    return [
        row.group(known[row.task_id], asking.chat.prompt(known[row.task_id].prompt), number)
        for number, row in enumerate(_tried(rows))
    ]


def write_data(out: Path, asking: Asking, rows: Sequence[Solved], end: str, ignore: str = "\nWait, ") -> dict[str, int]:
    """Training data as files of `out`: demonstrations.jsonl, pairs.jsonl, steps.jsonl of trees, and waits.jsonl, for
    which `end` says what stands before answers. Returns how many rows each has; a file without any is not written."""
    made = groups(asking, rows)
    tables = {"demonstrations": demonstrations(made), "pairs": preferences(made)}
    tables["steps"] = [label for group, row in zip(made, _tried(rows), strict=True) for label in _labels(group, row)]
    both = any({score.correct for score in group.scores} >= {True, False} for group in made)
    if both:
        tables["waits"] = waits(made, end, ignore)
    for name, table in tables.items():
        if table:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
            write_text(out / f"{name}.jsonl", text)
    return {name: len(table) for name, table in tables.items()}


def _tried(rows: Sequence[Solved]) -> list[Solved]:
    return [row for row in rows if row.tried]


def _labels(group: Group, row: Solved) -> list[dict[str, Any]]:
    return step_labels(group.task, row.log, {each.text: each.correct for each in row.tried})
