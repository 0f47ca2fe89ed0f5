"""What can be seen of a completion without knowing the answer: copied, repeated, listed answers, open tags, scripts.

Shares are between 0 and 1, or None where a completion is too short to say. Every function takes time linear in its
text and never raises on model text. Penalties (`rewards.shaping`, `rewards.penalties`) and the guards of a run
(`maieutic.guards`) are made of these.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Sequence

from maieutic.rewards.answers import canonical, marked
from maieutic.thoughts import outside_thoughts
from maieutic.types import Rollout

#: Characters of a text that are searched for marked answers, and marked answers that are looked at.
SEARCHED, LOOKED_AT = 20_000, 64

_NUMBER = r"[-−]?[$€£]?\d[\d.,/]*"
#: A box, a tag or a phrase with what it holds; after `#` only a number that ends its line or its clause, for `# Step`
#: and `## 1. Plan` are headings.
_MARKED = re.compile(
    r"<answer>([^<]{0,200})</answer>"
    r"|\\(?:boxed|fbox) ?\{([^{}]{0,200})\}"
    rf"|#{{1,8}} ?({_NUMBER})(?=[ \t]*(?:$|[\n#;,<]|or\b|and\b))"
    rf"|[Aa]nswer is:? ?({_NUMBER})"
)
_BETWEEN = re.compile(r"[,;|]|\b(?:or|and|to)\b|(?<=\d) *(?:-|–|\\pm|±) *(?=\d)|(?<=[\w)]) */ *(?=[A-Za-z])")

#: Where stretches of code points begin that belong to one script ("" for what is in none, as digits are).
_SCRIPTS: tuple[tuple[int, str], ...] = (
    (0x0000, "latin"), (0x0250, ""), (0x0370, "greek"), (0x0400, "cyrillic"), (0x0530, "armenian"), (0x0590, "hebrew"),
    (0x0600, "arabic"), (0x0780, ""), (0x0900, "indic"), (0x0E00, "thai"), (0x0E80, "other"), (0x10A0, "georgian"),
    (0x1100, "hangul"), (0x1200, "other"), (0x1E00, "latin"), (0x1F00, "greek"), (0x2000, ""), (0x2C00, "other"),
    (0x3040, "kana"), (0x3100, "han"), (0x3130, "hangul"), (0x3190, "han"), (0xA000, "other"), (0xAC00, "hangul"),
    (0xD7B0, ""), (0xF900, "han"), (0xFB00, ""), (0x20000, "han"), (0x40000, ""),
)  # fmt: skip
_STARTS = [start for start, _ in _SCRIPTS]
#: Scripts of one language that are written together.
_TOGETHER = {"kana": "han"}


def chosen(rollout: Rollout) -> list[int]:
    """The ids of the tokens that the model chose, in order."""
    return [token for token, own in zip(rollout.tokens, rollout.mask) if own]


def grams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Every `n` tokens in a row."""
    return list(zip(*(tokens[i:] for i in range(n))))


def repeated(tokens: Sequence[int], n: int = 3) -> float | None:
    """1 − different n-grams / n-grams; None for fewer than `n` tokens."""
    found = grams(tokens, n)
    return 1 - len(set(found)) / len(found) if found else None


def copied(tokens: Sequence[int], prompt: Sequence[int], n: int = 4) -> float | None:
    """The share of the completion's n-grams that the prompt holds too; None for fewer than `n` tokens."""
    found = grams(tokens, n)
    if not found:
        return None
    known = set(grams(prompt, n))
    return sum(gram in known for gram in found) / len(found)


def listed_answers(text: str) -> int:
    """How many different answers the markers of a text state, outside of thoughts: "#### 1 #### 2" states two.

    Compared by value ("0.5" is "1/2"); at most `LOOKED_AT` markers are looked at, the last ones.
    """
    found = _MARKED.findall(outside_thoughts(text)[-SEARCHED:])[-LOOKED_AT:]
    contents = (next(filter(None, groups), "").strip(" .,") for groups in found)
    return len({canonical(content) for content in contents if content})


def alternatives(answer: str) -> int:
    """How many answers stand in one: "70, 71 or 72" holds three, "1,080" and "3/4" one, nothing none.

    A comma between digits parts them unless it groups thousands.
    """
    answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer[:1000])
    return sum(any(c.isalnum() for c in piece) for piece in _BETWEEN.split(answer))


def enumerated(text: str) -> int:
    """How many alternatives the marked answer of a text holds (0 where it marks none)."""
    found = marked(text, strict=False)
    return alternatives(found) if found else 0


def open_tags(text: str, tags: Collection[str]) -> int:
    """How many of these tags are not closed as often as opened, or are closed before they are opened."""
    count = 0
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        begins, ends = text.find(opening), text.find(closing)
        count += text.count(opening) != text.count(closing) or (0 <= ends < begins)
    return count


def script(character: str) -> str:
    """The script of a letter ("latin", "han", …); "" for what is no letter, or in none that is told apart."""
    if not character.isalpha():
        return ""
    name = _SCRIPTS[bisect_right(_STARTS, ord(character)) - 1][1]
    return _TOGETHER.get(name, name)


def foreign(text: str, prompt: str, most: int = 2000) -> float | None:
    """The share of a text's letters in scripts of which the prompt has none; None for a text or prompt without letters.

    Greek letters count as mathematics and not as a language. The first `most` characters of each are looked at.
    """
    text, prompt = text[:most], prompt[:most]
    if text.isascii() and prompt.isascii():  # as most are
        return 0.0 if any(map(str.isalpha, text)) and any(map(str.isalpha, prompt)) else None
    known = {script(character) for character in prompt} - {""}
    letters = [name for name in map(script, text) if name not in ("", "greek")]
    return sum(name not in known for name in letters) / len(letters) if letters and known else None
