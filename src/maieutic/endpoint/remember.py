"""Answers on disk: what was asked once is not asked, and not paid, again.

    judge = Remembered(Endpoint(url, model), "answers.db")

The key is a hash of all that was asked: who, the messages, the settings, which of several samples. Any number of
processes may share the file (SQLite in write-ahead mode); where two ask the same at once, both get what was written
first. An answer is on disk before anybody sees it, so a run that is killed and goes on is told the same again, also by
a judge that would have changed its mind. Failures are not kept. `counts()` says how many answers there are, and how
often they were used again; deleting the file forgets them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maieutic.endpoint.once import Once
from maieutic.endpoint.reply import WITH_TEXT, Bill, Outcome, Reply, Respondent, special_tokens_of
from maieutic.errors import DataError
from maieutic.types import Message

log = logging.getLogger(__name__)

_TABLE = """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, outcome TEXT NOT NULL, text TEXT NOT NULL, note TEXT NOT NULL,
    hits INTEGER NOT NULL DEFAULT 0, made REAL NOT NULL) WITHOUT ROWID"""


def default_file() -> Path:
    """Where answers are kept unless told otherwise: `maieutic/answers.db` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maieutic" / "answers.db"


class Answers:
    """The file. Raises DataError where it cannot be opened, or is something else; opened by the first use."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._broken = False

    def look(self, key: str) -> Reply | None:
        """The answer, if it is there; its use is counted."""
        with self._lock, self._explained():
            row = self._read(key)
            if row is not None:
                self._write("UPDATE answers SET hits = hits + 1 WHERE key = ?", (key,))
            return row

    def keep(self, key: str, reply: Reply) -> Reply:
        """Write an answer down. What is there already wins, and is returned."""
        with self._lock, self._explained():
            kept = self._write(
                "INSERT OR IGNORE INTO answers (key, outcome, text, note, made) VALUES (?, ?, ?, ?, ?)",
                (key, reply.outcome.value, reply.text, reply.note, time.time()),
            )
            found = self._read(key) if kept else None
        return reply if found is None else Reply(found.outcome, found.text, found.note, bill=reply.bill)

    def counts(self) -> tuple[int, int]:
        """How many answers are there, and how often they were used again."""
        with self._lock, self._explained():
            row = self._open().execute("SELECT COUNT(*), COALESCE(SUM(hits), 0) FROM answers").fetchone()
        return int(row[0]), int(row[1])

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None and self._process == os.getpid():
                connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise DataError(
                f"{self.path}: cannot be used as a memory of answers ({error}); expected a file that is written here "
                "only, on a disk that can be written to. Remedy: give another path, or delete the file"
            ) from error

    def _read(self, key: str) -> Reply | None:
        row = self._open().execute("SELECT outcome, text, note FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else Reply(Outcome(row[0]), row[1], row[2])

    def _write(self, statement: str, values: tuple[Any, ...]) -> bool:
        """A full disk or a file that may only be read costs the memory, not the answer."""
        try:
            with self._open() as connection:
                connection.execute(statement, values)
        except sqlite3.OperationalError as error:
            if not self._broken:
                self._broken = True
                log.warning("%s: answers cannot be kept (%s); what is asked again will be paid again", self.path, error)
            return False
        return True

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._process != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            made = sqlite3.connect(self.path, timeout=30.0, check_same_thread=False)
            made.execute("PRAGMA journal_mode = WAL")
            made.execute("PRAGMA synchronous = NORMAL")  # survives a kill; a power cut may take the last answers
            made.execute(_TABLE)
            made.execute("SELECT outcome, text, note, hits FROM answers LIMIT 1")
            self._connection, self._process = made, os.getpid()
        return self._connection


class Remembered:
    """A respondent that asks another one only what it was not asked before; see above."""

    def __init__(self, respondent: Respondent, path: str | Path) -> None:
        self.respondent = respondent
        self.answers = Answers(path)
        self._once: Once[Reply] = Once()

    @property
    def name(self) -> str:
        """That of the respondent."""
        return self.respondent.name

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Those of the respondent's tokenizer, where it knows them."""
        return special_tokens_of(self.respondent)

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        sample: int = 0,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """The answer, from disk where it is there."""
        settings = {"max_tokens": max_tokens, "temperature": temperature, "sample": sample, "schema": schema}
        key = key_of(self.name, messages, settings)

        async def ask() -> Reply:
            found = await asyncio.to_thread(self.answers.look, key)
            if found is not None:
                return Reply(found.outcome, found.text, found.note, bill=Bill(cached=1))
            reply = await self.respondent.chat(messages, **settings)  # type: ignore[arg-type]
            return await asyncio.to_thread(self.answers.keep, key, reply) if reply.outcome in WITH_TEXT else reply

        reply, own = await self._once.get(key, ask)
        if own or reply.outcome not in WITH_TEXT:
            return reply
        return Reply(reply.outcome, reply.text, reply.note, bill=Bill(cached=1))

    def counts(self) -> tuple[int, int]:
        """How many answers are kept in the file, and how often they were used again."""
        return self.answers.counts()

    def close(self) -> None:
        """Close the file and what the respondent holds open."""
        self.answers.close()
        closing = getattr(self.respondent, "close", None)
        if closing is not None:
            closing()


def key_of(name: str, messages: Sequence[Message], settings: Mapping[str, Any]) -> str:
    """A hash of all that an answer depends on."""
    asked = {"who": name, "messages": [[m.role, m.content] for m in messages], **settings}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
