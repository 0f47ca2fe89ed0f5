"""Small exact verifiers for tasksets that know how their answers are written. Pure, linear in the text, total."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from maieutic.calculator import evaluate, number, show
from maieutic.thoughts import outside_thoughts
from maieutic.types import Task, Verdict

#: How far a computed value may be from the answer where problems have decimals (recipe: within 1e-3).
TOLERANCE = Fraction(1, 1000)

#: A program may not have more statements, and no value may have more bits: else squaring again and again never ends.
MOST_STATEMENTS, MOST_BITS = 20, 256

_HASHES = re.compile(r"#+")
_NUMBER_NEXT = re.compile(r"\s*\$?([+-]?[0-9.,]+)")
_LINE_NEXT = re.compile(r"[^\n]*")
#: What makes another number of the one that it touches: 72², 72^2, 72/2, 72e5, 72x (not 72m), 72 thousand, 72 ± 5.
_ANOTHER = re.compile(
    r"[\^²³*×]|/\d|[eE][+-]?\d|(?![mghslLCFc])[A-Za-z](?![A-Za-z])"
    r"|\s?(?:\\pm|±)|\s?(?:hundred|thousand|million|billion|trillion|dozen)s?\b"
)


@dataclass(frozen=True)
class NumberAfterMarker:
    """Correct when the number after the only `#` (or `####`) of the text is within `tolerance` of the task's answer.

    More than one marker is wrong whatever follows: `# 1 # 2 # 3` names every answer and commits to none. Text after
    the number is ignored, unless it makes another number of it (`72 thousand`); what stands in a thought was not said.
    A marker is a run of at least `hashes` signs, so that `#1` may occur in the text of GSM8K.
    """

    tolerance: Fraction = Fraction(0)
    hashes: int = 1

    def __call__(self, task: Task, text: str) -> Verdict:
        text = outside_thoughts(text)
        marker = _only_marker(text, self.hashes)
        if isinstance(marker, Verdict):
            return marker
        found = _NUMBER_NEXT.match(text, marker)
        value = number(found[1].rstrip(".,")) if found else None
        if value is None or (found is not None and _ANOTHER.match(text, found.end())):
            return Verdict(False, None, "no number after the # marker")
        return _compare(task, value, self.tolerance)


#: Exact equality, for answers that are whole numbers.
number_after_marker = NumberAfterMarker()


@dataclass(frozen=True)
class AnswerAfterMarker:
    """As `NumberAfterMarker` where the answer is a number; else the rest of the line must be the answer's words.

    Words are compared without regard to case and to the spaces between them.
    """

    tolerance: Fraction = Fraction(0)

    def __call__(self, task: Task, text: str) -> Verdict:
        if number(task.answer or "") is not None:
            return NumberAfterMarker(self.tolerance)(task, text)
        text = outside_thoughts(text)
        marker = _only_marker(text)
        if isinstance(marker, Verdict):
            return marker
        found = _LINE_NEXT.match(text, marker)
        words = " ".join(found[0].split()) if found else ""
        if not words:
            return Verdict(False, None, "nothing after the # marker")
        gold = " ".join((task.answer or "").split())
        right = bool(gold) and words.casefold() == gold.casefold()
        return Verdict(right, words, "" if right else f"expected {gold}")


@dataclass(frozen=True)
class ProgramValue:
    """Correct when the last value of the program that is the text is within `tolerance` of the task's answer.

    A program is statements separated by `;`, each an expression of the task's numbers `n0 n1 …` (`meta["numbers"]`),
    results of earlier statements `r0 r1 …` and constants: `n1 * n2 ; n0 - r0`. Values are exact fractions.
    """

    tolerance: Fraction = TOLERANCE

    def __call__(self, task: Task, text: str) -> Verdict:
        value = run_program(text, task.meta.get("numbers", ()))
        if value is None:
            return Verdict(False, None, "not a program with a value")
        return _compare(task, value, self.tolerance)


def run_program(text: str, numbers: Sequence[str]) -> Fraction | None:
    """The value of the last statement; None for anything that is not a program of moderate size.

    >>> run_program("n1 * n2 ; n0 - r0", ["20", "3", "4"])  # 20 - 3 * 4
    Fraction(8, 1)
    """
    statements = text.strip().removesuffix(";").split(";", MOST_STATEMENTS)
    if len(statements) > MOST_STATEMENTS:
        return None
    names = _numbered(numbers)
    value = None
    for index, statement in enumerate(statements):
        value = evaluate(statement, names)
        if value is None or max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
            return None
        names[f"r{index}"] = value
    return value


def _numbered(numbers: Sequence[str]) -> dict[str, Fraction]:
    values = [(f"n{index}", number(text)) for index, text in enumerate(numbers)]
    return {name: value for name, value in values if value is not None}


def last_tagged(text: str, tag: str = "answer") -> str | None:
    """What stands in the last closed tag of a text; None without one.

    >>> last_tagged("<answer>4</answer> or <answer>5</answer>")
    '5'
    """
    close = text.rfind(f"</{tag}>")
    opened = text.rfind(f"<{tag}>", 0, max(close, 0))
    return None if opened < 0 else text[opened + len(tag) + 2 : close]


def _only_marker(text: str, hashes: int = 1) -> int | Verdict:
    """Where the only marker ends, or the verdict on a text that has none or several."""
    markers = (run for run in _HASHES.finditer(text) if run.end() - run.start() >= hashes)
    first = next(markers, None)
    if first is None:
        return Verdict(False, None, "no # marker")
    if next(markers, None) is not None:
        return Verdict(False, None, "more than one # marker")
    return first.end()


def _compare(task: Task, value: Fraction, tolerance: Fraction) -> Verdict:
    gold = number(task.answer or "")
    if gold is None:
        return Verdict(False, show(value), f"the task's own answer {task.answer!r} is not a number")
    right = abs(value - gold) <= tolerance
    return Verdict(right, show(value), "" if right else f"expected {show(gold)}")
