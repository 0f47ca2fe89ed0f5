"""A run in the terminal: where it is, what was measured, its curves, its health, and what the model wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from maieutic.report.alarms import SeenAlarm
from maieutic.report.braille import braille
from maieutic.report.curves import Points, finite, number
from maieutic.report.measured import Change, by_name, shown
from maieutic.report.reading import RunView, State
from maieutic.report.transcripts import inserted_tokens, judged, pieces, shown_first, visible
from maieutic.report.waterfall import Part, Waterfall
from maieutic.report.words import beside, duration
from maieutic.run.records import StoredRollout

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Characters of a plot beside its neighbours, axis included, and its lines.
PLOT_WIDTH, PLOT_HEIGHT = 38, 4

#: Characters of the bars of phases, and of a terminal that has room for them.
BAR, WIDE = 32, 84

#: Characters of a completion that are shown.
LONGEST = 2000

COLOURS = {
    State.COMPLETE: "green", State.RUNNING: "cyan", State.INTERRUPTED: "yellow", State.NOT_BEGUN: "dim",
}  # fmt: skip


def overview(view: RunView, metrics: Mapping[str, Sequence[str]], width: int) -> RenderableType:
    """All of a run but its rollouts, for a terminal of that many characters; `metrics` are the curves by stage."""
    parts: list[RenderableType] = [header(view), *evaluations(view)]
    for stage, curves in view.curves.items():
        wanted = [(name, curves[name]) for name in metrics.get(stage, ()) if finite(curves.get(name, []))]
        if wanted:
            parts += [_rule(f"curves of {stage}"), plots(wanted, width)]
    for stage, found in view.waterfalls.items():
        parts += [_rule(f"where the seconds of a step of {stage} go"), phases(found, width)]
    if view.alarms:
        parts += [_rule("alarms"), *(alarm(each) for each in view.alarms)]
    notes = [(note.stage, note.text) for note in view.notes] + [("", text) for text in view.warnings]
    if notes:
        parts.append(_rule("health"))
        parts += [
            Text.assemble(("! ", "bold yellow"), (f"{stage}: " if stage else "", "bold"), t) for stage, t in notes
        ]
    return Group(*parts)


def alarm(seen: SeenAlarm) -> RenderableType:
    """What a guard said, and the rollouts that show it."""
    title = Text.assemble(("! ", "bold red"), (seen.heading, "bold"))
    return Group(title, Text(seen.sentence), *(transcript(each, None) for each in seen.rollouts))


def header(view: RunView) -> RenderableType:
    """Name, state, and a line for each stage."""
    at = view.at
    line = Text.assemble((view.config.name, "bold"), "  ", (view.state.value, COLOURS[view.state]))
    if view.state in (State.RUNNING, State.INTERRUPTED):
        line.append(f" at {at.progress} of stage {at.name}")
    line.append(f"  {view.path}", style="dim")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("stage", "algorithm", "tasks"):
        table.add_column(column)
    for column in ("steps", "time", "rollouts stored"):
        table.add_column(column, justify="right")
    for stage in view.stages:
        steps = f"{stage.done:,} of {'?' if stage.total is None else f'{stage.total:,}'}"
        table.add_row(
            stage.name, stage.algorithm, Text(stage.tasks), steps, duration(stage.seconds), f"{stage.rollouts:,}"
        )
    parts: list[RenderableType] = [line, table]
    if view.state in (State.INTERRUPTED, State.NOT_BEGUN):
        where = "" if view.checkpoint is None else f" (from stage {view.checkpoint[0]}, step {view.checkpoint[1]})"
        parts.append(Text.assemble(("go on with: ", "dim"), view.resume, (where, "dim")))
    return Group(*parts)


def evaluations(view: RunView) -> Iterable[RenderableType]:
    """For each evaluation a table of metrics by stages, then what changed from stage to stage."""
    found, refused = view.changes
    for name, made in by_name(view.measured).items():
        sizes = {(len(each.evaluation.problems), each.evaluation.n) for each in made}
        size = ", ".join(f"{problems:,} problems, {samples} samples each" for problems, samples in sorted(sizes))
        yield _rule(f"evaluation {name}: {size}, 95 % intervals")
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        table.add_column("metric", no_wrap=True)
        for each in made:
            table.add_column(f"after {each.stage}" if each.stage != "start" else "start", justify="right")
        for metric in dict.fromkeys(metric for each in made for metric in each.intervals):
            values = [each.intervals.get(metric) for each in made]
            table.add_row(metric, *("" if value is None else shown(metric, value) for value in values))
        yield table
        yield _changes([change for change in found if change.name == name])
    yield from (Text(text, style="yellow") for text in refused)


def _changes(found: Sequence[Change]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for change in found:
        table.add_row(f"{change.old} → {change.new}", change.metric, _verdict(change.text()))
    return table


def plots(curves: Sequence[tuple[str, Points]], width: int) -> RenderableType:
    """Curves beside each other, as many in a row as fit."""
    each = max(PLOT_WIDTH, width // max(1, width // PLOT_WIDTH) - 1)
    return Columns([plot(name, points, min(each, width)) for name, points in curves], padding=(0, 1, 0, 0))


def plot(name: str, points: Points, width: int, height: int = PLOT_HEIGHT) -> Text:
    """One curve: its name and last value, the dots with the range of the values at the left, the range of the steps."""
    known = finite(points)
    low, high = min(v for _, v in known), max(v for _, v in known)
    labels = [number(high), *[""] * (height - 2), number(low)]
    left = max(map(len, labels))
    lines = braille(points, max(4, width - left - 2), height)
    text = Text.assemble((f"{name} ", "bold"), (number(known[-1][1]), "cyan"), end="")
    for label, line in zip(labels, lines):
        text.append_text(Text.assemble("\n", (f"{label:>{left}} ", "dim"), (line, "cyan")))
    ends = f"{known[0][0]}", f"step {known[-1][0]}"
    text.append(f"\n{'':{left}} {ends[0]}{ends[1]:>{max(4, width - left - 2) - len(ends[0])}}", style="dim")
    return text


def phases(found: Waterfall, width: int) -> RenderableType:
    """The phases of a mean step below each other, each bar where the one before ended, and the bottleneck."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("phase")
    bars = width >= WIDE
    if bars:
        table.add_column("", no_wrap=True, width=BAR)
    for column in ("seconds", "share", "tokens/s", "of peak"):
        table.add_column(column, justify="right")
    for part in found.large:
        style = "" if part.depth == 0 else "dim"
        cells = [Text("  " * part.depth + part.title, style=style)]
        cells += [_bar(part, found.seconds)] if bars else []
        rates = [part.tokens_per_second, part.share_of_peak]
        shown_ = ["" if rates[0] is None else number(rates[0]), "" if rates[1] is None else f"{100 * rates[1]:.0f} %"]
        table.add_row(
            *cells, *(Text(t, style=style) for t in (number(part.seconds), f"{100 * part.share:.0f} %", *shown_))
        )
    peak = "" if found.share_of_peak is None else f"{100 * found.share_of_peak:.0f} %"
    table.add_row("step", *([""] if bars else []), number(found.seconds), "100 %", "", peak, style="bold")
    parts: list[RenderableType] = [table, Text(" ".join(beside(found)), style="dim")]
    if found.bottleneck:
        parts.append(Text(found.bottleneck, style="yellow"))
    return Group(*parts)


def _bar(part: Part, seconds: float) -> Text:
    """A bar from where the part begins, in eighths of a character."""
    start = min(BAR - 1, int(BAR * part.start / (seconds or 1.0)))
    eighths = min(8 * (BAR - start), max(1, round(8 * BAR * part.share)))
    bar = " " * start + "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
    return Text(bar, style="cyan" if part.depth == 0 else "blue")


def gallery(title: str, rollouts: Sequence[StoredRollout], tokenizer: Tokenizer | None) -> RenderableType:
    """Rollouts below a title."""
    panels = [transcript(stored, tokenizer) for stored in rollouts]
    return Group(_rule(title), *panels)


def transcript(stored: StoredRollout, tokenizer: Tokenizer | None) -> RenderableType:
    """Prompt and completion of a rollout, what a tool inserted within ⟦ ⟧, the turns of an episode on lines of their
    own, and how it was judged."""
    title = Text(judged(stored), style="cyan")
    prompt = Text(visible("\n".join(f"{m.role}: {m.content}" for m in shown_first(stored))), style="dim")
    parts: list[RenderableType] = [title, prompt, Padding(completion(stored, tokenizer), (0, 0, 0, 2))]
    notes = [note for note in (stored.rollout.note, stored.score.note) if note]
    parts += [Text(visible(note), style="yellow") for note in notes]
    return Panel(Group(*parts), border_style="dim")


def completion(stored: StoredRollout, tokenizer: Tokenizer | None) -> Text:
    """The text that the model wrote, with the tool's insertions marked, and who spoke in an episode."""
    text, cut = Text(), pieces(stored, tokenizer)
    for piece in cut:
        if piece.speaker:
            text.append(f"\n{piece.speaker}: " if len(text) else f"{piece.speaker}: ", style="bold")
        shown_text = visible(piece.text)
        text.append(f"⟦{shown_text}⟧" if piece.inserted else shown_text, style="magenta" if piece.inserted else "")
    if len(text) > LONGEST:
        more = len(text) - LONGEST
        text = Text.assemble(text[:LONGEST], (f" … {more:,} more characters", "dim"))
    by_tool = inserted_tokens(stored)
    if by_tool and not any(piece.inserted for piece in cut):
        text.append(f"  (a tool wrote {by_tool} of these tokens)", style="dim")
    return text if len(text) else Text("(nothing)", style="dim")


def galleries(found: Mapping[str, Sequence[StoredRollout]], tokenizer: Tokenizer | None) -> RenderableType:
    """The rollouts of each order ("best", "worst"), where there are any."""
    shown_ = {order: rollouts for order, rollouts in found.items() if rollouts}
    return Group(*(gallery(f"{order} rollouts", rollouts, tokenizer) for order, rollouts in shown_.items()))


def _rule(title: str) -> Rule:
    return Rule(Text(title), align="left", style="dim")  # a Text, for rich would read "[…]" in a name as markup


def _verdict(text: str) -> Text:
    """Green and red only for what is separated from chance."""
    separated = {": better": "green", ": worse": "red", ": longer": "yellow", ": shorter": "yellow"}
    style = next((colour for ending, colour in separated.items() if text.endswith(ending)), "")
    return Text(text, style=style)
