"""The report's sections on texts: rollouts of the training, and the same problems before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from maieutic.config import Config
from maieutic.errors import MaieuticError
from maieutic.evaluate import Problem, Sample
from maieutic.report.alarms import SeenAlarm
from maieutic.report.markup import Child, Html, el
from maieutic.report.measured import Measured, by_name
from maieutic.report.reading import RunView
from maieutic.report.transcripts import Piece, inserted_tokens, judged, pieces, shown_first
from maieutic.report.words import place
from maieutic.run.records import StoredRollout
from maieutic.run.tasksets import Tasksets
from maieutic.types import Message, Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Characters of a text that are shown, and problems that are shown before and after.
LONGEST, GAINED, LOST, UNSOLVED = 4000, 3, 1, 1


def before_and_after(view: RunView) -> Html:
    """The problems that changed most between the first and the last evaluation, what was written to each."""
    parts: list[Child] = []
    for name, made in by_name(view.measured).items():
        old, new = made[0], made[-1]
        pairs = _pairs(old, new)
        if old is new or not pairs:
            continue
        shown = _telling(pairs)
        parts.append(el("p", f"{name}, {place(old.stage)} and {place(new.stage)}: {_balance(pairs)}.", class_="note"))
        tasks = _questions(view.config, name, [(each[0], each[2].task_id) for _, each in shown])
        parts += [_problem(why, each, (old, new), tasks.get(each[2].task_id)) for why, each in shown]
    if not parts:
        return Html("")
    intro = "What the model wrote to the same problems: those that gained most, one that was lost, one never solved."
    return el("section", el("h2", "Before and after"), el("p", intro, class_="note"), parts, id="before-and-after")


def rollouts(found: Mapping[str, Sequence[StoredRollout]], tokenizer: Tokenizer | None) -> Html:
    """Rollouts under their headings; what a tool wrote is marked."""
    parts: list[Child] = []
    for heading, each in found.items():
        if each:
            parts += [el("h3", heading), [_rollout(stored, tokenizer, i == 0) for i, stored in enumerate(each)]]
    if not parts:
        return Html("")
    note = ["What a tool wrote into a completion ", el("mark", "looks like this"), "."]
    return el("section", el("h2", "Rollouts"), el("p", note, class_="note"), parts, id="rollouts")


def alarms(found: Sequence[SeenAlarm], tokenizer: Tokenizer | None) -> Html:
    """What the guards said, each with the rollouts that show it; nothing where they said nothing."""
    if not found:
        return Html("")
    parts = [
        [el("h3", each.heading), el("p", each.sentence, class_="warn"),
         [_rollout(stored, tokenizer, False) for stored in each.rollouts]]
        for each in found
    ]  # fmt: skip
    return el("section", el("h2", "Alarms"), parts, id="alarms")


Pair = tuple[int, Problem, Problem]


def _pairs(old: Measured, new: Measured) -> list[Pair]:
    """(place in the evaluation, problem before, problem after) for the problems of both."""
    before = {problem.task_id: problem for problem in old.evaluation.problems}
    return [
        (i, before[problem.task_id], problem)
        for i, problem in enumerate(new.evaluation.problems)
        if problem.task_id in before
    ]


def _telling(pairs: Sequence[Pair]) -> list[tuple[str, Pair]]:
    """The largest gains, the largest loss, and one that is never solved."""

    def gain(pair: Pair) -> tuple[float, int]:
        return _share(pair[2]) - _share(pair[1]), _greedy(pair[2]) - _greedy(pair[1])

    ranked = sorted(pairs, key=gain, reverse=True)
    gained = [("gained", each) for each in ranked if gain(each)[0] > 0][:GAINED]
    lost = [("lost", each) for each in reversed(ranked) if gain(each)[0] < 0][:LOST]
    never = [("not solved", each) for each in pairs if not _share(each[1]) and not _share(each[2])][:UNSOLVED]
    return gained + lost + never


def _balance(pairs: Sequence[Pair]) -> str:
    """How many problems gained and lost correct samples, so that the few that are shown are seen in proportion."""
    gained = sum(_share(new) > _share(old) for _, old, new in pairs)
    lost = sum(_share(new) < _share(old) for _, old, new in pairs)
    return f"of {len(pairs):,} problems {gained:,} gained correct samples, {lost:,} lost some"


def _share(problem: Problem) -> float:
    return sum(sample.correct for sample in problem.all) / len(problem.all)


def _greedy(problem: Problem) -> int:
    return int(problem.greedy is not None and problem.greedy.correct)


def _questions(config: Config, name: str, wanted: Sequence[tuple[int, str]]) -> dict[str, Task]:
    """The tasks at these places of a taskset, made again, for evaluations hold their ids only.

    Without the data that they come from (a report made elsewhere) there are none, and the report shows the ids.
    """
    try:
        taskset = Tasksets(config)[name]
        tasks = [taskset[i] for i, _ in wanted if i < len(taskset)]
    except (MaieuticError, OSError):
        return {}
    return {task.id: task for task in tasks}


def _problem(why: str, pair: Pair, measured: tuple[Measured, Measured], task: Task | None) -> Html:
    _, old, new = pair
    counts = ", ".join(
        f"{sum(s.correct for s in problem.all)} of {len(problem.all)} {place(each.stage)}"
        for problem, each in zip((old, new), measured)
    )
    columns = [
        el("div", el("h4", place(each.stage)), _sample(problem.greedy or problem.all[0], problem.greedy is not None))
        for problem, each in zip((old, new), measured)
    ]
    question: list[Child] = [] if task is None else [_question(task)]
    summary = el("summary", el("strong", why), f": {new.task_id} · correct {counts}")
    return el("details", summary, question, el("div", columns, class_="pair"), class_="card", open=why == "gained")


def _sample(sample: Sample, greedy: bool) -> Html:
    verdict = el("span", "correct" if sample.correct else "wrong", class_="good" if sample.correct else "bad")
    told = f" · answer read: {'none' if sample.answer is None else sample.answer} · {sample.finish.value} · "
    told += f"{sample.tokens} tokens · {'greedy' if greedy else 'one sample'}"
    return el("div", el("pre", _cut(sample.text)), el("p", verdict, told, class_="note"))


def _rollout(stored: StoredRollout, tokenizer: Tokenizer | None, opened: bool) -> Html:
    cut = pieces(stored, tokenizer)
    if len(stored.rollout.text) > LONGEST:
        text: Child = _cut(stored.rollout.text)
    else:
        text = [child for number, piece in enumerate(cut) for child in _piece(piece, first=not number)]
    notes = [note for note in (stored.rollout.note, stored.score.note) if note]
    by_tool = inserted_tokens(stored)
    if by_tool and not any(piece.inserted for piece in cut):
        notes.append(f"a tool wrote {by_tool} of these tokens; the tokenizer that would say which was not found")
    return el(
        "details", el("summary", judged(stored)), _question(stored.task, shown_first(stored)), el("pre", text),
        [el("p", note, class_="note") for note in notes], class_="card", open=opened,
    )  # fmt: skip


def _piece(piece: Piece, first: bool) -> list[Child]:
    """A stretch of a completion; where somebody begins to speak in it, on a line of its own."""
    who: list[Child] = [el("strong", f"{'' if first else chr(10)}{piece.speaker}: ")] if piece.speaker else []
    return [*who, el("mark", piece.text, title="written by a tool") if piece.inserted else piece.text]


def _question(task: Task, shown: Sequence[Message] | None = None) -> Html:
    lines: list[Child] = [el("p", el("strong", f"{m.role}: "), _cut(m.content)) for m in shown or task.prompt]
    answer = el("p", el("strong", "expected: "), task.answer) if task.answer is not None else ""
    return el("div", lines, answer, class_="question")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … {len(text) - LONGEST:,} more characters"
