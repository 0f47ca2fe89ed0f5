"""`maieutic sandbox check`: what confines programs that a model wrote on this machine, and whether it holds."""

from __future__ import annotations

import typer

from maieutic.cli.screen import Json, Quiet, screen, table

sandbox = typer.Typer(
    name="sandbox",
    help="The boundary around programs that a model wrote.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@sandbox.callback()
def options() -> None:
    """The boundary around programs that a model wrote."""


@sandbox.command(
    "check", epilog="Examples:\n\n[bold cyan]maieutic sandbox check[/]\n\n[bold cyan]maieutic sandbox check --json -[/]"
)
def check(context: typer.Context, json: Json = None, quiet: Quiet = False) -> None:
    """Say what this machine has to confine programs with, and try to get past it."""
    from rich.markup import escape

    from maieutic.errors import ConfigError
    from maieutic.sandbox.check import attempt, probe
    from maieutic.sandbox.host import LAYERS

    show = screen(context, json, quiet)
    boundary = probe()
    layers = table("layer", "in force", "how", "so that there is", title="what confines programs here")
    for name, (there, how) in boundary.layers.items():
        layers.add_row(name, "[green]yes[/]" if there else "[yellow]no[/]", escape(how), LAYERS.get(name, ""))
    show.out.print(layers)
    stopped = attempt()
    tried = table("what a program tried", "stopped")
    for name, held in stopped.items():
        tried.add_row(name, "[green]yes[/]" if held else "[bold red]NO[/]")
    show.out.print(tried)
    show.write_json(
        {"layers": {n: {"in_force": t, "how": h} for n, (t, h) in boundary.layers.items()}, "tried": stopped}
    )
    if not all(stopped.values()):
        out = ", ".join(name for name, held in stopped.items() if not held)
        raise ConfigError(f"the boundary does not hold: a program could {out}. Do not run programs of a model here")
    show.out.print("Programs that a model wrote can be run here.", highlight=False)
