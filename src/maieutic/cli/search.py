"""`maieutic search`: what a model finds when it may spend more tokens on a problem, by several methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.models import Device, Length, Limit, ModelName, Options, TaskName, Template, Threads, load
from maieutic.cli.screen import Json, Quiet, Screen, folder, screen, table
from maieutic.cli.values import settings, taskset
from maieutic.errors import ConfigError, UnknownName
from maieutic.run.interrupt import interrupted

if TYPE_CHECKING:
    from maieutic.run.searching import Asking, Method
    from maieutic.search.results import Solved, Summary

#: What an option of a search may be, in words.
KINDS = {"bool": "true or false", "float": "a number", "int": "a whole number", "str": "a text (a number in quotes)"}

Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAMES",
        help="Searches, with commas between; options follow a colon each: wait:times=4:ignore=Hmm.",
        show_default="vote",
        autocompletion=complete.searches,
    ),
]
RewardModels = Annotated[
    list[str] | None,
    typer.Option(
        "--reward-model",
        metavar="FOLDER",
        help="For methods that choose by scores; may be repeated.",
        autocompletion=complete.models,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Keep what is found, a picture, and training data; goes on where it was."),
]


def search(
    context: typer.Context,
    model: ModelName,
    task: TaskName,
    method: Methods = None,
    budget: Annotated[
        str, typer.Option(metavar="TOKENS", help="Tokens for a problem, several with commas between.")
    ] = "256",
    reward_model: RewardModels = None,
    delimiter: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What steps end in, for searches over steps. \\n: a line break."),
    ] = None,
    limit: Limit = None,
    temperature: Annotated[float, typer.Option(min=0, metavar="T", help="Of the samples.")] = 1.0,
    out: Out = None,
    max_completion_length: Length = None,
    options: Options = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seeds the samples.")] = 0,
    template: Template = None,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Search for answers by several methods at equal budgets of tokens, each compared with a vote of as many.

    The budget counts every token that the model chooses for a problem, thrown-away branches too. Ctrl-C keeps what was
    found (with --out); the same command goes on.
    """
    show = screen(context, json, quiet)
    folder(out, "--out")
    given = settings(options or [])
    methods, budgets = with_delimiter(parsed(method or ["vote"]), delimiter), parsed_budgets(budget)
    if all(each.label != "vote" for each in methods):
        methods = [*parsed(["vote"]), *methods]
        show.note("vote is added: it is what the others are compared with")
    tasks = taskset(task, given, split="test")
    speaker = load(model, device=device, threads=threads, template=template)
    if speaker.note:
        show.note(speaker.note)
    from maieutic.run.search_judges import with_judges
    from maieutic.run.searching import Asking

    asking = Asking(
        tasks, speaker.sampler, speaker.chat, speaker.length(max_completion_length), temperature, seed, limit
    )
    how = {
        "model": model, "task": task, "options": given, "temperature": temperature, "seed": seed,
        "length": asking.max_tokens, "reward_models": reward_model or [], "delimiter": delimiter,
    }  # fmt: skip
    judged = with_judges(methods, asking, reward_model or [], device)
    arms = _carry_out(show, asking, judged, budgets, out, how)
    _say(show, arms, out, asking, how)


def parsed(given: Sequence[str]) -> list[Method]:
    """`["vote,wait:times=4"]` as methods. Raises UnknownName and ConfigError for what is none."""
    from inspect import signature

    from maieutic.run.searching import Method
    from maieutic.search.methods import SEARCHES
    from maieutic.search.methods import options as options_of

    made: dict[str, Method] = {}
    for label in (each.strip() for text in given for each in text.split(",")):
        name, *pairs = label.split(":")
        if name not in SEARCHES:
            raise UnknownName("search", name, SEARCHES)
        wanted: dict[str, Any] = {}
        for pair in pairs:
            if "=" not in pair:
                raise ConfigError(f"--method {label!r}: got {pair!r}; expected option=value after the colon")
            wanted |= settings([pair])
        for key, value in wanted.items():
            if key not in options_of(name):
                raise UnknownName(f"option of the search {name}", key, options_of(name))
            _check_kind(label, key, value, str(signature(SEARCHES[name]).parameters[key].annotation))
        if label in made:
            raise ConfigError(f"--method: {label} is given twice")
        made[label] = Method(name, wanted, label)
    return list(made.values())


def _check_kind(label: str, key: str, value: Any, annotation: str) -> None:
    """Raise ConfigError for a text where a number is meant, and for a judge, which no text can be."""
    allowed = set(annotation.replace("Delimiter", "str").split(" | ")) - {"None"}
    if type(value).__name__ in allowed:
        return
    if not allowed <= KINDS.keys():
        raise ConfigError(f"--method {label!r}: {key} cannot be said here; --reward-model FOLDER gives a judge")
    if not (type(value) is int and "float" in allowed):
        expected = " or ".join(KINDS[each] for each in sorted(allowed))
        raise ConfigError(f"--method {label!r}: got {key}={value!r}; expected {expected}")


def with_delimiter(methods: Sequence[Method], delimiter: str | None) -> list[Method]:
    """The methods, those with steps cut where this stands. Raises ConfigError where none has steps."""
    from dataclasses import replace

    from maieutic.search.methods import options as options_of

    if delimiter is None:
        return list(methods)
    cut = {"delimiter": delimiter.replace("\\n", "\n")}
    stepping = [each for each in methods if "delimiter" in options_of(each.name)]
    if not stepping:
        raise ConfigError(f"got --delimiter {delimiter!r}, and no method that searches over steps; leave it out")
    return [replace(each, options={**cut, **each.options}) if each in stepping else each for each in methods]


def parsed_budgets(given: str) -> list[int]:
    """`"64,128"` as numbers, rising. Raises ConfigError for what is none."""
    try:
        found = sorted({int(each) for each in given.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise ConfigError(f"got --budget {given}; expected numbers of tokens with commas between, such as 64,128,256")
    return found


def _carry_out(
    show: Screen, asking: Asking, methods: Sequence[Method], budgets: Sequence[int], out: Path | None, how: Mapping
) -> dict[tuple[str, int], list[Solved]]:
    from maieutic.cli.progress import display
    from maieutic.run.searching import search_all

    with interrupted() as stop, display(show) as shown:
        begun: set[tuple[str, int]] = set()

        def watch(label: str, budget: int, done: int, total: int) -> None:
            key = f"{label} at {budget}"
            if (label, budget) not in begun:
                begun.add((label, budget))
                shown.begin(key, done, total)
            else:
                shown.show(key, done, total)

        return search_all(asking, methods, budgets, out, how, watch=watch, stop=stop.is_set)


def _say(
    show: Screen, arms: Mapping[tuple[str, int], list[Solved]], out: Path | None, asking: Asking, how: Mapping[str, Any]
) -> None:
    from maieutic.search.results import sequential, summarise

    found = summarise(arms)
    show.out.print(_table(found, f"{how['model']} on {how['task']}"))
    for each in found:
        for number, turn in enumerate(each.transitions, 1):
            counts = f"kept {turn.kept}, broken {turn.broken}, mended {turn.mended}, missed {turn.missed}"
            show.out.print(
                f"{each.method} at {each.budget}, round {number}: {counts}; {turn.difference.percent()}",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip
    failed = sum(each.errors for each in found)
    if failed:
        show.note(
            f"{failed} searches failed, because their prompts did not fit the model; they count as wrong", "yellow"
        )
    data = {"settings": how, "results": [each.to_dict() for each in found], "sequential": sequential(found)}
    if out is not None:
        data |= _kept(show, out, arms, asking, found, data)
    show.write_json(data)


def _kept(
    show: Screen, out: Path, arms: Mapping[tuple[str, int], list[Solved]], asking: Asking, found: Sequence[Summary],
    data: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The page, the results and the training data beside the rows; what was written."""
    import json

    from maieutic.compare.search_page import write_page
    from maieutic.run.durable import write_text
    from maieutic.run.searching import name_of, write_data
    from maieutic.search.budget import FORMS, form_of

    page = write_page(out, found, data["settings"])
    write_text(out / "search.json", json.dumps(data, indent=1, ensure_ascii=False, default=str) + "\n")
    rows, form = {}, form_of("auto", asking.chat)
    ignore = "\nWait, " if form in FORMS.values() else "Wait "  # a tokenizer of words may know no newline
    for label, budget in arms:
        folder = out / "data" / name_of(label, budget)
        folder.mkdir(parents=True, exist_ok=True)
        rows[f"{label}@{budget}"] = write_data(folder, asking, arms[label, budget], form.end, ignore)
    show.note(f"page: {page}   rows and training data: {out}")
    return {"page": str(page), "data": rows}


def _table(found: Sequence[Summary], title: str) -> Any:
    columns = ("method", "budget", "right (95 % interval)", "against the vote", "generated", "read", "reused", "calls")
    made = table(*columns, title=f"{title}: {found[0].problems:,} problems; tokens and calls a problem")
    for each in found:
        cost = {name: f"{value:,.0f}" for name, value in each.cost.items()}
        difference = "" if each.against is None else each.against.percent().partition(":")[0]
        made.add_row(
            each.method, f"{each.budget:,}", each.accuracy.percent(), difference, cost["generated"],
            cost["prefilled"], cost["reused"], f"{each.cost['calls']:,.1f}",
        )  # fmt: skip
    return made
