"""The fuzz of tasksets that read answers in a way of their own, and of games: their tasks, texts and judges.

`text(seed, index)` is a pure function, as in `benchmarks/_fuzz_texts.py`: answers to one of these tasks, or bits of
answers to several, with changes; long runs and deep nests of what their readers look for; and the texts of that file.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from benchmarks._fuzz_calls import Judge, played, rewarded, verified
from benchmarks._fuzz_texts import changed
from benchmarks._fuzz_texts import text as plain
from maieutic.backends.toy import ToySums
from maieutic.environments.guess import Guess
from maieutic.environments.self_correction import SelfCorrection
from maieutic.environments.tool_calls import read_calls
from maieutic.environments.wordle import Wordle
from maieutic.rewards.adapt_arguments import given_answer
from maieutic.rewards.wordle import WORDLE
from maieutic.tasks import arithmetic, episodes, mixture, teaching, wordle
from maieutic.tasks.arc_agi import ReadsGrid
from maieutic.tasks.code import last_block
from maieutic.tasks.documents import no_answer
from maieutic.tasks.guess import LastGuess
from maieutic.tasks.multiple_choice import ReadsChoice
from maieutic.tasks.number_games import MakesTarget
from maieutic.tasks.verify import number_after_marker
from maieutic.types import Message, Task, Verdict
from maieutic.wordle.talk import LAYOUTS, PREFILL, TAGS
from maieutic.wordle.words import word_list

WORDS = word_list(60)
SECRET = WORDS.all[7]
SPELLED = " ".join(SECRET)
GRID = "<grid>\n8 9 0\n1 3 2\n</grid>"
OPTIONS = ("iron", "oxygen", "B", "12 (or more) apples")

#: What is answered to tasks of one kind: right, wrong, in part and beyond reason.
ANSWERS: Mapping[str, Sequence[str]] = {
    "choice": (
        "B", "(B)", "**(B)**", "The answer is (B).", "The answer is B or C.", "<answer>B</answer>", "oxygen", "A. iron",
        "B. oxygen", "(D) 12 (or more) apples", "the answer is oxygen", "Answer: Z", "answer is", "Β", "b", "[B]", "B)",
    ),
    "grid": (
        GRID, GRID.replace("8", "9"), "<grid>8 9 0\n1 3 2</grid>", "<grid>\n8 9 0\n1 3\n</grid>", "<grid>", "</grid>",
        "<grid></grid>", "8 9 0\n1 3 2", "<grid>\n10 11\n</grid>", "<grid>\n٨ 9\n</grid>",
        "<grid>\n8 9 0\n\n1 3 2\n</grid>",
        "\n".join(["<grid>", *["0 " * 30] * 30, "</grid>"]), "\n".join(["<grid>", *["0 " * 31] * 31, "</grid>"]),
    ),
    "moves": (
        "4 + 6 = 10 left 6 8 10 ; 6 + 8 = 14 left 10 14 ; 10 + 14 = 24 left 24 ;", "4 + 6 = 10 left 6 8 10 ;",
        "10 + 14 = 24",
        "# 4 + 6 + 6 + 8", "<answer>(4 + 6) + (6 + 8)</answer>", "<answer>4 + 6 + 6 + 8 = 24</answer>",
        "6 - 6 = 0 left 0 4 8 ;",
        "4 / 0 = 1", "4/6 + 6", "4 ** 6 ** 8 ** 6", "4 × 6 ÷ 6 − 8", "((4", "4 + 6 = 1e9", "--4", "24", "# 24", "~4",
        "4 if 6 else 8",
        "1/3 + 2/3 = 1", "99999999999999999999 + 1 = 2", "4 + 6 = 10/1 left", "f(4)", "4_6", "0x18", "4.0+6", "4e6",
    ),
    "guess": (
        "7", "3", "higher", "lower", "say a number from 1 to 8", "5 higher 7", "assistant\n7", "-7", "7.", "٧", "0",
        "99", "999999999",
        "9999999999", "seven", ">= 7", "7 thousand", "1 2 3 4 5 6 7",
    ),
    "word": (
        f"<guess>{SECRET}</guess>", SECRET, SPELLED, "<guess>QQQQQ</guess>", f"<guess>{SECRET.lower()}</guess>",
        "<guess>",
        f"<think>It is this.</think>\n<guess>{SECRET}</guess>", "</guess>", WORDS.all[0], " ".join(WORDS.all[1]),
        "ÀÉÎÕÜ",
        f"<guess>{WORDS.all[2]}</guess>", f"<guess>\n{SECRET}\n</guess>", "1C✓ 2R- 3Ax", "C(✓) R(-) A(x) N(x) E(x)",
        "invalid", "ﬁﬂ",
    ),
    "lesson": ("as it is </explanation>", "</explanation>", "<explanation> so", "</solution>", " </explanation", "so"),
    "call": (
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', '{"name": "add"}', "```add\n3 * 4\n```",
        '```tool_call\n{"name": "add", "parameters": "{\\"a\\": 1}"}\n```', '<tool_call>{"function": {"name": 1}}',
        "<tool_call>", "</tool_call>", "```add", '{"name": "add", "arguments": null}', "<tool_call>[]</tool_call>",
    ),
    "program": (
        "```python\nprint(1)\n```", "```\nx\n```", "```", "````", "```python", "```js\nx\n```", " ```py", "``` a b",
        "~~~",
    ),
    "sum": ("3", "1 2", "# 12", "#### 12", "<answer>12</answer>", "#", "12", "# 12 # 13"),
}  # fmt: skip
THOUGHTS = ("<think>", "</think>", "<think>First this.</think>", "<think>7</think>", "")
BETWEEN = (" ", "\n", "", " ; ", "; ", "\n\n", " or ", ", ")
#: What long runs and nests are made of.
RUNS = (
    "<grid>", "</grid>", "<grid></grid>", "<grid>\n1\n</grid>", "1 ", "1 2\n", "\n", " ", "<guess>", "</guess>",
    "<guess>a</guess>", "A ", "answer is ", "answer is B", "(B) ", "B\n", "oxygen\n", "<answer>", "</answer>",
    "higher ", "lower",
    "say a number from 1 to ", "assistant ", "7 ", "7", "4 + 6 = 10 ;", ";", "4+", "4*", "(", ")", "-", "4/",
    "left ", "1 + 1 = 2 left 1\n",
    "=", "#", "```\n", "```python\n", "`", "</explanation>", "<think>", "</think>", "1.", "_1", "٧", "**", "\u200b",
    "\ud800", "\x00", "<tool_call>", "</tool_call>", '{"name":', "[", '{"a":{', "```add\n",
)  # fmt: skip
PAIRS = (
    ("<grid>", "</grid>"), ("<guess>", "</guess>"), ("(", ")"), ("-(", ")"), ("<answer>", "</answer>"), ("**", "**"),
    ("<think>", "</think>"), ("(4+", ")"), ("4/(", ")"), ("```\n", "\n```\n"), ("[", "]"), ('{"a":', "}"),
    ('<tool_call>{"name":', "}</tool_call>"),
)  # fmt: skip


def text(seed: int, index: int) -> str:
    """Text number `index` of a seed."""
    draw = random.Random(f"{seed}/tasks/{index}")
    kind = draw.random()
    if kind < 0.1:
        return plain(seed, index)
    if kind < 0.7:
        return changed(draw, _said(draw), RUNS)
    if kind < 0.85:
        return _run(draw)
    return _nested(draw)


def _said(draw: random.Random) -> str:
    """An answer, or several and bits of others, with thoughts before, between and after them."""
    answers = ANSWERS[draw.choice(tuple(ANSWERS))]
    parts = [draw.choice(answers)]
    for _ in range(draw.choice((0, 0, 0, 1, 1, 2, 4))):
        if draw.random() < 0.2:
            answers = ANSWERS[draw.choice(tuple(ANSWERS))]
        parts.append(draw.choice(answers))
    if draw.random() < 0.3:
        parts.insert(draw.randint(0, len(parts)), draw.choice(THOUGHTS))
    return draw.choice(BETWEEN).join(parts)


def _run(draw: random.Random) -> str:
    count = draw.choice((3, 20, 100, 500, 500, 2000)) if draw.random() > 0.004 else 60_000
    made = "".join(draw.choices(RUNS, k=draw.choice((1, 1, 2, 3)))) * count
    return draw.choice((made, made + _said(draw), _said(draw) + made, made[: len(made) // 2] + _said(draw) + made))


def _nested(draw: random.Random) -> str:
    left, right = draw.choice(PAIRS)
    depth = draw.choice((2, 8, 17, 40, 300))
    inner = left * depth + _said(draw) + right * draw.choice((depth, depth, depth - 1, depth + 1))
    return draw.choice(("{}", "<answer>{}</answer>", "# {}", "<grid>\n{}\n</grid>", "<guess>{}</guess>")).replace(
        "{}", inner
    )


def _asked(answer: str | None, **meta: object) -> Task:
    return Task("fuzz", (Message("user", "?"),), answer, meta)


def verifiers() -> dict[str, tuple[Callable[[Task, str], Verdict], Task]]:
    """Name → a taskset's verifier, and the task that every text is held against."""
    numbers = _asked("4 + 6 + 6 + 8", numbers=(4, 6, 6, 8), target=24, every=True)
    some = _asked("4 * 6", numbers=(4, 6, 6, 8), target=24, every=False)
    found: dict[str, tuple[Callable[[Task, str], Verdict], Task]] = {
        "multiple_choice": (ReadsChoice(), _asked("B", options=OPTIONS)),
        "arc_agi": (ReadsGrid(), _asked(GRID)),
        "arc_agi, two attempts": (ReadsGrid(2), _asked(GRID)),
        "arc_agi, all": (ReadsGrid(1, all_or_nothing=True), _asked(GRID)),
        "game_of_24": (MakesTarget(), numbers),
        "countdown": (MakesTarget(), some),
        "guess": (LastGuess(), _asked("7")),
        "documents": (no_answer, _asked(None)),
        "episodes": (episodes(size=1).verifier, _asked(None)),
        "toy sums": (ToySums().verifier, _asked("1 2")),
    }
    lessons = teaching(arithmetic(size=1), tags="words")
    found["teaching"] = (lessons.verifier, lessons[0])
    for layout in LAYOUTS:
        games = wordle(words=60, layout=layout)
        found[f"wordle, {layout}"] = (games.verifier, _asked(SECRET))
    mixed = mixture({lessons: 1}, seed=0)
    found["mixture"] = (mixed.verifier, mixed[0])
    begun = Task("fuzz", (Message("user", "?"), Message("assistant", PREFILL)), SECRET)
    found["wordle, prefilled"] = (wordle(words=60, kind="snapshots", prefill=True).verifier, begun)
    return found


def judges() -> dict[str, Judge]:
    """All that reads texts of these kinds without leaving this process, each with a task of its own."""
    found = {f"taskset {name}": _of(task, verified(verifier)) for name, (verifier, task) in verifiers().items()}
    everything = {"win": 1.0, "early": 1.0, "format": 0.0}
    found["game guess"] = _of(_asked("7"), played(Guess(haste=1.0), high=2.0))
    for layout in LAYOUTS.values():
        found[f"game wordle, {layout.name}"] = _of(
            _asked(SECRET), played(Wordle(WORDS, layout, reward=everything), high=2.0)
        )
    found["game self_correction"] = _of(_asked("12"), played(SelfCorrection(number_after_marker)))
    told = str([[WORDS.all[0], "xxxxx"]])
    state = _asked(SECRET, word_list=WORDS.reference, past_guess_history=told, layout=TAGS.name)
    for name, make in WORDLE.items():
        found[f"reward {name}"] = _of(state, rewarded(make(), -10.0, 10.0))
    found["reads programs"] = lambda _, said: last_block(said) is not None
    found["reads tool calls"] = lambda _, said: bool(read_calls(said, {"add"}))
    found["reads given answers"] = lambda _, said: given_answer(said) == "12"
    return found


def _of(task: Task, judge: Judge) -> Judge:
    return lambda _, said: judge(task, said)
