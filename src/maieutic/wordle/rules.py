"""The rules of Wordle: what a guess is told, which words are left, and what a guess is worth before it is made.

    ✓  the letter is in the secret at this place      -  it is in the secret elsewhere      x  it is not (any more)

Two passes: letters in place use up their copies first, then, from left to right, letters that are elsewhere, as long as
copies are left. `feedback("CRANE", "EERIE")` is `xx-x✓`: the only E of CRANE is the last one.

Words are five upper-case letters A to Z here; `words.py` and `talk.py` see to that. Letters: `W` words of a list.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from maieutic.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maieutic.wordle.words import WordList

IN_PLACE, ELSEWHERE, ABSENT = MARKS = ("✓", "-", "x")
LENGTH = 5
#: Different answers to a guess: marks are digits to base 3.
PATTERNS = len(MARKS) ** LENGTH

Turn = tuple[str, str]
"""A guess and the five marks that it got: ("CRANE", "✓✓✓xx")."""


def feedback(secret: str, guess: str) -> str:
    """The five marks that `guess` gets.

    >>> feedback("BRISK", "STORM")
    '-xx-x'
    """
    left = Counter(s for s, g in zip(secret, guess, strict=True) if s != g)
    marks = []
    for s, g in zip(secret, guess, strict=True):
        if s == g:
            marks.append(IN_PLACE)
        elif left[g] > 0:
            left[g] -= 1
            marks.append(ELSEWHERE)
        else:
            marks.append(ABSENT)
    return "".join(marks)


def consistent(word: str, history: Iterable[Turn]) -> bool:
    """Whether `word` may be the secret, after all that was said: each guess would have got the marks that it got."""
    return all(feedback(word, guess) == marks for guess, marks in history)


def candidates(words: Sequence[str], history: Sequence[Turn]) -> list[str]:
    """The words that may be the secret, in the order of the list."""
    return [word for word in words if consistent(word, history)]


def letters_of(words: Sequence[str]) -> NDArray[np.uint8]:
    """`[W, 5]` the letters as numbers, A being 0."""
    import numpy as np

    flat = np.frombuffer("".join(words).encode("ascii"), dtype=np.uint8) - ord("A")
    return flat.reshape(len(words), LENGTH)


def pattern_matrix(words: Sequence[str]) -> NDArray[np.uint8]:
    """`[W guesses, W secrets]` the marks as one number: digit i (of 3ⁱ) is 2 for ✓, 1 for `-`, 0 for x at place i."""
    import numpy as np

    letters = letters_of(words)
    same = [[letters[:, i, None] == letters[None, :, j] for j in range(LENGTH)] for i in range(LENGTH)]
    used = [same[j][j].copy() for j in range(LENGTH)]  # letters of the secret that are in place
    code = np.zeros((len(words), len(words)), dtype=np.uint8)
    for i in range(LENGTH):
        code += np.uint8(2 * 3**i) * same[i][i]
        open_ = ~same[i][i]
        for j in range(LENGTH):
            taken = open_ & same[i][j] & ~used[j]
            code += np.uint8(3**i) * taken
            used[j] |= taken
            open_ &= ~taken
    return code


def pattern_code(marks: str) -> int:
    """The number of five marks in `pattern_matrix`."""
    return sum(3**i * (2 - MARKS.index(mark)) for i, mark in enumerate(marks))


def left(words: WordList, history: Iterable[Turn]) -> NDArray[np.intp]:
    """Numbers of the words of the list that may be the secret. A guess of the history need not be in the list."""
    import numpy as np

    fits = np.ones(len(words.all), dtype=bool)
    for guess, marks in history:
        number = words.number(guess)
        if number is None:
            fits &= np.array([feedback(word, guess) == marks for word in words.all], dtype=bool)
        else:
            fits &= words.patterns[number] == pattern_code(marks)
    return np.flatnonzero(fits)


def guess_value(words: WordList, guess: str, history: Iterable[Turn], *, last: bool = True) -> float:
    """How much of what is unknown the guess is expected to reveal: (H − E[H′]) / H, H = log₂ of the words left.

    1 when every word that is left would be told apart, 0 when none would. 0 for a guess that is not in the list, and
    where no word is left. Where one word is left there is nothing to reveal: its guess is worth 1 and others 0 with
    `last`; without, all are worth 0, which pays nothing for the winning guess.
    """
    import numpy as np

    number, open_ = words.number(guess), left(words, history)
    if number is None or not len(open_):
        return 0.0
    if len(open_) == 1:
        return float(last and open_[0] == number)
    sizes = np.bincount(words.patterns[number][open_], minlength=PATTERNS)
    sizes = sizes[sizes > 1]  # a word that is alone leaves log₂ 1 = 0
    total = len(open_)
    return 1.0 - float((sizes * np.log2(sizes)).sum()) / (total * float(np.log2(total)))


def rendered(guess: str, marks: str) -> str:
    """`C(✓) R(✓) A(✓) N(x) E(x)`: five words, so five tokens to a tokenizer of words."""
    return " ".join(f"{letter}({mark})" for letter, mark in zip(guess, marks, strict=True))


def placed(guess: str, marks: str) -> str:
    """`1C✓ 2R✓ 3A✓ 4Nx 5Ex`: five words that say their place, for models that begin knowing nothing."""
    return " ".join(f"{place}{letter}{mark}" for place, (letter, mark) in enumerate(zip(guess, marks, strict=True), 1))


_RENDERED = re.compile(r"\s*([A-Z])\(([✓x-])\)" * LENGTH + r"\s*")


def parse_history(text: Any, where: str = "past_guess_history") -> tuple[Turn, ...]:
    """Past guesses as data sets keep them: a list of [guess, feedback], or such a list as text.

    >>> parse_history("[['CRANE', 'C(✓) R(✓) A(✓) N(x) E(x)']]")
    (('CRANE', '✓✓✓xx'),)

    Feedback is five marks, or letters with marks. Raises DataError, which names `where`, for anything else.
    """
    found = text
    if isinstance(text, str):
        try:
            found = ast.literal_eval(text.strip() or "[]")
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise _unread(text, where) from None
    if not isinstance(found, list | tuple):
        raise _unread(text, where)
    return tuple(_turn(each, text, where) for each in found)


def _turn(each: Any, text: Any, where: str) -> Turn:
    if not (isinstance(each, list | tuple) and len(each) == 2 and all(isinstance(part, str) for part in each)):
        raise _unread(text, where)
    guess, marks = each[0].strip().upper(), each[1].strip()
    if match := _RENDERED.fullmatch(marks):
        pairs = match.groups()
        if "".join(pairs[::2]) != guess:
            raise _unread(text, where)
        marks = "".join(pairs[1::2])
    if not is_word(guess) or len(marks) != LENGTH or set(marks) - set(MARKS):
        raise _unread(text, where)
    return guess, marks


def _unread(text: Any, where: str) -> DataError:
    return DataError(
        f"{where}: got {str(text)[:200]!r}; expected a list of [guess, feedback], such as "
        "[['CRANE', 'C(✓) R(✓) A(✓) N(x) E(x)']] or [['CRANE', '✓✓✓xx']]"
    )


def is_word(text: str) -> bool:
    """Whether the text is five upper-case letters A to Z."""
    return len(text) == LENGTH and text.isascii() and text.isalpha() and text.isupper()
