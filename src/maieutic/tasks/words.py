"""Text of word problems: words and punctuation apart, numbers filled in or masked.

A *template* is a question in which the i-th number is the word `number{i}`, in order of appearance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: A number that stands alone: not part of a word (mp3), of a size (2d) or of a compound (1-year).
_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?![\w]|-\w|\.\d)", re.ASCII)
_PLACEHOLDER = re.compile(r"\bnumber(\d+)\b", re.ASCII)
_WORD = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?![^\W_])|[^\W_]+|\S")


def normalise(text: str) -> str:
    """Lower case, words and punctuation marks separated by single spaces, typographic quotes made plain.

    >>> normalise("Joan's 2.5 miles, then $3.")
    "joan ' s 2.5 miles , then $ 3 ."
    """
    plain = text.replace("’", "'").replace("‘", "'").replace("`", "'").replace("“", '"').replace("”", '"')
    return " ".join(_WORD.findall(plain.lower()))


def template_of(text: str) -> tuple[str, tuple[str, ...]]:
    """The template of a text with digits, and its numbers without thousands commas. Number words stay words.

    >>> template_of("Two boys eat 3 of 1,200 nuts. 4?")
    ('Two boys eat number0 of number1 nuts. number2?', ('3', '1200', '4'))
    """
    numbers: list[str] = []

    def mark(found: re.Match[str]) -> str:
        numbers.append(found[0].replace(",", ""))
        return f"number{len(numbers) - 1}"

    return _NUMBER.sub(mark, text), tuple(numbers)


def filled(template: str, numbers: Sequence[str]) -> str:
    """The template with its numbers written out."""
    return _PLACEHOLDER.sub(lambda found: numbers[int(found[1])], template)


def masked(template: str) -> str:
    """The template with its numbers as names: `n0 n1 …`."""
    return _PLACEHOLDER.sub(r"n\1", template)


def same_question(template: str) -> str:
    """What two wordings of one question share: letters and digits alone, without case, punctuation and spaces."""
    return re.sub(r"[\W_]+", "", template.lower())
