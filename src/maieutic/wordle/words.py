"""Word lists: what may be guessed, and which words are secrets of which split.

The list that comes along (`words.txt`) has some 1,550 common English words. A shorter one is made of its first words in
an order by hash, so that it is a sample of the whole. Every word of a list may be guessed; secrets are split by a hash
of the word alone: a secret of one split is none of the other, whatever the list is.

Words are upper-case. A file may spell them otherwise; they are read as upper-case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.wordle.rules import is_word, letters_of, pattern_matrix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: "all": the secrets of both, for who is to know that every word may be one.
SPLITS = ("train", "test", "all")
#: Of 100 words by hash, the secrets that are held out.
HELD_OUT = 20


def number_by_hash(word: str, what: str) -> int:
    """A number of 64 bits that depends on the word and on `what` it decides."""
    return int.from_bytes(blake2b(f"{what}/{word}".encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class WordList:
    """The words that may be guessed, sorted, and of 100 secrets how many are held out."""

    name: str
    all: tuple[str, ...]
    held_out: int = HELD_OUT
    reference: str = ""
    """By which `word_list_at` finds the words again."""

    def __post_init__(self) -> None:
        if not 1 <= self.held_out <= 99:
            raise ConfigError(f"held_out: got {self.held_out}; expected a percentage, 1 to 99")
        empty = [split for split in SPLITS if not self.secrets(split)]
        if empty:
            raise ConfigError(
                f"word list {self.name!r}: got {len(self.all)} words, of which none is a secret of {empty[0]!r}; give "
                "more words, or another held_out"
            )

    def secrets(self, split: str) -> tuple[str, ...]:
        """The secrets of a split: "train", "test" (held out) or "all" (both)."""
        if split not in SPLITS:
            raise UnknownName("split of wordle", split, SPLITS)
        if split == "all":
            return self.all
        return tuple(w for w in self.all if (number_by_hash(w, "split") % 100 < self.held_out) == (split == "test"))

    def number(self, word: str) -> int | None:
        """Where the word is in the list; None where it is not."""
        return self._numbers.get(word)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.all)}

    @cached_property
    def patterns(self) -> NDArray[np.uint8]:
        """`[W, W]` what every guess is told of every secret (see `rules.pattern_matrix`); W² bytes, made once."""
        return pattern_matrix(self.all)

    @cached_property
    def letters(self) -> NDArray[np.uint8]:
        """`[W, 5]` letters as numbers."""
        return letters_of(self.all)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """`[W, 26]` how often each letter occurs."""
        import numpy as np

        return (self.letters[:, :, None] == np.arange(26)).sum(1)


@lru_cache(maxsize=16)
def word_list(words: int | None = None, path: str | None = None, held_out: int = HELD_OUT) -> WordList:
    """The list that comes along, or that of a file; `words`: so many of it.

    A file has a word a line; of a line with commas the first field counts, and a first line "word" is a heading.
    Raises DataError for what is no five-letter word, and ConfigError for more words than there are.
    """
    whole = common_words() if path is None else read_words(Path(path))
    name = "common" if path is None else Path(path).stem
    place = "" if path is None else str(path)
    if words is None:
        return WordList(name, whole, held_out, f"{place}#")
    if not 2 <= words <= len(whole):
        raise ConfigError(f"words: got {words}; expected 2 to {len(whole)}, the words of {name!r}")
    chosen = sorted(whole, key=lambda word: number_by_hash(word, "list"))[:words]
    return WordList(f"{name}-{words}", tuple(sorted(chosen)), held_out, f"{place}#{words}")


def word_list_at(reference: str) -> WordList:
    """The list of a reference: "#" the one that comes along, "#60" so many words of it, "mine.txt" or "mine.txt#60" of
    a file."""
    path, _, words = reference.partition("#")
    return word_list(int(words) if words.isdecimal() else None, path or None)


@lru_cache(maxsize=1)
def common_words() -> tuple[str, ...]:
    """The words that come along."""
    text = files("maieutic.wordle").joinpath("words.txt").read_text(encoding="ascii")
    return tuple(sorted(text.split()))


def read_words(path: Path) -> tuple[str, ...]:
    """The words of a file, upper-case, sorted. Raises DataError, with the line, for what is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"a word list: {path} cannot be read ({error}); expected a text file, a word a line") from None
    found = dict(_words(path, lines))
    if not found:
        raise DataError(f"{path}: got no words; expected a word a line")
    return tuple(sorted(found))


def _words(path: Path, lines: Iterable[str]) -> Iterable[tuple[str, int]]:
    for number, line in enumerate(lines, 1):
        word = line.split(",")[0].strip().strip('"').upper()
        if not word or (number == 1 and word in ("WORD", "WORDS")):
            continue
        if not is_word(word):
            raise DataError(f"{path}:{number}: got {word!r}; expected a word of five letters A to Z")
        yield word, number
