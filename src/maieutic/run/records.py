"""The tables of `run.db`, and how a step becomes rows and rows become types again.

Letters: `T` tokens of one rollout. Blobs are little-endian: tokens int32 [T], mask packed bits [T], log-probs and
advantages float32 [T]. A task is stored once, whatever the number of its rollouts; it is known by a digest of all
that is stored of it, because two stages may ask the same task id with different prompts.

SQLite has no NaN: a NaN metric is stored as NULL and read as NaN; a NaN reward is read as None (unscorable).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from maieutic.types import Finish, Group, Message, Rollout, Score, Span, Step, Task

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]

#: Raised by one whenever a table changes its meaning; a store of a newer schema is refused.
SCHEMA_VERSION = 1

TABLES = (
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE steps(stage TEXT NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL, seconds REAL NOT NULL,
        source TEXT, PRIMARY KEY(stage, step))""",
    """CREATE TABLE metrics(stage TEXT NOT NULL, name TEXT NOT NULL, step INTEGER NOT NULL, value REAL,
        PRIMARY KEY(stage, name, step)) WITHOUT ROWID""",
    """CREATE TABLE tasks(key INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, id TEXT NOT NULL,
        prompt TEXT NOT NULL, answer TEXT)""",
    """CREATE TABLE rollouts(id INTEGER PRIMARY KEY, stage TEXT NOT NULL, step INTEGER NOT NULL,
        "group" INTEGER NOT NULL, sibling INTEGER NOT NULL, task INTEGER NOT NULL REFERENCES tasks(key),
        reward REAL, correct INTEGER,
        finish TEXT NOT NULL, version INTEGER NOT NULL, temperature REAL NOT NULL, prompt_length INTEGER NOT NULL,
        text TEXT NOT NULL, note TEXT NOT NULL, score_note TEXT NOT NULL, parts TEXT NOT NULL,
        step_rewards TEXT NOT NULL, spans TEXT NOT NULL,
        tokens BLOB NOT NULL, mask BLOB NOT NULL, logprobs BLOB NOT NULL, advantages BLOB)""",
    "CREATE INDEX rollouts_by_step ON rollouts(step, stage, reward)",
    "CREATE INDEX rollouts_by_reward ON rollouts(reward)",
    "CREATE INDEX rollouts_by_stage ON rollouts(stage, reward)",
    """CREATE TABLE ledger(stage TEXT NOT NULL, visit INTEGER NOT NULL, step INTEGER NOT NULL, task_id TEXT NOT NULL,
        PRIMARY KEY(stage, visit)) WITHOUT ROWID""",
    """CREATE TABLE events(id INTEGER PRIMARY KEY, time REAL NOT NULL, stage TEXT NOT NULL, step INTEGER NOT NULL,
        kind TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL)""",
    """CREATE TABLE evaluations(stage TEXT NOT NULL, name TEXT NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL,
        json TEXT NOT NULL, PRIMARY KEY(stage, name, step))""",
)

#: Tables whose rows belong to a step of a stage: what `Store.rewind` clears.
STEP_TABLES = ("steps", "metrics", "rollouts", "ledger", "events", "evaluations")

INSERT_TASK = "INSERT OR IGNORE INTO tasks(digest, id, prompt, answer) VALUES (?, ?, ?, ?)"

INSERT_ROLLOUT = """INSERT INTO rollouts(stage, step, "group", sibling, task, reward, correct, finish, version,
    temperature, prompt_length, text, note, score_note, parts, step_rewards, spans, tokens, mask, logprobs, advantages)
    VALUES (?, ?, ?, ?, (SELECT key FROM tasks WHERE digest = ?),
            ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

SELECT_ROLLOUT = """SELECT rollouts.*, tasks.id AS task_id, tasks.prompt, tasks.answer
    FROM rollouts JOIN tasks ON tasks.key = rollouts.task"""

# A stage of a long run has as many rows of metrics as steps times names. These go from name to name, a seek in the
# table each, where a plain DISTINCT would read them all.
_NAMES = """WITH RECURSIVE names(name) AS (
        SELECT min(name) FROM metrics WHERE stage = ?1
        UNION ALL
        SELECT (SELECT min(name) FROM metrics WHERE stage = ?1 AND metrics.name > names.name)
        FROM names WHERE names.name IS NOT NULL)"""

SELECT_NAMES = f"{_NAMES} SELECT name FROM names WHERE name IS NOT NULL"

SELECT_STEP_METRICS = f"""{_NAMES} SELECT metrics.name, value FROM names CROSS JOIN metrics
    WHERE metrics.stage = ?1 AND metrics.name = names.name AND metrics.step = ?2"""

SELECT_DRAWN = "SELECT DISTINCT task_id FROM ledger WHERE task_id IN (SELECT value FROM json_each(?))"

#: Forgetting what came after a step (stage ?1, step ?2). Of the tables with a row for each step and metric, or for each
#: rollout, only the rows that go are looked at: the `+` keeps SQLite from taking the index that has all of the stage.
FORGET_ROWS = "DELETE FROM {table} WHERE stage = ?1 AND step > ?2"
FORGET = {
    "metrics": f"""{_NAMES} DELETE FROM metrics WHERE stage = ?1 AND step > ?2
        AND name IN (SELECT name FROM names WHERE name IS NOT NULL)""",
    "rollouts": "DELETE FROM rollouts WHERE +stage = ?1 AND step > ?2",
}


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A rollout as it was stored, with its task, its score and the credit of its tokens.

    `advantages [T]` is None where the rollout was not trained on as it stands, or the algorithm has no credit.
    `rollout.logprobs` went through float32; `task.meta` is not stored.
    """

    id: int
    stage: str
    step: int
    group: int
    task: Task
    rollout: Rollout
    score: Score
    advantages: Floats | None


@dataclass(frozen=True, slots=True)
class StoredStep:
    """When a step ended (seconds since 1970) and how long it took."""

    stage: str
    step: int
    time: float
    seconds: float


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """Something worth telling that happened at a step: `StoredEvent(…, kind="skipped", message="no signal", …)`."""

    time: float
    stage: str
    step: int
    kind: str
    message: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """The result of an evaluation named `name`, made after a step."""

    stage: str
    step: int
    name: str
    time: float
    result: Mapping[str, Any]


def clean(text: str) -> str:
    """The text as UTF-8 can hold it: a lone surrogate, which a tool's reply may carry, becomes `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def task_row(task: Task) -> tuple[bytes, str, str, str | None]:
    """The columns of a task: digest, id, prompt (JSON list of [role, content]), answer."""
    prompt = json.dumps([[message.role, message.content] for message in task.prompt])
    answer = None if task.answer is None else clean(task.answer)
    digest = hashlib.sha256(json.dumps([task.id, prompt, task.answer]).encode()).digest()
    return digest, clean(task.id), prompt, answer


def token_credits(step: Step, advantages: Tensor | None) -> dict[tuple[int, int, tuple[int, ...]], bytes]:
    """Advantages as blobs by (group, sibling, tokens).

    Row `i` of `advantages [B, T]` (the batch's own where None) speaks of `step.examples[i]`. The tokens are part of
    the key because a select may rewrite a rollout, and then its advantages speak of other tokens than the stored ones.
    """
    if advantages is None and step.batch is not None and step.batch.has("advantages"):
        advantages = step.batch.advantages
    if advantages is None:
        return {}
    table = advantages.detach().cpu().float().numpy().astype("<f4", copy=False)
    if len(table) != len(step.examples):
        raise ValueError(
            f"step {step.index}: got {len(table)} rows of advantages for {len(step.examples)} examples; "
            "row i of the batch must be examples[i]"
        )
    return {
        (example.group, example.rollout.sibling, example.rollout.tokens): row[: len(example.rollout.tokens)].tobytes()
        for example, row in zip(step.examples, table)
    }


def span_rows(spans: Sequence[Span]) -> list[list[Any]]:
    """Spans as JSON: role, start, stop, and the text and the messages where there are any; `Span.read` reads them."""
    return [
        [s.role, s.start, s.stop, *([clean(s.text)] if s.text or s.messages else []),
         *([[[m.role, clean(m.content)] for m in s.messages]] if s.messages else [])]
        for s in spans
    ]  # fmt: skip


def rollout_rows(stage: str, step: Step, advantages: Tensor | None) -> list[tuple[Any, ...]]:
    """One row of `INSERT_ROLLOUT` for each rollout of the step. Raises ValueError when two groups share an id."""
    ids = [group.id for group in step.groups]
    if len(set(ids)) < len(ids):
        raise ValueError(f"step {step.index}: group ids {ids} repeat; a source must number the groups of a step")
    known = token_credits(step, advantages)
    return [row for group in step.groups for row in _group_rows(stage, step.index, group, known)]


def _group_rows(
    stage: str, index: int, group: Group, known: Mapping[tuple[int, int, tuple[int, ...]], bytes]
) -> list[tuple[Any, ...]]:
    digest = task_row(group.task)[0]
    return [
        (
            stage, index, group.id, rollout.sibling, digest, score.reward,
            None if score.correct is None else int(score.correct),
            rollout.finish.value, rollout.version, rollout.temperature, rollout.prompt_length,
            clean(rollout.text), clean(rollout.note), clean(score.note),
            json.dumps({name: float(value) for name, value in score.parts.items()}), json.dumps(score.step_rewards),
            json.dumps(span_rows(rollout.spans)),
            np.asarray(rollout.tokens, dtype="<i4").tobytes(),
            np.packbits(np.asarray(rollout.mask, dtype=bool)).tobytes(),
            np.asarray(rollout.logprobs, dtype="<f4").tobytes(),
            known.get((group.id, rollout.sibling, rollout.tokens)),
        )
        for rollout, score in zip(group.rollouts, group.scores)
    ]  # fmt: skip


def stored_rollout(row: sqlite3.Row) -> StoredRollout:
    """The rollout, task and score of a row of `SELECT_ROLLOUT`."""
    tokens = tuple(np.frombuffer(row["tokens"], dtype="<i4").tolist())
    mask = np.unpackbits(np.frombuffer(row["mask"], dtype=np.uint8), count=len(tokens)).astype(bool)
    advantages = row["advantages"]
    return StoredRollout(
        id=row["id"], stage=row["stage"], step=row["step"], group=row["group"],
        task=Task(
            row["task_id"], tuple(Message(role, content) for role, content in json.loads(row["prompt"])), row["answer"]
        ),
        rollout=Rollout(
            row["task_id"], tokens, tuple(mask.tolist()),
            tuple(np.frombuffer(row["logprobs"], dtype="<f4").tolist()), Finish(row["finish"]), text=row["text"],
            spans=tuple(Span.read(span) for span in json.loads(row["spans"])),
            sibling=row["sibling"], version=row["version"], temperature=row["temperature"], note=row["note"],
        ),
        score=Score(
            row["reward"], None if row["correct"] is None else bool(row["correct"]), json.loads(row["parts"]),
            tuple((at, reward) for at, reward in json.loads(row["step_rewards"])), row["score_note"],
        ),
        advantages=None if advantages is None else np.frombuffer(advantages, dtype="<f4"),
    )  # fmt: skip
