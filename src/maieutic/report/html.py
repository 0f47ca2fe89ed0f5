"""`report.html`: a run on one page that needs nothing else, neither network nor script.

    title, summary ─ alarms ─ stages ─ what was measured ─ curves ─ before and after ─ rollouts ─ settings

The page is light or dark as the reader's system is. It allows itself nothing but its own styles (Content-Security-
Policy), and all text of models, tasks and configs is escaped where it becomes HTML (`markup`).
"""

from __future__ import annotations

import platform
import time
from importlib import metadata
from pathlib import Path

from maieutic.errors import RunError
from maieutic.report import gallery, sections
from maieutic.report.markup import Child, Html, el, inside, table
from maieutic.report.reading import Order, RunView, read_rollouts, read_run, read_step
from maieutic.report.style import STYLE
from maieutic.report.transcripts import find_tokenizer
from maieutic.report.words import summary
from maieutic.run.directory import RunDirectory
from maieutic.run.durable import write_text
from maieutic.run.guarding import ALARM
from maieutic.run.store import Store

#: Rollouts of each stage that are shown as best and as worst, and that are read of a step for its lengths.
SHOWN, READ = 3, 512

#: Packages whose versions decide what a run does.
PACKAGES = ("maieutic", "torch", "transformers", "tokenizers", "numpy", "peft")


def write_report(run_dir: Path, view: RunView | None = None) -> Path:
    """Write `report.html` into a run's folder, whatever state the run is in, and return its path.

    `view` is the run as read before, if it was. Raises RunError where there is no run, or the file cannot be
    written.
    """
    directory = RunDirectory.open(run_dir)
    text = page(read_run(run_dir) if view is None else view)
    try:
        write_text(directory.report, text)
    except OSError as error:
        raise RunError(
            f"cannot write {directory.report}: {error.strerror}; expected a folder that may be written: copy the run"
        ) from error
    return directory.report


def page(view: RunView) -> str:
    """The whole page."""
    found, refused = view.changes
    tokenizer = find_tokenizer(view)
    texts = {
        f"{stage.name}: {order.value}": read_rollouts(view.path, order, SHOWN, stage=stage.name)
        for stage in view.stages
        for order in Order
    }
    lengths = {
        stage.name: [
            (f"step {step}", read_step(view.path, stage.name, step, READ))
            for step in sorted({0, max(stage.done - 1, 0)})
        ]
        for stage in view.stages
        if stage.rollouts
    }
    head = [
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        el("title", f"{view.config.name}: a run of maieutic"),
        el("style", Html(STYLE)),
    ]
    body: list[Child] = [
        el(
            "header",
            el("h1", view.config.name),
            el("span", view.state.value, class_=f"state {view.state.name.lower()}"),
        ),
        el("p", " ".join(summary(view, found)), class_="summary"),
        sections.notes(view.notes, view.warnings),
        gallery.alarms(view.alarms, tokenizer),
        sections.stages(view),
        sections.phases(view),
        sections.measured(view, found, refused),
        sections.curves(view, lengths),
        gallery.before_and_after(view),
        gallery.rollouts(texts, tokenizer),
        settings(view),
    ]
    html = el("html", el("head", head), el("body", el("main", body)), lang="en")
    return f"<!DOCTYPE html>\n{html}\n"


def settings(view: RunView) -> Html:
    """Seeds, versions and the resolved config."""
    config = view.config
    seeds: list[list[Child]] = [["seed of the run", str(config.seed)]]
    if config.evaluation is not None:
        seeds.append(["seed of the evaluations", str(config.evaluation.seed)])
    versions: list[list[Child]] = [["python", platform.python_version()], ["system", platform.platform()]]
    versions += [[name, version] for name in PACKAGES if (version := _version(name)) is not None]
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    return el(
        "section",
        el("h2", "Settings"),
        table(["", "value"], seeds, "Seeds"),
        table(["when", "what", "with"], _events(view), "Begun and resumed"),
        table(["", "version"], versions, f"Installed where this report was made, {made}"),
        el("details", el("summary", "The resolved config"), el("pre", _config(view))),
        id="settings",
    )


def _events(view: RunView) -> list[list[Child]]:
    """When the run was begun and taken up again, and with which versions."""
    database = RunDirectory.open(view.path).database
    if not database.exists():
        return []
    with Store.open_reader(database) as store:
        events = store.events()
    return [
        [
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time)),
            event.message,
            ", ".join(f"{name} {value}" for name, value in event.data.items()),
        ]
        for event in reversed(events)
        if event.kind != ALARM  # which have a section of their own
    ]


def _config(view: RunView) -> Html:
    return inside(RunDirectory.open(view.path).config.read_text(encoding="utf-8"))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
