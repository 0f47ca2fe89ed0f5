"""`maieutic eval`: how often a model is right, with intervals, and whether it beats another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.likelihood import Examined, check_likelihood, examine
from maieutic.cli.models import (
    Device,
    Length,
    ModelName,
    Options,
    Speaker,
    TaskName,
    Template,
    Threads,
    found_model,
    load,
)
from maieutic.cli.screen import Json, Quiet, Screen, screen, writable
from maieutic.cli.values import settings, taskset
from maieutic.errors import ConfigError, DataError
from maieutic.run.interrupt import unkept

if TYPE_CHECKING:
    from maieutic.evaluate import Evaluation
    from maieutic.protocols import Taskset


#: Share of samples without a readable answer from which on it is said.
UNPARSED = 0.5

Against = Annotated[
    str | None,
    typer.Option(
        metavar="OTHER",
        help="Compare with it: a saved evaluation (.json) or a model.",
        autocompletion=complete.evaluations,
    ),
]
Form = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="With --likelihood: cloze (options are completions) or letters.",
        autocompletion=complete.among(cloze="options are completions", letters="options have letters"),
    ),
]


def evaluate(
    context: typer.Context,
    model: ModelName,
    task: TaskName,
    samples: Annotated[int, typer.Option(min=0, metavar="N", help="Samples of each task.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="The first so many tasks only.")] = None,
    temperature: Annotated[float, typer.Option(metavar="T", help="Of the samples.")] = 1.0,
    k: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Of pass@k, vote@k, strict@k.", show_default="samples")
    ] = None,
    max_completion_length: Length = None,
    options: Options = None,
    no_greedy: Annotated[bool, typer.Option("--no-greedy", help="Leave the sample at temperature 0 out.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Seeds the samples.")] = 0,
    against: Against = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the whole evaluation, for --against.")] = None,
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Score the options of questions instead of sampling: base models.")
    ] = False,
    form: Form = "cloze",
    template: Template = None,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Evaluate a model on tasks: greedy, pass@k, votes, each with its 95 % interval.

    With --against the same problems are compared one by one, which separates models with far fewer of them. With
    --likelihood nothing is sampled: of questions with options (ai2_arc, multiple_choice) the likeliest option is taken.
    """
    show = screen(context, json, quiet)
    if save is not None:
        writable(save, "--save")
    if k is not None and k > samples:
        raise ConfigError(f"got --k {k} with --samples {samples}; expected k of at most the samples: --samples {k}")
    tasks = taskset(task, settings(options or []), split="test")
    check_likelihood(context, likelihood)
    if likelihood:
        examine(Examined(show, tasks, form, limit, device, threads, template), model, task, against, _saved, save)
        return
    how = {"samples": samples, "limit": limit, "temperature": temperature, "greedy": not no_greedy, "seed": seed}
    speaker = partial(load, device=device, threads=threads, template=template)
    asked = _Asked(show, tasks, how, max_completion_length, k, speaker)
    old = None if against is None else _saved(against)
    if against is not None and old is None:
        found_model(against)  # a misspelt one should fail before the first model is evaluated
    made = asked.ask(model)
    if save is not None:
        save.write_text(made.to_json(), encoding="utf-8")
    if against is not None and old is None:
        old = asked.ask(against)
    _say(show, made, old, {"model": model, "task": task, "against": against})


@dataclass(frozen=True)
class _Asked:
    """The tasks and how they are asked: the same for both models of a comparison."""

    show: Screen
    tasks: Taskset
    how: Mapping[str, Any]
    length: int | None
    k: int | None
    load: Callable[[str], Speaker]

    def ask(self, model: str) -> Evaluation:
        """What the model answers, judged."""
        from maieutic.cli.progress import display

        speaker = self.load(model)
        if speaker.note:
            self.show.note(speaker.note)
        from maieutic.evaluate import evaluate_sync

        with unkept("an evaluation"), display(self.show) as shown:
            made = evaluate_sync(
                speaker.sampler,
                speaker.chat,
                self.tasks,
                max_tokens=speaker.length(self.length),
                **self.how,
                on_progress=lambda done, total: shown.show(f"evaluate {model}", done, total),
            )
        ks = () if self.k is None else (self.k,)
        return replace(made, ks=ks, settings={**made.settings, "model": model})


def _saved(against: str) -> Evaluation | None:
    """The evaluation in a file; None where a model is meant."""
    path = Path(against)
    if path.suffix.lower() != ".json":
        return None
    from maieutic.evaluate import Evaluation
    from maieutic.tasks.files import existing

    try:
        return Evaluation.from_json(existing(path).read_text(encoding="utf-8"))
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"--against {against}: {error}; make one with `maieutic eval … --save {against}`") from error


def _say(show: Screen, made: Evaluation, old: Evaluation | None, names: dict[str, str | None]) -> None:
    from maieutic.cli.tables import compare, evaluation_table, json_of, print_differences

    metrics = made.metrics()
    show.out.print(evaluation_table(made, metrics))
    if metrics["unparsed"].value > UNPARSED:
        show.note(
            f"no answer was found in {metrics['unparsed'].percent()} of the samples: does the model write answers as "
            "the verifier reads them? `maieutic sample` shows what it writes; --set verifier=flexible reads the last "
            "number"
        )
    data: dict[str, Any] = {**names, "problems": len(made.problems), "settings": dict(made.settings)}
    data["metrics"] = json_of(metrics)
    if old is not None:
        for key in ("temperature", "max_tokens"):
            if made.settings.get(key) != old.settings.get(key):
                show.note(f"{key} is {made.settings.get(key)} here and {old.settings.get(key)} in {names['against']}")
        found = compare(made, old)
        data["against_metrics"] = json_of(old.metrics())
        data["difference"] = json_of(found)
        print_differences(show.out, found, f"{names['model']} against {names['against']}, on the same problems")
    show.write_json(data)
