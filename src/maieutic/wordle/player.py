"""A scripted player, as good or as bad as one likes: it heeds what it was told only now and then.

Before each guess it remembers each mark of the game with a probability, and guesses a word at random among those that
go with what it remembers. With probability 1 for all marks it is consistent; with less it makes the mistakes of
somebody who forgets; with 0 for `-` it is somebody who has not understood that mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from maieutic.errors import ConfigError
from maieutic.wordle.rules import ABSENT, ELSEWHERE, IN_PLACE, MARKS, Turn, feedback

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maieutic.wordle.words import WordList

MAX_GUESSES = 6


@dataclass(frozen=True)
class Player:
    """`heeds`: the probabilities with which it remembers a ✓, a `-` and an x; or one for all, by `of_skill`."""

    heeds: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.heeds) != len(MARKS) or not all(0 <= share <= 1 for share in self.heeds):
            raise ConfigError(f"a scripted player: got heeds={self.heeds!r}; expected 3 probabilities (of ✓, -, x)")

    @staticmethod
    def of_skill(skill: float | Sequence[float]) -> Player:
        """A player who heeds every mark with probability `skill`, or ✓, `-` and x with one each."""
        if isinstance(skill, Sequence):
            return Player(tuple(float(share) for share in skill))  # type: ignore[arg-type]
        return Player((float(skill),) * 3)

    def guess(self, words: WordList, history: Sequence[Turn], random: Random) -> str:
        """A word that goes with what it remembers (any word, where none does), not one that it has guessed before."""
        import numpy as np

        fits = np.ones(len(words.all), dtype=bool)
        for guess, _ in history:
            number = words.number(guess)
            if number is not None:
                fits[number] = False
        fresh = fits.copy() if fits.any() else ~fits
        for guess, marks in history:
            for place, mark in enumerate(marks):
                if random.random() < self.heeds[MARKS.index(mark)]:
                    fits &= heeding(words, guess, marks, place)
        numbers = np.flatnonzero(fits if fits.any() else fresh)
        return words.all[int(random.choice(numbers))]


def heeding(words: WordList, guess: str, marks: str, place: int) -> NDArray[np.bool_]:
    """`[W]` the words that go with one mark of a guess. Those that go with all five are consistent with the guess."""
    letter, mark = ord(guess[place]) - ord("A"), marks[place]
    told = sum(g == guess[place] and m != ABSENT for g, m in zip(guess, marks, strict=True))
    here = words.letters[:, place] == letter
    return {
        IN_PLACE: here,
        ELSEWHERE: ~here & (words.counts[:, letter] >= told),
        ABSENT: ~here & (words.counts[:, letter] == told),
    }[mark]


def play(secret: str, player: Player, words: WordList, random: Random, turns: int = MAX_GUESSES) -> tuple[Turn, ...]:
    """A game: the guesses with what they were told, up to the secret or to `turns`."""
    history: list[Turn] = []
    while len(history) < turns and not (history and history[-1][0] == secret):
        guess = player.guess(words, history, random)
        history.append((guess, feedback(secret, guess)))
    return tuple(history)
