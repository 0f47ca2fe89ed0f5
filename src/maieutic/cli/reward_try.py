"""`maieutic reward try`: what a reward says of completions, before a run trusts it."""

from __future__ import annotations

import asyncio
import json as json_
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.models import Device, Length, Options, TaskName, Template, Threads, load
from maieutic.cli.reward_probes import invented, pasted, read_completions, sampled
from maieutic.cli.screen import Json, Quiet, Screen, screen, table
from maieutic.cli.values import settings, taskset
from maieutic.errors import ConfigError
from maieutic.run.interrupt import unkept

if TYPE_CHECKING:
    from maieutic.protocols import Reward, Taskset
    from maieutic.rewards.adapt_trial import Probe, Trial
    from maieutic.rewards.hacks import HackReport

COLOURS = {"ok": "green", "note": "yellow", "broken": "bold red"}
#: Characters of a completion in the table.
SHOWN = 48
#: Tasks on which the catalogue of hacks is tried, and the longest median call (seconds) of which so many are made.
HACKED_TASKS, HACKED_CALL = 2, 0.05

RewardName = Annotated[
    str,
    typer.Argument(
        metavar="REWARD",
        help="FILE.py:NAME, an address http://…, or the name of a reward.",
        autocompletion=complete.rewards,
    ),
]
Completions = Annotated[
    list[str] | None,
    typer.Option("--completion", metavar="TEXT", help="A completion to score, of the first task; may be repeated."),
]
CompletionsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Completions of the first task: a text, or .jsonl with `completion` in rows."),
]
Writer = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Score what this model, run or Hub id writes.", autocompletion=complete.models),
]
RewardOptions = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the reward; may be repeated.")
]
Timeout = Annotated[
    float | None,
    typer.Option(min=0, metavar="SECONDS", help="For a call.", show_default="the function's own, else 10"),
]


def try_reward(
    context: typer.Context,
    name: RewardName,
    task: TaskName,
    n: Annotated[int, typer.Option("--n", "-n", min=1, metavar="N", help="Tasks to try it on.")] = 3,
    completions: Completions = None,
    file: CompletionsFile = None,
    model: Writer = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Completions of each task by the model.")] = 4,
    temperature: Annotated[float, typer.Option(min=0, metavar="T", help="Of the model; 0 is greedy.")] = 1.0,
    max_completion_length: Length = None,
    options: Options = None,
    reward_options: RewardOptions = None,
    timeout: Timeout = None,
    hacks: Annotated[
        bool | None,
        typer.Option("--hacks/--no-hacks", help="Try known ways of being paid for nothing.", show_default="if fast"),
    ] = None,
    template: Template = None,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Show what a reward says of completions: scores, speed, whether it says it again. Exits with 1 if it is broken.

    Without --completion, --file and --model it is tried on the gold solution of a few tasks, on the gold answer alone,
    a wrong answer, an empty text and a repeated one. Known hacks are tried on it too: a reward of correctness pays none
    of them more than an honest wrong answer.
    """
    show = screen(context, json, quiet)
    ways = [option for option, given in (("--completion", completions), ("--file", file), ("--model", model)) if given]
    if len(ways) > 1:
        raise ConfigError(f"got {' and '.join(ways)}; expected one of them")
    tasks = taskset(task, settings(options or []), split="test")
    reward = made_reward(name, tasks, settings(reward_options or []), timeout, max_completion_length)
    if model is None:
        given = completions if file is None else read_completions(file)
        probes = pasted(tasks[0], given) if given else invented(tasks, n)
    else:
        speaker = load(model, device=device, threads=threads, template=template)
        length = speaker.length(max_completion_length)
        with unkept("a trial"):
            probes = asyncio.run(sampled(speaker, tasks, n, samples, temperature, length))
    tell(show, name, task, reward, probes, hacks)


def tell(
    show: Screen, name: str, task: str, reward: Reward, probes: Sequence[Probe], hacks: bool | None = None
) -> None:
    """Try the reward on the probes, and show what was found; ends with exit code 1 if it is broken. `hacks`: whether to
    try the catalogue of them too; None: if calls are fast."""
    from maieutic.cli.reward_verdict import hacked, verdicts
    from maieutic.rewards.adapt_trial import examine

    log = logging.getLogger("maieutic.rewards")
    before = log.level
    log.setLevel(logging.ERROR)  # what failed is shown once, below
    try:
        with unkept("a trial"):
            trial = asyncio.run(examine(reward, probes))
        found = verdicts(trial)
        report = None if any(each.level == "broken" for each in found) else _hacks(reward, trial, hacks)
        found += [] if report is None else hacked(report)
    finally:
        log.setLevel(before)
    _print(show, name, reward, trial, found)
    paying = {} if report is None else {hack: tried[0].text for hack, tried in report.paying.items()}
    show.write_json(_json(name, task, reward, trial, found) | {"hacks": None if report is None else paying})
    if any(each.level == "broken" for each in found):
        raise typer.Exit(1)


def _hacks(reward: Reward, trial: Trial, wanted: bool | None) -> HackReport | None:
    """What the reward pays for hacks, on the first of the tasks that have an answer."""
    from statistics import median

    from maieutic.rewards.hacks import hack_report

    tasks = [probe.task for probe in trial.probes if probe.task.answer][:HACKED_TASKS]
    if not tasks or wanted is False or (wanted is None and median(trial.seconds) > HACKED_CALL):
        return None
    return hack_report(reward, tasks)


def made_reward(
    name: str, tasks: Taskset, options: dict[str, Any], timeout: float | None, length: int | None
) -> Reward:
    """The reward as a stage would have it, but for the weight; its failures never stop anything."""
    from maieutic.config import StageConfig
    from maieutic.run.rewards import one_reward

    asked = {
        "algorithm": "grpo",
        "steps": 1,
        "rewards": {name: 1.0},
        "reward_options": {name: options} if options else {},
        "reward_timeout_seconds": timeout,
        "max_reward_failures": 1.0,
        "max_completion_length": length or 256,
    }
    stage = StageConfig.model_validate(asked)
    made = one_reward(name, stage, tasks)
    return getattr(made, "reward", made)  # judged twice here anyway


def _print(show: Screen, name: str, reward: Reward, trial: Trial, found: Sequence[Any]) -> None:
    from rich.markup import escape

    show.out.print(f"[bold]{escape(name)}[/]  {escape(_form(reward))}\n", highlight=False, soft_wrap=True)
    for probe, judged in zip(trial.probes, trial.judged):
        listed = table("", "completion", "reward", "parts", "note", title=escape(probe.task.id))
        listed.columns[0].no_wrap = True
        for kind, rollout, judgement in zip(probe.kinds, probe.rollouts, judged):
            score = judgement.score
            parts = ", ".join(f"{part} {value:.3g}" for part, value in score.parts.items())
            text = json_.dumps(rollout.text, ensure_ascii=False)
            text = text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
            value = f"[red]{judgement.ending.value}[/]" if score.reward is None else f"{score.reward:.4g}"
            listed.add_row(kind, escape(text), value, escape(parts), escape(score.note))
        show.out.print(listed)
    details = [judgement.detail for judged in trial.judged for judgement in judged if judgement.detail]
    if details and "\n" in details[0]:
        show.out.print(details[0].strip(), style="dim", markup=False, highlight=False, soft_wrap=True)
    for each in found:
        remedy = f"\n        Remedy: {each.remedy}" if each.remedy else ""
        line = f"[{COLOURS[each.level]}]{each.level:<7}[/] {escape(each.said + remedy)}"
        show.out.print(line, highlight=False, soft_wrap=True)


def _form(reward: Reward) -> str:
    form = getattr(reward, "form", None)
    return "a reward of maieutic" if form is None else f"recognised as {form}"


def _json(name: str, task: str, reward: Reward, trial: Trial, found: Sequence[Any]) -> dict[str, Any]:
    import statistics

    form = getattr(reward, "form", None)
    rows = [
        {
            "task": probe.task.id, "kind": kind, "completion": rollout.text, "ending": judgement.ending.value,
            "reward": judgement.score.reward, "parts": dict(judgement.score.parts), "note": judgement.score.note,
        }
        for probe, judged in zip(trial.probes, trial.judged)
        for kind, rollout, judgement in zip(probe.kinds, probe.rollouts, judged)
    ]  # fmt: skip
    return {
        "reward": name,
        "task": task,
        "family": None if form is None else form.family.name,
        "conversational": None if form is None else form.conversational,
        "scores": rows,
        "seconds": {"median": statistics.median(trial.seconds), "worst": max(trial.seconds), "first": trial.start},
        "changed": {"again": trial.again, "reversed": trial.turned, "one_by_one": trial.alone},
        "threads": trial.threads,
        "spread_within_groups": trial.spreads,
        "verdicts": [{"level": v.level, "said": v.said, "remedy": v.remedy} for v in found],
        "broken": any(each.level == "broken" for each in found),
    }
