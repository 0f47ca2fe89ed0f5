"""A small tree that can be walked by hand: three steps of one of three letters, each step ended by ";", then the end.

a ; b ; a ; <stop>         27 answers, each a completion of 7 tokens; the right one is WANTED
"""

from __future__ import annotations

from maieutic.backends.scripted import TreeSampler
from maieutic.backends.toy import STOP, ToyChat
from maieutic.protocols import Sampling
from maieutic.search import Question

CHAT = ToyChat(["a", "b", "c", ";", "?"])
PROMPT = (5,)  # "?"
LETTERS, SEMICOLON = (1, 2, 3), 4
DEPTH = 3
WANTED = "b ; a ; c ;"


def chances(tokens: tuple[int, ...]) -> dict[int, float]:
    """Letters with chances .6, .3, .1, then a semicolon, and after three of these the end."""
    if tokens[-1] in LETTERS:
        return {SEMICOLON: 1.0}
    return {STOP: 1.0} if tokens.count(SEMICOLON) == DEPTH else {1: 0.6, 2: 0.3, 3: 0.1}


def policy() -> TreeSampler:
    return TreeSampler(chances)


def read(text: str) -> str | None:
    return text if text.count(";") == DEPTH else None


def exact(prompt, rows) -> list[float]:
    """1 for what can still become the wanted text, else 0: the value of a perfect judge."""
    return [float(WANTED.startswith(CHAT.decode(row))) for row in rows]


def question(key: str = "k", temperature: float = 1.0, max_tokens: int = 12) -> Question:
    return Question(PROMPT, Sampling(max_tokens, temperature, frozenset({STOP}), key))
