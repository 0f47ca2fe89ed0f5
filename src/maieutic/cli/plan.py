"""`maieutic plan`: what a run will take before it starts, and what it took beside what was foreseen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.screen import Json, Quiet, Screen, screen, table
from maieutic.errors import ConfigError

if TYPE_CHECKING:
    from maieutic.config import Config
    from maieutic.forecast.happened import Happened
    from maieutic.forecast.needs import Remedy
    from maieutic.forecast.predict import StageForecast
    from maieutic.forecast.stage import StageInputs

#: Share of the longest completion that is guessed to be the usual length where nobody says.
GUESSED = 0.5

#: What is assumed of the lengths of completions.
AS_TOLD, AS_TRIED, GUESS, AT_MOST = "as told", "as in the trial", "a guess", "at the most"


def plan(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG|RUN",
            help="A TOML file (of train, teach, distil, compare or sweep), or the folder of a run that has gone on.",
            autocompletion=complete.plans,
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: max_rows=128.")
    ] = None,
    completion_length: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens that completions are expected to have on average."),
    ] = None,
    trial: Annotated[
        bool, typer.Option("--trial", help="Run two real steps of each stage first, and foresee from these.")
    ] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Foresee what a run takes: memory and time phase by phase, samples and tokens, and what to change if it won't fit.

    Nothing is trained or downloaded but configs and tokenizers. Of a run's folder, the forecast beside what happened.
    """
    show = screen(context, json, quiet)
    if source.is_dir():
        if trial or overrides:
            raise ConfigError(
                f"got {'--trial' if trial else '--set'} with {source}, a run that has gone on; expected them with a "
                "config: what happened cannot be changed"
            )
        show.write_json(_check(show, source, completion_length))
        return
    parts = _parts(show, source, overrides or [])
    show.write_json(_foresee(show, parts, completion_length, trial))


@dataclass(frozen=True)
class Part:
    """Stages of a config that are run `times` times: all of them, or an arm's after the start that it shares.

    `stages` reads them where a config is not of stages; `left_out` says what is not foreseen.
    """

    title: str
    config: Config
    first: int
    times: int
    stages: Callable[[], list[StageInputs]] | None = None
    left_out: str = ""


def _parts(show: Screen, file: Path, overrides: Sequence[str]) -> list[Part]:
    """What a file says is to be run; a comparison's start and arms, once a seed; a teacher's stages; a teacher's
    explanations and the student of them. Everything in it is checked."""
    from maieutic.cli.compare import checked
    from maieutic.cli.train import check
    from maieutic.config import parse_config, read_tables

    data = read_tables(file, overrides, "[model], [tasks.train] and [[stages]]")
    if "stages" not in data and "student" in data and "teacher" not in data:
        from maieutic.cli.teach import read_teach

        whole = read_teach(file, overrides)
        check(whole)
        return [Part("", whole, 0, 1, left_out="rewards are a frozen student's log-probs: --trial measures their time")]
    if "stages" not in data and "teacher" in data:
        from maieutic.cli.distil import read_distil
        from maieutic.forecast.distilling import LEFT_OUT, distil_stages
        from maieutic.run.distil import lessons_alone

        told = read_distil(file, overrides)
        return [Part("", lessons_alone(told), 0, 1, partial(distil_stages, told), LEFT_OUT)]
    if "arms" not in data and "grid" not in data:
        config = parse_config(data, str(file))
        check(config)
        return [Part("", config, 0, 1)]
    from maieutic.compare.plan import read_comparison
    from maieutic.compare.sweep import read_sweep

    given = tuple(overrides)
    study = read_sweep(file, given).plan if "grid" in data else read_comparison(file, given)
    checked(show, study)
    seeds = len(study.study.seeds)
    found = [Part("start", study.start_config(study.study.seeds[0]), 0, seeds)] if study.start else []
    arms = [(arm.name, study.whole(arm, study.study.seeds[0])) for arm in study.arms]
    return found + [Part(name, config, len(study.start), seeds) for name, config in arms]


def _foresee(show: Screen, parts: Sequence[Part], length: int | None, trial: bool) -> dict[str, Any]:
    from maieutic.forecast.data import happened_data
    from maieutic.forecast.measure import Measured, free_memory, resident
    from maieutic.forecast.reading import Reader

    told: list[dict[str, Any]] = []
    seconds: dict[str, list[float | None]] = {}
    if trial and any(part.stages for part in parts):
        raise ConfigError("got --trial with a config of `maieutic distil`; expected one of stages, which can be tried")
    show.note("reading models, tasks, lengths of prompts")
    # the parts of a study have the same models and tasks; an arm's config holds all that a tokenizer reads
    common, device = Reader(parts[-1].config), parts[-1].config.device
    process, free, machine = 0 if device.startswith("cuda") else resident(), free_memory(device), Measured(device)
    for part in parts:
        went = _tried(show, part.config) if trial else {}
        if part.title:
            show.out.print(f"[bold]{part.title}[/], {part.times} times (seeds)\n", highlight=False)
        read = part.stages or Reader(part.config, common).stages
        for inputs in read()[part.first :]:
            mine = went.get(inputs.name)
            views = _views(inputs, length, mine, machine, process)
            for name, view in views.items():
                once = view.total_seconds
                seconds.setdefault(name, []).append(None if once is None else part.times * once)
            tried = {} if mine is None else {"trial": happened_data(mine)}
            told.append({"part": part.title, "times": part.times, **_stage(show, views, process, free), **tried})
    total = _total(show, seconds, "" if trial else "; rewards come on top")
    for said in dict.fromkeys(part.left_out for part in parts if part.left_out):
        show.out.print(said, highlight=False, soft_wrap=True)
    return {"stages": told, "seconds": total, "free_bytes": free, "process_bytes": process, "machine": _rates(machine)}


def _tried(show: Screen, config: Config) -> dict[str, Happened]:
    from maieutic.cli.progress import RunWatch, display
    from maieutic.forecast.trial import run_trial

    with display(show) as shown:
        went = run_trial(config, RunWatch(shown))
    show.note(f"the trial took {_bytes(max(each.memory for each in went))} of memory at the most")
    return {each.stage: each for each in went}


def _views(
    inputs: StageInputs, length: int | None, went: Happened | None, machine: Any, process: int
) -> dict[str, StageForecast]:
    """The forecast under each assumption on the lengths of completions, by what the assumption is called."""
    from maieutic.forecast.happened import REWARD, as_it_went, factors
    from maieutic.forecast.predict import forecast

    found: dict[str, float] = {}
    tried, reward = inputs, None
    if went is not None:
        tried, reward = as_it_went(inputs, went), went.seconds.get(REWARD)
        found = factors(forecast(tried, machine, process), went)
    if length is not None:
        assumed = {AS_TOLD: inputs.at_length(length)}
    elif went is not None:
        assumed = {AS_TRIED: tried, AT_MOST: inputs}
    else:
        assumed = {GUESS: inputs.at_length(None, GUESSED), AT_MOST: inputs}
    return {name: forecast(each, machine, process, found, reward) for name, each in assumed.items()}


def _stage(show: Screen, views: Mapping[str, StageForecast], process: int, free: int) -> dict[str, Any]:
    """Print a stage and return it as data."""
    from maieutic.forecast.data import as_data, remedies_data
    from maieutic.forecast.needs import remedies

    last = list(views.values())[-1]
    _print_head(show, last)
    _print_memory(show, last, process, free)
    _print_times(show, views)
    found = remedies(last.inputs, process, free)
    warnings = _warnings(last, found, process, free)
    for warning in warnings:
        show.out.print(f"[yellow]will not fit:[/] {warning}\n", highlight=False, soft_wrap=True)
    return {
        "assumptions": {name: as_data(view) for name, view in views.items()},
        "remedies": remedies_data(found),
        "warnings": warnings,
    }


def _print_head(show: Screen, told: StageForecast) -> None:
    inputs, tokens = told.inputs, told.tokens
    steps = "as many steps as its budget allows" if told.steps is None else f"{told.steps:,} steps"
    trained, frozen = inputs.sizes.parameters(True), inputs.sizes.parameters(False)
    lines = [f"{_short(trained)} weights trained" + (f", {_short(frozen)} frozen" if frozen else "")]
    lengths = inputs.lengths
    lines.append(f"prompts of {lengths.prompt:.0f} tokens, at most {lengths.longest_prompt}")
    if inputs.samples:
        lines.append(
            f"{inputs.rows:,} rollouts a step, {told.rows:,} written at once, at most {lengths.longest} tokens"
        )
    else:
        unseen = ", which are not written yet" if inputs.unseen else ""
        lines.append(
            f"{inputs.rows:,} rows a step of {lengths.completion:.0f} tokens, at most {lengths.longest}{unseen}"
        )
    if lengths.turns > 1:
        each = lengths.chosen * lengths.longest / lengths.turns
        lines.append(
            f"played: {lengths.turns} turns counted, of at most {each:.0f} tokens, each read from the beginning; "
            f"{lengths.longest} tokens are all that follows the prompt, what the environment says included"
        )
    if inputs.refills and tokens.samples:
        lines.append(f"groups without a signal are drawn again: up to {1 + inputs.refills} times as many rollouts")
    if not inputs.sizes.plugged:
        lines.append("not for the fast engine: times will be several times as long")
    show.out.print(f"[bold]stage {inputs.name}[/]: {inputs.algorithm}, {steps}", highlight=False)
    for line in lines:
        show.out.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _print_memory(show: Screen, told: StageForecast, process: int, free: int) -> None:
    memory = told.memory
    made = table("memory", *memory.phases)
    names = list(dict.fromkeys(item.what for items in memory.phases.values() for item in items))
    for item in memory.standing:
        made.add_row(item.what, *[_bytes(item.bytes)] * len(memory.phases))
    for name in names:
        cells = [sum(item.bytes for item in items if item.what == name) for items in memory.phases.values()]
        made.add_row(name, *(_bytes(cell) if cell else "" for cell in cells))
    peaks = [_peak(memory.peak(phase), process + free) for phase in memory.phases]
    made.add_row("[bold]together[/]", *peaks)
    for column in made.columns[1:]:
        column.justify = "right"
    show.out.print(made)
    show.out.print(f"  there is {_bytes(process + free)} for it\n", highlight=False)


def _peak(size: int, room: int) -> str:
    return f"[bold {'red' if size > room else 'green'}]{_bytes(size)}[/]"


def _print_times(show: Screen, views: Mapping[str, StageForecast]) -> None:
    first = next(iter(views.values()))
    fixed = not (first.inputs.samples or first.inputs.unseen or first.evaluation)
    shown = {"as the data are": first} if fixed else views
    made = table("time of a step", *(_assumption(name, view) for name, view in shown.items()))

    def row(name: str, cells: Sequence[float | None], style: str = "") -> None:
        made.add_row(name, *("not known before" if cell is None else _seconds(cell) for cell in cells), style=style)

    for phase in first.seconds:
        row(phase, [view.seconds[phase] for view in shown.values()])
    if first.inputs.samples:
        row("reward", [view.reward for view in shown.values()])
    row("step", [view.step_seconds for view in shown.values()], "bold")
    if first.evaluation:
        row("evaluations, all", [view.evaluation for view in shown.values()])
    row("the stage", [view.total_seconds for view in shown.values()], "bold")
    for label, name in (("samples", "samples"), ("tokens written", "generated"), ("tokens trained on", "trained")):
        values = [getattr(view.tokens, name) for view in shown.values()]
        if any(values):
            made.add_row(f"{label}, a step", *("it depends" if v is None else f"{v:,.0f}" for v in values))
    for column in made.columns[1:]:
        column.justify = "right"
    show.out.print(made)


def _assumption(name: str, view: StageForecast) -> str:
    """What a column assumes, in words: of the stage's completions, or of those of its evaluations."""
    inputs = view.inputs
    sampled = inputs.lengths if inputs.samples or inputs.unseen or not inputs.evaluations else None
    return f"{name}: {(sampled or view.inputs.evaluations[0].lengths).completion:.0f} tokens"


def _seconds(seconds: float) -> str:
    from maieutic.report.words import duration

    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _warnings(told: StageForecast, found: Sequence[Remedy], process: int, free: int) -> list[str]:
    """For each phase that will not fit: what it needs, what there is, and what to change."""
    warnings = []
    for phase in told.memory.phases:
        peak = told.memory.peak(phase)
        if peak - process <= free:
            continue
        mine = [remedy for remedy in found if remedy.phase == phase]
        helps = [f"--set {_key(told, r.key)}={r.value}" for r in mine if r.value is not None]
        fewer = ", ".join(remedy.key for remedy in mine)
        advice = (
            f"Lower it: {' or '.join(helps)}"
            if helps
            else (f"No one of {fewer} alone is enough: lower them together, " if fewer else "")
            + "train an adapter (model.lora), or take a smaller model"
        )
        warnings.append(
            f"stage {told.inputs.name!r}, {phase}: needs {_bytes(peak)}; there is {_bytes(process + free)}. {advice}"
        )
    return warnings


def _key(told: StageForecast, key: str) -> str:
    """The setting as it stands in a config."""
    return key if key in ("max_rows", "micro_batch_tokens") else f"stages.{told.inputs.index}.{key}"


def _total(show: Screen, seconds: Mapping[str, Sequence[float | None]], more: str) -> dict[str, float | None]:
    """The whole under each assumption; `more` is what is not in it."""
    from maieutic.report.words import duration

    sums: dict[str, float | None] = {}
    for name, each in seconds.items():
        known = [value for value in each if value is not None]
        sums[name] = sum(known) if len(known) == len(each) else None
    said = ", ".join(f"{name} {'not known before' if s is None else duration(s)}" for name, s in sums.items())
    show.out.print(f"[bold]all stages[/]: {said}{more}", highlight=False)
    return sums


def _rates(machine: Any) -> dict[str, Any]:
    """What was measured of the machine, for the record."""
    return {
        "flops_per_second": {f"{r}x{i}x{o} {str(t)[6:]}": rate for (r, i, o, t), rate in machine.rates.items()},
        "bytes_per_second": machine.found.get("bandwidth"),
        "seconds_of_a_call": machine.found.get("call"),
    }


def _check(show: Screen, folder: Path, length: int | None) -> dict[str, Any]:
    """A run's forecast beside what happened, stage by stage."""
    from maieutic.forecast.data import happened_data, lines_data
    from maieutic.forecast.happened import as_it_went, lines, read_run
    from maieutic.forecast.measure import Measured, resident
    from maieutic.forecast.predict import forecast
    from maieutic.forecast.reading import Reader

    config, went = read_run(folder)
    process, machine = 0 if config.device.startswith("cuda") else resident(), Measured(config.device)
    inputs = {each.name: each for each in Reader(config).stages()}
    told = []
    for happened in went:
        stage = inputs[happened.stage]
        stage = as_it_went(stage, happened) if length is None else stage.at_length(length)
        found = lines(forecast(stage, machine, process), happened)
        title = f"stage {stage.name}: {stage.algorithm}, {happened.steps:,} steps"
        if stage.samples:
            title += f", completions of {stage.lengths.completion:.1f} tokens"
        made = table("of a step", "predicted", "happened", "ratio", title=title)
        for line in found:
            ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
            made.add_row(line.what, _amount(line.predicted, line.unit), _amount(line.happened, line.unit), ratio)
        for column in made.columns[1:]:
            column.justify = "right"
        show.out.print(made)
        told.append({**happened_data(happened), "lines": lines_data(found)})
    show.note("ratio: happened over predicted. Evaluations are those of the whole stage, memory is the peak so far")
    return {"run": str(folder), "stages": told}


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    said = {"B": lambda: _bytes(round(value)), "s": lambda: _seconds(value)}
    return said.get(unit, lambda: f"{value:,.0f}")()


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 1000:,.1f} kB"


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 10**9 else f"{count / 1e6:.2f} M"
