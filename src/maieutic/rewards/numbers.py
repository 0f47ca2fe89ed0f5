"""Numbers as people and models write them, read exactly.

Every value is a `Fraction`: nothing passes through a float, so `0.1 + 0.2` questions and thousand-digit tricks are
judged by arithmetic and not by rounding. All functions take time linear in their text, and a text longer than
`LONGEST_ANSWER` is not a number.

    "$1,080."  → 1080      "−5"          → -5      "1 1/2"       → 3/2       "90^\\circ" → 90
    "5.0"      → 5         "\\dfrac12"    → 1/2     "18 cm^2"     → 18        "H2O"       → no number
    "16-3"     → 16 and 3  "1,2"         → 1 and 2 "1.2.3"       → unreadable
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

#: Characters. Beyond this a text is an essay, not an answer.
LONGEST_ANSWER = 1000

#: Characters of one written number. `int` takes quadratic time, so longer runs of digits are not read.
LONGEST_NUMBER = 400

_LARGEST_EXPONENT = 300


def _characters() -> dict[int, str | None]:
    """Lookalikes → the ASCII that is meant. Superscripts stay: `5²` is not 52."""
    table: dict[int, str | None] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    table |= dict.fromkeys(map(ord, "−–﹣‐‑"), "-")
    table |= dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f\u3000"), " ")
    table |= dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"), None)
    table[ord("⁄")] = "/"
    for vulgar in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞":
        table[ord(vulgar)] = " " + unicodedata.normalize("NFKC", vulgar).replace("⁄", "/")
    return table


_CHARACTERS = _characters()

# A run is all that could belong to one number; what it is worth is decided afterwards. Possessive quantifiers (`++`)
# never give back what they matched, so no input makes these backtrack.
_RUN = re.compile(r"\.?\d++(?:[.,/]\.?\d++)*+(?:[eE][+-]?\d{1,3}+(?![\w.]))?+")
_DECIMAL = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE]([+-]?\d+))?")

_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|boxed|fbox)\s*+\{([^{}]*+)\}"
)
_FRACTION = re.compile(r"\\[dtc]?frac\s*+(?:\{\s*+([\d.,]++)\s*+\}|(\d))\s*+(?:\{\s*+([\d.,]++)\s*+\}|(\d))")
_UNIT_POWER = re.compile(
    r"(?<![A-Za-z])(mm|cm|dm|m|km|in|ft|yd|mi|inch|inches|feet|foot|yards?|miles?|met(?:er|re)s?|units?)\s?\^\{?[23]\}?"
)
_SCIENTIFIC = re.compile(r"(?<=\d) ?(?:\\times|\\cdot|×) ?10 ?\^ ?(?:\{ ?([+-]?\d{1,3}) ?\}|(\d))(?!\d)")
_SILENT = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\^\s*+\{?\s*+\\circ\s*+\}?|\\circ|\\[()\[\]]|°|\*\*|`"
)
_GROUP_MARK = re.compile(r"(?<=\d)(?:\{,\}|\\[,!;: ])(?=\d{3}(?!\d))")
_SPACE = re.compile(r"\\[,!;: ]|\\quad|~")
_SLASH = re.compile(r"(?<=\d) ?/ ?(?=\.?\d)")
_REMARK = re.compile(r"\(([^()]*+)\)")

#: What may not stand beside a number that is to be read alone: `2\pi`, `x^2`, `5 + x`, `> 5`.
_ALGEBRA = re.compile(r"[\\^_√π∞<>≤≥≠±×÷*+{}|]|\b[A-Za-z] ?-|- ?[A-Za-z]\b")
_SCALE = re.compile(r"\b(?:hundred|thousand|million|billion|trillion|dozen)s?\b", re.IGNORECASE)

_ORDINALS = frozenset({"st", "nd", "rd", "th"})
#: Units of one letter that may touch a number (metre, gram, hour, second, litre, Celsius, Fahrenheit); `2x`, `5k`
#: and `3M` are something else than 2, 5 and 3.
_LETTER_UNITS = frozenset("mghslLCFc")


def plain(text: str) -> str:
    """`text` with lookalike characters, LaTeX wrappers, spacing and markdown emphasis taken off. Linear."""
    text = text.translate(_CHARACTERS).replace("\\$", "$").replace("\\%", "%")
    for _ in range(3):  # wrappers within wrappers: \boxed{\text{5}}
        text, found = _WRAPPER.subn(r" \1 ", text)
        if not found:
            break
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    text = _SCIENTIFIC.sub(r"e\1\2", text)
    text = _SILENT.sub("", _UNIT_POWER.sub(r"\1", text))
    text = _SPACE.sub(" ", _GROUP_MARK.sub(",", text))
    return _SLASH.sub("/", text)


def without_remarks(text: str) -> str:
    """`text` without its remarks in parentheses, "80 dollars (20% off)", which are no part of an answer."""
    return _REMARK.sub(lambda m: " " if "%" in m[1] or any(c.isalpha() for c in m[1]) else m[0], text)


@dataclass(frozen=True, slots=True)
class Number:
    """A number found in a text: its value (None: digits that cannot be read as one), and where its run is."""

    value: Fraction | None
    start: int
    stop: int


def _word(character: str) -> bool:
    # Scripts from U+2E80 on (Chinese, Japanese, Korean) put no spaces between words and numbers.
    return character == "_" or (character.isalnum() and character < "\u2e80")


def _attached(text: str, stop: int) -> bool:
    """Whether what touches the end of a run leaves it a number: nothing, punctuation, or a unit (`5kg`, not `5k`)."""
    end = stop
    while end < len(text) and end - stop < 32 and _word(text[end]) and not text[end].isdecimal():
        end += 1
    touching = text[stop:end]
    if end < len(text) and (text[end].isdecimal() or text[end] == "^") and touching:
        return False
    if not touching:
        return not text.startswith(("^", "√"), stop)
    if len(touching) == 1:
        return touching in _LETTER_UNITS
    return touching.isalpha() and touching.lower() not in _ORDINALS


def _negative(text: str, start: int) -> bool:
    """Whether the run at `start` has a minus of its own: "-5", "$-5", "-$5", but not the binary one of "16-3"."""
    at = start - 1
    signed = at >= 0 and text[at] == "-"
    if not signed:
        while at >= 0 and text[at] in "$€£":
            at -= 1
        signed = at < start - 1 and at >= 0 and text[at] == "-"
    if not signed:
        return False
    before = text[max(0, at - 8) : at]
    if not before or before[-1] in "$€£":
        return True
    if _word(before[-1]) or before[-1] in ")]}%-":
        return False
    # "16 -3" subtracts, "is -3" does not, and a new line starts afresh.
    before = before.rstrip(" \t")
    return not (before and (before[-1].isdecimal() or before[-1] in ")]}"))


def _ascii(run: str) -> str:
    if run.isascii():
        return run
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in run)


def _decimal(text: str) -> Fraction | None:
    match = _DECIMAL.fullmatch(text)
    if match is None or not text or abs(int(match[1] or 0)) > _LARGEST_EXPONENT:
        return None
    return Fraction(text.replace(",", ""))


def _worth(run: str) -> list[Fraction | None]:
    """The value of a run, or the values of a list "1,2,3" that was written without spaces."""
    if len(run) > LONGEST_NUMBER:
        return [None]
    run = _ascii(run)
    top, slash, bottom = run.partition("/")
    numerator, denominator = _decimal(top), _decimal(bottom) if slash else Fraction(1)
    if numerator is not None and denominator is not None:
        return [numerator / denominator if denominator else None]
    if "," in run:
        return [value for part in run.split(",") for value in _worth(part)]
    return [None]


def numbers(text: str) -> Iterator[Number]:
    """The numbers of a text that `plain` has prepared, in order; digits within words ("H2O", "x2") are none."""
    waiting: Number | None = None
    for match in _RUN.finditer(text):
        start, stop = match.span()
        before = text[start - 1] if start else ""
        if before and (_word(before) or before in "^\\"):
            continue
        if not _attached(text, stop):
            continue
        sign = -1 if _negative(text, start) else 1
        worth = _worth(match[0])
        first = worth[0]
        if waiting is not None:
            mixed = _mixed(text, waiting, start, first) if "/" in match[0] else None
            if mixed is not None and sign == 1:
                yield Number(mixed, waiting.start, stop)
                waiting = None
                continue
            yield waiting
        *rest, last = [None if v is None else v * (sign if i == 0 else 1) for i, v in enumerate(worth)]
        for value in rest:
            yield Number(value, start, stop)
        waiting = Number(last, start, stop)
    if waiting is not None:
        yield waiting


def _mixed(text: str, whole: Number, start: int, part: Fraction | None) -> Fraction | None:
    """The mixed number "1 1/2" when `whole` is an integer and the run at `start` a proper fraction, else None."""
    if whole.value is None or part is None or not 0 < part < 1 or not text[whole.start : whole.stop].isdecimal():
        return None
    if not 0 < start - whole.stop < 4 or not text[whole.stop : start].isspace() or "\n" in text[whole.stop : start]:
        return None
    negative = whole.value < 0 or (whole.value == 0 and _negative(text, whole.start))
    return whole.value - part if negative else whole.value + part


def parse_number(text: str) -> Fraction | None:
    """The one number that `text` states, exactly; None when it states none, several, or an expression.

    Currency signs, `%`, thousands commas, units and words around it, LaTeX dress and a trailing full stop are taken
    off; `3/4`, `\\frac34` and `1 3/4` are rationals. A percentage is its number ("5%" is 5, never 1/20), and a number
    with a scale word ("5 million") is not read, since half the world would read 5 and the other half 5,000,000.
    """
    if len(text) > LONGEST_ANSWER:
        return None
    text = without_remarks(plain(text)).lstrip(" \t\r\n,;:*_").rstrip(" \t\r\n.,;:!?*_")
    text = re.sub(r"^([$€£]?)([+-])\s+(?=[$€£.\d])", r"\2\1", text)
    found = list(numbers(text))
    if len(found) != 1:
        return None
    number = found[0]
    around = re.sub(r"(?:^|(?<=[\s=:$€£(]))\+$", "", text[: number.start].rstrip("$€£")) + " " + text[number.stop :]
    if _ALGEBRA.search(around) or _SCALE.search(around):
        return None
    return number.value


def canonical_number(value: Fraction) -> str:
    """One spelling for one value: "42", "-0.5" where the decimals end, "1/3" where they do not."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
