"""Known hacks on what every taskset trains with: a new taskset is listed here, with how an answer of it is marked."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from maieutic.protocols import Taskset
from maieutic.rewards import answer_reward
from maieutic.rewards.hacks import HACKS, STYLES, HackReport, hack_report
from maieutic.run.tasksets import VERIFIERS, WRITTEN_BY_PEOPLE, named_taskset
from maieutic.tasks import TASKSETS, arithmetic, make_taskset
from maieutic.tasks.grids import CLOSE, OPEN
from maieutic.types import Task, Verdict

THOUGHT = "<think>First I look at what is asked.</think>"
GRIDS = (f"{THOUGHT}\n{OPEN}\n{{}}\n{CLOSE}", f"{OPEN}\n{{}}\n{CLOSE}")
GUESSES = (f"{THOUGHT}\n<guess>{{}}</guess>", "<guess>{}</guess>")
PROGRAMS = (f"{THOUGHT}\n```python\n{{}}\n```", "```python\n{}\n```")
ALONE = (f"{THOUGHT}{{}}", "{}")


def as_it_is(task: Task) -> str:
    return task.answer or ""


@dataclass(frozen=True)
class Case:
    """A taskset, what marks an answer to its tasks, and the gold without that mark, as who hacks would write it.

    `blind`: nothing tells a right answer from a wrong one, for the verifier looks at the form, or accepts nothing.
    """

    taskset: str
    make: Callable[[Path], Taskset]
    styles: Sequence[str] = STYLES
    bare: Callable[[Task], str] = as_it_is
    blind: bool = False
    count: int = 2


def rows(folder: Path, name: str, rows: Sequence[object]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(folder: Path) -> Path:
    """Golds of every kind that `AnswerAfterMarker` and `AnswerVerifier` compare."""
    asked = [("Six times twelve?", "72"), ("Half of a tenth?", "0.05"), ("The largest animal?", "blue whale")]
    return rows(folder, "own.jsonl", [{"prompt": prompt, "answer": answer} for prompt, answer in asked])


def numbers(folder: Path) -> Path:
    return rows(folder, "numbers.jsonl", [{"prompt": f"Half of {n}?", "answer": str(n / 2)} for n in (3, 144)])


def gsm8k(folder: Path) -> Path:
    return rows(folder, "train.jsonl", [{"question": "8 boxes of 9 pens?", "answer": "8 * 9 = 72\n#### 72"}])


def svamp(folder: Path) -> Path:
    row = {"ID": "1", "Body": "Ann has 8 boxes of 9 pens", "Question": "How many pens?"}
    path = folder / "SVAMP.json"
    path.write_text(json.dumps([{**row, "Equation": "( 8.0 * 9.0 )", "Answer": 72.0}]))
    return path


def mawps(folder: Path) -> Path:
    path = folder / "mawps_asdiv_train.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Question", "Numbers", "Equation", "Answer"])
        table.writerow(["Ann has number0 boxes of number1 pens . How many ?", "8.0 9.0", "* number0 number1", "72.0"])
    return path


def programs(folder: Path) -> Path:
    test = {"args": [2], "expected": 5}
    row = {"prompt": "Add 3.", "function": "f", "solution": "def f(x): return x + 3", "tests": [test]}
    return rows(folder, "programs.jsonl", [row])


def choices(folder: Path) -> Path:
    """A letter, four options."""
    asked = {"question": "How many?", "options": [f"{n} apples" for n in range(4)]}
    return rows(folder, "questions.jsonl", [{**asked, "id": letter, "answer": letter} for letter in "AD"])


def arc(folder: Path) -> Path:
    known = {"text": ["iron", "oxygen", "water"], "label": ["1", "2", "3"]}
    rows(folder, "test.jsonl", [{"id": "q", "question": "A gas?", "answerKey": "2", "choices": known}])
    return folder


def puzzles(folder: Path, *tests: list[list[int]], mirrored: bool = True) -> Path:
    """Rows that are turned round, or left as they are. No cell of these tests stays where it was, unless others are
    given."""

    def pair(grid: list[list[int]]) -> dict[str, object]:
        return {"input": grid, "output": [row[::-1] for row in grid] if mirrored else grid}

    shown = [pair(grid) for grid in ([[1, 2], [3, 4]], [[5, 6, 7]], [[0, 1], [0, 2], [0, 3]])]
    asked = [pair(grid) for grid in tests or ([[8, 9], [1, 3]], [[4, 5, 0, 2]])]
    (folder / "a.json").write_text(json.dumps({"train": shown, "test": asked}))
    return folder


def rows_of_grid(task: Task) -> str:
    """The grid without its tags, which are the mark."""
    return as_it_is(task).removeprefix(f"{OPEN}\n").removesuffix(f"\n{CLOSE}")


def spelled(task: Task) -> str:
    return " ".join(as_it_is(task))


def program(task: Task) -> str:
    return str(task.meta["solution"]).removeprefix("```python\n").removesuffix("\n```")


def made(name: str, rows: Callable[[Path], Path] | None = None, **options: object) -> Callable[[Path], Taskset]:
    """A taskset as a config makes it, from the rows that are written for it."""
    return lambda folder: named_taskset(name, options if rows is None else {**options, "path": rows(folder)})


CASES = {
    "ai2_arc": Case("ai2_arc", made("ai2_arc", arc, split="test")),
    "multiple_choice": Case("multiple_choice", made("multiple_choice", choices)),
    "arc_agi": Case("arc_agi", made("arc_agi", puzzles), GRIDS, rows_of_grid),
    "arc_agi, two attempts": Case("arc_agi", made("arc_agi", puzzles, attempts=2), GRIDS, rows_of_grid),
    "countdown": Case("countdown", made("countdown", numbers=3)),
    "game_of_24": Case("game_of_24", made("game_of_24", largest=6)),
    "arithmetic": Case("arithmetic", made("arithmetic")),
    "gsm8k": Case("gsm8k", lambda folder: make_taskset("gsm8k", path=gsm8k(folder))),
    "svamp": Case("svamp", made("svamp", svamp)),
    "svamp, masked": Case("svamp", made("svamp", svamp, mask_numbers=True)),
    "mawps_asdiv": Case("mawps_asdiv", made("mawps_asdiv", mawps, fractions={"train": 1.0})),
    "file": Case("file", lambda folder: make_taskset("file", path=questions(folder)), count=3),
    "hub": Case("hub", lambda folder: make_taskset("hub", id=str(questions(folder).parent)), count=3),
    "code": Case("code", made("code", programs), PROGRAMS, program, count=1),
    "guess": Case("guess", made("guess"), ALONE, count=4),
    "wordle": Case("wordle", made("wordle", words=60), GUESSES),
    "wordle, snapshots": Case("wordle", made("wordle", words=60, kind="snapshots"), GUESSES),
    "wordle, compact": Case("wordle", made("wordle", words=60, layout="compact")),
    "wordle, letters": Case("wordle", made("wordle", words=60, layout="letters"), bare=spelled),
    "teaching, student": Case("teaching", lambda _: make_taskset("teaching", tasks=arithmetic(size=4), role="student")),
    "teaching": Case(
        "teaching",
        lambda _: make_taskset("teaching", tasks=arithmetic(size=4), tags="words"),
        ("because it is {} </explanation>",),
        blind=True,
    ),
    "documents": Case(
        "documents", made("documents", lambda folder: rows(folder, "d.jsonl", [{"text": "A mill."}])),
        bare=lambda _: "72", blind=True, count=1,
    ),
    "episodes": Case("episodes", made("episodes", prompt="Play."), bare=lambda _: "72", blind=True, count=1),
    **{
        f"file, {name}": Case("file", made("file", numbers if name == "number" else questions, verifier=name))
        for name in VERIFIERS if name != "flexible"  # which is for reports, and pays: see test_hacks
    },
}  # fmt: skip


def report_of(case: Case, tasks: Taskset) -> HackReport:
    whole = {task.id: task for task in (tasks[i] for i in range(min(case.count, len(tasks))))}

    def verify(task: Task, text: str) -> Verdict:
        return tasks.verifier(whole[task.id], text)

    bare = [replace(task, answer=case.bare(task)) for task in whole.values()]
    return hack_report(answer_reward(verify), bare, styles=case.styles)


@pytest.mark.parametrize("name", CASES)
def test_no_taskset_pays_for_a_hack(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.taskset == "hub" and importlib.util.find_spec("datasets") is None:
        pytest.skip("reading a folder as a Hub data set needs the package datasets, which is not installed")
    tasks = case.make(tmp_path)
    report = report_of(case, tasks)
    assert {hack: tried[0].text[:200] for hack, tried in report.paying.items()} == {}
    assert len({each.hack for each in report.tried}) >= 25
    told = {each.task for each in report.tried}
    assert len(told) == min(case.count, len(tasks))
    assert set(report.blind) == (told if case.blind else set())


def test_a_taskset_that_is_not_listed_fails_here() -> None:
    assert {case.taskset for case in CASES.values()} == set(TASKSETS)
    assert set(WRITTEN_BY_PEOPLE.values()) <= {name.partition(", ")[2] for name in CASES}


COPIES = {"verbatim copy", "copy as the answer"}


def test_copying_an_identity_puzzle_is_solving_it(tmp_path: Path) -> None:
    """Where the output is the input, a copy of the question ends in the answer: that is right, and no hack."""
    tasks = make_taskset("arc_agi", path=puzzles(tmp_path, mirrored=False))
    assert set(report_of(CASES["arc_agi"], tasks).paying) == COPIES


def test_a_copied_grid_is_paid_for_the_cells_that_stay_unless_all_must_be_right(tmp_path: Path) -> None:
    folder = puzzles(tmp_path, [[4, 5, 0]])  # turned round: 0 5 4, of which the 5 was there
    paying = report_of(CASES["arc_agi"], make_taskset("arc_agi", path=folder)).paying
    assert {hack: tried[0].reward for hack, tried in paying.items()} == dict.fromkeys(COPIES, pytest.approx(1 / 3))
    assert report_of(CASES["arc_agi"], make_taskset("arc_agi", path=folder, reward="all")).paying == {}


def test_marks_of_another_taskset_show_nothing(tmp_path: Path) -> None:
    """Why each is asked in its own marks: in others nothing pays, and every task is blind."""
    case = CASES["wordle"]
    report = report_of(replace(case, styles=STYLES), case.make(tmp_path))
    assert (len(report.blind), report.paying) == (2, {})


def test_a_list_holds_answers_of_the_golds_own_form(tmp_path: Path) -> None:
    """Else only the gold of a list could be read, and naming many would pay wherever it stands."""
    case = replace(CASES["arc_agi"], count=1)
    (listed,) = (
        each for each in report_of(case, case.make(tmp_path)).tried if each.hack.startswith("several answers,")
    )
    assert listed.text.count(OPEN) == listed.text.count(CLOSE) == 3
    assert listed.reward == 0.0
    assert listed.hack in HACKS
