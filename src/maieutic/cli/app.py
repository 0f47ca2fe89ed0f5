"""The verbs of the command line, in the order in which `maieutic --help` lists them.

Nothing heavy is imported here: a verb imports what it needs when it runs, so that help and completion come at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

import maieutic
from maieutic.cli.catalogue import algorithms, tasks
from maieutic.cli.compare import compare
from maieutic.cli.demo import demo
from maieutic.cli.distil import distil
from maieutic.cli.evaluate import evaluate
from maieutic.cli.groups import examples
from maieutic.cli.plan import plan
from maieutic.cli.reward import reward
from maieutic.cli.sample import sample
from maieutic.cli.sandbox import sandbox
from maieutic.cli.search import search
from maieutic.cli.show import show
from maieutic.cli.sweep import sweep
from maieutic.cli.teach import teach
from maieutic.cli.teacher import teacher
from maieutic.cli.train import train

app = typer.Typer(
    name="maieutic",
    help="Teach language models to reason with reinforcement learning.",
    epilog="Begin with: [bold]maieutic demo[/]   ·   exit codes: 0 done, 2 usage or config, 3 data, 4 model, "
    "5 rewards, 6 numbers, 7 run, 130 interrupted",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"maieutic {maieutic.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no notices: results and errors only.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, and what libraries say.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Teach language models to reason with reinforcement learning."""
    context.obj = {"quiet": quiet, "debug": debug, "version": version}


EXAMPLES = {
    "train": [
        "maieutic train my.toml",
        "maieutic train my.toml --dry-run --set stages.0.steps=10 --set model.path=models/tiny",
        "maieutic train --run runs/my --resume",
    ],
    "teach": [
        "maieutic teach examples/teach.toml",
        "maieutic teach examples/teach.toml --dry-run --set rl.steps=10",
    ],
    "distil": [
        "maieutic distil examples/distil.toml",
        "maieutic distil examples/distil.toml --only-collect --set collect.limit=100",
    ],
    "plan": [
        "maieutic plan my.toml --completion-length 120",
        "maieutic plan my.toml --trial --set micro_batch_tokens=8192",
        "maieutic plan runs/my",
    ],
    "eval": [
        "maieutic eval runs/my arithmetic --limit 200",
        "maieutic eval models/tiny questions.jsonl --samples 16 --save before.json",
        "maieutic eval runs/my questions.jsonl --samples 16 --against before.json",
        "maieutic eval models/tiny ai2_arc --set path=arc --likelihood",
    ],
    "compare": [
        "maieutic compare examples/compare.toml",
        "maieutic compare examples/compare.toml --dry-run --set budget.samples=2000",
    ],
    "sweep": ["maieutic sweep examples/sweep.toml", "maieutic sweep examples/sweep.toml --jobs 2 --json sweep.json"],
    "search": [
        "maieutic search runs/my arithmetic --method vote,refine,wait:form=#:ignore= --budget 64,128,256 --limit 200",
        "maieutic search runs/my arithmetic --method best_of_n --reward-model models/orm --out searches/my",
    ],
    "sample": ["maieutic sample runs/my arithmetic --n 5 --random", "maieutic sample models/tiny questions.jsonl"],
    "tasks": ["maieutic tasks", "maieutic tasks arithmetic --set difficulty=4 --set split=test"],
    "algorithms": ["maieutic algorithms", "maieutic algorithms grpo --json -"],
    "demo": ["maieutic demo", "maieutic demo --seed 1 --json demo.json"],
    "show": ["maieutic show runs/my"],
}


VERBS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "teach": teach,
    "distil": distil,
    "plan": plan,
    "eval": evaluate,
    "compare": compare,
    "sweep": sweep,
    "search": search,
    "sample": sample,
    "show": show,
    "tasks": tasks,
    "algorithms": algorithms,
}
for verb, function in VERBS.items():
    app.command(
        verb,
        epilog=examples(EXAMPLES[verb]),
        no_args_is_help=verb in ("teach", "distil", "plan", "eval", "compare", "sweep", "search", "sample", "show"),
    )(function)
app.add_typer(reward)
app.add_typer(sandbox)
app.add_typer(teacher)

command = typer.main.get_command(app)
