"""Questions with options: AI2 ARC (Clark et al. 2018, arXiv:1803.05457), and files of your own.

    {"id": "q7", "question": "A gas?", "choices": {"text": ["iron", "oxygen"], "label": ["A", "B"]}, "answerKey": "B"}
    {"id": "q7", "question": {"stem": "A gas?", "choices": [{"text": "iron", "label": "1"}, …]}, "answerKey": "2"}
    {"question": "A gas?", "options": ["iron", "oxygen"], "answer": "oxygen"}

The first layout is that of the Hub, the second that of the files as AI2 publishes them, the third your own: its answer
is a letter, a label, or the text of an option (`choices` for `options` will do).

Options are shown as A, B, C, … whatever their labels, in an order that is drawn for each question, so that no model is
right by its liking for one letter. `meta` says how to go back: `order[i]` is the option of the row that letter i shows,
`labels` are the row's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import ascii_uppercase
from typing import Any

from maieutic.errors import DataError, UnknownName
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.files import SUFFIXES, Row, existing, messages_of, read_rows
from maieutic.tasks.hub import hub_rows
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.tasks.verify import last_tagged
from maieutic.thoughts import outside_thoughts
from maieutic.types import Message, Task, Verdict

HUB_ID = "allenai/ai2_arc"
CONFIGS = ("ARC-Challenge", "ARC-Easy")
#: Split → what the files of AI2 call it.
SPLITS: Mapping[str, str] = {"train": "Train", "validation": "Dev", "test": "Test"}
#: What follows the options.
INSTRUCTION = "Think step by step, then give the letter of the right option in tags: <answer>letter</answer>"

#: What may stand around a letter without changing it.
_DRESS = r"[\s*_`$\"'(\[{:]*(?:\\boxed\{|\\text\{)*"
_SAID = re.compile(r"\banswer(?:\s+is|\s*:)(?!\w)", re.IGNORECASE)
#: A letter that is no word: not "A gas", but "A because it is one".
_LETTER = re.compile(
    _DRESS + r"(?:(?:option|choice)\s+)?\(?([A-Z])(?![A-Za-z0-9'’])"
    r"(?!(?<=A)\s+(?!(?:because|since|as|for|and|or|which|with)\b)[a-z])"
)
_ANOTHER = re.compile(r"[\s*_)}\]]*(?:or|and|/|,|&)\s*\(?[A-Z](?![A-Za-z0-9'’])")
_ALONE = re.compile(_DRESS + r"([A-Za-z])[\s*_`$\"')\]}.:]*")
_TITLED = re.compile(r"[\s*_(\[]*([A-Z])[\s*_)\].:]+(\S.*)")


@dataclass(frozen=True, slots=True)
class Question:
    """A question as its row has it: the stem, options with their labels, and the index of the right one."""

    id: str
    stem: str
    options: tuple[str, ...]
    labels: tuple[str, ...]
    key: int


def ai2_arc(
    split: str = "train",
    path: str | Path | None = None,
    *,
    config: str = "ARC-Challenge",
    shuffle_options: bool = True,
    seed: int = 0,
    instruction: str = INSTRUCTION,
    system: str | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """AI2 ARC: science questions of grades 3 to 9, ARC-Challenge or ARC-Easy, from `path` or the Hub.

    `path` is a file, or a folder with `test.jsonl`, `ARC-Challenge-Test.jsonl` or the Hub's Parquet files. The letter
    of an option depends on `seed` and the question's id; `shuffle_options=False` keeps the order of the row.

    Raises UnknownName for another split or config, DataError for rows that cannot be used.
    """
    if split not in SPLITS:
        raise UnknownName("split of ai2_arc", split, SPLITS)
    if config not in CONFIGS:
        raise UnknownName("config of ai2_arc", config, CONFIGS)
    rows = hub_rows(HUB_ID, split, config) if path is None else read_rows(_file_of(Path(path), split, config))
    order = seed if shuffle_options else None
    maker = _Maker(f"ai2_arc/{config}/{split}", read_questions(rows), order, instruction, system)
    return Tasks(maker.name, Lazy(len(maker.questions), maker), verifier or ReadsChoice(), tool)


def multiple_choice(
    path: str | Path,
    *,
    name: str | None = None,
    shuffle_options: bool = True,
    seed: int = 0,
    first_index: int | None = None,
    instruction: str = INSTRUCTION,
    system: str | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """Your own questions with options, from a .jsonl, .json or .parquet file; see the top of the module for its rows.

    `first_index`, 0 or 1, says what answers that are numbers count from. The rest is as in `ai2_arc`.
    """
    file = existing(Path(path))
    order = seed if shuffle_options else None
    maker = _Maker(name or file.stem, read_questions(read_rows(file), first_index), order, instruction, system)
    return Tasks(maker.name, Lazy(len(maker.questions), maker), verifier or ReadsChoice(), tool)


@dataclass(frozen=True)
class _Maker:
    """Index → task, its options in the order drawn for it (None: as they are)."""

    name: str
    questions: tuple[Question, ...]
    seed: int | None
    instruction: str
    system: str | None

    def __call__(self, index: int) -> Task:
        question = self.questions[index]
        order = list(range(len(question.options)))
        if self.seed is not None:
            Random(f"{self.seed}/options/{question.id}").shuffle(order)
        options = tuple(question.options[i] for i in order)
        lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options)]
        text = "\n".join([question.stem, "", *lines, *(["", self.instruction] if self.instruction else [])])
        opening = (Message("system", self.system),) if self.system else ()
        answer = ascii_uppercase[order.index(question.key)]
        meta = {
            "question": question.stem,
            "options": options,
            "order": tuple(order),
            "labels": question.labels,
            "solution": f"<answer>{answer}</answer>",
        }
        return Task(f"{self.name}/{question.id}", (*opening, Message("user", text)), answer, meta)


def original_label(task: Task, letter: str) -> str:
    """The label that the row gives to the option which the task shows as `letter`."""
    return str(task.meta["labels"][task.meta["order"][ascii_uppercase.index(letter)]])


@dataclass(frozen=True)
class ReadsChoice:
    """Correct when the option that the text chooses is the right one. `answer` is its letter.

    What is read, outside of thoughts, and nothing after the first that is there: the last `<answer>` tag; the last
    "answer is (B)"; lines that are a letter alone, as `B` or `**(B)**`, or a letter with its option; lines that are an
    option's words. Where these name several options, none is chosen.
    """

    def __call__(self, task: Task, text: str) -> Verdict:
        options = task.meta["options"]
        chosen = read_choice(text, options)
        if chosen is None:
            return Verdict(False, None, "no option is chosen")
        right = chosen == task.answer
        return Verdict(right, chosen, "" if right else f"expected {task.answer}")


def read_choice(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a text chooses; None where it chooses none, or several.

    >>> read_choice("The answer is (B).", ["iron", "oxygen"]), read_choice("A gas.\\noxygen", ["iron", "oxygen"])
    ('B', 'B')
    """
    text = outside_thoughts(text)
    tagged = last_tagged(text)
    if tagged is not None:
        return _named(tagged, options)
    ends = [said.end() for said in _SAID.finditer(text)]
    if ends:
        rest = text[ends[-1] :]
        named = _LETTER.match(rest)
        if named is not None:
            return _valid(named[1], options) if _ANOTHER.match(rest, named.end()) is None else None
        return _of_words(rest.strip().partition("\n")[0], options)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for read in (_alone, _of_words):
        found = {letter for line in lines if (letter := read(line, options)) is not None}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _named(text: str, options: Sequence[str]) -> str | None:
    """The option that a text names and nothing else: by letter, by both, or by its words."""
    words = _of_words(text, options)  # first: the words of an option may be a letter
    return words if words is not None else _alone(text, options)


def _alone(line: str, options: Sequence[str]) -> str | None:
    """The letter that is all of a line, or stands before its option's words."""
    letter = _ALONE.fullmatch(line)
    if letter is not None:
        return _valid(letter[1].upper(), options)
    titled = _TITLED.fullmatch(line)
    if titled is None or _valid(titled[1], options) is None:
        return None
    return titled[1] if _plain(titled[2]) == _plain(options[ascii_uppercase.index(titled[1])]) else None


def _of_words(line: str, options: Sequence[str]) -> str | None:
    """The letter of the only option whose words these are."""
    words = _plain(line)
    found = [letter for letter, option in zip(ascii_uppercase, options) if words and _plain(option) == words]
    return found[0] if len(found) == 1 else None


def _valid(letter: str, options: Sequence[str]) -> str | None:
    return letter if letter in ascii_uppercase[: len(options)] else None


def _plain(text: str) -> str:
    """Words without case, the spaces between them, and marks around them."""
    return " ".join(text.split()).strip(" .,;:!*_`\"'").casefold()


def _file_of(path: Path, split: str, config: str) -> Path:
    """The file of a split: the path itself, or the one of its folder by the names of AI2 or of the Hub."""
    if not path.is_dir():
        return existing(path)
    places = (path, path / config)
    names = (f"{split}.jsonl", f"{config}-{SPLITS[split]}.jsonl", f"{split}.parquet", f"{split}-*.parquet")
    found = [file for place in places for name in names for file in sorted(place.glob(name))]
    if not found:
        held = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES or p.is_dir())
        raise DataError(
            f"{path}: got no file of split {split!r} of {config}; expected {', '.join(names)} there or in {config}/. "
            f"It has {', '.join(held[:10]) or 'nothing that could be read'}"
        )
    return found[0]


def read_questions(rows: Iterable[Row], first_index: int | None = None) -> tuple[Question, ...]:
    """The questions of rows in any of the three layouts. Raises DataError, with the place, for what is none."""
    questions, places = [], dict[str, str]()
    for index, (where, row) in enumerate(rows):
        question = _question(row, where, index, first_index)
        if question.id in places:
            raise DataError(
                f"{where}: got the id {question.id!r} again, which {places[question.id]} has; ids are unique"
            )
        places[question.id] = where
        questions.append(question)
    if not questions:
        raise DataError("got no rows; expected at least one question")
    return tuple(questions)


def _question(row: Mapping[str, Any], where: str, index: int, first_index: int | None) -> Question:
    asked = row.get("question", row.get("prompt"))
    inner = asked if isinstance(asked, Mapping) else {"stem": asked, "choices": row.get("choices", row.get("options"))}
    stem = inner.get("stem")
    if not isinstance(stem, str) or not stem.strip():
        raise DataError(f"{where}: no question; expected text in 'question' (or 'question.stem'). {_has(row)}")
    (message,) = messages_of(stem.strip(), where)
    options, labels = _options(inner.get("choices"), where, row)
    answer = row.get("answerKey", row.get("answer"))
    if answer is None or answer == "":
        raise DataError(f"{where}: no answer; expected a label in 'answerKey' (or 'answer'). {_has(row)}")
    return Question(
        str(row.get("id", index)), message.content, options, labels, _key(answer, options, labels, where, first_index)
    )


def _options(choices: Any, where: str, row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options and their labels."""
    if isinstance(choices, Mapping) and {"text", "label"} <= choices.keys():
        texts, labels = list(choices["text"]), list(choices["label"])
    elif isinstance(choices, Mapping):
        texts, labels = list(choices.values()), list(choices)
    elif isinstance(choices, Sequence) and not isinstance(choices, str) and choices:
        each = [
            c if isinstance(c, Mapping) else {"text": c, "label": letter}
            for c, letter in zip(choices, _letters(choices))
        ]
        texts, labels = [c.get("text") for c in each], [c.get("label") for c in each]
    else:
        raise DataError(
            f"{where}: no options; expected a list of texts, or texts and labels, in 'choices'. {_has(row)}"
        )
    if len(texts) != len(labels) or not 2 <= len(texts) <= len(ascii_uppercase):
        raise DataError(f"{where}: got {len(texts)} options with {len(labels)} labels; expected 2 to 26, a label each")
    named = tuple(str(label).strip() for label in labels)
    twice = [label for label in named if named.count(label) > 1]
    if twice:
        raise DataError(f"{where}: got the label {twice[0]!r} of more than one option; expected different labels")
    for label, text in zip(named, texts):
        if not isinstance(text, str | int | float) or not str(text).strip():
            raise DataError(f"{where}: option {label} is {text!r}; expected text")
    return tuple(messages_of(str(text).strip(), where)[0].content for text in texts), named


def _letters(choices: Sequence[Any]) -> Iterable[str]:
    return (ascii_uppercase[i] if i < len(ascii_uppercase) else str(i) for i in range(len(choices)))


def _key(answer: Any, options: tuple[str, ...], labels: tuple[str, ...], where: str, first_index: int | None) -> int:
    """The index of the right option: the answer is a label, a letter, the text of an option, or a number."""
    if isinstance(answer, int) and not isinstance(answer, bool) and str(answer) not in labels:
        if first_index is None:
            raise DataError(
                f"{where}: got the answer {answer}, a number that is no label; is the first option 0 or 1? Say so with "
                "first_index=0 or first_index=1"
            )
        if 0 <= answer - first_index < len(options):
            return answer - first_index
        last = first_index + len(options) - 1
        raise DataError(
            f"{where}: got the answer {answer}; expected {first_index} to {last} with first_index={first_index}"
        )
    said = str(answer).strip()
    if said in labels:
        return labels.index(said)
    if said in options:
        if options.count(said) > 1:
            raise DataError(
                f"{where}: got the answer {said!r}, the text of {options.count(said)} options; give a label"
            )
        return options.index(said)
    raise DataError(
        f"{where}: got the answer {said!r}; expected one of the labels {', '.join(labels)}, or the text of an option"
    )


def _has(row: Mapping[str, Any]) -> str:
    return f"The row has {', '.join(map(repr, row)) or 'no columns'}"
