"""`maieutic tasks` and `maieutic algorithms`: what there is, read from the values themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.screen import Json, Quiet, Screen, screen, table
from maieutic.errors import MaieuticError

if TYPE_CHECKING:
    from maieutic.core.parts import Algorithm
    from maieutic.protocols import Taskset
    from maieutic.types import Task

#: Parameters that are objects in Python; on a command line and in a config they are chosen by name (`_by_name`).
OBJECTS = frozenset({"verifier", "tool"})
#: For algorithms that must know it; a stage of a config gives its own.
MAX_COMPLETION_LENGTH = 256
EXAMPLES = 3
#: The parts of an algorithm, as the table calls them.
COLUMNS = ("which rows", "credit", "loss", "tokens count", "step")
#: Column of a batch → the model that an algorithm which reads it runs beside the policy.
MODELS = {
    "ref_logprobs": "reference", "old_values": "critic", "teacher_logprobs": "teacher", "teacher_top_ids": "teacher",
}  # fmt: skip


def tasks(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="A taskset, or a file of tasks, to look at.", autocompletion=complete.tasksets),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the taskset, for the examples."),
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """List the tasksets; with a name, show its options and three of its tasks."""
    from maieutic.tasks import TASKSETS

    show = screen(context, json, quiet)
    if name is not None:
        _one_taskset(show, name, options or [])
        return
    listed = table("taskset", "what it asks")
    for each, factory in TASKSETS.items():
        listed.add_row(f"[bold]{each}[/]", complete.first_line(factory.__doc__))
    listed.add_row("[bold]reasoning_gym:NAME[/]", "The data sets of reasoning-gym, a hundred kinds of puzzles.")
    show.out.print(listed)
    show.out.print("maieutic tasks NAME shows its options and three tasks", style="dim", highlight=False)
    show.write_json({"tasksets": {n: complete.first_line(f.__doc__) for n, f in TASKSETS.items()}})


def _one_taskset(show: Screen, name: str, given: list[str]) -> None:
    from maieutic.cli.values import settings, taskset
    from maieutic.tasks import TASKSETS, find_taskset

    chosen = settings(given)
    made: Taskset | None = None
    why = ""
    try:
        made = taskset(name, chosen)
    except MaieuticError as error:
        if chosen or find_taskset(name) is None:
            raise
        why = str(error)  # it needs options that were not given: what these are is what the user wants to see
    named = find_taskset(name)
    factory = named or TASKSETS["file"]
    show.out.print(inspect.getdoc(factory) or "", markup=False, highlight=False)
    show.out.print()
    parameters = _parameters(factory)
    _print_parameters(show, parameters, "option")
    by_name = _by_name("file" if named is None else name)
    for option, (names, default) in by_name.items():
        said = f"{option}, by name: {', '.join(names)} (default: {default or 'the taskset has its own'})"
        show.out.print(said, markup=False, highlight=False)
    show.out.print()
    examples = [] if made is None else [made[i] for i in range(min(EXAMPLES, len(made)))]
    if made is None:
        show.out.print(f"no examples: {why}", markup=False, highlight=False, soft_wrap=True)
    else:
        show.out.print(f"[bold]{made.name}[/]: {len(made):,} tasks, such as\n", highlight=False)
    for example in examples:
        _print_task(show, example)
    size = None if made is None else len(made)
    show.write_json(
        {
            "name": name,
            "options": _plain(parameters),
            "by_name": {option: {"names": names, "default": default} for option, (names, default) in by_name.items()},
            "size": size,
            "examples": [_task(each) for each in examples],
        }
    )


def _by_name(name: str) -> dict[str, tuple[list[str], str | None]]:
    """Option → (the names it takes, its default; None for the taskset's own), where an object is chosen by a name."""
    from maieutic.environments.tools import TOOLS
    from maieutic.run.tasksets import VERIFIERS, WRITTEN_BY_PEOPLE
    from maieutic.tasks import find_taskset

    factory = find_taskset(name)
    takes = {} if factory is None else inspect.signature(factory).parameters
    known = {"verifier": (list(VERIFIERS), WRITTEN_BY_PEOPLE.get(name)), "tool": (list(TOOLS), None)}
    return {option: choices for option, choices in known.items() if option in takes}


def algorithms(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="An algorithm to look at.", autocompletion=complete.algorithms)
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Print the table of algorithms; with a name, show what it is made of and its hyper-parameters."""
    from maieutic.algorithms import ALGORITHMS

    show = screen(context, json, quiet)
    if name is not None:
        _one_algorithm(show, name)
        return
    rows = {each: {**_parts(_made(each)), "source": _source(factory)} for each, factory in ALGORITHMS.items()}
    listed = table("name\nsource", "which rows\ncredit", "loss", "tokens count\nstep", "runs")
    listed.columns[0].no_wrap = True
    for each, parts in rows.items():
        models = {word: None for column, word in MODELS.items() if column in _made(each).asks}
        rows_, credit, loss, count, step = (_short(parts[column]) for column in COLUMNS)
        source = f"[dim]{parts['source']}[/]"
        listed.add_row(
            f"[bold]{each}[/]\n{source}", f"{rows_}\n{credit}", loss, f"{count}\n{step}", "\n".join(models) or "–"
        )
    show.out.print(listed)
    show.out.print("maieutic algorithms NAME shows its hyper-parameters", style="dim", highlight=False)
    show.write_json({"algorithms": rows})


def _one_algorithm(show: Screen, name: str) -> None:
    from maieutic.algorithms import ALGORITHMS, NAMED

    made = _made(name)
    factory = ALGORITHMS[name]
    show.out.print(f"[bold]{name}[/]\n", highlight=False)
    show.out.print(inspect.getdoc(factory) or "", markup=False, highlight=False, soft_wrap=True)
    show.out.print()
    parts = _parts(made)
    for label, value in parts.items():
        show.out.print(f"  {label:<13} {value or '–'}", markup=False, highlight=False, soft_wrap=True)
    show.out.print()
    parameters = _parameters(factory)
    _print_parameters(show, parameters, "hyper-parameter")
    by_name = {option: list(names) for option, (_, names) in NAMED.items() if option in parameters}
    for option, names in by_name.items():
        show.out.print(f"{option}, by name: {', '.join(names)}", markup=False, highlight=False, soft_wrap=True)
    shown = {"name": name, "doc": inspect.getdoc(factory), "parts": parts}
    show.write_json({**shown, "hyper_parameters": _plain(parameters), "by_name": by_name})


def _made(name: str) -> Algorithm:
    from maieutic.algorithms import make_algorithm

    return make_algorithm(name, {}, max_completion_length=MAX_COMPLETION_LENGTH)


def _parts(algorithm: Algorithm) -> dict[str, str]:
    """The columns of the table, from the value itself."""
    return {
        "which rows": str(algorithm.select),
        "credit": str(algorithm.credit),
        "loss": str(algorithm.loss),
        "tokens count": str(algorithm.weigh),
        "step": str(algorithm.update),
        "needs": ", ".join(sorted(algorithm.asks)),
    }


def _short(text: str) -> str:
    """A part as the table shows it, by its names alone; `maieutic algorithms NAME` shows it in full."""
    while (bare := re.sub(r"\([^()]*\)", "", text)) != text:
        text = bare
    return "–" if text in ("none", "") else re.sub(r"[\d.]+ \* ", "", text)


def _source(factory: Callable[..., Any]) -> str:
    """Where an algorithm comes from, as its documentation says first: an arXiv number, or author and year."""
    found = re.search(r"arXiv \d{4}\.\d{5}|(?<=\()[^()]*\d{4}(?=\))", inspect.getdoc(factory) or "")
    return found.group() if found else "–"


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(factory).parameters.items() if name not in OBJECTS}


def _print_parameters(show: Screen, parameters: Mapping[str, inspect.Parameter], kind: str) -> None:
    from rich.markup import escape

    if not parameters:
        show.out.print(f"no {kind}s\n", style="dim", highlight=False)
        return
    listed = table(kind, "default", "type")
    for name, parameter in parameters.items():
        listed.add_row(name, escape(_default(parameter)), escape(str(parameter.annotation)))
    show.out.print(listed)


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return "(needed)"
    return str(getattr(parameter.default, "__name__", parameter.default))


def _plain(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Parameters as JSON: their defaults as they are where JSON has them, else as text."""
    plain: dict[str, Any] = {}
    for name, parameter in parameters.items():
        default = parameter.default
        simple = default is None or isinstance(default, str | int | float | bool)
        needed = default is parameter.empty
        plain[name] = {
            "default": None if needed else default if simple else _default(parameter),
            "needed": needed,
            "type": str(parameter.annotation),
        }
    return plain


def _print_task(show: Screen, task: Task) -> None:
    show.out.print(f"[dim]{task.id}[/]", highlight=False)
    for message in task.prompt:
        show.out.print(f"  {message.role}: {message.content}", markup=False, highlight=False, soft_wrap=True)
    if solution := task.meta.get("solution"):
        show.out.print(f"  solution: {solution}", markup=False, highlight=False, soft_wrap=True)
    show.out.print(f"  answer: {task.answer}\n", markup=False, highlight=False, soft_wrap=True)


def _task(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "prompt": [{"role": message.role, "content": message.content} for message in task.prompt],
        "answer": task.answer,
        "solution": task.meta.get("solution"),
    }
