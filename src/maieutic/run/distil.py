"""`maieutic distil`: explanations of a teacher written to a file, and a student fine-tuned on them.

    OUT/config.toml            what was asked
    OUT/explanations.jsonl     a demonstration a row, read by the taskset `file`; `….state.json` says how far it came
    OUT/preferences.jsonl      with collect.margin: which of two explanations of the teacher's is better, for dpo
    OUT/student/               the student's run, an ordinary one of one stage

Both parts can be stopped anywhere and go on to the same bytes and weights. What comes after (reinforcement learning
from this student) is a run of its own, that begins with the model of `OUT/student`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maieutic.config import Config, parse_config, write_toml
from maieutic.config.teaching import DistilConfig
from maieutic.errors import ConfigError, DataError
from maieutic.loops import run_async
from maieutic.models.find import find_model
from maieutic.protocols import Chat, Reward
from maieutic.rollout import Roller
from maieutic.run.durable import write_text
from maieutic.run.runner import Interrupted
from maieutic.run.tasksets import Tasksets
from maieutic.run.teaching import TAUGHT, lessons, tables, teaching_reward
from maieutic.teaching.collect import Collected, Collector, Rank, by_exam, by_reward, in_order, unjudged
from maieutic.teaching.exams import Examinee, Examiner

if TYPE_CHECKING:
    from maieutic.backends.local import LocalBackend
    from maieutic.models.causal import CausalModel
    from maieutic.protocols import Taskset

#: Lessons that are asked at once, for the engine to batch.
CHUNK = 32
FILE, PREFERENCES, STUDENT = "explanations.jsonl", "preferences.jsonl", "student"

Watch = Callable[[int, int], None]


def begin(config: DistilConfig, out: Path, *, resume: bool) -> None:
    """Make the folder and write down what was asked. Raises ConfigError where it holds something else."""
    note, told = out / "config.toml", write_toml(config)
    if note.is_file():
        if not resume:
            raise ConfigError(f"{out} is there already; go on with --resume, or choose another --out")
        if note.read_text(encoding="utf-8") != told:
            raise ConfigError(f"{out} was begun with other settings (see {note}); give the same, or another --out")
        return
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty, and was not begun by `maieutic distil`; choose another --out")
    # what cannot be carried out leaves no folder behind, which would be in the way of the next attempt
    spec = config.collect
    for name in (config.teacher, *([] if spec.student is None else [spec.student]), *spec.students):
        find_model(name)
    Tasksets(lessons_alone(config))[TAUGHT]
    out.mkdir(parents=True, exist_ok=True)
    write_text(note, told)


def collect(
    config: DistilConfig, out: Path, *, watch: Watch = lambda *_: None, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Write the explanations, from where an earlier attempt has come to; returns what is in the file.

    `stop` is asked after each handful of lessons. Raises Interrupted when it was asked to stop.
    """
    file, note = out / FILE, out / f"{FILE}.state.json"
    files = {FILE: file} if config.collect.margin is None else {FILE: file, PREFERENCES: out / PREFERENCES}
    fresh: dict[str, Any] = {"done": 0, "left_out": 0, "bytes": dict.fromkeys(files, 0)}
    state: dict[str, Any] = json.loads(note.read_text()) if note.is_file() else fresh
    tasksets = Tasksets(lessons_alone(config))
    taught = tasksets[TAUGHT]
    total = len(taught) if config.collect.limit is None else min(config.collect.limit, len(taught))
    collector = None if state["done"] >= total else make_collector(config, taught, tasksets)
    for name, path in files.items():
        with path.open("ab") as written:
            written.truncate(state["bytes"][name])
    while collector is not None and state["done"] < total:
        watch(state["done"], total)
        chunk = range(state["done"], min(state["done"] + CHUNK, total))
        found = run_async(_chunk(collector, chunk))
        rows = {FILE: [each.row for each in found if each.row is not None],
                PREFERENCES: [row for each in found for row in each.preferences]}  # fmt: skip
        for name, path in files.items():
            _append(path, rows[name])
        left_out = state["left_out"] + len(found) - len(rows[FILE])
        sizes = {name: path.stat().st_size for name, path in files.items()}
        state = {"done": chunk.stop, "left_out": left_out, "bytes": sizes}
        write_text(note, json.dumps(state))
        if stop() and state["done"] < total:
            raise Interrupted(f"stopped after {state['done']} of {total} lessons; go on with --resume")
    watch(total, total)
    return {"file": str(file), "lessons": total, "left_out": state["left_out"], **counted(file)}


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("ab") as written:
        written.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        written.flush()
        os.fsync(written.fileno())


async def _chunk(collector: Collector, chunk: range) -> list[Collected]:
    return list(await asyncio.gather(*(collector(index) for index in chunk)))


def counted(file: Path) -> dict[str, Any]:
    """How many explanations there are, how many are closed and how many are reserved ones, the mean of their tokens
    and of their rewards. Raises DataError where there is none."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if not rows:
        raise DataError(
            f"{file}: no lesson has an explanation; `maieutic show` the teacher's run to see what it writes"
        )
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    return {
        "explanations": len(rows),
        "closed": sum(row["closed"] for row in rows),
        "reserved": sum(row["candidate"] is None for row in rows),
        "tokens": sum(row["tokens"] for row in rows) / len(rows),
        "reward": sum(rewards) / len(rewards) if rewards else None,
    }


def lessons_alone(config: DistilConfig) -> Config:
    """A config for its tables of tasks only, the lessons among them."""
    tasks = {**tables(config.tasks), TAUGHT: lessons(config, config.collect.tasks)}
    stage = {"algorithm": "sft", "tasks": TAUGHT, "steps": 1}
    return parse_config({**config.engine(), "model": {"path": config.teacher}, "tasks": tasks, "stages": [stage]})


def make_collector(config: DistilConfig, taught: Taskset, tasksets: Tasksets) -> Collector:
    """Teacher, reward and examiner, loaded. Raises ModelError for a model that there is not."""
    from maieutic.backends.local import LocalBackend

    spec = config.collect
    backend = LocalBackend(config.device, config.threads, config.max_rows, config.micro_batch_tokens)
    teacher = load(config, config.teacher, config.template)
    reward: Reward = unjudged
    if spec.student is not None:
        reward = teaching_reward(spec.student, teacher.chat, **{"device": config.device, **spec.reward})
    roller = Roller(
        backend.sampler(teacher), teacher.chat, reward, max_completion_length=spec.max_completion_length,
        temperature=spec.temperature, seed=f"{config.seed}/distil",
    )  # fmt: skip
    ranks: dict[str, Callable[[], Rank]] = {
        "first": lambda: in_order,
        "reward": lambda: by_reward,
        "exam": lambda: by_exam(_examiner(config, backend, tasksets)),
    }
    return Collector(
        taught, roller, _reader(config, teacher), spec.candidates, ranks[spec.rank](), spec.reserved, spec.max_tokens,
        spec.margin,
    )  # fmt: skip


def load(config: DistilConfig, path: str, template: str = "auto") -> CausalModel:
    """A model that is not trained."""
    from maieutic.models.causal import load_causal

    return load_causal(path, device=config.device, dtype="auto", template=template)


def _reader(config: DistilConfig, teacher: CausalModel) -> Chat:
    """The chat of the student that is to learn, where it is known; else the teacher's."""
    if config.collect.max_tokens is None or config.student is None or config.student.model.path is None:
        return teacher.chat
    from maieutic.models.causal import load_tokenizer
    from maieutic.models.chat import chat_format

    return chat_format(load_tokenizer(config.student.model.path), config.student.model.template)


def _examiner(config: DistilConfig, backend: LocalBackend, tasksets: Tasksets) -> Examiner:
    spec = config.collect
    models = [load(config, path) for path in spec.students]
    students = [Examinee(backend.sampler(model), model.chat) for model in models]
    return Examiner(
        students, tasksets[spec.tasks], spec.exams, spec.repeats, spec.similar, spec.max_completion_length,
        spec.temperature, config.seed,
    )  # fmt: skip


def student_config(config: DistilConfig, out: Path) -> Config:
    """The student's run: fine-tuning on the file, and the evaluation that the config asks for."""
    spec = config.student
    if spec is None:
        raise ConfigError("got no [student] to fine-tune; add the table, or give --only-collect")
    tasks = {**tables(config.tasks), "explanations": {"taskset": "file", "path": str((out / FILE).resolve())}}
    said = spec.model_dump(exclude_none=True, exclude={"model"})
    if spec.steps is not None:
        said.pop("epochs", None)
    stage = {"name": "sft", "algorithm": "sft", "tasks": "explanations", **said}
    whole: dict[str, Any] = {"model": spec.model.model_dump(exclude_none=True), "tasks": tasks, "stages": [stage]}
    if config.evaluation is not None:
        whole["evaluation"] = config.evaluation.model_dump(exclude_none=True)
    return parse_config({**config.engine(), **whole}, "the config of a student")
