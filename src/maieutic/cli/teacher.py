"""`maieutic teacher …`: what a teacher says of shown solutions, or solutions of its own, on disk for students.

Nothing heavy is imported here: help and completion come at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.groups import group
from maieutic.cli.models import Device, Limit, TaskName, Template, Threads, TrainOptions, found_model
from maieutic.cli.screen import Json, Quiet, Screen, folder, screen, table, writable
from maieutic.cli.values import settings, taskset, template_of
from maieutic.errors import ConfigError, UnknownName

if TYPE_CHECKING:
    from maieutic.models.causal import CausalModel
    from maieutic.protocols import Taskset, Teacher

#: What `write` keeps, and whether that is only what is right.
KEEPS = {"correct": True, "all": False}

Who = Annotated[
    str,
    typer.Argument(
        metavar="TEACHER",
        help="A model folder, a run, a Hub id; with --url, the server's name for it.",
        autocompletion=complete.models,
    ),
]
Url = Annotated[str | None, typer.Option(metavar="URL", help="Of a server that speaks the OpenAI protocol (…/v1).")]
Key = Annotated[
    str | None, typer.Option("--api-key-env", metavar="NAME", help="The environment variable that holds its key.")
]


def record_teacher(
    context: typer.Context,
    teacher: Who,
    task: TaskName,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where it goes, or goes on.")] = None,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Likeliest tokens kept for each position.")] = 20,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Whose template and tokens are taken.",
            show_default="the teacher's own",
            autocompletion=complete.models,
        ),
    ] = None,
    url: Url = None,
    api_key_env: Key = None,
    numbers: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="float32, or float16 in half the space.",
            autocompletion=complete.among(float32="", float16="half the space"),
        ),
    ] = "float32",
    limit: Limit = None,
    options: TrainOptions = None,
    template: Template = None,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Write down how likely a teacher finds each token of the tasks' solutions, and the likeliest ones in its place.

    A stage with `[stages.teacher] recorded = "DIR"` learns from that (`distil`) with no teacher in memory. What is in
    DIR already is not asked for again.
    """
    show = screen(context, json, quiet)
    if out is None:
        raise ConfigError(
            "got no --out; expected the folder to which the recording goes, for example data/teacher-top20"
        )
    folder(out, "--out")
    if url is not None and student is None:
        raise ConfigError("got --url without --student; expected the model whose template and token ids are to be sent")
    tasks = taskset(task, settings(options or []), split="train")
    pupil = _loaded(student or teacher, device, template)
    if url is None:
        asked = _here(pupil if student is None else _loaded(teacher, device, "plain"), pupil, top, threads)
    else:
        asked = _served(url, teacher, api_key_env, pupil, top)
    who = teacher if url is None else f"{teacher} at {url}"
    found = _record(show, asked, tasks, pupil, out, who, top, numbers, limit)
    _say(show, f"{who}, {top} candidates a token", found)
    show.out.print(f'learn from it: algorithm = "distil", [stages.teacher] recorded = "{out}"', markup=False)
    show.write_json(found)


def _record(
    show: Screen, asked: Teacher, tasks: Taskset, pupil: CausalModel, out: Path, who: str, top: int, numbers: str,
    limit: int | None,
) -> dict[str, Any]:  # fmt: skip
    from maieutic.cli.progress import display
    from maieutic.run.interrupt import interrupted
    from maieutic.run.recording import record
    from maieutic.teachers.records import Origin, fingerprint

    vocabulary = pupil.tokenizer.get_vocab()
    kept = min(top, 1 + max(vocabulary.values()))
    origin = Origin(who, fingerprint(vocabulary), len(vocabulary), kept, numbers=numbers)
    with interrupted() as stop, display(show) as shown:
        found = record(
            asked, tasks, pupil.chat, out, origin, limit=limit, stop=stop.is_set,
            watch=lambda done, total: shown.show("record", done, total),
        )  # fmt: skip
    found |= {"folder": str(out), "bytes": sum(path.stat().st_size for path in out.iterdir())}
    return found | {name: value for name, value in getattr(asked, "asked", {}).items() if value}


def _here(speaker: CausalModel, pupil: CausalModel, top: int, threads: int | None) -> Teacher:
    from maieutic.backends.local import LocalBackend

    return LocalBackend(device=str(next(speaker.module.parameters()).device), threads=threads).teacher(
        speaker, pupil, top_k=top
    )


def _loaded(name: str, device: str, template: str | None) -> CausalModel:
    source = found_model(name)
    from maieutic.models.causal import load_causal

    return load_causal(source, device=device, template=template or template_of(source))


def _served(url: str, model: str, api_key_env: str | None, student: CausalModel, top: int) -> Teacher:
    from maieutic.endpoint import Endpoint
    from maieutic.teachers import EndpointTeacher

    endpoint = Endpoint(url, model, api_key_env=api_key_env, timeout_seconds=300.0)
    return EndpointTeacher(endpoint, student.tokenizer, top, student.source)


def write_teacher(
    context: typer.Context,
    teacher: Who,
    task: TaskName,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where it goes (JSON lines).")] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Texts of each task.")] = 4,
    most: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Texts kept of a task at most.", show_default="all")
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            help="correct, as the tasks' verifier says; or all.",
            autocompletion=complete.among(correct="as the tasks' verifier says", all=""),
        ),
    ] = "correct",
    temperature: Annotated[float, typer.Option(min=0.0, metavar="T", help="Of the texts.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens a text may have.")] = 512,
    url: Url = None,
    api_key_env: Key = None,
    limit: Limit = None,
    options: TrainOptions = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the file.")] = False,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Let a teacher write solutions, and keep those worth learning as demonstrations, for `sft`.

    Distillation by text: for teachers of another vocabulary, and for servers that say no log-probs.
    """
    show = screen(context, json, quiet)
    if out is None:
        raise ConfigError("got no --out; expected the file to which the solutions go, for example solutions.jsonl")
    writable(out, "--out")
    if keep not in KEEPS:
        raise UnknownName("choice of what to keep", keep, KEEPS)
    given = settings(options or [])
    tasks = taskset(task, given, split="train")
    if url is None:
        teacher = found_model(teacher)
    _threads(threads)
    how: dict[str, Any] = {
        "teacher": teacher, "url": url, "task": task, "options": given, "samples": samples, "most": most, "keep": keep,
        "temperature": temperature, "max_tokens": max_tokens,
    }  # fmt: skip
    found = _write(show, tasks, out, how, api_key_env, limit, resume, device)
    told = {**found, "bill": {name: value for name, value in found["bill"].items() if value}}
    _say(show, f"{found['kept']:,} solutions of {found['solved']:,} of {found['tasks']:,} tasks", told)
    show.out.print(f'learn from it: algorithm = "sft" on taskset = "file", path = "{out}"', markup=False)
    show.write_json({**found, "settings": how})


def _write(
    show: Screen, tasks: Taskset, out: Path, how: Mapping[str, Any], key: str | None, limit: int | None, resume: bool,
    device: str,
) -> dict[str, Any]:  # fmt: skip
    from maieutic.cli.progress import display
    from maieutic.run.interrupt import interrupted
    from maieutic.run.judges import respondent
    from maieutic.run.recording import write_solutions
    from maieutic.teachers.written import Writer

    # what is kept is in the file, so answers need no memory of their own
    asked = respondent(how["teacher"], how["url"], key, timeout_seconds=300.0, cache=False, device=device)
    numbers = {name: how[name] for name in ("samples", "most", "temperature", "max_tokens")}
    writer = Writer(asked, tasks, right_only=KEEPS[how["keep"]], **numbers)
    with interrupted() as stop, display(show) as shown:
        return write_solutions(
            writer, out, how, limit=limit, resume=resume, stop=stop.is_set,
            watch=lambda done, total: shown.show("write", done, total),
        )  # fmt: skip


def _threads(threads: int | None) -> None:
    if threads is not None:
        from maieutic.backends.local import LocalBackend

        LocalBackend(threads=threads)


def _say(show: Screen, title: str, found: dict[str, Any]) -> None:
    rows = table("", "", title=title)
    for name, value in found.items():
        amounts = value.items() if isinstance(value, dict) else ()
        told = ", ".join(f"{key} {round(each, 1):,.15g}" for key, each in amounts) if amounts else value
        rows.add_row(name.replace("_", " "), f"{told:,}" if isinstance(told, int) else str(told))
    show.out.print(rows)


#: Command → what it does, in the order in which `maieutic teacher --help` lists them.
COMMANDS: dict[str, Callable[..., None]] = {"record": record_teacher, "write": write_teacher}

#: Command → what stands at the end of its help.
EXAMPLES: dict[str, list[str]] = {
    "record": [
        "maieutic teacher record models/large gsm8k --student models/small --out data/large-top20",
        "maieutic teacher record large gsm8k --url http://127.0.0.1:8000/v1 --student models/small --out data/large",
    ],
    "write": [
        "maieutic teacher write models/large gsm8k --samples 4 --out solutions.jsonl",
        "maieutic teacher write large gsm8k --url https://api.example.com/v1 --api-key-env KEY --out solutions.jsonl",
    ],
}

teacher = group(
    "teacher",
    "Write down what a teacher says of solutions, or solutions of its own, for students to learn from.",
    COMMANDS,
    EXAMPLES,
)
