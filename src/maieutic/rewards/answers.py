"""What a completion answers, and whether that is the gold answer.

Where an answer is looked for, in this order (the last of its kind counts):

    1  <answer>42</answer>     2  \\boxed{42} or \\fbox{42}     3  #### 42     4  … answer is 42
    5  the last number of the text (flexible extraction only)

Only text outside a `<think>` block is read, so an answer that was only thought does not count. *Strict* extraction
(train on this) wants one of the markers 1 to 4 with exactly one number in it. Of several markers that stand side by
side ("#### 1 #### 2 #### 3") strict extraction reads none unless they agree: a list of answers is not an answer.
*Flexible* extraction (report beside it) reads on past what strict extraction refuses.

Differs from the official GSM8K script on purpose: values are compared, not strings ("5.0" is "5", "42." is "42").

Every function takes time linear in its text: a million characters take a few milliseconds, whatever they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from maieutic.errors import ConfigError, DataError
from maieutic.rewards.latex import Equivalence, compare
from maieutic.rewards.numbers import LONGEST_ANSWER, canonical_number, numbers, parse_number, plain, without_remarks
from maieutic.thoughts import outside_thoughts
from maieutic.types import Task, Verdict

#: How many characters of a text, counted back from its last digit, are searched for a number that can be read.
_SEARCHED = 8_000
_WINDOW = 2_000
#: Markers side by side that are compared with each other, and how far apart "side by side" is on one line.
_LISTED = 16
_NEAR = 40

_DIGIT = re.compile(r"\d")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_ANSWER_IS = ("answer is", "Answer is", "ANSWER IS", "Answer Is")


@dataclass(frozen=True, slots=True)
class Marked:
    """An answer that a marker points out: its content, and where marker and content start and stop."""

    content: str
    start: int
    stop: int


def _tagged(text: str, end: int) -> Marked | None:
    close = text.rfind("</answer>", 0, end)
    start = text.rfind("<answer>", 0, close) if close >= 0 else -1
    if start < 0:
        return None
    # A second closing tag without an opening one closes nothing.
    close = text.find("</answer>", start)
    return Marked(text[start + len("<answer>") : close], start, close + len("</answer>"))


def _boxed(text: str, end: int) -> Marked | None:
    start = end
    for _ in range(8):  # the last boxes may be cut off by the length limit, or have no braces
        start = max(text.rfind("\\boxed", 0, start), text.rfind("\\fbox", 0, start))
        if start < 0:
            return None
        brace = start + len("\\boxed" if text.startswith("\\boxed", start) else "\\fbox")
        while brace < end and text[brace] == " " and brace - start < 16:
            brace += 1
        close = _closing(text, brace)
        if close >= 0:
            return Marked(text[brace + 1 : close], start, close + 1)
    return None


def _closing(text: str, brace: int) -> int:
    """Where the brace at `brace` is closed, within the length of an answer; -1 if it is not, or if there is none."""
    if not text.startswith("{", brace):
        return -1
    depth = 0
    for match in _BRACES.finditer(text, brace, brace + LONGEST_ANSWER + 2):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return -1


def _hashed(text: str, end: int) -> Marked | None:
    start = text.rfind("####", 0, end)
    if start < 0:
        return None
    line = text.find("\n", start, end)
    stop = end if line < 0 else line
    return Marked(text[start + 4 : stop], start, stop)


def _stated(text: str, end: int) -> Marked | None:
    start = max(text.rfind(phrase, 0, end) for phrase in _ANSWER_IS)
    if start < 0:
        return None
    begin = start + len("answer is")
    sentence_end = _SENTENCE_END.search(text, begin, min(end, begin + LONGEST_ANSWER + 1))
    stop = sentence_end.start() if sentence_end else end
    return Marked(text[begin:stop], start, stop)


#: In order of precedence. Each finds the last marker of its kind in `text[:end]`.
_MARKERS: tuple[Callable[[str, int], Marked | None], ...] = (_tagged, _boxed, _hashed, _stated)


def marked(text: str, *, strict: bool = True) -> str | None:
    """The content of the explicit answer marker that counts; None if there is none, or (strict) if it is a list."""
    text = outside_thoughts(text)
    for find in _MARKERS:
        last = find(text, len(text))
        if last is None:
            continue
        if strict and (_disagrees(text, find, last) or not _opens(find, last.content)):
            return None
        return last.content.strip() if len(last.content) <= LONGEST_ANSWER else None
    return None


def _opens(find: Callable[[str, int], Marked | None], content: str) -> bool:
    """Whether strict extraction may read what follows a marker that is also ordinary text.

    `#### Step 1` is a heading and "the answer is not 5" is none: after `####` the answer comes first.
    """
    if find is _stated:
        return not content.lstrip(" :").startswith("not ")
    if find is _hashed:
        head = plain(content[:80]).lstrip(" $€£-+:=({[*_.")
        return not head[:1].isalpha() or not _DIGIT.search(content)
    return True


def _disagrees(text: str, find: Callable[[str, int], Marked | None], last: Marked) -> bool:
    """Whether markers of one kind stand side by side with different answers: "#### 1 #### 2"."""
    wanted = canonical(last.content)
    # Neighbours cannot be further away than this, and the rest of a long text need not be searched for them.
    floor = max(0, last.start - _LISTED * (LONGEST_ANSWER + _NEAR))
    text, here = text[floor:], replace(last, start=last.start - floor, stop=last.stop - floor)
    for _ in range(_LISTED):
        previous = find(text, here.start)
        if previous is None:
            return False
        gap = text[previous.stop : here.start] if here.start - previous.stop <= _NEAR else None
        if gap is None or ("\n" in gap and any(c.isalnum() for c in gap)):
            return False
        if canonical(previous.content) != wanted:
            return True
        here = previous
    return True


def extract_strict(text: str) -> str | None:
    """The one number that an explicit marker of `text` states, in canonical spelling, or None."""
    content = marked(text)
    value = None if content is None else parse_number(content)
    return None if value is None else canonical_number(value)


def extract_flexible(text: str) -> str | None:
    """As `extract_strict`, but of several markers the last counts, and the last number of the text does otherwise."""
    content = marked(text, strict=False)
    value = None if content is None else parse_number(content)
    if value is None:
        value = _last_number(outside_thoughts(text))
    return None if value is None else canonical_number(value)


def _last_number(text: str) -> Fraction | None:
    """The last number of a text, remarks in parentheses aside ("80 dollars (20% off)" is 80)."""
    end = _last_digit(text)
    floor = max(0, end - _SEARCHED)
    while end > floor:
        start = max(0, end - _WINDOW, text.rfind("\n", 0, end - 1) + 1)
        piece = text[start:end]
        if start and text[start - 1] not in "\n ":  # begin with a whole number, not with the tail of one
            piece = re.sub(r"^[\d.,/]++", "", piece)
        piece = plain(piece)
        for reading in (without_remarks(piece), piece):
            values = [number.value for number in numbers(reading) if number.value is not None]
            if values:
                return values[-1]
        end = start
    return None


def _last_digit(text: str) -> int:
    """Where the line (or the next stretch of it) with the last digit ends; 0 if there is no digit."""
    for end in range(len(text), 0, -_WINDOW):
        last = max((digit.end() for digit in _DIGIT.finditer(text, max(0, end - _WINDOW), end)), default=0)
        if last:
            line = text.find("\n", last, last + 64)
            return line if line >= 0 else min(len(text), last + 64)
    return 0


def normalised(text: str) -> str:
    """A text for comparing answers that are not numbers: dress, case, spaces and a trailing full stop taken off."""
    words = plain(text[:LONGEST_ANSWER]).casefold().replace("$", "").split()
    return " ".join(words).strip(" .,;:!?*_\"'")


def canonical(text: str) -> str | None:
    """One spelling for each answer, for votes: "1/2", "0.5" and "\\frac12" are all "0.5". None for an empty answer."""
    value = parse_number(text)
    return canonical_number(value) if value is not None else normalised(text) or None


def equivalent(given: str, gold: str, *, tolerance: float = 0.0) -> bool:
    """Whether two answers are the same: exactly as rationals, else as normalised text; never by substring.

    `tolerance` is an absolute difference that still counts as equal. Where the gold is a decimal that is not an
    integer, rounding is forgiven: a relative difference of 1e-6.
    """
    value, target = parse_number(given), parse_number(gold)
    if value is None or target is None:
        return value is target and normalised(given) == normalised(gold) != ""
    allowed = Fraction(tolerance)
    if "." in gold and "/" not in gold and target.denominator != 1:
        allowed = max(allowed, abs(target) / 10**6)
    return abs(value - target) <= allowed


@dataclass(frozen=True)
class AnswerVerifier:
    """Does the text answer the task? A `Verifier` for tasks whose gold is `task.answer`.

    strict       read explicit markers only (see the top of this file); train on this, report both
    latex        compare golds that are not numbers with math-verify, in a process that is killed after `latex_seconds`
                 (a gold that is a number wants a number: "3*14+30" is 72 and yet no answer to "how many?")
    tolerance    absolute difference of numbers that still counts as equal (SVAMP's calculator answers: 1e-3)

    `Verdict.answer` is canonical, so votes count "1/2" and "0.50" together. Never raises on model text: what cannot
    be read, compared or finished in time is not correct, and `why` says so.
    """

    strict: bool = True
    latex: bool = False
    tolerance: float = 0.0
    latex_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name, least in (("tolerance", 0.0), ("latex_seconds", 1e-3)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"AnswerVerifier: got {name}={value}; expected a finite number of at least {least:g}")

    def __call__(self, task: Task, text: str) -> Verdict:
        """The verdict on a completion."""
        gold = task.answer
        if gold is None:
            return Verdict(False, None, "the task has no answer to compare with")
        if parse_number(gold) is not None:
            number = extract_strict(text) if self.strict else extract_flexible(text)
            if number is None:
                return Verdict(False, None, "no number found that answers")
            return self._verdict(equivalent(number, gold, tolerance=self.tolerance), number, gold)
        content = marked(text, strict=self.strict)
        if content is None and not self.strict:
            content = outside_thoughts(text).strip().rpartition("\n")[2]
        if not content or len(content) > LONGEST_ANSWER:
            return Verdict(False, None, "no answer found")
        answer = canonical(content)
        same = equivalent(content, gold)
        if same or not self.latex:
            return self._verdict(same, answer, gold)
        found = compare(gold, content, timeout_seconds=self.latex_seconds)
        if found in (Equivalence.EQUAL, Equivalence.DIFFERENT):
            return self._verdict(found is Equivalence.EQUAL, answer, gold)
        return Verdict(False, answer, f"LaTeX comparison: {found.value}")

    def _verdict(self, correct: bool, answer: str | None, gold: str) -> Verdict:
        return Verdict(correct, answer, "" if correct else f"got {answer}, expected {gold}")

    def check_gold(self, task: Task) -> None:
        """Raise `DataError` unless the task's answer can be compared with. Call it when tasks are loaded."""
        gold = task.answer
        if gold is None or not normalised(gold) or len(gold) > LONGEST_ANSWER:
            raise DataError(
                f"task {task.id!r}: got answer {gold if gold is None else gold[:60]!r}; expected 1 to {LONGEST_ANSWER} "
                "characters. Remedy: fill the answer of this row, or leave the row out."
            )
        if parse_number(gold) is not None:
            return
        if self.tolerance > 0 or (not self.latex and _DIGIT.search(gold)):
            raise DataError(
                f"task {task.id!r}: got answer {gold[:60]!r}, which is not one number. Remedy: give one number"
                + (", or use AnswerVerifier(tolerance=0)." if self.tolerance else ", or AnswerVerifier(latex=True).")
            )
        if self.latex and compare(gold, gold, timeout_seconds=self.latex_seconds) is not Equivalence.EQUAL:
            raise DataError(
                f"task {task.id!r}: got answer {gold[:60]!r}, which math-verify cannot read as an expression. "
                "Remedy: correct its LaTeX, or use AnswerVerifier(latex=False) to compare it as text."
            )
