"""`maieutic reward try`: what a reward says of completions, before a run trusts it."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from maieutic.cli import complete
from maieutic.cli.models import Options, TaskName
from maieutic.cli.screen import Json, Quiet, screen, table
from maieutic.cli.values import settings, taskset


def try_reward(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="REWARD", help="FILE.py:NAME, or the name of a reward.", autocompletion=complete.rewards
        ),
    ],
    task: TaskName,
    completions: Annotated[
        list[str] | None, typer.Option("--completion", metavar="TEXT", help="A completion to score; may be repeated.")
    ] = None,
    options: Options = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Show what a reward says of completions of a task."""
    from rich.markup import escape

    from maieutic.config import StageConfig
    from maieutic.run.rewards import make_reward
    from maieutic.types import Finish, Rollout

    show = screen(context, json, quiet)
    tasks = taskset(task, settings(options or []), split="test")
    stage = StageConfig(algorithm="grpo", steps=1, rewards={name: 1.0})  # type: ignore[call-arg]
    reward = make_reward(stage, tasks)
    asked = tasks[0]
    given = completions or [str(asked.meta.get("solution", "")), str(asked.answer), ""]
    rollouts = [Rollout(asked.id, (0, 0), (False, True), (0.0, 0.0), Finish.STOP, text) for text in given]
    scores = asyncio.run(reward(asked, rollouts))
    listed = table("completion", "reward", "note", title=asked.id)
    for text, score in zip(given, scores):
        listed.add_row(escape(repr(text)), "–" if score.reward is None else f"{score.reward:g}", escape(score.note))
    show.out.print(listed)
    shown = [{"completion": text, "reward": s.reward, "note": s.note} for text, s in zip(given, scores)]
    show.write_json({"reward": name, "task": asked.id, "scores": shown})
