"""`maieutic train`: run a config, go on with a run, or say what a run would do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.running import DryRun, Resume, RunFolder, carry_out, measurements, write_report
from maieutic.cli.screen import Json, Quiet, Screen, screen
from maieutic.errors import ConfigError

if TYPE_CHECKING:
    from maieutic.config import Config


def train(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="A TOML file; not needed with --resume.", autocompletion=complete.configs
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: stages.0.steps=10.")
    ] = None,
    run: RunFolder = None,
    resume: Resume = False,
    acknowledge: Annotated[
        list[str] | None,
        typer.Option(metavar="GUARD", help="With --resume: go on past this guard's alarm (all: past every one)."),
    ] = None,
    dry_run: DryRun = False,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The same as --set seed=N.")] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Train a model as a config says: its stages one after the other, each evaluated, everything stored.

    A run that was stopped, by Ctrl-C or a power cut, goes on with --resume and ends with the same weights.
    """
    show = screen(context, json, quiet)
    wanted = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    read, folder = _config(config, wanted, run, resume)
    if acknowledge and not resume:
        raise ConfigError(f"got --acknowledge {acknowledge[0]} for a run that begins; it goes with --resume")
    plan = check(read)
    if dry_run:
        say_plan(show, read, plan, folder)
        return
    again = f"maieutic train --run {folder} --resume"
    summary = carry_out(show, read, folder, resume=resume, again=again, acknowledge=acknowledge or ())
    show.write_json(conclude(show, folder, summary))


def _config(config: Path | None, overrides: Sequence[str], run: Path | None, resume: bool) -> tuple[Config, Path]:
    """The config and the run's folder. To resume, the folder is enough: it holds its config."""
    from maieutic.config import read_config
    from maieutic.run.directory import RunDirectory

    if config is not None:
        read = read_config(config, overrides)
        return read, run or Path("runs") / read.name
    if run is None or not resume:
        raise ConfigError(
            "got no config; expected `maieutic train CONFIG`, or `maieutic train --run DIR --resume` to go on"
        )
    return read_config(RunDirectory.open(run).config, overrides), run


def check(config: Config) -> str:
    """Everything that can be checked before the first step; returns what the run would do, in words.

    A mistake in the last stage is better found now than after the first one has trained for an hour.
    """
    from maieutic.core.select import sampled_share
    from maieutic.models.find import find_model
    from maieutic.run.budget import optimiser_steps, planned_steps
    from maieutic.run.build import describe, make_backend, make_optimiser, make_stage_algorithm
    from maieutic.run.frozen import check_adapters, frozen_paths
    from maieutic.run.guarding import rules_of
    from maieutic.run.rewards import make_reward
    from maieutic.run.tasksets import Tasksets
    from maieutic.sources import recorded, solution_of

    tasksets = Tasksets(config)
    make_backend(config)
    plan = describe(config, tasksets)
    for stage in config.stages:
        algorithm = make_stage_algorithm(stage)
        steps = planned_steps(stage, algorithm, len(tasksets[stage.tasks]))
        make_optimiser(stage, optimiser_steps(steps, algorithm))
        rules_of(config, stage)
        if algorithm.samples:
            make_reward(stage, tasksets[stage.tasks])
        if sampled_share(algorithm.select) < 1.0:
            recorded(algorithm.siblings).texts(tasksets[stage.tasks][0])
        if stage.demonstrations is not None:
            solution_of(tasksets[stage.demonstrations][0])
        for path in frozen_paths(stage):
            find_model(path)
    check_adapters(config)
    if config.model.path is not None:
        find_model(config.model.path)
    elif config.model.small is not None:
        from maieutic.models.small import SmallModel

        SmallModel(**config.model.small.shape)
    _check_lengths(config)
    return plan


def _check_lengths(config: Config) -> None:
    """Raise ConfigError where a completion may be so long that the model has no room for any prompt."""
    from maieutic.models.find import positions
    from maieutic.run.build import make_stage_algorithm

    small = config.model.small
    room = small.context if small is not None else positions(str(config.model.path))
    asked = {
        f"stages.{index}": stage.max_completion_length
        for index, stage in enumerate(config.stages)
        if make_stage_algorithm(stage).samples
    }
    if config.evaluation is not None:
        asked["evaluation"] = config.evaluation.max_completion_length
    for place, length in asked.items():
        if room is not None and length >= room:
            raise ConfigError(
                f"{place}.max_completion_length: got {length}; the model has {room} positions for prompt and "
                f"completion together. Lower it (--set {place}.max_completion_length={room // 2}), or take a model "
                "with more"
            )


def say_plan(show: Screen, config: Config, plan: str, folder: Path) -> None:
    """Print the resolved config and what it would do."""
    from maieutic.config import write_toml

    show.out.print("[bold]The resolved config[/]\n")
    show.out.print(write_toml(config), markup=False, highlight=False, soft_wrap=True)
    show.out.print("[bold]What it would do[/]\n")
    show.out.print(plan, markup=False, highlight=False, soft_wrap=True)
    show.out.print(f"\nthe run would go to {folder}; nothing was written", markup=False, highlight=False)
    show.write_json({"config": config.model_dump(mode="json", exclude_none=True), "plan": plan, "run": str(folder)})


def conclude(show: Screen, folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Print what was measured and where everything lies; returns the same for JSON."""
    from maieutic.cli.tables import json_of, print_differences, stages_table
    from maieutic.report.measured import by_name, changes

    measured = measurements(folder)
    stages: dict[str, Any] = {}
    for name, made in by_name(measured).items():
        show.out.print(stages_table([(each.stage, each.intervals) for each in made], f"{name}: after each stage"))
        for each in made:
            stages.setdefault(each.stage, {})[name] = json_of(each.intervals)
    found, refused = changes(measured)
    pairs = dict.fromkeys((change.name, change.new, change.old) for change in found)
    for name, new, old in pairs:
        chosen = {c.metric: c.difference for c in found if (c.name, c.new, c.old) == (name, new, old)}
        print_differences(show.out, chosen, f"{name}: {new} against {old}, on the same problems")
    for sentence in refused:
        show.note(sentence)
    report = write_report(folder)
    say_where(show, folder, summary["model"], report, _first_evaluated(folder))
    return {
        "run": str(folder),
        "model": summary["model"],
        "report": str(report),
        "seconds": summary["seconds"],
        "evaluations": stages,
        "differences": [
            {"tasks": c.name, "metric": c.metric, "new": c.new, "old": c.old, **c.difference.to_dict()} for c in found
        ],
    }


def say_where(show: Screen, folder: Path, model: str, report: Path, task: str) -> None:
    """Where the run, its model and its report lie, and how to go on."""
    lines = [("run", str(folder)), ("model", model), ("report", str(report))]
    for label, place in lines:
        show.out.print(f"{label:<8}{place}", markup=False, highlight=False, soft_wrap=True)
    show.out.print(f"\nnext:   maieutic show {folder}", markup=False, highlight=False, soft_wrap=True)
    show.out.print(f"        maieutic sample {folder} {task}", markup=False, highlight=False, soft_wrap=True)


def _first_evaluated(folder: Path) -> str:
    """The task argument of `maieutic sample` for what the run was evaluated on (else trained on)."""
    from maieutic.config import read_config

    config = read_config(folder / "config.toml")
    name = config.evaluation.names[0] if config.evaluation else config.stages[-1].tasks
    spec = config.tasks[name]
    while spec.mixture or spec.options.get("tasks") in config.tasks:  # made of another table
        spec = config.tasks[next(iter(spec.mixture)) if spec.mixture else str(spec.options["tasks"])]
    if spec.taskset == "file":
        return str(spec.options.get("path", "file"))
    told = {key: value for key, value in spec.options.items() if isinstance(value, str | int) and value != "test"}
    options = "".join(f" --set {key}={value}" for key, value in told.items())
    return f"{spec.taskset}{options}"
