"""`maieutic reward label`: steps of sampled solutions, labelled by how often continuations from them are right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.models import Device, Length, Limit, ModelName, TaskName, Template, Threads, TrainOptions, load
from maieutic.cli.screen import Json, Quiet, Screen, screen, table, writable
from maieutic.cli.values import settings, taskset
from maieutic.errors import ConfigError, UnknownName
from maieutic.run.interrupt import interrupted

#: Name → the label of steps behind the first error, where nothing was asked.
AFTER = {"wrong": 0.0, "none": None}


Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where the labels go (JSON lines).")]
Search = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="all steps; first: until the first error; halving: bisection for it.",
        autocompletion=complete.among(all="steps", first="until the first error", halving="bisection for it"),
    ),
]
After = Annotated[
    str,
    typer.Option(
        metavar="LABEL",
        help="Of steps behind the first error that were not asked: wrong or none.",
        autocompletion=complete.among(wrong="", none=""),
    ),
]


def label_steps(
    context: typer.Context,
    model: ModelName,
    task: TaskName,
    out: Out = None,
    limit: Limit = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Solutions of each task.")] = 4,
    continuations: Annotated[int, typer.Option(min=1, metavar="N", help="From the end of each step.")] = 8,
    search: Search = "all",
    after: After = "wrong",
    hard: Annotated[bool, typer.Option("--hard", help="Labels are 1 where any continuation is right.")] = False,
    delimiter: Annotated[str, typer.Option(metavar="TEXT", help="What steps end in; \\n is a line break.")] = "\\n",
    temperature: Annotated[float, typer.Option(metavar="T", help="Of solutions and continuations.")] = 1.0,
    max_completion_length: Length = None,
    options: TrainOptions = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seeds everything that is drawn.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the file.")] = False,
    template: Template = None,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Sample solutions and label their steps by Monte-Carlo continuations (Math-Shepherd), for `maieutic reward train`.

    The soft label of a step is the share of continuations from its end that the task's verifier accepts, the hard one
    whether there is any; the last step has the verdict. Both are written; --hard says which are to be learned.
    """
    show = screen(context, json, quiet)
    out = _checked(out, search, after)
    given = settings(options or [])
    tasks = taskset(task, given, split="train")
    size = len(tasks) if limit is None else min(limit, len(tasks))
    speaker = load(model, device=device, threads=threads, template=template)
    if speaker.note:
        show.note(speaker.note)
    from maieutic.reward_models.labelling import Labeller
    from maieutic.step_rewards import MonteCarlo
    from maieutic.steps import Steps

    length, cut = speaker.length(max_completion_length), delimiter.replace("\\n", "\n")
    estimate = MonteCarlo(
        speaker.sampler, speaker.chat, tasks.verifier, continuations, length, temperature, tasks.tool, seed
    )
    labeller = Labeller(tasks, estimate, Steps(speaker.chat, cut), samples, search, AFTER[after])
    how = {
        "model": model, "task": task, "options": given, "samples": samples, "continuations": continuations,
        "search": search, "after": after, "delimiter": cut, "temperature": temperature, "length": length, "seed": seed,
    }  # fmt: skip
    found = _carry_out(show, labeller, out, how, tasks=size, hard=hard, resume=resume)
    _say(show, found, cut)
    show.write_json({**found, "settings": how})


def _checked(out: Path | None, search: str, after: str) -> Path:
    """The file, before anything slow is begun."""
    from maieutic.reward_models.labelling import SEARCHES

    if out is None:
        raise ConfigError("got no --out; expected the file to which the labels go, for example steps.jsonl")
    writable(out, "--out")
    if after not in AFTER:
        raise UnknownName("label behind the first error", after, AFTER)
    if search not in SEARCHES:
        raise UnknownName("search for the first error", search, SEARCHES)
    return out


def _carry_out(show: Screen, labeller: Any, out: Path, how: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    from maieutic.cli.progress import display
    from maieutic.run.reward_labels import write_labels

    with interrupted() as stop, display(show) as shown:
        return write_labels(
            labeller, out, how, **settings, stop=stop.is_set, watch=lambda done, total: shown.show("label", done, total)
        )


def _say(show: Screen, found: Mapping[str, Any], delimiter: str) -> None:
    cost = found["cost"]
    rows = table("", "", title=f"{found['solutions']:,} solutions of {found['tasks']:,} tasks")
    rows.add_row("right", f"{found['correct']:,}")
    rows.add_row("steps", f"{found['steps']:,}, of which {found['labelled']:,} have a label")
    if found["mean_label"] is not None:
        rows.add_row("mean label", f"{found['mean_label']:.3f}")
    rows.add_row("first error at step", ", ".join(f"{k}: {n:,}" for k, n in found["first_error_at"].items()) or "none")
    rows.add_row("prefixes asked", f"{cost['prefixes_asked']:,} of {cost['prefixes']:,}")
    rows.add_row("tokens written", f"{cost['solution_tokens']:,} for solutions, {cost['label_tokens']:,} for labels")
    rows.add_row("tokens read", f"{cost['read_tokens']:,}")
    show.out.print(rows)
    shown = delimiter.replace("\n", "\\n")
    extra = "" if delimiter == "\n" else f" --set 'delimiter=\"{shown}\"'"
    line = f"maieutic reward train --kind process --data {found['file']} --model MODEL --out DIR{extra}"
    show.out.print(f"learn from it: {line}", markup=False, highlight=False, soft_wrap=True)
