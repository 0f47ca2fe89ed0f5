"""`maieutic reward train`: a reward model from judged completions, steps or preferences."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.screen import Json, Quiet, Screen, folder, screen, table
from maieutic.errors import ConfigError
from maieutic.run.interrupt import interrupted

if TYPE_CHECKING:
    from maieutic.config.reward_training import RewardTrainConfig

#: What is shown of a step: label → metric.
SHOWN = {"loss": "loss", "right": "judge/accuracy", "pairs": "pairs/accuracy"}


def train_reward(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="A TOML file of settings.", autocompletion=complete.configs),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Judged completions, or the folder of a run; may be repeated.",
            autocompletion=complete.judged,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="outcome, process or pairs.",
            autocompletion=complete.among(outcome="of wholes", process="of steps", pairs="preferences"),
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The policy whose body is taken: a folder, a run, or a Hub id.",
            autocompletion=complete.models,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the reward model goes.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0, metavar="N", help="Passes over the prompts.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, metavar="RATE", help="The same as --set optimiser.learning_rate=RATE.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training that is in the folder.")] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Train a reward model, and say how well it judges prompts that it has not learned from.

    What is written is an ordinary folder: plain transformers loads it, and a stage takes it as a reward by
    `rewards = { "model:DIR" = 1.0 }`.
    """
    show = screen(context, json, quiet)
    if out is None:
        raise ConfigError("got no --out; expected the folder to which the reward model goes, for example models/orm")
    folder(out, "--out")
    given: dict[str, Any] = {"data": data or None, "kind": kind, "model": model, "epochs": epochs}
    told = {key: value for key, value in given.items() if value is not None}
    rate = [] if learning_rate is None else [f"optimiser.learning_rate={learning_rate}"]
    read = _config(config, told, [*(overrides or []), *rate], out, resume)
    with interrupted() as stop:
        summary = _carry_out(show, read, out, resume, stop)
    _say(show, out, summary)
    show.write_json(summary)


def _config(
    path: Path | None, given: Mapping[str, Any], overrides: list[str], out: Path, resume: bool
) -> RewardTrainConfig:
    """The settings: of the file, then of the options; to go on, those that the training was begun with."""
    from maieutic.cli.values import model_source, settings
    from maieutic.config import parse_table, read_tables
    from maieutic.config.reward_training import RewardTrainConfig

    begun = out / "training" / "config.toml"
    if resume and path is None and begun.is_file():
        path = begun
    least = "model and data"
    tables = {} if path is None else read_tables(path, (), least)
    tables = {**tables, **given}
    for key, value in settings(overrides).items():
        before = tables.get(key)
        tables[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    for key in ("model", "data"):
        if key not in tables:
            raise ConfigError(f"got no --{key}; expected `maieutic reward train --model MODEL --data FILE --out DIR`")
    tables["model"] = model_source(str(tables["model"]))
    return parse_table(RewardTrainConfig, tables, "reward train" if path is None else str(path))


def _carry_out(
    show: Screen, config: RewardTrainConfig, out: Path, resume: bool, stop: threading.Event
) -> dict[str, Any]:
    from maieutic.cli.progress import display
    from maieutic.run.reward_training import train_reward_model

    with display(show) as shown:

        def watch(done: int, total: int, metrics: Mapping[str, float]) -> None:
            if not metrics:
                shown.begin(f"train {config.kind} model", done, total)
            said = "  ".join(f"{label} {metrics[name]:.3f}" for label, name in SHOWN.items() if name in metrics)
            shown.show(f"train {config.kind} model", done, total, said)

        return train_reward_model(config, out, resume=resume, watch=watch, stop=stop.is_set)


#: Measure → what it says.
MEANINGS = {
    "count": "judged",
    "auc": "P(a right one scores above a wrong one)",
    "pair_accuracy": "the same within a prompt",
    "accuracy": "on the right side of ½",
    "bce": "cross-entropy, nats (0.693: knows nothing)",
    "brier": "squared error of the probability (0.25: knows nothing)",
    "ece": "how far probabilities are from frequencies",
    "margin": "score of the chosen minus that of the rejected",
    "first_error/wrong": "of wrong solutions, the first wrong step is found",
    "first_error/right": "of right solutions, no step is blamed",
    "first_error/f1": "harmonic mean of both",
}


def _say(show: Screen, out: Path, summary: Mapping[str, Any]) -> None:
    show.out.print(f"{summary['data']}; {summary['steps']:,} steps", markup=False, highlight=False, soft_wrap=True)
    held = summary.get("held_out")
    if held:
        rows = table("measure", "value", "what it says", title="on prompts that were held out")
        for name, value in held.items():
            rows.add_row(name, f"{value:,.0f}" if name == "count" else f"{value:.3f}", MEANINGS.get(name, ""))
        show.out.print(rows)
    else:
        show.note("no prompt was held out, so nothing was measured; set holdout = 0.1")
    show.out.print(f"model   {out}", markup=False, highlight=False, soft_wrap=True)
    show.out.print(f'reward  rewards = {{ "model:{out}" = 1.0 }}', markup=False, highlight=False, soft_wrap=True)
