"""`run.db`: everything that happened in a run, in one SQLite file.

SQLite in WAL mode: one process writes, any number read, and no reader ever waits for the writer or makes it wait.
A step is one transaction (metrics, rollouts, ledger, the source's state), flushed to the disk before `write_step`
returns: after a crash at any instant the file holds whole steps and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import maieutic
from maieutic.errors import RunError
from maieutic.run.durable import sync
from maieutic.run.records import (
    FORGET,
    FORGET_ROWS,
    INSERT_ROLLOUT,
    INSERT_TASK,
    SCHEMA_VERSION,
    SELECT_DRAWN,
    SELECT_NAMES,
    SELECT_ROLLOUT,
    SELECT_STEP_METRICS,
    STEP_TABLES,
    TABLES,
    StoredEvaluation,
    StoredEvent,
    StoredRollout,
    StoredStep,
    clean,
    rollout_rows,
    stored_rollout,
    task_row,
)
from maieutic.types import Step

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn what SQLite says into a RunError with a remedy. Misuse of the connection by our own code passes through."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", None)
        if code is None:
            raise
        raise RunError(f"cannot {doing} in {path}: {error} ({code}). {_remedy(code, path)}") from error


def _remedy(code: str, path: Path) -> str:
    if code.startswith("SQLITE_FULL") or code.startswith("SQLITE_IOERR"):
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        free = shutil.disk_usage(folder).free / 2**20
        return (
            f"The disk or a quota is full ({free:.0f} MiB free on it), or the disk fails. What was written before is "
            "intact: make room and go on with --resume."
        )
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "Another process writes it and did not let go; only one may write a run. Stop the other one."
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "The file is damaged. Put a backup of it back, or start anew with another --run."
    if code.startswith("SQLITE_CONSTRAINT"):
        return "It was written already; a resumed run must rewind the store to its checkpoint before it goes on."
    if code.startswith("SQLITE_READONLY"):
        return "It is open for reading only, or the file may not be written; check its permissions."
    if code.startswith("SQLITE_CANTOPEN"):
        return "Expected a run's database there; check the run's name and the permissions of its folder."
    return "Expected a database written by maieutic; check the file, or start anew with another --run."


class Store:
    """The database of a run, open for writing: `with Store(folder / "run.db") as store: store.write_step(...)`.

    Opening an existing file checks it first. Raises RunError when it is damaged, foreign, or of a newer schema.
    May be used from several threads. `patience`: seconds to wait for another process that is writing.
    """

    def __init__(self, path: Path | str, *, readonly: bool = False, patience: float = 30.0) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        existed = self.path.exists() and self.path.stat().st_size > 0
        if readonly and not existed:
            raise RunError(f"no run database at {self.path}: expected a file that a run wrote; check the run's name")
        mode = "ro" if readonly else "rwc"
        if readonly and not os.access(self.path.absolute().parent, os.W_OK) and not self._wal.exists():
            mode = "ro&immutable=1"  # an archive: SQLite may not put its lock files beside it, and nobody writes it
        with explained(self.path, "open the database"):
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}",
                uri=True, timeout=patience, isolation_level=None, check_same_thread=False,
            )  # fmt: skip
        self._db.row_factory = sqlite3.Row
        try:
            with explained(self.path, "open the database"):
                self._db.execute("PRAGMA synchronous = FULL")
                self._check_schema()
                if not readonly:
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.execute(f"PRAGMA journal_size_limit = {64 * 2**20}")
            if not readonly:
                if existed:
                    self.check()
                self._create()
                sync(self.path.parent)
        except BaseException:
            self._db.close()
            raise

    @property
    def _wal(self) -> Path:
        return self.path.with_name(f"{self.path.name}-wal")

    @classmethod
    def open_reader(cls, path: Path | str) -> Self:
        """The store for reading only, while another process may be writing it."""
        return cls(path, readonly=True)

    def _check_schema(self) -> None:
        tables = {row["name"] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return  # killed before the first transaction: as good as new
        if "meta" not in tables:
            raise RunError(f"{self.path} is not a run's database: got tables {sorted(tables)}; choose another --run")
        meta = {row["key"]: row["value"] for row in self._db.execute("SELECT key, value FROM meta")}
        if int(meta["schema"]) > SCHEMA_VERSION:
            raise RunError(
                f"{self.path} has schema {meta['schema']}, written by maieutic {meta['maieutic']}; this is maieutic "
                f"{maieutic.__version__}, which reads up to schema {SCHEMA_VERSION}. Upgrade maieutic to open it."
            )

    def _create(self) -> None:
        with self._transaction("create the tables") as db:
            if db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").fetchone()[0]:
                return
            for statement in TABLES:
                db.execute(statement)
            versions = [("schema", str(SCHEMA_VERSION)), ("maieutic", maieutic.__version__)]
            db.executemany("INSERT INTO meta VALUES (?, ?)", versions)

    def check(self) -> None:
        """Raise RunError unless SQLite finds the file sound (`PRAGMA quick_check`)."""
        found = [row[0] for row in self._read("check the database", "PRAGMA quick_check(3)")]
        if found != ["ok"]:
            raise RunError(
                f"{self.path} is damaged: {'; '.join(found).replace(chr(10), ' ')}. "
                "Put a backup of it back, or start anew with another --run."
            )

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[sqlite3.Connection]:
        with self._lock, explained(self.path, doing):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite has rolled back already after a failed write
                    self._db.execute("ROLLBACK")
                raise

    def _read(self, doing: str, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock, explained(self.path, doing):
            return self._db.execute(query, values).fetchall()

    def _pairs(self, doing: str, query: str, *values: Any) -> list[tuple[Any, Any]]:
        """As `_read`, of two columns and as plain tuples: a long run's curves have hundreds of thousands of points."""
        with self._lock, explained(self.path, doing):
            cursor = self._db.cursor()
            cursor.row_factory = None
            return cursor.execute(query, values).fetchall()

    # ---- writing

    def write_step(
        self,
        stage: str,
        step: Step,
        *,
        advantages: Tensor | None = None,
        ledger: Sequence[tuple[int, str]] = (),
        seconds: float = 0.0,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        """Write all of a step, or nothing.

        `advantages [B, T]` are the batch's own unless given; `ledger` holds (visit, task id) of every task that the
        step drew, a visit being counted once in a stage; `source` is the source's state after the step, of which
        only the newest is kept (it may hold something of every task).
        Raises RunError when the step or a visit was written before, or the disk is full; ValueError when group ids
        repeat or advantages do not fit the examples.
        """
        rows = rollout_rows(stage, step, advantages)
        metrics = [(stage, name, step.index, float(value)) for name, value in step.metrics.items()]
        state = None if source is None else json.dumps(source)
        with self._transaction(f"write step {step.index} of stage {stage!r}") as db:
            db.execute("UPDATE steps SET source = NULL WHERE stage = ? AND step = ?", (stage, step.index - 1))
            db.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?)", (stage, step.index, time.time(), seconds, state))
            db.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", metrics)
            db.executemany(INSERT_TASK, [task_row(group.task) for group in step.groups])
            db.executemany(INSERT_ROLLOUT, rows)
            visits = [(stage, visit, step.index, clean(task_id)) for visit, task_id in ledger]
            db.executemany("INSERT INTO ledger VALUES (?, ?, ?, ?)", visits)

    def write_metrics(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics of a step that is stored, in place of those of the same names."""
        rows = [(stage, name, step, float(value)) for name, value in metrics.items()]
        with self._transaction(f"write metrics of step {step}") as db:
            db.executemany("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)", rows)

    def write_event(
        self, stage: str, step: int, kind: str, message: str, data: Mapping[str, Any] | None = None
    ) -> None:
        """Write something worth telling that happened at a step; `data` is JSON."""
        row = (time.time(), stage, step, kind, clean(message), json.dumps(dict(data or {})))
        with self._transaction(f"write an event at step {step}") as db:
            db.execute("INSERT INTO events(time, stage, step, kind, message, data) VALUES (?, ?, ?, ?, ?, ?)", row)

    def write_evaluation(
        self, stage: str, step: int, name: str, result: Mapping[str, Any], curves: Mapping[str, float] | None = None
    ) -> None:
        """Write the result (JSON) of the evaluation `name` after a step, in place of an earlier one there.

        `curves`: metrics that go beside those of the step.
        """
        row = (stage, name, step, time.time(), json.dumps(dict(result)))
        metrics = [(stage, metric, step, float(value)) for metric, value in (curves or {}).items()]
        with self._transaction(f"write evaluation {name!r} at step {step}") as db:
            db.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?)", row)
            db.executemany("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)", metrics)

    def rewind(self, stage: str, step: int, *, later: Sequence[str] = ()) -> None:
        """Forget all that the stage did after `step` (-1: all of it) and everything of the `later` stages."""
        with self._transaction(f"rewind stage {stage!r} to step {step}") as db:
            for table in STEP_TABLES:
                db.execute(FORGET.get(table, FORGET_ROWS).format(table=table), (stage, step))
                db.executemany(f"DELETE FROM {table} WHERE stage = ?", [(name,) for name in later])

    # ---- reading: curves

    def stages(self) -> list[str]:
        """The stages that wrote anything, in the order in which they began."""
        query = """SELECT stage FROM (SELECT stage, time FROM steps UNION ALL SELECT stage, time FROM evaluations)
                   GROUP BY stage ORDER BY min(time)"""
        return [row["stage"] for row in self._read("list the stages", query)]

    def steps(self, stage: str) -> list[StoredStep]:
        """The steps of a stage in order."""
        query = "SELECT stage, step, time, seconds FROM steps WHERE stage = ? ORDER BY step"
        return [StoredStep(*row) for row in self._read("list the steps", query, stage)]

    def seconds(self, stage: str) -> float:
        """How long the steps of a stage took together."""
        return self._read("add up the steps", "SELECT total(seconds) FROM steps WHERE stage = ?", stage)[0][0]

    def last_step(self, stage: str) -> int | None:
        """The last step that the stage completed."""
        return self._read("find the last step", "SELECT max(step) FROM steps WHERE stage = ?", stage)[0][0]

    def source_state(self, stage: str, step: int) -> dict[str, Any] | None:
        """The state of the source after a step, where it is kept: of the newest one."""
        rows = self._read("read the source", "SELECT source FROM steps WHERE stage = ? AND step = ?", stage, step)
        return json.loads(rows[0]["source"]) if rows and rows[0]["source"] is not None else None

    def metric_names(self, stage: str | None = None) -> list[str]:
        """The names of all metrics, sorted."""
        stages = [stage] if stage is not None else self.stages()
        return sorted({row[0] for each in stages for row in self._read("list the metrics", SELECT_NAMES, each)})

    def metrics(self, stage: str | None, name: str) -> list[tuple[int, float]]:
        """The curve of a metric, (step, value) in order; of all stages one after the other where `stage` is None."""
        query = "SELECT step, value FROM metrics WHERE stage = ? AND name = ? ORDER BY step"
        rows = [row for each in ([stage] if stage is not None else self.stages())
                for row in self._pairs(f"read metric {name!r}", query, each, name)]  # fmt: skip
        if None not in [value for _, value in rows]:  # as most are: nothing is made anew
            return rows
        return [(step, math.nan if value is None else value) for step, value in rows]

    def step_metrics(self, stage: str, step: int) -> dict[str, float]:
        """All metrics of one step."""
        rows = self._pairs(f"read step {step}", SELECT_STEP_METRICS, stage, step)
        return {name: math.nan if value is None else value for name, value in rows}

    # ---- reading: rollouts

    def count_rollouts(self, stage: str | None = None, step: int | None = None) -> int:
        """How many rollouts there are, of a stage and of a step where given."""
        where, values = _where(stage, step)
        return self._read("count rollouts", f"SELECT count(*) FROM rollouts {where}", *values)[0][0]

    def rollout(self, id: int) -> StoredRollout | None:
        """The rollout with this id."""
        rows = self._read(f"read rollout {id}", f"{SELECT_ROLLOUT} WHERE rollouts.id = ?", id)
        return stored_rollout(rows[0]) if rows else None

    def rollouts(
        self, stage: str | None = None, step: int | None = None, *, limit: int = 50, offset: int = 0
    ) -> list[StoredRollout]:
        """A page of rollouts in the order in which they were written."""
        return self._page(*_where(stage, step), "id", limit, offset)

    def recent(
        self, limit: int = 50, *, stage: str | None = None, step: int | None = None, offset: int = 0
    ) -> list[StoredRollout]:
        """A page of rollouts, the last written first."""
        return self._page(*_where(stage, step), "id DESC", limit, offset)

    def best(
        self, limit: int = 50, *, stage: str | None = None, step: int | None = None, offset: int = 0
    ) -> list[StoredRollout]:
        """A page of scorable rollouts, the highest reward first and among equals the last written first."""
        return self._page(*_where(stage, step, scorable=True), "reward DESC, id DESC", limit, offset)

    def worst(
        self, limit: int = 50, *, stage: str | None = None, step: int | None = None, offset: int = 0
    ) -> list[StoredRollout]:
        """A page of scorable rollouts, the lowest reward first and among equals the first written first."""
        return self._page(*_where(stage, step, scorable=True), "reward, id", limit, offset)

    def _page(self, where: str, values: list[Any], order: str, limit: int, offset: int) -> list[StoredRollout]:
        # the page is found in an index alone; only its own rows, with their blobs, are then read
        ids = self._read("list rollouts", f"SELECT id FROM rollouts {where} ORDER BY {order} LIMIT ? OFFSET ?",
                         *values, limit, offset)  # fmt: skip
        found = (self.rollout(row["id"]) for row in ids)
        return [rollout for rollout in found if rollout is not None]  # a rewind may come between

    # ---- reading: the rest

    def ledger(self, stage: str) -> list[tuple[int, str]]:
        """(visit, task id) of every task that the stage drew, in order."""
        rows = self._read("read the ledger", "SELECT visit, task_id FROM ledger WHERE stage = ? ORDER BY visit", stage)
        return [(row["visit"], row["task_id"]) for row in rows]

    def drawn(self, task_ids: Iterable[str]) -> set[str]:
        """Which of these tasks some stage drew."""
        asked = json.dumps([clean(task_id) for task_id in task_ids])
        return {row["task_id"] for row in self._read("read the ledger", SELECT_DRAWN, asked)}

    def events(self, stage: str | None = None, *, limit: int = 1000, offset: int = 0) -> list[StoredEvent]:
        """A page of events, the last first."""
        query = """SELECT time, stage, step, kind, message, data FROM events WHERE ?1 IS NULL OR stage = ?1
                   ORDER BY id DESC LIMIT ?2 OFFSET ?3"""
        rows = self._read("read the events", query, stage, limit, offset)
        return [
            StoredEvent(row["time"], row["stage"], row["step"], row["kind"], row["message"], json.loads(row["data"]))
            for row in rows
        ]

    def evaluations(self, stage: str | None = None) -> list[StoredEvaluation]:
        """Every evaluation, in the order in which they were made."""
        query = """SELECT stage, step, name, time, json FROM evaluations WHERE ?1 IS NULL OR stage = ?1
                   ORDER BY time, rowid"""
        rows = self._read("read the evaluations", query, stage)
        return [
            StoredEvaluation(row["stage"], row["step"], row["name"], row["time"], json.loads(row["json"]))
            for row in rows
        ]

    def evaluation(self, stage: str, name: str) -> dict[str, Any] | None:
        """The latest result of the evaluation `name` in a stage."""
        query = "SELECT json FROM evaluations WHERE stage = ? AND name = ? ORDER BY step DESC LIMIT 1"
        rows = self._read(f"read evaluation {name!r}", query, stage, name)
        return json.loads(rows[0]["json"]) if rows else None


def _where(stage: str | None, step: int | None, *, scorable: bool = False) -> tuple[str, list[Any]]:
    terms = [("stage = ?", stage), ("step = ?", step)]
    given = [(term, value) for term, value in terms if value is not None]
    parts = [term for term, _ in given] + (["reward IS NOT NULL"] if scorable else [])
    return f"WHERE {' AND '.join(parts)}" if parts else "", [value for _, value in given]
