"""Word problems written by people: SVAMP, and the MAWPS + ASDiv-A problems that its authors train on.

SVAMP: Patel, Bhattamishra, Goyal 2021, arXiv:2103.07191; 1,000 rows, the test set. MAWPS (Koncel-Kedziorski et al.
2016) and ASDiv-A (Miao et al. 2020, arXiv:2106.15772): 3,138 rows with number placeholders and prefix equations.

Two ways to write an answer (see `maieutic.tasks.equations`):

    mask_numbers=True    the question says `n0 n1 …`, the model writes the program `n1 * n2 ; n0 - r0`, and the verifier
                         computes it with the numbers of the task. All arithmetic belongs to the environment.
    mask_numbers=False   the model writes the chain `3 * 4 = 12 ; 20 - 12 = 8 ; # 8`; with `calculator=True` the values
                         after `=` are the calculator's.

Of SVAMP's equations 999 of 1,000 need no number that the text does not have in digits, of the others' 97.6 %; the rest
have constants in their programs (12, 100, 0.01 …). Number words ("two", "dozen") stay words. One SVAMP answer,
chal-680, contradicts its equation and is kept as published.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import Any

from maieutic.calculator import Calculator, number, show
from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.equations import Tree, chain, placed, program, read_infix, read_prefix, value
from maieutic.tasks.files import existing, read_text
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.tasks.verify import TOLERANCE, NumberAfterMarker, ProgramValue
from maieutic.tasks.words import filled, masked, normalise, same_question, template_of
from maieutic.types import Message, Task

logger = logging.getLogger(__name__)

#: Share of the distinct questions of MAWPS + ASDiv-A in each split. `test` is there to be looked at once.
FRACTIONS: Mapping[str, float] = {"demonstrations": 0.25, "train": 0.5, "validation": 0.1, "test": 0.15}


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A question as a template, its numbers, its equation and the equation's value."""

    id: str
    template: str
    numbers: tuple[str, ...]
    tree: Tree
    answer: str
    kind: str = ""


def svamp(
    path: str | Path,
    split: str = "test",
    *,
    mask_numbers: bool = False,
    calculator: bool = False,
    normalised: bool = False,
    system: str | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """SVAMP: 1,000 short word problems, a test set (`path` is SVAMP.json or its folder).

    `normalised=True` writes questions as lower-case words and marks separated by spaces, for word tokenizers. Raises
    DataError for a file that is not SVAMP, ConfigError for `calculator` together with `mask_numbers`.
    """
    if split != "test":
        raise UnknownName("split of svamp", split, ["test"])
    problems = tuple(read_svamp(Path(path)))
    maker = _Maker("svamp/test", problems, mask_numbers=mask_numbers, normalised=normalised, system=system)
    return _tasks(maker, calculator=calculator, verifier=verifier, tool=tool)


def mawps_asdiv(
    path: str | Path,
    split: str = "train",
    *,
    seed: int = 0,
    fractions: Mapping[str, float] = FRACTIONS,
    distinct: bool = True,
    mask_numbers: bool = False,
    calculator: bool = False,
    normalised: bool = False,
    system: str | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """MAWPS + ASDiv-A: 2,461 distinct word problems with equations, for training (mawps_asdiv_train.csv or its folder).

    A question belongs to a split by a hash of its words and `seed`, before its numbers are filled in, so that no
    question is in two splits; `fractions` are the shares. Many questions occur with several sets of numbers:
    `distinct=True` keeps the first of each, False keeps all. Every task has its equation as `meta["solution"]`.

    Raises UnknownName for an unknown split, ConfigError for fractions that do not add up to 1 or for `calculator`
    together with `mask_numbers`, DataError for a file that is not this one.
    """
    if split not in fractions:
        raise UnknownName("split of mawps_asdiv", split, fractions)
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) < 0:
        raise ConfigError(f"got fractions {dict(fractions)}; expected shares from 0 to 1 that add up to 1")
    problems, _ = read_mawps_asdiv(Path(path))
    chosen, seen = [], set()
    for problem in problems:
        question = same_question(problem.template)
        if split_of(question, seed, fractions) == split and not (distinct and question in seen):
            seen.add(question)
            chosen.append(problem)
    if not chosen:
        raise ConfigError(f"mawps_asdiv: no question falls into split {split!r}; give it a larger fraction")
    name = f"mawps_asdiv/{split}/{seed}"
    maker = _Maker(name, tuple(chosen), mask_numbers=mask_numbers, normalised=normalised, system=system)
    return _tasks(maker, calculator=calculator, verifier=verifier, tool=tool)


def split_of(question: str, seed: int, fractions: Mapping[str, float]) -> str:
    """The split of a question: a uniform number made from its words and the seed, among the cumulative fractions."""
    digest = blake2b(f"{seed}/{question}".encode(), digest_size=8).digest()
    uniform, upper = int.from_bytes(digest, "big") / 2**64, 0.0
    for split, fraction in fractions.items():
        upper += fraction
        if uniform < upper:
            return split
    return next(split for split in reversed(list(fractions)) if fractions[split] > 0)


def read_svamp(path: Path) -> list[WordProblem]:
    """All rows of SVAMP.json. A body without a final mark gets a full stop before the question."""
    path = existing(path / "SVAMP.json" if path.is_dir() else path)
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}); expected the list of SVAMP") from None
    if not isinstance(rows, list) or not rows:
        raise DataError(
            f"{path}: got {type(rows).__name__}; expected a list of rows with Body, Question, Equation, Answer"
        )
    return [_svamp_row(row, f"{path}: row {index}") for index, row in enumerate(rows, 1)]


def _svamp_row(row: Any, where: str) -> WordProblem:
    columns = ("ID", "Body", "Question", "Equation", "Answer")
    missing = [column for column in columns if not isinstance(row, dict) or column not in row]
    if missing:
        raise DataError(f"{where}: no {', '.join(missing)}; expected the columns of SVAMP: {', '.join(columns)}")
    body = str(row["Body"]).strip()
    body += "" if body.endswith((".", "?", "!", ",", ";", ":")) else "."
    template, numbers = template_of(f"{body} {str(row['Question']).strip()}")
    answer = number(str(row["Answer"]))
    if answer is None:
        raise DataError(f"{where}: got Answer {row['Answer']!r}; expected a number")
    tree = placed(read_infix(str(row["Equation"])), numbers)
    return WordProblem(str(row["ID"]), template, numbers, tree, show(answer), row.get("Type", ""))


def read_mawps_asdiv(path: Path) -> tuple[list[WordProblem], int]:
    """The rows whose equation gives their answer, and how many were dropped because it does not (8 of 3,138).

    Some answers are rounded, so an equation gives the answer when it agrees to the decimals that are written. The
    task's answer is the equation's value.
    """
    path = existing(path / "mawps_asdiv_train.csv" if path.is_dir() else path)
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    columns = ("Question", "Numbers", "Equation", "Answer")
    missing = [column for column in columns if column not in (rows.fieldnames or ())]
    if missing:
        raise DataError(f"{path}:1: no column {', '.join(missing)}; expected {', '.join(columns)}")
    problems, dropped = [], 0
    for index, row in enumerate(rows):
        where = f"{path}:{rows.line_num}"
        texts = [number(text) for text in (row["Numbers"] or "").split()]
        gold, tree = number(row["Answer"] or ""), read_prefix(row["Equation"] or "")
        if gold is None or None in texts:
            raise DataError(f"{where}: got Numbers {row['Numbers']!r} and Answer {row['Answer']!r}; expected numbers")
        numbers = tuple(show(text) for text in texts if text is not None)
        found = value(tree, numbers)
        decimals = min(len(row["Answer"].partition(".")[2]), 6)
        if found is None or abs(found - gold) > Fraction(1, 2 * 10**decimals):
            dropped += 1
            continue
        problems.append(WordProblem(str(index), row["Question"].strip(), numbers, tree, show(found)))
    if not problems:
        raise DataError(f"{path}: no row whose equation gives its answer; expected the MAWPS + ASDiv-A training file")
    logger.info(
        "%s: dropped %d of %d rows, whose equation contradicts their answer", path, dropped, dropped + len(problems)
    )
    return problems, dropped


@dataclass(frozen=True)
class _Maker:
    """Index → task, in the form asked for."""

    name: str
    problems: Sequence[WordProblem]
    mask_numbers: bool
    normalised: bool
    system: str | None

    def __call__(self, index: int) -> Task:
        problem = self.problems[index]
        text = masked(problem.template) if self.mask_numbers else filled(problem.template, problem.numbers)
        text = normalise(text) if self.normalised else text
        steps = program(problem.tree) if self.mask_numbers else chain(problem.tree, problem.numbers)
        meta = {"solution": steps, "numbers": problem.numbers, "kind": problem.kind}
        opening = (Message("system", self.system),) if self.system else ()
        return Task(f"{self.name}/{problem.id}", (*opening, Message("user", text)), problem.answer, meta)


def _tasks(maker: _Maker, *, calculator: bool, verifier: Verifier | None, tool: Tool | None) -> Tasks:
    if maker.mask_numbers and calculator:
        raise ConfigError(
            "got mask_numbers=True and calculator=True; a calculator cannot know masked numbers, and with masked "
            "numbers the verifier computes anyway: leave one of them out"
        )
    own: Verifier = ProgramValue() if maker.mask_numbers else NumberAfterMarker(TOLERANCE)
    items = Lazy(len(maker.problems), maker)
    return Tasks(maker.name, items, verifier or own, tool or (Calculator() if calculator else None))
