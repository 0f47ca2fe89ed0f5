"""Search as a tool: the passages of a folder of texts that fit a query best, by BM25. Pure and deterministic.

    score(query, passage) = Σ_w idf(w) · f·(k₁ + 1) / (f + k₁·(1 − b + b·|passage| / mean))     f: how often w is there
    idf(w) = ln(1 + (N − n + ½) / (n + ½))                          N passages, n of them with w

Robertson and Zaragoza, *The Probabilistic Relevance Framework: BM25 and Beyond* (2009), equation 3.15, with the idf
that is never negative.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from maieutic.environments.tool_functions import ToolFunction, tool_function
from maieutic.errors import DataError

K1, B = 1.5, 0.75
#: Words of a passage at most, and of a query.
PASSAGE_WORDS, QUERY_WORDS = 150, 64
_WORD = re.compile(r"\w+")
_ENDINGS = (".txt", ".md", ".jsonl")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text and where it is from."""

    source: str
    text: str


class Corpus:
    """Passages, ready to be searched.

    >>> Corpus([Passage("a.txt", "the cat sat"), Passage("b.txt", "a dog")]).search("cats and a cat", 1)[0].source
    'a.txt'
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        if not passages:
            raise DataError("a corpus without a passage; expected texts to search in")
        self.passages = tuple(passages)
        self._within: dict[str, list[tuple[int, int]]] = defaultdict(list)
        lengths = []
        for number, passage in enumerate(self.passages):
            counted = Counter(_words(f"{passage.source} {passage.text}"))
            lengths.append(sum(counted.values()))
            for word, times in counted.items():
                self._within[word].append((number, times))
        mean = sum(lengths) / len(lengths) or 1.0
        self._damping = [K1 * (1 - B + B * length / mean) for length in lengths]

    def search(self, query: str, count: int = 3) -> list[Passage]:
        """The `count` passages with the highest scores above 0, the best first; of equal ones the first."""
        scores: dict[int, float] = defaultdict(float)
        for word in dict.fromkeys(_words(query)[:QUERY_WORDS]):
            found = self._within.get(word, ())
            rarity = math.log(1 + (len(self.passages) - len(found) + 0.5) / (len(found) + 0.5))
            for number, times in found:
                scores[number] += rarity * times * (K1 + 1) / (times + self._damping[number])
        best = sorted(scores, key=lambda number: (-scores[number], number))[:count]
        return [self.passages[number] for number in best]


def read_corpus(folder: str | Path) -> Corpus:
    """The texts of a folder and those below it: `.txt` and `.md` in passages of about a paragraph, `.jsonl` a row each
    (its `text`, with its `title` where it has one).

    Raises DataError for a folder that is not there or has no text, and for a row without text.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"got {str(folder)!r} to search in; expected a folder of {', '.join(_ENDINGS)} files")
    files = sorted(path for path in root.rglob("*") if path.suffix in _ENDINGS and path.is_file())
    passages = [passage for path in files for passage in _passages(path, path.relative_to(root).as_posix())]
    if not passages:
        raise DataError(f"{str(folder)!r} has no text to search in; expected {', '.join(_ENDINGS)} files with some")
    return Corpus(passages)


def search_tool(folder: str | Path, count: int = 3, name: str = "search") -> ToolFunction:
    """The tool `search`: the `count` best passages of a folder. Raises DataError as `read_corpus`."""
    corpus = read_corpus(folder)

    def search(query: str) -> str:
        """Search a collection of texts and return the passages that fit best.

        Args:
            query: a few words to look for
        """
        found = corpus.search(query, count)
        return "\n\n".join(f"[{each.source}] {each.text}" for each in found) or "nothing found"

    return tool_function(search, name=name)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _passages(path: Path, source: str) -> Iterator[Passage]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield _row(line, f"{path}:{number}", f"{source}:{number}")
        return
    held: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        if held and len(held) + len(words) > PASSAGE_WORDS:
            yield Passage(source, " ".join(held))
            held = []
        held += words
        while len(held) > PASSAGE_WORDS:
            yield Passage(source, " ".join(held[:PASSAGE_WORDS]))
            held = held[PASSAGE_WORDS:]
    if held:
        yield Passage(source, " ".join(held))


def _row(line: str, where: str, source: str) -> Passage:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{where}: got a row without a text; expected {{"text": "…", "title": "…"}}')
    return Passage(str(row.get("title") or source), text)
