"""`maieutic eval --likelihood`: how likely a model finds each option of a question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from maieutic.cli.models import found_model
from maieutic.cli.screen import Screen, table
from maieutic.cli.values import template_of
from maieutic.errors import ConfigError
from maieutic.run.interrupt import unkept

if TYPE_CHECKING:
    from maieutic.evaluate import Evaluation
    from maieutic.likelihood import Likelihoods
    from maieutic.protocols import Taskset

#: Options of `maieutic eval` that say how to write, where nothing is written.
WRITING = ("samples", "temperature", "k", "max_completion_length", "no_greedy", "seed")
#: Measure → what it says.
SAYS: Mapping[str, str] = {
    "sum": "the likeliest option is right",
    "per_token": "the likeliest by its tokens",
    "per_byte": "the likeliest by its bytes: acc_norm of other harnesses",
    "errors": "longer than the model reads; counted as wrong",
}


@dataclass(frozen=True)
class Examined:
    """What is examined, and where models are put."""

    show: Screen
    tasks: Taskset
    form: str
    limit: int | None
    device: str
    threads: int | None
    template: str | None

    def ask(self, name: str) -> Likelihoods:
        """What the model makes of the questions."""
        source = found_model(name)
        from maieutic.backends.local import LocalBackend, LocalScorer
        from maieutic.cli.progress import display
        from maieutic.likelihood import evaluate_choices
        from maieutic.models.causal import load_causal

        LocalBackend(device=self.device, threads=self.threads)
        model = load_causal(source, device=self.device, template=self.template or template_of(source))
        with unkept("an examination"), display(self.show) as shown:
            made = evaluate_choices(
                LocalScorer(model),
                model.chat,
                self.tasks,
                form=self.form,
                before=" " if model.chat.plain else "",
                context=getattr(getattr(model.module, "config", None), "max_position_embeddings", None),
                limit=self.limit,
                on_progress=lambda done, total: shown.show(f"examine {name}", done, total),
            )
        return replace(made, settings={**made.settings, "model": name})


def check_likelihood(context: typer.Context, wanted: bool) -> None:
    """Raise ConfigError for an option that has no meaning: with --likelihood nothing is written."""
    sources = {name: context.get_parameter_source(name) for name in (*WRITING, "form")}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if not wanted and "form" in given:
        raise ConfigError("got --form without --likelihood, whose questions it puts; give both, or neither")
    for name in sorted(given - {"form"}) if wanted else ():
        option = name.replace("_", "-")
        raise ConfigError(f"got --{option} with --likelihood, which scores options and samples nothing; leave one out")


def examine(
    examined: Examined,
    model: str,
    task: str,
    against: str | None,
    saved: Callable[[str], Evaluation | None],
    save: Path | None,
) -> None:
    """Examine the model, say how it did, and compare it with another or with a saved examination by sums."""
    from maieutic.cli.tables import compare, json_of, print_differences

    old = None if against is None else saved(against)
    if against is not None and old is None:
        found_model(against)
    made = examined.ask(model)
    show, metrics = examined.show, made.metrics()
    heading = f"{made.name}: {len(made.questions):,} questions, {examined.form}"
    rows = table("measure", "accuracy (95 % interval)", "what it says", title=heading)
    for name, value in metrics.items():
        rows.add_row(name, str(value), SAYS[name])
    show.out.print(rows)
    if save is not None:
        save.write_text(made.evaluation().to_json(), encoding="utf-8")
    data: dict[str, Any] = {"model": model, "task": task, "against": against, "questions": len(made.questions)}
    data |= {"settings": dict(made.settings), "metrics": json_of(metrics)}
    if against is not None:
        found = compare(made.evaluation(), old or examined.ask(against).evaluation())
        data["difference"] = json_of(found)
        print_differences(show.out, found, f"{model} against {against}, by sums, on the same questions")
    show.write_json(data)
