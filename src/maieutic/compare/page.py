"""The page of a comparison: one file that needs nothing else, neither network nor script.

verdict ─ learning curves ─ final metrics ─ differences ─ learnt anything new? ─ costs ─ runs ─ the plan
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maieutic.compare.analyse import Analysis, Comparison
from maieutic.compare.drawing import Band, band, learning_curves
from maieutic.compare.measures import title
from maieutic.compare.results import Results
from maieutic.compare.verdict import points, unit, verdict
from maieutic.compare.words import amount, cost_titles, shown, single
from maieutic.errors import RunError
from maieutic.report.markup import Child, Html, el, table
from maieutic.report.plots import whiskers
from maieutic.report.style import STYLE
from maieutic.run.durable import write_text

#: The page's own styles, beside the report's.
OWN_STYLE = ".band { fill: var(--s); fill-opacity: 0.14; stroke: none; } li { margin: 4px 0; max-width: 90ch; }"

#: Where the page lies in the folder of a study.
PAGE = "results.html"


def write_page(results: Results, analyses: Sequence[Analysis], out: Path) -> Path:
    """Write the page into the study's folder and return its path. Raises RunError where that is not possible."""
    study = results.plan.study
    body: list[Child] = [
        el("header", el("h1", study.name), el("small", f"seeds {', '.join(map(str, study.seeds))}")),
        notes(results.plan.warnings, [str(failure) for failure in results.failures]),
    ]
    for analysis in analyses:
        body.append(section(results, analysis))
    body += [curves(results), costs(analyses), runs(results), plan_of(results)]
    return write_document(out / PAGE, f"{study.name}: a comparison", body)


def write_document(path: Path, heading: str, body: Sequence[Child]) -> Path:
    """A whole HTML file that allows itself nothing but its own styles."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = [
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("title", heading),
        el("style", Html(STYLE + OWN_STYLE)),
    ]
    document = el("html", el("head", head), el("body", el("main", list(body))), lang="en")
    try:
        write_text(path, f"<!DOCTYPE html>\n{document}\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; expected a folder that may be written") from error
    return path


def notes(warnings: Sequence[str], failures: Sequence[str]) -> Html:
    """What a reader should know first."""
    told = [*warnings, *(f"failed: {failure}" for failure in failures)]
    return el("ul", [el("li", each) for each in told], class_="warn") if told else Html("")


def section(results: Results, analysis: Analysis) -> Html:
    """What was found on one taskset."""
    sentences = el("ul", [el("li", sentence) for sentence in verdict(results, analysis)])
    parts: list[Child] = [el("h2", f"On {analysis.taskset}"), sentences]
    if analysis.arms:
        rows = {**analysis.arms, **({"start": analysis.start} if analysis.start else {})}
        drawn = [m for m in analysis.metrics if m.partition("@")[0] in ("greedy", "pass", "vote", "strict", "rerank")]
        dots = [(m, [(name, values[m].interval) for name, values in rows.items()]) for m in drawn]
        parts += [
            whiskers("Final metrics, with intervals over seeds and problems", dots),
            _finals(analysis, rows),
            _differences(analysis.pairs, f"Between arms on {analysis.metric}", claims=True),
            _differences(analysis.gains, "Against the model that each arm started from", claims=True),
            _differences(analysis.others, "Between arms in other metrics: no claims are made of these", claims=False),
        ]
    return el("section", parts, id=f"on-{analysis.taskset}")


def _finals(analysis: Analysis, rows: dict) -> Html:
    """Every metric with its three intervals."""
    head = ["metric", "arm", "mean (seeds and problems)", "over seeds (Student)", "two-level bootstrap", "each seed"]
    made: list[list[Child]] = []
    for metric in analysis.metrics:
        for name, values in rows.items():
            value = values[metric]
            seeds = ", ".join(single(metric, x) for x in value.by_seed)
            intervals = [shown(metric, each) for each in (value.interval, value.over_seeds, value.bootstrap)]
            made.append([f"{metric} ({title(metric)})" if name == next(iter(rows)) else "", name, *intervals, seeds])
    return el("details", el("summary", "All metrics"), table(head, made, "95 % intervals", class_="numbers"))


def _differences(found: Sequence[Comparison], caption: str, *, claims: bool) -> Html:
    if not found:
        return Html("")
    head = ["", "metric", "difference", "95 % interval", "p", *(["p of all", "claimed"] if claims else [])]
    rows: list[list[Child]] = []
    for each in found:
        interval = each.effect.interval
        low, high = points(each.metric, interval.low), points(each.metric, interval.high)
        known = each.seeds > 1
        row: list[Child] = [
            f"{each.new} − {each.old}", each.metric, f"{points(each.metric, interval.value)} {unit(each.metric)}",
            f"{low} to {high}" if known else "one seed cannot say", f"{each.effect.p_value:.2g}" if known else "–",
        ]  # fmt: skip
        adjusted = "–" if each.p_adjusted is None or not known else f"{each.p_adjusted:.2g}"
        rows.append([*row, *([adjusted, "yes" if each.claimed else "no"] if claims else [])])
    made = table(head, rows, f"{caption} (paired by seed and problem)", class_="numbers")
    return made if claims else el("details", el("summary", caption), made)


def curves(results: Results) -> Html:
    """Accuracy against what was spent, on a logarithmic axis."""
    axis = results.plan.axis.replace("_", " ")
    plots: list[Child] = []
    for caption, note, made in (
        ("Correct on the validation tasks", "", _bands(results, measured=True)),
        ("Correct among each step's own rollouts (training tasks)", "Running means.", _bands(results, measured=False)),
    ):
        if made:
            told = f"{note} Lines are means over seeds, bands go from the lowest to the highest seed.".strip()
            plots.append(learning_curves(caption, made, axis, told))
    return (
        el("section", el("h2", "Learning curves"), el("div", plots, class_="charts"), id="curves")
        if plots
        else Html("")
    )


def _bands(results: Results, *, measured: bool) -> list[Band]:
    made = []
    for i, (arm, trials) in enumerate(results.trials.items()):
        found = [trial.measured if measured else trial.curve for trial in trials.values()]
        window = 1 if measured or not found else max(1, min(map(len, found)) // 10)
        each = band(arm, i, found, window) if found else None
        made += [] if each is None else [each]
    return made


def costs(analyses: Sequence[Analysis]) -> Html:
    """What each arm cost."""
    found = analyses[0].costs if analyses else {}
    if not found:
        return Html("")
    rows: list[list[Child]] = [
        [arm, *(amount(name, each.get(name)) for name in cost_titles().values())] for arm, each in found.items()
    ]
    made = table(["", *cost_titles()], rows, "Means over seeds; evaluations and the start are not counted", "numbers")
    note = (
        "FLOPs are estimated: 2 for each token read or written and 6 for each token trained on, times the parameters "
        "without embeddings. Time is that of the steps, on one thread each, beside other runs on the same machine."
    )
    return el("section", el("h2", "Costs"), made, el("p", note, class_="note"), id="costs")


def runs(results: Results) -> Html:
    """Every run with its numbers."""
    names = ("samples", "generated_tokens", "trained_tokens", "flops")
    rows: list[list[Child]] = [
        [f"{arm}, seed {seed}", *(amount(name, trial.costs[name]) for name in names), amount("seconds", trial.seconds),
         amount("entropy", None if trial.entropy is None else trial.entropy[1])]
        for arm, trials in results.trials.items() for seed, trial in trials.items()
    ]  # fmt: skip
    head = ["run", "samples", "generated tokens", "trained tokens", "FLOPs (estimate)", "time", "entropy at the end"]
    made = table(head, rows, "Complete runs; each has a report of its own in its folder", "numbers")
    return el("section", el("h2", "Runs"), el("details", el("summary", "All runs"), made), id="runs")


def plan_of(results: Results) -> Html:
    """The plan as it was carried out."""
    return el("section", el("details", el("summary", "The plan"), el("pre", results.plan.to_json())), id="plan")
