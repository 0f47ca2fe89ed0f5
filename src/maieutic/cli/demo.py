"""`maieutic demo`: a small model learns to reason, from nothing, in minutes on one CPU core."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.running import carry_out, measurements, write_report
from maieutic.cli.screen import Json, Quiet, Screen, screen
from maieutic.errors import RunError

if TYPE_CHECKING:
    from maieutic.config import Config
    from maieutic.evaluate import Evaluation, Problem
    from maieutic.types import Task

INTRODUCTION = """\
A 0.4 M parameter model is first taught by a demonstrator who makes mistakes on purpose: he misreads three kinds of \
sentence in word problems, and imitation (SFT) copies that. Then reinforcement learning (GRPO) lets it practise on \
fresh problems with a reward that only checks the final answer, and the misreadings go away.
"""

#: Stage → how the demo calls it.
LABELS = {"start": "untrained", "sft": "after SFT", "rl": "after RL"}
TRANSCRIPTS = 3


def demo(
    context: typer.Context,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of everything random.", show_default="0")] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run's folder.", show_default="runs/demo", autocompletion=complete.runs),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew; what is in the folder is removed.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads.")] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Watch a small model learn: imitation of an imperfect teacher, then reinforcement learning, then the difference.

    Run again, it goes on where it was stopped, or shows the results once more.
    """
    show = screen(context, json, quiet)
    folder = run or Path("runs") / (f"demo-seed-{seed}" if seed else "demo")
    if fresh:
        _remove(folder)
    config, resume = _config(folder, seed, threads)
    began = time.monotonic()
    if _complete(folder):
        show.note(f"the demo in {folder} is complete; these are its results (--fresh begins anew)")
        total = None
    else:
        show.note(INTRODUCTION, style="default")
        if resume:
            show.note(f"going on with the demo in {folder}, which was not complete (--fresh begins anew)")
        carry_out(show, config, folder, resume=resume, again=f"maieutic demo --run {folder}")
        total = None if resume else time.monotonic() - began
    show.write_json(_results(show, config, folder, total))


def _config(folder: Path, seed: int | None, threads: int | None) -> tuple[Config, bool]:
    """The demo's config, and whether a run of it is there to go on with.

    Raises RunError for a folder whose run has another seed than the one asked for, or is no demo.
    """
    from maieutic.config import read_config
    from maieutic.run.demo import demo_config

    if not (folder / "config.toml").is_file():
        wanted = demo_config(seed or 0)
        return wanted.model_copy(update={"threads": threads or wanted.threads}), False
    found = read_config(folder / "config.toml")
    if found.name != "demo":
        raise RunError(f"{folder} holds the run {found.name!r}, not a demo; choose another --run")
    if seed is not None and found.seed != seed:
        raise RunError(
            f"the demo in {folder} has seed {found.seed}, not {seed}; choose another --run, or --fresh to begin anew"
        )
    if threads is not None and not _complete(folder):
        found = found.model_copy(update={"threads": threads})
    return found, True


def _complete(folder: Path) -> bool:
    return (folder / "run.complete").is_file()


def _remove(folder: Path) -> None:
    """Remove the demo in this folder, if there is one and no process is writing it."""
    from maieutic.run.directory import RunDirectory

    if not folder.exists():
        return
    if not (folder / "config.toml").is_file():
        if any(folder.iterdir()):
            raise RunError(f"{folder} holds no run: it is not removed; choose another --run")
        return
    text = (folder / "config.toml").read_text(encoding="utf-8")
    # only the name is looked at: a config that an older version wrote must not stand in the way
    if 'name = "demo"' not in text.splitlines():
        raise RunError(f"{folder} holds the run of another config: it is not removed; choose another --run")
    with RunDirectory.create(folder, text, resume=True):  # raises when another process holds it
        shutil.rmtree(folder)


def _results(show: Screen, config: Config, folder: Path, total: float | None) -> dict[str, Any]:
    """Print the table, the differences, the transcripts and where everything lies; returns what `--json` carries."""
    from maieutic.cli.tables import compare, headline, print_differences, stages_table
    from maieutic.cli.train import say_where
    from maieutic.cli.values import model_source

    measured = {made.stage: made for made in measurements(folder)}
    rows = [(LABELS.get(stage, stage), made.intervals) for stage, made in measured.items()]
    count = len(measured["rl"].evaluation.problems)
    show.out.print(stages_table(rows, f"{count} held-out problems: share answered correctly"))
    sft, rl = measured["sft"].evaluation, measured["rl"].evaluation
    differences = compare(rl, sft)
    print_differences(show.out, differences, "RL against SFT, on the same problems")
    _print_transcripts(show, config, sft, rl)
    seconds = _seconds(folder, total)
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    show.out.print(f"time    {parts}", markup=False, highlight=False)
    model = model_source(str(folder))
    say_where(show, folder, model, write_report(folder), "arithmetic")
    show.out.print(f"        maieutic demo --seed {config.seed + 1}", markup=False, highlight=False)
    return {
        "stages": {
            stage: {name: made.intervals[name].to_dict() for name in headline(made.intervals)}
            for stage, made in measured.items()
            if stage in seconds
        },
        "difference": {
            name: {key: value.to_dict()[key] for key in ("value", "low", "high", "verdict")}
            for name, value in differences.items()
        },
        "seconds": seconds,
        "seed": config.seed,
        "run": str(folder),
        "model": model,
    }


def _seconds(folder: Path, total: float | None) -> dict[str, float]:
    """Seconds of each stage, of the evaluations, and altogether (`total`, or their sum where the run was interrupted).

    An evaluation lasted from what was stored before it until it was stored itself.
    """
    from maieutic.run.directory import RunDirectory
    from maieutic.run.store import Store

    with Store.open_reader(RunDirectory.open(folder).database) as store:
        stages = {stage: store.steps(stage) for stage in store.stages()}
        steps = sorted(step.time for each in stages.values() for step in each)
        ends = [found.time for found in store.evaluations()]
    evaluation = sum(end - max([t for t in [*steps, *ends] if t < end], default=end) for end in ends)
    spent = {stage: sum(step.seconds for step in each) for stage, each in stages.items() if each}
    return {**spent, "evaluation": evaluation, "total": total or sum(spent.values()) + evaluation}


@dataclass(frozen=True)
class Contrast:
    """A problem with the greedy answers before and after."""

    task: Task
    before: Problem
    after: Problem

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Mended ones first, then those still wrong, then the rest; short ones first."""
        was, now = _greedy(self.before), _greedy(self.after)
        return not (now and not was), was, len(self.task.prompt[-1].content)

    @property
    def misread(self) -> frozenset[str]:
        """The kinds of sentence in the problem that the demonstrator misreads."""
        from maieutic.tasks.arithmetic import KINDS

        return frozenset(kind for kind in self.task.meta["kinds"] if KINDS[kind].misread)


def _greedy(problem: Problem) -> bool:
    return problem.greedy is not None and problem.greedy.correct


def _contrasts(config: Config, sft: Evaluation, rl: Evaluation) -> Sequence[Contrast]:
    """The problems to show: one for each kind of misreading where there is one, filled up with others."""
    from maieutic.run.build import Tasksets

    tasks = Tasksets(config)[rl.name]
    asked = {task.id: task for task in (tasks[i] for i in range(len(tasks)))}
    before: Mapping[str, Problem] = {problem.task_id: problem for problem in sft.problems}
    found = [Contrast(asked[p.task_id], before[p.task_id], p) for p in rl.problems if p.task_id in asked]
    found.sort(key=lambda contrast: contrast.rank)
    first: dict[frozenset[str], Contrast] = {}
    for contrast in found:
        if len(contrast.misread) == 1:
            first.setdefault(contrast.misread, contrast)
    chosen = list(first.values())
    return [*chosen, *(contrast for contrast in found if contrast not in chosen)][:TRANSCRIPTS]


def _print_transcripts(show: Screen, config: Config, sft: Evaluation, rl: Evaluation) -> None:
    """A few problems in full, with what the model wrote before and after reinforcement learning."""
    from rich.text import Text

    show.out.print("[bold]Held-out problems, before and after[/]\n", highlight=False)
    for contrast in _contrasts(config, sft, rl):
        show.out.print(Text(contrast.task.prompt[-1].content, style="italic"))
        for label, problem in (("SFT", contrast.before), ("RL", contrast.after)):
            if problem.greedy is None:
                continue
            right = problem.greedy.correct
            line = Text(f"  {label:<4}", style="bold")
            line.append("right  " if right else "wrong  ", style="green" if right else "red")
            line.append(problem.greedy.text, style="not bold")
            show.out.print(line, soft_wrap=True)
        show.out.print(f"  answer     {contrast.task.answer}\n", style="dim", highlight=False, markup=False)
