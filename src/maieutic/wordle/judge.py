"""What a reply in Wordle is worth: five rewards that are taught, and a sixth, each of one guess.

    binary                   1 for the secret, else 0
    partial_credit           0.2 a letter in place, 0.1 a letter elsewhere
    format                   0 not in the form asked for, 0.1 not five letters, 0.5 not a word of the list, else 1
    uses_previous_feedback   what the guess makes of the marks so far, letter by letter
    guess_value              the share of what is unknown that the guess is expected to reveal (rules.guess_value)
    consistent               1 for a word of the list that may be the secret, after all that was said

Those who teach them know two flaws, which are mended here unless told otherwise: a letter that is both in the secret
and marked x, as the second E of a guess may be, is not taken for absent (`duplicates`), and the only word that is left
is worth 1 as a guess, not 0 (`last`). Solving is of no account to `uses_previous_feedback`; with `solved` it pays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maieutic.wordle.rules import ABSENT, ELSEWHERE, IN_PLACE, LENGTH, Turn, consistent, feedback, guess_value

if TYPE_CHECKING:
    from maieutic.wordle.words import WordList


@dataclass(frozen=True)
class Said:
    """One reply, in the state of the game in which it was given. `guess` is None where there is none to be read."""

    guess: str | None
    formed: bool
    history: tuple[Turn, ...]
    secret: str
    words: WordList

    @property
    def valid(self) -> bool:
        """Whether the guess counts as one: a word of the list."""
        return self.guess is not None and self.words.number(self.guess) is not None

    @property
    def violates(self) -> bool:
        """Whether the guess cannot be the secret, after what was said. Of a valid guess."""
        return self.valid and not consistent(str(self.guess), self.history)


def binary(said: Said) -> float:
    """1 for the secret, else 0."""
    return float(said.guess == said.secret)


def partial_credit(said: Said) -> float:
    """0.2 for each letter in place, 0.1 for each that is elsewhere (two passes); 0 unless it has five letters."""
    if said.guess is None or len(said.guess) != LENGTH:
        return 0.0
    marks = feedback(said.secret, said.guess)
    return 0.2 * marks.count(IN_PLACE) + 0.1 * marks.count(ELSEWHERE)


def layout_value(said: Said) -> float:
    """0 for a reply without the form, 0.1 for one without five letters, 0.5 for no word of the list, else 1."""
    if not said.formed or said.guess is None:
        return 0.0
    if len(said.guess) != LENGTH:
        return 0.1
    return 1.0 if said.valid else 0.5


def uses_previous_feedback(said: Said, *, duplicates: bool = True, solved: float | None = None) -> float:
    """The sum over the letters of the guess of the first that holds, given all marks so far:

    in place here +0.2 · elsewhere, and not known to be not here +0.1 · known to be elsewhere than here −0.2 ·
    absent −0.5 · otherwise +0.05. 0.1 where nothing was guessed yet, 0 where nothing can be read.

    `duplicates`: a letter that was marked x beside another copy which is in the secret is not absent, only not here.
    `solved` is what the secret is worth, whatever it makes of the marks (None: like any other guess).
    """
    if said.guess is None or len(said.guess) != LENGTH:
        return 0.0
    if solved is not None and said.guess == said.secret:
        return solved
    if not said.history:
        return 0.1
    places: dict[str, dict[str, set[int]]] = {IN_PLACE: {}, ELSEWHERE: {}, ABSENT: {}}
    for guess, marks in said.history:
        for place, (letter, mark) in enumerate(zip(guess, marks, strict=True)):
            here = mark
            if duplicates and mark == ABSENT and _is_told(guess, marks, letter):
                here = ELSEWHERE
            places[here].setdefault(letter, set()).add(place)
    return sum(_of_letter(letter, place, places) for place, letter in enumerate(said.guess))


def _is_told(guess: str, marks: str, letter: str) -> bool:
    """Whether another copy of the letter was marked as being in the secret."""
    return any(g == letter and m != ABSENT for g, m in zip(guess, marks, strict=True))


def _of_letter(letter: str, place: int, places: dict[str, dict[str, set[int]]]) -> float:
    if place in places[IN_PLACE].get(letter, ()):
        return 0.2
    if letter in places[ELSEWHERE]:
        return -0.2 if place in places[ELSEWHERE][letter] else 0.1
    return -0.5 if letter in places[ABSENT] else 0.05


def value(said: Said, *, last: bool = True) -> float:
    """The share of what is unknown that the guess is expected to reveal; see `rules.guess_value`."""
    return guess_value(said.words, said.guess, said.history, last=last) if said.guess is not None else 0.0


def consistent_guess(said: Said) -> float:
    """1 for a word of the list that may be the secret, after all that was said, else 0.

    It pays a held-out word as it pays any other: what wins is another matter, and teaches which words are secrets.
    """
    return float(said.valid and not said.violates)


#: Name → reward of one reply.
REWARDS: dict[str, Callable[..., float]] = {
    "binary": binary,
    "partial_credit": partial_credit,
    "format": layout_value,
    "uses_previous_feedback": uses_previous_feedback,
    "guess_value": value,
    "consistent": consistent_guess,
}


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
