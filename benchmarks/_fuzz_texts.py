"""Texts that nobody would write and some policy will: `text(seed, index)` is a pure function of its arguments.

Half of them are answers as models write them, mutated; the others are built of what readers trip over: long runs of
one marker, deep nesting, digits by the thousand, LaTeX that does not end, other scripts, control characters, half
characters, bytes that are no text.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence

from maieutic.types import Message, Task

NUMBERS = (
    "72", "-5", "0", "1,080", "$1,080.00", "3/4", "1 1/2", "0.05", "5%", "1e5", "1e999", "-.5", "1.2.3", "1,2,3", "½",
    "٣٤", "７２", "2²", "1_000", "0x1F", "1/0", "00072", "+7", "72.", "-0", "∞", "NaN", "10^6", "6.02\\times10^{23}",
    "9" * 60,
)  # fmt: skip
LATEX = (
    "\\frac{1}{2}", "\\dfrac12", "2\\sqrt{2}", "\\sqrt[3]{x}", "x^{2}+1", "\\{1,2\\}", "(1,2]",
    "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "9^{9^{9^{9}}}", "\\frac{", "\\left(", "\\text{blue}", "90^\\circ",
    "\\pi r^2", "\\infty", "x = 5", "\\int_0^1 x dx", "\\pm 3", "\\frac{1}{0}", "\\sum_{i=1}^{10^{9}} i", "1000000!",
    "\\binom{100000}{50000}", "\\sin(\\cos(\\tan(x)))", "a_1", "\\log_2 8", "3\\,000", "\\mathbb{R}",
    "\\lim_{x\\to 0}", "2^{1000000}", "x^x^x^x", "\\boxed{\\boxed{1}}", "\\overline{3}", "|x|", "\\gcd(1,2)",
)  # fmt: skip
WORDS = (
    "blue whale",
    "B",
    "(C)",
    "None",
    "the answer",
    "答案",
    "ответ",
    "لا",
    "שלוש",
    "ß",
    "İ",
    "ﬁ",
    "𝟕𝟐",
    "e\u0301" * 3,
    "👩‍👩‍👧‍👦",
)
WRAPPERS = (
    "<think>{}</think><answer>{}</answer>", "#### {}", "# {}", "\\boxed{{{}}}", "The answer is {}.",
    "<answer>{}</answer>", "so {} = {} ; # {}", "<think>{}", "{}</think>", "$${}$$", "\\fbox{{{}}}", "**{}**",
    "Answer: {}", "n0 + n1 * {}", "n1 / {} ; r0 - {}", "{{\"answer\": {}}}", "<score>{}</score>", "\\[{}\\]",
    "```python\nprint({})\n```", "{}",
)  # fmt: skip
RUNS = (
    "<answer>", "</answer>", "<think>", "</think>", "\\boxed{", "\\fbox", "}", "{", "(", ")", "####", "# ",
    "answer is ", "1,", "1/", "1.", "9", "-", "$", "\\frac", "\\frac{1}{", "\\left(", "^", "^{", "_", " ", "\n", "\t",
    "\u200b", "\u0301", "1 1/2 ", "e5", "1e", "\\times10^", "n0+", "r0;", ";", "n0*n0;", "(n0+", "±", "or ",
    "\\sqrt{", "\x00", "\ud800", "%", ",000", "٣", "&", "\\\\", "=", "a=",
)  # fmt: skip

PAIRS = (
    ("{", "}"), ("(", ")"), ("[", "]"), ("\\frac{1}{", "}"), ("\\sqrt{", "}"), ("\\boxed{", "}"), ("x^{", "}"),
    ("-(", ")"), ("<think>", "</think>"), ("<answer>", "</answer>"), ("\\left(", "\\right)"),
)  # fmt: skip
DECODINGS = (("latin-1",), ("utf-8", "surrogateescape"), ("utf-8", "replace"), ("utf-16-le", "replace"))

#: Golds of the tasks, in turn: numbers, fractions, words, a letter, LaTeX.
EXPRESSIONS = ("2\\sqrt{2}", "x^2+1", "\\frac{\\pi}{4}", "(1,2]", "\\{1,2\\}")
GOLDS = ("72", "0.05", "-3/4", "1000000", "blue whale", "B", *EXPRESSIONS)


def task(index: int, golds: Sequence[str] = GOLDS) -> Task:
    """The task that text is held against, its gold the next of these; its numbers serve programs."""
    gold = golds[index % len(golds)]
    asked = (Message("user", "Ann has 3 boxes of 14 pens and 30 loose pens. How many pens?"),)
    return Task(f"fuzz/{index}", asked, gold, {"numbers": ["3", "14", "30"]})


def _content(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.45:
        return draw.choice(NUMBERS)
    if kind < 0.7:
        return draw.choice(LATEX)
    if kind < 0.8:
        return draw.choice(WORDS)
    if kind < 0.9:
        return draw.choice(GOLDS)
    return str(draw.randint(-(10**6), 10**6))


def _answer(draw: random.Random) -> str:
    """As models write it: one to four marked answers."""
    parts = []
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        wrapper = draw.choice(WRAPPERS)
        parts.append(wrapper.format(*(_content(draw) for _ in range(wrapper.count("{}") + wrapper.count("{{{}}}")))))
    return draw.choice((" ", "\n", "", " or ", ", ")).join(parts)


def _mutated(draw: random.Random) -> str:
    return changed(draw, _answer(draw), RUNS)


def changed(draw: random.Random, made: str, runs: Sequence[str]) -> str:
    """A text with up to four changes: cut, repeated, turned round, moved, another character, one of `runs` put in."""
    for _ in range(draw.randint(0, 4)):
        at = draw.randint(0, len(made))
        to = min(len(made), at + draw.randint(0, 12))
        change = draw.randrange(6)
        if change == 0:
            made = made[:at] + made[to:]
        elif change == 1:
            made = made[:at] + made[at:to] * draw.choice((2, 2, 5, 60)) + made[to:]
        elif change == 2:
            made = made[:at] + draw.choice(runs) + made[at:]
        elif change == 3:
            made = made[:at] + _character(draw) + made[to:]
        elif change == 4:
            made = made[:at] + made[at:to][::-1] + made[to:]
        else:
            made = made[to:] + draw.choice(("", " ", "\n")) + made[:at]
    return made


def _character(draw: random.Random) -> str:
    top = draw.choice((0x80, 0x80, 0x800, 0x10000, 0x110000))
    return chr(draw.randrange(top))


def _run(draw: random.Random) -> str:
    """A long run of one thing, with an answer before or after it; now and then very long."""
    count = draw.choice((3, 20, 100, 500, 500, 2000)) if draw.random() > 0.004 else 60_000
    made = "".join(draw.choices(RUNS, k=draw.choice((1, 1, 2, 3)))) * count
    return draw.choice(
        (made, made + _answer(draw), _answer(draw) + made, made[: len(made) // 2] + _answer(draw) + made)
    )


def _nested(draw: random.Random) -> str:
    depth = draw.choice((2, 8, 15, 17, 40, 300))
    left, right = draw.choice(PAIRS)
    inner = left * depth + _content(draw) + right * draw.choice((depth, depth, depth - 1, depth + 1))
    return draw.choice(WRAPPERS[1:6]).format(inner, inner)


def _digits(draw: random.Random) -> str:
    count = draw.choice((19, 39, 310, 399, 401, 999, 1001, 5000))
    made = "".join(draw.choices(string.digits + draw.choice(("", ",", ".", "/", "e", " ")), k=count))
    return draw.choice(WRAPPERS).format(*([made] * 3))


def _garbage(draw: random.Random) -> str:
    raw = draw.randbytes(draw.choice((4, 40, 400)))
    made = raw.decode(*draw.choice(DECODINGS))
    return draw.choice((made, f"<answer>{made}</answer>", f"#### {made}", f"\\boxed{{{made}}}"))


def _scripts(draw: random.Random) -> str:
    pieces = ((_character(draw), draw.choice(WORDS), draw.choice(NUMBERS), " ") for _ in range(draw.randint(1, 60)))
    return "".join(draw.choice(each) for each in pieces)


#: How texts are made, and how often.
MAKERS: Mapping[Callable[[random.Random], str], int] = {
    _mutated: 55, _answer: 5, _run: 10, _nested: 10, _digits: 8, _garbage: 6, _scripts: 6,
}  # fmt: skip


def text(seed: int, index: int) -> str:
    """Text number `index` of a seed."""
    draw = random.Random(f"{seed}/{index}")
    (maker,) = draw.choices(list(MAKERS), list(MAKERS.values()))
    return maker(draw)
