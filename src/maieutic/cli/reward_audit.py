"""`maieutic reward audit`: how far a reward model, or a verifier, can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli import complete
from maieutic.cli.models import Device, Length, Template, Threads
from maieutic.cli.reward_checkers import Source, checkers_of, completions_of
from maieutic.cli.reward_train import MEANINGS
from maieutic.cli.screen import Json, Quiet, Screen, screen, table, writable
from maieutic.errors import ConfigError

if TYPE_CHECKING:
    from maieutic.core.intervals import Interval
    from maieutic.core.judging import Bin
    from maieutic.reward_models.verifiers import Case

#: Characters of a completion, from its end, where answers stand.
SHOWN = 60


What = Annotated[
    list[str],
    typer.Argument(
        metavar="WHAT…",
        help="A reward model's folder; or one or two checkers: strict, flexible, latex, number, answer (the taskset's "
        "own), FILE.py:NAME.",
        autocompletion=complete.rewards,
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data", metavar="FILE", help="Judged data for a reward model; or a run.", autocompletion=complete.judged
    ),
]
Page = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="A page with the calibration curve.")]
Run = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Check what this run has written.")]
File = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="Check completions: rows with prompt, answer, completion.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Check fresh samples of this model.", autocompletion=complete.models),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="TASK", help="The taskset, for `answer` and for --model.", autocompletion=complete.tasksets
    ),
]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the taskset.")]
Labels = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Rows labelled by hand: the rates of errors come from them.")
]
Export = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a random sample of completions to be labelled by hand.")
]


def audit_reward(
    context: typer.Context,
    what: What,
    data: Data = None,
    html: Page = None,
    run: Run = None,
    file: File = None,
    model: Model = None,
    task: Task = None,
    options: Settings = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, metavar="N", help="Tasks for the model.")] = 50,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Completions of each task by the model.")] = 4,
    max_completion_length: Length = None,
    labels: Labels = None,
    export: Export = None,
    size: Annotated[int, typer.Option(min=1, metavar="N", help="Completions of --export.")] = 100,
    shown: Annotated[int, typer.Option(min=0, metavar="N", help="Disagreements to show; --json has all.")] = 20,
    seed: Annotated[int, typer.Option(metavar="N", help="Seeds samples and --export.")] = 0,
    template: Template = None,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Audit a reward model on judged data, or verifiers on completions.

    Of a reward model: calibration, AUC, pair accuracy, first errors. Of verifiers: where two of them disagree, and,
    from a sample labelled by hand (--export, then --labels), how often each accepts what is wrong and refuses what is
    right, with 95 % intervals.
    """
    show = screen(context, json, quiet)
    for path, option in ((html, "--html"), (export, "--export")):
        if path is not None:
            writable(path, option)
    if data:
        if len(what) > 1 or run or file or model or labels or export:
            raise ConfigError("got --data, which is of one reward model; leave out what is of checkers")
        _model(show, what[0], data, html, device, template or "auto")
        return
    if html is not None:
        raise ConfigError("got --html without --data; expected judged data for a reward model's page")
    if len(what) > 2:
        raise ConfigError(f"got {len(what)} checkers; expected one or two")
    source = Source(run, file, model, task, options or (), n, samples, max_completion_length, seed)
    if not (source.given or labels):
        raise ConfigError(
            "got nothing to audit on; expected --data FILE for a reward model; --run, --file, --model or --labels for "
            "checkers"
        )
    names, checkers = checkers_of(what, source)
    completions = completions_of(source, device, threads, template) if source.given else []
    if export is not None:
        _export(show, export, completions, size, seed)
    _checkers(show, names, checkers, completions, labels, shown)


def _model(show: Screen, folder: str, data: Sequence[str], html: Path | None, device: str, template: str) -> None:
    """Ask the model of the data, all of them, and say how well it judges."""
    from dataclasses import asdict

    from maieutic.core.judging import calibration
    from maieutic.models.reward_model import load_reward_model
    from maieutic.reward_models.measure import ask, measures
    from maieutic.run.reward_data import audited
    from maieutic.run.reward_training import quick_of

    judge = quick_of(load_reward_model(folder, device=device, template=template))
    asked = ask(judge, audited(judge, data))
    found = measures(asked)
    bins = calibration(*asked.flat())
    values = {key: f"{value:,.0f}" if key == "count" else f"{value:.3f}" for key, value in found.items()}
    rows = table("measure", "value", "what it says", title=f"{folder}: a model of kind {judge.kind}")
    for key, value in values.items():
        rows.add_row(key, value, MEANINGS.get(key, ""))
    show.out.print(rows)
    _print_bins(show, bins)
    if html is not None:
        from maieutic.report.calibration import write_page

        write_page(html, folder, {key: (value, MEANINGS.get(key, "")) for key, value in values.items()}, bins)
        show.note(f"the curve is in {html}")
    table_ = [{**asdict(each), "seen": each.seen.to_dict()} for each in bins]
    show.write_json({"model": folder, "kind": judge.kind, "measures": found, "calibration": table_})


def _print_bins(show: Screen, bins: Sequence[Bin]) -> None:
    rows = table("said", "how many", "mean", "right (95 % interval)", "", title="are probabilities what they say?")
    for each in bins:
        honest = each.seen.low <= each.said <= each.seen.high
        word = "" if honest else "too sure" if each.said > each.seen.high else "not sure enough"
        span = f"{100 * each.low:.0f} to {100 * each.high:.0f} %"
        rows.add_row(span, f"{each.count:,}", f"{100 * each.said:.1f} %", each.seen.percent(), word)
    show.out.print(rows)


def _export(show: Screen, path: Path, completions: Sequence[Any], size: int, seed: int) -> None:
    import json as json_

    from maieutic.reward_models.verifiers import to_label

    if not completions:
        raise ConfigError("got --export without --run, --file or --model; expected completions to draw from")
    rows = to_label(completions, size, seed)
    path.write_text("".join(json_.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    show.note(f"{len(rows):,} completions are in {path}: set each `label` to true or false, then give it to --labels")


def _checkers(
    show: Screen, names: Sequence[str], checkers: Mapping[str, Any], completions: Sequence[Any], labels: Path | None,
    shown: int,
) -> None:  # fmt: skip
    from maieutic.loops import run_async
    from maieutic.reward_models.verifiers import agreement, disagreements, examine, labelled, rates
    from maieutic.tasks.files import read_rows

    data: dict[str, Any] = {"checkers": list(names)}
    if completions:
        cases = run_async(examine(checkers, completions))
        counts, share = agreement(cases)
        apart = disagreements(cases)
        _print_agreement(show, names, counts, share, apart[:shown], len(apart))
        data |= {
            "completions": len(cases), "counts": counts, "agree": None if share is None else share.to_dict(),
            "disagreements": [case.to_dict(names) for case in apart],
        }  # fmt: skip
    if labels is not None:
        known = run_async(examine(checkers, *labelled(read_rows(labels))))
        count = sum(case.label is not None for case in known)
        if not count:
            raise ConfigError(f"{labels}: none of its {len(known)} rows has a label; set `label` to true or false")
        found = {name: rates(known, i) for i, name in enumerate(names)}
        _print_rates(show, found, count)
        data["labelled"] = count
        data["rates"] = {
            name: {rate: None if value is None else value.to_dict() for rate, value in each.items()}
            for name, each in found.items()
        }
        wrong = [c for c in known if c.label is not None and any(v is not c.label for v in c.verdicts)]
        data["mistakes"] = [case.to_dict(names) for case in wrong]
    show.write_json(data)


def _print_agreement(
    show: Screen, names: Sequence[str], counts: Mapping[str, int], share: Interval | None, apart: Sequence[Case],
    total: int,
) -> None:  # fmt: skip
    from rich.markup import escape

    rows = table(escape(" / ".join(names)), "completions")
    for pair, count in sorted(counts.items(), key=lambda each: -each[1]):
        rows.add_row(pair, f"{count:,}")
    show.out.print(rows)
    if share is not None:
        show.out.print(f"they agree on {share.percent()}", highlight=False)
    if not apart:
        return
    listed = table("task", "gold", "completion (its end)", *map(escape, names), title=f"{total:,} disagreements")
    for case in apart:
        said = [f"{'right' if v else 'wrong' if v is False else '?'}  {s.answer or ''}" for v, s in
                zip(case.verdicts, case.scores, strict=True)]  # fmt: skip
        text = " ".join(case.text.split())
        text = text if len(text) <= SHOWN else f"…{text[1 - SHOWN :]}"
        listed.add_row(*map(escape, (case.task.id, case.task.answer or "", text, *said)))
    show.out.print(listed)


def _print_rates(show: Screen, found: Mapping[str, Mapping[str, Interval | None]], count: int) -> None:
    from rich.markup import escape

    title = f"against {count:,} labels by hand (95 % intervals)"
    rows = table("checker", "accepts what is wrong", "refuses what is right", title=title)
    for name, each in found.items():
        cells = ["nothing of that kind" if value is None else value.percent() for value in each.values()]
        rows.add_row(escape(name), *cells)
    show.out.print(rows)
