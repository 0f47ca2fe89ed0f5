"""Judged steps, in the layouts of those who labelled them; see `maieutic.tasks.judged`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from maieutic.errors import DataError
from maieutic.tasks.files import messages_of
from maieutic.tasks.judged import Judged, Reader, label_of
from maieutic.types import Message

#: Math-Shepherd's mark at the end of a step, which the labels stand in place of.
STEP_TAG = "ки"


def _steps() -> Reader:
    """Our own: pieces that joined are the completion, with a label each, and perhaps one of the whole. The last piece
    of a finished one may say nothing: its stop token, after a delimiter, is a step by itself."""

    def read(row: Mapping[str, Any], where: str) -> Judged | None:
        steps = _texts(row, "steps", where, ended=bool(row.get("finished", True)))
        labels = _list(row, "labels", where)
        if len(steps) != len(labels):
            raise DataError(f"{where}: got {len(steps)} steps and {len(labels)} labels; expected one label a step")
        known = tuple(label_of(label, where) for label in labels)
        if not any(label is not None for label in known):
            return None
        whole = label_of(row.get("label"), where)
        return Judged(messages_of(row.get("prompt"), where), steps, whole, known, bool(row.get("finished", True)))

    return read


def _stepwise(separator: str = "\n") -> Reader:
    """TRL's stepwise supervision: each completion is a step, after each of which comes the separator."""

    def read(row: Mapping[str, Any], where: str) -> Judged:
        steps, labels = _texts(row, "completions", where), _list(row, "labels", where)
        if len(steps) != len(labels):
            raise DataError(f"{where}: got {len(steps)} completions and {len(labels)} labels; expected one label each")
        known = tuple(label_of(label, where) for label in labels)
        pieces = tuple(step + separator for step in steps)
        return Judged(messages_of(row.get("prompt"), where), pieces, None, known, finished=False)

    return read


def _math_shepherd() -> Reader:
    """Steps end in "ки"; the same text with "+" or "-" there is the label. The question ends where "Step 1:" begins."""

    def read(row: Mapping[str, Any], where: str) -> Judged:
        given, labelled = row.get("input"), row.get("label")
        if not (isinstance(given, str) and isinstance(labelled, str)):
            raise DataError(f"{where}: expected texts in 'input' and 'label'")
        start = re.search(r"Step 1\s*:", given)
        if start is None:
            raise DataError(f"{where}: no 'Step 1:' in 'input'; expected a question and then its steps")
        pieces = given[start.start() :].split(STEP_TAG)[:-1]
        places = re.split(STEP_TAG, given)[:-1]
        labels, at = [], 0
        for piece in places:
            at += len(piece)
            mark = labelled[at : at + 1]
            if mark not in ("+", "-"):
                raise DataError(
                    f"{where}: got {mark!r} in 'label' where 'input' has {STEP_TAG!r} (character {at}); expected the "
                    "same text with + or - in its place"
                )
            labels.append(float(mark == "+"))
            at += 1
        question = given[: start.start()].strip()
        steps = tuple(piece.rstrip() for piece in pieces)
        return Judged((Message("user", question),), steps, None, tuple(labels), finished=False)

    return read


def _prm800k(neutral: float | None = 1.0, separator: str = "\n") -> Reader:
    """PRM800K: at each step the human's completion where none was chosen, else the chosen one, with its rating.

    Rating −1 is 0 and +1 is 1; 0 is `neutral` (None: no label). Labelling stops after the first mistake, and what a
    human wrote has no rating: such steps have no label. Rows of quality control and of screening are left out. Where
    nothing was chosen because every completion was wrong, the first of these ends the solution, as its mistake.
    """
    ratings = {-1: 0.0, 0: neutral, 1: 1.0}

    def read(row: Mapping[str, Any], where: str) -> Judged | None:
        if row.get("is_quality_control_question") or row.get("is_initial_screening_question"):
            return None
        question, label = row.get("question"), row.get("label")
        if not (isinstance(question, Mapping) and isinstance(label, Mapping) and "problem" in question):
            raise DataError(f"{where}: expected 'question' with a 'problem', and 'label' with 'steps'")
        texts: list[str] = []
        labels: list[float | None] = []
        for step in label.get("steps") or ():
            text, rating, ended = _taken(step, where)
            if text is None:
                break
            if rating is not None and rating not in ratings:
                raise DataError(f"{where}: got the rating {rating!r}; expected -1, 0 or 1")
            texts.append(text + separator)
            labels.append(None if rating is None else ratings[rating])
            if ended:
                break
        if not any(known is not None for known in labels):
            return None
        return Judged((Message("user", str(question["problem"])),), tuple(texts), None, tuple(labels), finished=False)

    return read


def _taken(step: Any, where: str) -> tuple[str | None, int | None, bool]:
    """The text of a labelled step, its rating, and whether the trajectory ends with it."""
    if not isinstance(step, Mapping):
        raise DataError(f"{where}: got a step of type {type(step).__name__}; expected an object with 'completions'")
    offered, chosen = step.get("completions") or [], step.get("chosen_completion")
    human = step.get("human_completion")
    if chosen is not None:
        return str(offered[chosen]["text"]), offered[chosen].get("rating"), False
    if human is not None:
        return str(human["text"] if isinstance(human, Mapping) else human), None, False
    if offered:
        return str(offered[0]["text"]), offered[0].get("rating"), True
    return None, None, True


#: Layouts with steps: name → what makes a reader.
STEPWISE: Mapping[str, Callable[..., Reader]] = {
    "steps": _steps,
    "stepwise": _stepwise,
    "math_shepherd": _math_shepherd,
    "prm800k": _prm800k,
}


def _list(row: Mapping[str, Any], column: str, where: str) -> list[Any]:
    value = row.get(column)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: got {value!r} in {column!r}; expected a list with at least one entry")
    return value


def _texts(row: Mapping[str, Any], column: str, where: str, ended: bool = False) -> tuple[str, ...]:
    """The texts, none empty but, of one that has `ended`, the last of several."""
    value = _list(row, column, where)
    for number, each in enumerate(value, 1):
        if not isinstance(each, str) or not (each or (ended and 1 < number == len(value))):
            raise DataError(f"{where}: got {each!r} in {column!r}; expected texts")
    return tuple(value)
