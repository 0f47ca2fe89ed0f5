"""Commands below a word of their own (`maieutic reward …`), and the examples at the end of a command's help."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import typer


def examples(lines: Sequence[str]) -> str:
    """The end of a command's help; blank lines keep the examples apart."""
    return "Examples:\n\n" + "\n\n".join(f"[bold cyan]{line}[/]" for line in lines)


def group(
    name: str, said: str, commands: Mapping[str, Callable[..., None]], shown: Mapping[str, Sequence[str]]
) -> typer.Typer:
    """The commands below `name`, in their order, each with the examples that are `shown` for it."""
    made = typer.Typer(
        name=name,
        help=said,
        no_args_is_help=True,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for command, function in commands.items():
        made.command(command, epilog=examples(shown[command]), no_args_is_help=True)(function)
    return made
