"""The report's sections on numbers: what was measured, and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maieutic.evaluate import UNBOUNDED
from maieutic.report import plots
from maieutic.report.curves import FAMILIES, OTHER, PARTS, Points, families, finite, moves, number
from maieutic.report.health import Note
from maieutic.report.markup import Child, Html, el, table
from maieutic.report.measured import Change, Measured, by_name, shown, title
from maieutic.report.reading import RunView
from maieutic.report.waterfall import Waterfall
from maieutic.report.words import beside, duration, headlines, place
from maieutic.run.records import StoredRollout

#: Share of a step from which a phase is drawn as its parts, and from which a part is drawn on its own.
CUT, DRAWN = 0.25, 0.02

#: Classes of a histogram of correct samples beyond which neighbours are put together.
CLASSES = 16


def stages(view: RunView) -> Html:
    """A line for each stage."""
    rows: list[list[Child]] = [
        [s.name, s.algorithm, s.tasks, f"{s.done:,} of {'?' if s.total is None else f'{s.total:,}'}",
         duration(s.seconds), f"{s.rollouts:,}"]
        for s in view.stages
    ]  # fmt: skip
    head = ["stage", "algorithm", "tasks", "steps", "time", "rollouts stored"]
    return table(head, rows, "Stages, each from the model of the one before", "numbers")


def phases(view: RunView) -> Child:
    """Where the seconds of a step go, stage by stage; nothing for a run that does not say."""
    parts: list[Child] = []
    for stage, found in view.waterfalls.items():
        caption = f"{stage}: a step of {duration(found.seconds)}"
        parts.append(plots.stacked(caption, _pieces(found), whole=found.seconds))
        parts.append(el("p", found.bottleneck))
        parts.append(el("p", " ".join(beside(found)), class_="note"))
    return el("section", el("h2", "Where the time goes"), parts, id="phases") if parts else ""


def _pieces(found: Waterfall) -> list[tuple[str, float]]:
    """The parts of a step by name, the largest phases cut into theirs; small ones are put together."""
    cut = [piece for part in found.of("") for piece in (found.of(part.path) if part.share > CUT else []) or [part]]
    large = [(piece.path.replace("/", ": "), piece.seconds) for piece in cut if piece.share >= DRAWN]
    small = sum(piece.seconds for piece in cut if piece.share < DRAWN)
    return [*large, *([("the rest", small)] if small else [])]


def measured(view: RunView, changes: Sequence[Change], refused: Sequence[str]) -> Html:
    """Every evaluation: metrics with intervals, what changed, and how many samples of each problem were correct."""
    parts: list[Child] = []
    for name, made in by_name(view.measured).items():
        parts.append(el("h3", f"{name}: {_size(made)}"))
        parts.append(_metrics(name, made))
        found = [change for change in changes if change.name == name]
        if found:
            rows: list[list[Child]] = [
                [f"{c.old} → {c.new}", el("span", c.metric, title=title(c.metric)), _verdict(c)] for c in found
            ]
            parts.append(table(["stages", "metric", "difference on the same problems"], rows, f"{name}: what changed"))
        parts.append(el("div", _intervals(name, made), _counts(name, made), _lengths(name, made), class_="charts"))
    parts += [el("p", text, class_="warn") for text in refused]
    return el("section", el("h2", "What was measured"), parts or el("p", "Nothing was measured yet."), id="measured")


def curves(view: RunView, first_last: Mapping[str, Sequence[tuple[str, Sequence[StoredRollout]]]]) -> Html:
    """The curves of every stage under their headings; what never changed is a line of text."""
    parts: list[Child] = []
    for stage, each in view.told.items():
        if not each:
            continue
        parts.append(el("h3", stage))
        moving = {name: points for name, points in each.items() if moves(points)}
        found = families(moving)
        more = {"Reward": _parts(each), "Completions": _rollout_lengths(first_last.get(stage, ()))}
        for heading in [*FAMILIES, OTHER]:
            charts: list[Child] = [plots.lines(n, [plots.Series(n, moving[n])]) for n in found.get(heading, ())]
            charts += more.get(heading, [])
            if charts:
                group = el("div", charts, class_="charts")
                parts.append(el("details", el("summary", heading), group, open=heading != OTHER))
        parts.append(_still(each, moving))
    return el("section", el("h2", "Learning curves"), parts or el("p", "No step was made yet."), id="curves")


def notes(found: Sequence[Note], warnings: Sequence[str]) -> Html:
    """The health notes, and what else a reader should know first."""
    if not found and not warnings:
        return el("p", "Nothing stood out in the curves.", class_="note")
    lines = [el("li", el("strong", f"{note.stage}: "), note.text) for note in found]
    return el("ul", lines, [el("li", text) for text in warnings], class_="warn")


def _size(made: Sequence[Measured]) -> str:
    sizes = sorted({(len(each.evaluation.problems), each.evaluation.n) for each in made})
    return " and ".join(f"{problems:,} problems, {samples} samples each" for problems, samples in sizes)


def _metrics(name: str, made: Sequence[Measured]) -> Html:
    names = dict.fromkeys(metric for each in made for metric in each.intervals)
    rows: list[list[Child]] = [
        [
            [metric, " ", el("small", title(metric))],
            *("" if metric not in each.intervals else shown(metric, each.intervals[metric]) for each in made),
        ]
        for metric in names
    ]
    head = ["metric", *(place(each.stage) for each in made)]
    return table(head, rows, f"{name}: values with 95 % intervals over problems", "numbers")


def _verdict(change: Change) -> Html:
    verdict = change.difference.verdict
    kind = {"better": "good", "worse": "bad"}.get(verdict)
    return el("span", change.text(), class_=kind)


def _intervals(name: str, made: Sequence[Measured]) -> Child:
    metrics = [m for m in headlines(list(made[-1].intervals)) if m not in UNBOUNDED]
    rows = [(m, [(place(each.stage), each.intervals[m]) for each in made if m in each.intervals]) for m in metrics]
    return plots.whiskers(f"{name}: shares of problems with 95 % intervals", rows) if rows else ""


def _counts(name: str, made: Sequence[Measured]) -> Child:
    """Problems by how many of their samples are correct: both what pass@k and what a majority measures."""
    made = [each for each in made if each.evaluation.n]
    if not made:
        return ""
    n = max(len(each.evaluation.histogram()) for each in made) - 1
    edges = _classes(n)
    labels = [str(a) if a == b else f"{a}–{b}" for a, b in edges]
    series = []
    for each in made:
        counts = each.evaluation.histogram() + [0] * n
        series.append((place(each.stage), [sum(counts[a : b + 1]) for a, b in edges]))
    note = (
        f"Right of the first class: at least one of {n} is correct (what pass@{n} counts). Right of the dashed line: "
        "more than half are correct (what strict counts). Training that makes a model surer moves problems to the "
        "right; training that lets it solve more problems empties the first class."
    )
    after = next((i for i, (a, _) in enumerate(edges) if 2 * a > n), 0)
    return plots.bars(
        f"{name}: problems by how many of {n} samples are correct", labels, series, note=note, after=after
    )


def _classes(n: int) -> list[tuple[int, int]]:
    """0 … n one by one; for a large n in about CLASSES classes, 0 alone and none on both sides of n/2."""
    if n <= CLASSES:
        return [(c, c) for c in range(n + 1)]
    half, wide = n // 2, -(-n // CLASSES)
    lower = [(a, min(a + wide - 1, half)) for a in range(1, half + 1, wide)]
    return [(0, 0), *lower, *((a, min(a + wide - 1, n)) for a in range(half + 1, n + 1, wide))]


def _lengths(name: str, made: Sequence[Measured]) -> Child:
    series = [
        (place(each.stage), [float(s.tokens) for problem in each.evaluation.problems for s in problem.all])
        for each in made
    ]
    return plots.shapes(f"{name}: length of completions", series, unit="tokens")


def _parts(curves: Mapping[str, Points]) -> list[Child]:
    parts = [
        plots.Series(name.removeprefix(PARTS), points)
        for name, points in curves.items()
        if name.startswith(PARTS) and finite(points)
    ]
    return [plots.lines("parts of the reward", parts)] if len(parts) > 1 else []


def _rollout_lengths(first_last: Sequence[tuple[str, Sequence[StoredRollout]]]) -> list[Child]:
    series = [(name, [float(r.rollout.completion_length) for r in found]) for name, found in first_last if found]
    return [plots.shapes("length of completions, first and last step", series, unit="tokens")] if series else []


def _still(curves: Mapping[str, Points], moving: Mapping[str, Points]) -> Child:
    still = {n: finite(points) for n, points in curves.items() if n not in moving and not n.startswith(PARTS)}
    told = [f"{name} {number(points[0][1])}" for name, points in still.items() if points]
    return el("p", f"The same at every step: {', '.join(told)}.", class_="note") if told else ""
