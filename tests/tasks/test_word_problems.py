"""GSM8K, SVAMP and MAWPS + ASDiv-A: every gold solution verifies, no question is in two splits."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.calculator import Calculator
from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.tasks import Tasks, gsm8k, mawps_asdiv, svamp
from maieutic.tasks.equations import chain, constants, placed, program, read_infix, read_prefix, value
from maieutic.tasks.gsm8k import worked
from maieutic.tasks.svamp import FRACTIONS, read_mawps_asdiv, read_svamp
from maieutic.tasks.verify import ProgramValue, run_program
from maieutic.tasks.words import filled, masked, normalise, template_of
from maieutic.types import Message, Task


@pytest.fixture(scope="module")
def folder(data_dir: Path) -> Path:
    return data_dir / "svamp"


def wrong(tasks: Tasks) -> list[str]:
    return [task.id for task in tasks if not tasks.verifier(task, task.meta["solution"]).correct]


def test_an_equation_in_every_form_by_hand() -> None:
    # 20 - 3 * 4 = 8
    tree = read_prefix("- number0 * number1 number2")
    assert tree == placed(read_infix("( 20.0 - ( 3.0 * 4.0 ) )"), ("20", "3", "4"))
    assert program(tree) == "n1 * n2 ; n0 - r0"
    assert chain(tree, ("20", "3", "4")) == "3 * 4 = 12 ; 20 - 12 = 8 ; # 8"
    assert value(tree, ("20", "3", "4")) == 8
    assert run_program(program(tree), ("20", "3", "4")) == 8


def test_constants_stay_and_equal_numbers_are_told_apart() -> None:
    assert program(read_prefix("/ number0 100.0")) == "n0 / 100"
    # 5 occurs twice: the first operand is the first 5, the second the second, the third has none left and shares.
    assert program(placed(read_infix("( ( 5.0 + 5.0 ) * 5.0 )"), ("5", "2", "5"))) == "n0 + n2 ; r0 * n0"
    assert program(read_infix("8.0")) == "8"
    assert chain(read_infix("8.0"), ()) == "# 8"
    assert value(read_prefix("/ number0 number1"), ("1", "0")) is None
    assert chain(read_prefix("/ number0 number1"), ("1", "0")) is None


@pytest.mark.parametrize("text", ["", "+ 1", "+ 1 2 3", "x", "+ a 1", "1 +"])
def test_equations_that_are_none(text: str) -> None:
    with pytest.raises(DataError, match="equation"):
        read_prefix(text)


@pytest.mark.parametrize("text", ["( 1 + 2", "( 1 1 2 )", "( 1 + 2 ) 3", "( 1 + 2 ("])
def test_infix_equations_that_are_none(text: str) -> None:
    with pytest.raises(DataError, match="equation"):
        read_infix(text)


def test_numbers_in_text_become_a_template() -> None:
    template, numbers = template_of("Joe's 3 mp3s, 1,200 nuts, $2.5, a 2d nail, a 1-year loan. Two had 4.")
    assert template == "Joe's number0 mp3s, number1 nuts, $number2, a 2d nail, a 1-year loan. Two had number3."
    assert numbers == ("3", "1200", "2.5", "4")
    assert filled(template, numbers).endswith("Two had 4.")
    assert masked(template).startswith("Joe's n0 mp3s, n1 nuts, $n2,")


def test_normalised_text_is_words_apart() -> None:
    assert normalise("Joan’s 2.5 miles, then $3. Why?") == "joan ' s 2.5 miles , then $ 3 . why ?"
    assert normalise("In the mp3 number10 n0  x-y") == "in the mp3 number10 n0 x - y"


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert once == " ".join(once.split())
    assert normalise(once).split() == normalise(normalise(once)).split()


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("n1 * n2 ; n0 - r0", True),
        ("n1 * n2 ; n0 - r0 ;", True),
        ("( n0 - n1 * n2 )", True),
        ("8", True),
        ("n0 - 12.0005", True),  # 7.9995 is within 1e-3 of 8
        ("n0 - 12.002", False),
        ("n0 - r0", False),
        ("n0 - n3", False),
        ("n1 * n2", False),
        ("n1 * n2 ; ; n0 - r0", False),
        ("n0 / ( n1 - 3 )", False),
        ("", False),
        (";", False),
        ("n0 = 8", False),
        ("1 ; " * 30 + "8", False),
        ("n0 * n0 ; " + " ; ".join(f"r{i} * r{i}" for i in range(18)), False),
        ("8" * 10**6, False),
    ],
)
def test_programs(text: str, correct: bool) -> None:
    task = Task("t", (Message("user", "?"),), "8", {"numbers": ("20", "3", "4")})
    assert ProgramValue()(task, text).correct is correct


@given(st.text() | st.text(alphabet="nr012+-*/(); ."))
def test_no_program_raises(text: str) -> None:
    task = Task("t", (Message("user", "?"),), "8", {"numbers": ("20", "3", "4")})
    verdict = ProgramValue()(task, text)
    assert not verdict.correct or abs(Fraction(verdict.answer or "0") - 8) <= Fraction(1, 1000)


def test_svamp_has_1000_rows_joined_with_a_full_stop_where_the_body_has_none(folder: Path) -> None:
    tasks = svamp(folder)
    rows = json.loads((folder / "SVAMP.json").read_text())
    texts = [task.prompt[-1].content for task in tasks]
    assert len(texts) == 1000
    assert sum(f"{row['Body'].strip()} {row['Question'].strip()}" == text for row, text in zip(rows, texts)) == 642
    for row, text in zip(rows, texts):
        body = row["Body"].strip()
        assert text == f"{body if body.endswith('.') else body + '.'} {row['Question'].strip()}"
    assert texts[0].startswith(
        "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack. How"
    )
    assert tasks[0].id == "svamp/test/chal-1"
    assert (tasks[0].answer, tasks[0].meta["solution"]) == ("51", "76 - 25 = 51 ; # 51")


def test_svamp_coverage_and_gold(folder: Path) -> None:
    # The answer of chal-680 contradicts its own equation: 4 - 2 + 3 is 5, not 1.
    for options in ({}, {"mask_numbers": True}, {"mask_numbers": True, "normalised": True}):
        assert wrong(svamp(folder / "SVAMP.json", **options)) == ["svamp/test/chal-680"]
    # chal-50 needs a 149 that its text does not have; all the other equations are of numbers in the text.
    assert [problem.id for problem in read_svamp(folder) if constants(problem.tree)] == ["chal-50"]
    for task in svamp(folder, mask_numbers=True):
        assert not re.search(r"\d", re.sub(r"n\d+", "", task.prompt[-1].content))


def test_mawps_rows_that_contradict_themselves_are_dropped(folder: Path) -> None:
    problems, dropped = read_mawps_asdiv(folder)
    assert (len(problems), dropped) == (3130, 8)
    # 3,054 of the 3,130 equations need no constant: 97.6 %.
    assert sum(not constants(problem.tree) for problem in problems) == 3054


def test_mawps_every_gold_verifies_and_every_placeholder_is_filled(folder: Path) -> None:
    for split in FRACTIONS:
        for options in ({}, {"mask_numbers": True}):
            tasks = mawps_asdiv(folder, split, normalised=True, distinct=False, **options)
            assert wrong(tasks) == []
            assert not any("number0" in task.prompt[-1].content for task in tasks)


def letters(task: Task) -> str:
    return re.sub(r"[^a-z]", "", task.prompt[-1].content.lower())


@pytest.mark.parametrize("distinct", [True, False])
def test_no_question_is_in_two_splits(folder: Path, distinct: bool) -> None:
    splits = {s: [letters(task) for task in mawps_asdiv(folder, s, distinct=distinct)] for s in FRACTIONS}
    sets = [set(questions) for questions in splits.values()]
    assert sum(map(len, sets)) == len(set().union(*sets))
    assert sum(map(len, splits.values())) == (2461 if distinct else 3130)
    # A quarter of 2,461 is 615, four standard deviations are 4 * sqrt(2461 * .25 * .75) = 86.
    assert len(sets[0]) == pytest.approx(615, abs=86)


def test_splits_follow_the_seed_and_the_fractions(folder: Path) -> None:
    first, again, other = (
        {task.prompt[-1].content for task in mawps_asdiv(folder, "validation", seed=seed)} for seed in (0, 0, 1)
    )
    assert first == again != other
    halves = {"train": 0.5, "test": 0.5}
    assert sum(len(mawps_asdiv(folder, s, fractions=halves)) for s in halves) == 2461
    with pytest.raises(ConfigError, match="add up to 1"):
        mawps_asdiv(folder, "train", fractions={"train": 0.5})
    with pytest.raises(UnknownName, match="did you mean 'validation'"):
        mawps_asdiv(folder, "valid")


def test_the_calculator_writes_every_value_of_a_chain(folder: Path) -> None:
    tasks = mawps_asdiv(folder, "test", calculator=True)
    assert isinstance(tasks.tool, Calculator)
    for task in tasks:
        solution = task.meta["solution"]
        for found in re.finditer("=", solution):
            written = tasks.tool(solution[: found.end()])
            assert written is not None
            assert solution[found.end() :].startswith(f"{written} ")


def test_a_calculator_with_masked_numbers_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="leave one of them out"):
        svamp(folder, mask_numbers=True, calculator=True)


def test_svamp_files_that_are_not(tmp_path: Path) -> None:
    path = tmp_path / "SVAMP.json"
    for content, message in (
        ('[{"ID": "1", "Body": "b"}]', "row 1: no Question, Equation, Answer"),
        ("{}", "expected a list"),
        ("[", "SVAMP.json:1: not JSON"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=re.escape(message)):
            svamp(path)
    with pytest.raises(DataError, match=r"did you mean .*SVAMP\.json"):
        svamp(tmp_path / "svamp.json")
    table = tmp_path / "mawps_asdiv_train.csv"
    table.write_text("Question,Numbers\na,1\n")
    with pytest.raises(DataError, match="no column Equation, Answer"):
        mawps_asdiv(tmp_path)


@pytest.mark.parametrize("calculator", [False, True])
def test_every_gsm8k_gold_verifies(data_dir: Path, calculator: bool) -> None:
    sizes = {"train": (7473, 7378), "test": (1319, 1301)}
    for split, (rows, annotated) in sizes.items():
        made = gsm8k(split, data_dir / "gsm8k", calculator=calculator)
        tasks = list(made)
        assert len(tasks) == rows
        assert all(made.verifier(task, task.meta["solution"]).correct for task in tasks)
        assert sum("<<" in task.meta["solution"] for task in tasks) == (annotated if calculator else 0)
        assert made.tool == (Calculator.gsm8k() if calculator else None)
        assert not any("," in (task.answer or "") for task in tasks)


def test_gsm8k_demonstrations_are_what_the_tool_would_have_made(data_dir: Path) -> None:
    tasks = gsm8k("test", data_dir / "gsm8k", calculator=True)
    kept = 0
    for task in tasks:
        for found in re.finditer(r"<<[^<>]*=", task.meta["solution"]):
            written = tasks.tool(task.meta["solution"][: found.end()])
            assert task.meta["solution"][found.end() :].startswith(written)
            kept += 1
    assert kept > 4000


def test_gsm8k_annotations_by_hand() -> None:
    text = "0.5*1 = <<0.5*1=0.50>>0.50, 1+1 = <<1+1=3>>2, x = <<x=2>>2"
    assert worked(text, calculator=False) == "0.5*1 = 0.50, 1+1 = 2, x = 2"
    # 0.50 is 0.5; 3 is not 2 and x is not a number, so both annotations go.
    assert worked(text, calculator=True) == "0.5*1 = <<0.5*1=0.5>>0.50, 1+1 = 2, x = 2"


def test_gsm8k_from_one_file_with_a_system_prompt(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "1 + 1 = <<1+1=2>>2\n#### 1,002"}) + "\n")
    (task,) = gsm8k("train", path, system="Be brief.")
    assert task.prompt == (Message("system", "Be brief."), Message("user", "q"))
    assert task.answer == "1002"
    path.write_text(json.dumps({"question": "q", "answer": "none"}) + "\n")
    with pytest.raises(DataError, match=r"mine\.jsonl:1: no '####' in the answer"):
        gsm8k("train", path)
    path.write_text(json.dumps({"question": "q", "answer": "#### many"}) + "\n")
    with pytest.raises(DataError, match="gold answer 'many'"):
        gsm8k("train", path)
    with pytest.raises(UnknownName, match="split of gsm8k"):
        gsm8k("validation", path)
