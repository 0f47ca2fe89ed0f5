"""A model from the command line: loaded, with a sampler and its chat format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from maieutic.cli import complete
from maieutic.cli.values import model_source, template_of

if TYPE_CHECKING:
    from maieutic.protocols import Chat, Sampler

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, the folder of a run (its newest checkpoint), or a Hub id.",
        autocompletion=complete.models,
    ),
]
TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="A taskset (see `maieutic tasks`), or a .jsonl, .json, .csv or .parquet file.",
        autocompletion=complete.tasksets,
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="An option of the taskset; may be repeated. The split is test unless it is set.",
    ),
]
TrainOptions = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the taskset. The split is train unless set."),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="The first so many tasks only.")]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, …", autocompletion=complete.among(cpu="", cuda=""))
]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads.")]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="auto, plain (no template: base models), or a Jinja file.",
        show_default="that of the model's run, else auto",
        autocompletion=complete.among(auto="the model's own", plain="no template: base models"),
    ),
]
Length = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Tokens a completion may have.",
        show_default="256, at most half of what the model can read",
    ),
]

#: Tokens a completion may have where nothing else is said.
LENGTH = 256


@dataclass(frozen=True)
class Speaker:
    """A model that can be asked: its sampler, its chat format, and how many tokens it can read (None: unknown)."""

    sampler: Sampler
    chat: Chat
    context: int | None
    note: str = ""
    """How it is asked, where that is not plainly."""

    def length(self, asked: int | None) -> int:
        """Tokens a completion may have: as asked for, else `LENGTH` but leaving half of the context to the prompt."""
        return asked or min(LENGTH, (self.context or 2 * LENGTH) // 2)


def found_model(name: str) -> str:
    """Where the model of that name is. Raises ModelError, with the nearest folder, when there is none."""
    from maieutic.models.find import find_model

    source = model_source(name)
    find_model(source)
    return source


def load(name: str, *, device: str, threads: int | None, template: str | None = None) -> Speaker:
    """The model of that name, asked as it was trained; errors as `found_model`, and those of loading."""
    source = found_model(name)  # before the slow imports: a misspelt path should fail at once
    from maieutic.backends.local import LocalBackend
    from maieutic.environments.conditioned import as_trained, read_inference
    from maieutic.models.causal import load_causal

    model = load_causal(source, device=device, template=template or template_of(source))
    context = getattr(getattr(model.module, "config", None), "max_position_embeddings", None)
    sampler, chat = as_trained(LocalBackend(device=device, threads=threads).sampler(model), model.chat, source)
    labels = read_inference(source)
    note = "" if labels is None else f"{name} is asked with {labels.good!r} before every step, as it was trained"
    return Speaker(sampler, chat, context, note)
