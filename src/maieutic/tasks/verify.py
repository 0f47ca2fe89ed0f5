"""Small exact verifiers for tasksets whose answers are numbers. Pure, linear in the text, never raising."""

from __future__ import annotations

import re
from fractions import Fraction

from maieutic.types import Task, Verdict

#: No taskset here has longer numbers, and `int` refuses more than 4,300 digits.
LONGEST_NUMBER = 40

_MARKERS = re.compile(r"#+")
_NUMBER_NEXT = re.compile(r"\s*\$?([+-]?[0-9.,]+)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]*)?|\.[0-9]+)", re.ASCII)


def number(text: str) -> Fraction | None:
    """The exact value of a plain decimal number, thousands commas allowed; None for anything else.

    >>> number("1,234.50"), number("12,34"), number("3 apples")
    (Fraction(2469, 2), None, None)
    """
    text = text.strip()
    if len(text) > LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def show(value: Fraction) -> str:
    """A value as text: whole numbers plain, others to 10 significant decimals without trailing zeros.

    >>> show(Fraction(12)), show(Fraction(5, 2)), show(Fraction(1, 3))
    ('12', '2.5', '0.3333333333')
    """
    if value.denominator == 1:
        return str(value.numerator)
    text = f"{value.numerator / value.denominator:.10g}"
    return text


def number_after_marker(task: Task, text: str) -> Verdict:
    """Correct when the number after the only `#` (or `####`) of the text equals the task's answer.

    More than one marker is wrong whatever follows: `# 1 # 2 # 3` names every answer and commits to none. Text after
    the number is ignored.
    """
    markers = list(_islice_markers(text))
    if not markers:
        return Verdict(False, None, "no # marker")
    if len(markers) > 1:
        return Verdict(False, None, "more than one # marker")
    found = _NUMBER_NEXT.match(text, markers[0])
    value = number(found[1].rstrip(".,")) if found else None
    if found is None or value is None:
        return Verdict(False, None, "no number after the # marker")
    gold = number(task.answer or "")
    if gold is None:
        return Verdict(False, show(value), f"the task's own answer {task.answer!r} is not a number")
    right = value == gold
    return Verdict(right, show(value), "" if right else f"expected {show(gold)}")


def _islice_markers(text: str) -> list[int]:
    """Where the first two markers end; two are enough to know that there is more than one."""
    ends = []
    for marker in _MARKERS.finditer(text):
        ends.append(marker.end())
        if len(ends) == 2:
            break
    return ends
