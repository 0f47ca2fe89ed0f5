"""Extraction, equivalence and the answer verifier: a table, the real gold answers, hostile input, arbitrary text."""

from __future__ import annotations

import json
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maieutic.errors import ConfigError, DataError
from maieutic.rewards.answers import (
    AnswerVerifier,
    canonical,
    equivalent,
    extract_flexible,
    extract_strict,
    marked,
    outside_thoughts,
)
from maieutic.rewards.numbers import canonical_number, parse_number
from maieutic.types import Message, Task


def task(answer: str | None) -> Task:
    return Task("t", (Message("user", "How many?"),), answer)


# (text, strict, flexible)
TABLE = [
    # markers, in their order of precedence
    ("<answer>42</answer>", "42", "42"),
    ("<answer>1</answer> no, wait, let me think again about it\n<answer>2</answer>", "2", "2"),
    ("\\boxed{42}", "42", "42"),
    ("\\fbox{42}", "42", "42"),
    ("#### 42", "42", "42"),
    ("The answer is 42.", "42", "42"),
    ("the answer is: 42", "42", "42"),
    ("So it is 42 in the end.", None, "42"),
    ("#### 1\nand so \\boxed{2}, hence <answer>3</answer>", "3", "3"),
    ("The answer is 1.\n#### 2 and thus \\boxed{3}", "3", "3"),
    ("The answer is 1.\n#### 2", "2", "2"),
    ("\\boxed{1}\nNo, that was wrong:\n\\boxed{2}", "2", "2"),
    ("\\boxed{5}. To verify \\boxed{", "5", "5"),
    # what the usual GSM8K script gets wrong
    ("#### 42.", "42", "42"),
    ("#### $42", "42", "42"),
    ("####42", "42", "42"),
    ("#### 42.0", "42", "42"),
    ("In total this is 1,234", None, "1234"),
    ("She pays 80 dollars (20% off)", None, "80"),
    ("The answer is 80 (20% off).", "80", "80"),
    ("The answer is 7." + " Indeed." * 100, "7", "7"),
    # signs
    ("#### −5", "-5", "-5"),
    ("#### -5", "-5", "-5"),
    ("#### - 5", "-5", "-5"),
    ("#### -$5", "-5", "-5"),
    ("#### $-5", "-5", "-5"),
    ("#### +5", "5", "5"),
    ("hence 16-3", None, "3"),
    ("hence 16 -3", None, "3"),
    ("hence 16 - 3", None, "3"),
    ("it is -3", None, "-3"),
    ("x = –3", None, "-3"),
    # money, commas, units, percentages
    ("#### $1,080.", "1080", "1080"),
    ("#### 1,234.00", "1234", "1234"),
    ("#### 1,234,567", "1234567", "1234567"),
    ("#### € 12", "12", "12"),
    ("#### £12.50", "12.5", "12.5"),
    ("#### 5%", "5", "5"),
    ("#### 5 \\%", "5", "5"),
    ("<answer>18 apples</answer>", "18", "18"),
    ("<answer>5kg</answer>", "5", "5"),
    ("<answer>60 miles/hour</answer>", "60", "60"),
    ("\\boxed{18\\text{ cm}^2}", "18", "18"),
    ("\\boxed{90^\\circ}", "90", "90"),
    ("#### 90°", "90", "90"),
    ("**Answer:** the answer is **42**.", "42", "42"),
    ("\\boxed{\\$1{,}234}", "1234", "1234"),
    ("#### 1\u202f234", None, "234"),
    # decimals and rationals
    ("#### 5.0", "5", "5"),
    ("#### .5", "0.5", "0.5"),
    ("#### -.5", "-0.5", "-0.5"),
    ("#### 0.50", "0.5", "0.5"),
    ("#### 1/2", "0.5", "0.5"),
    ("#### 3 / 4", "0.75", "0.75"),
    ("#### 1/3", "1/3", "1/3"),
    ("#### 1 1/2", "1.5", "1.5"),
    ("#### -1 1/2", "-1.5", "-1.5"),
    ("#### 2½", "2.5", "2.5"),
    ("\\boxed{\\dfrac{1}{2}}", "0.5", "0.5"),
    ("\\boxed{\\frac12}", "0.5", "0.5"),
    ("\\boxed{-\\tfrac{3}{4}}", "-0.75", "-0.75"),
    ("\\boxed{1\\frac{1}{2}}", "1.5", "1.5"),
    ("#### 48/2", "24", "24"),
    ("#### 1/0", None, None),
    ("#### 1e3", "1000", "1000"),
    ("\\boxed{1.5 \\times 10^{3}}", "1500", "1500"),
    ("\\boxed{15 \\cdot 10^{-1}}", "1.5", "1.5"),
    ("\\boxed{5 × 10^2}", "500", "500"),
    ("\\boxed{5 \\times 3}", None, "3"),
    # unicode digits
    ("#### ４２", "42", "42"),
    ("#### ٤٢", "42", "42"),
    ("答案是42个", None, "42"),
    # several numbers, or none
    ("<answer>5 apples and 3 pears</answer>", None, "3"),
    ("<answer>1, 2, 3</answer>", None, "3"),
    ("<answer>1,2</answer>", None, "2"),
    ("<answer>3:30</answer>", None, "30"),
    ("#### 1 #### 2 #### 3", None, "3"),
    ("#### 1\n#### 2", None, "2"),
    ("#### 7 #### 7.0", "7", "7"),
    ("\\boxed{1} or \\boxed{2}", None, "2"),
    ("<answer>1</answer><answer>2</answer>", None, "2"),
    ("<answer>I do not know</answer>", None, None),
    ("<answer></answer>", None, None),
    ("", None, None),
    ("no number here", None, None),
    # not numbers: expressions, words, versions, ordinals, scales
    ("\\boxed{2\\pi}", None, "2"),
    ("\\boxed{x^2}", None, None),
    ("\\boxed{5 - x}", None, "5"),
    ("\\boxed{x > 5}", None, "5"),
    ("\\boxed{x = 5}", "5", "5"),
    ("It weighs H2O and B12", None, None),
    ("the 2nd and the 3rd", None, None),
    ("version 1.2.3", None, None),
    ("#### 5 million", None, "5"),
    ("#### 5k", None, None),
    ("#### 2x", None, None),
    ("#### 5²", None, None),
    ("#### " + "7" * 401, None, None),
    # headings and denials look like markers
    ("#### Step 1: count", None, "1"),
    ("The answer is not 5", None, "5"),
    # thoughts do not count, and tags that are not closed mark nothing
    ("<think>#### 5</think>", None, None),
    ("<think>#### 5</think>It is 6", None, "6"),
    ("<think>so \\boxed{5}", None, None),
    ("it was 5</think>\n#### 6", "6", "6"),
    ("<think>a</think>#### 5<think>#### 6", "5", "5"),
    ("<answer>5", None, "5"),
    ("\\boxed{5", None, "5"),
]


@pytest.mark.parametrize(("text", "strict", "flexible"), TABLE, ids=range(len(TABLE)))
def test_extraction(text: str, strict: str | None, flexible: str | None) -> None:
    assert (extract_strict(text), extract_flexible(text)) == (strict, flexible)


def test_the_table_has_at_least_sixty_rows() -> None:
    assert len(TABLE) >= 60
    assert len({text for text, _, _ in TABLE}) == len(TABLE)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.00", Fraction(1234)),
        ("3/4", Fraction(3, 4)),
        ("0.1", Fraction(1, 10)),  # a float would give 3602879701896397/36028797018963968
        ("1 3/4", Fraction(7, 4)),  # 1 + 3/4
        ("-1 3/4", Fraction(-7, 4)),  # −(1 + 3/4)
        ("\u2212\u0661\u0662", Fraction(-12)),
        ("9" * 400, Fraction(int("9" * 400))),
        ("1.5e-3", Fraction(3, 2000)),  # 15 / 10 000
        ("1e999", None),
        ("1.2.3", None),
        ("12,34", None),
        ("", None),
        ("-", None),
    ],
)
def test_numbers_are_exact(text: str, value: Fraction | None) -> None:
    assert parse_number(text) == value


@given(st.integers(-(10**30), 10**30), st.integers(0, 12))
def test_decimals_read_back_exactly(digits: int, places: int) -> None:
    value = Fraction(digits, 10**places)
    assert parse_number(canonical_number(value)) == value


@given(st.fractions())
def test_canonical_spelling_reads_back(value: Fraction) -> None:
    assert parse_number(canonical_number(value)) == value


def test_one_value_has_one_canonical_spelling_for_votes() -> None:
    assert {canonical(t) for t in ("1/2", "0.5", "0.50", ".5", "\\frac12", "$0.50", "2/4", "½")} == {"0.5"}
    assert {canonical(t) for t in ("Paris", " paris.", "\\text{Paris}", "**PARIS**")} == {"paris"}
    assert canonical(" .") is None


@pytest.mark.parametrize(
    ("one", "gold", "tolerance", "same"),
    [
        ("1", "21", 0.0, False),  # never by substring
        ("21", "1", 0.0, False),
        ("Paris", "Paris, France", 0.0, False),
        ("0.50", "1/2", 0.0, True),
        ("0.3333333", "1/3", 0.0, False),  # the gold is no decimal: exact
        ("0.3333333", "0.33333333", 0.0, True),  # |3.3e-8| <= 1e-6 · 0.333
        ("0.33334", "0.33333", 0.0, False),  # 1e-5 > 1e-6 · 0.333
        ("100.00001", "100", 0.0, False),  # an integer gold: exact
        ("100.00001", "100.0", 0.0, False),
        ("51.0009", "51", 1e-3, True),  # 9e-4 <= 1e-3
        ("51.002", "51", 1e-3, False),  # 2e-3 > 1e-3
        ("5%", "0.05", 0.0, False),
        ("B", "b", 0.0, True),
        ("", "", 0.0, False),
    ],
)
def test_equivalence(one: str, gold: str, tolerance: float, same: bool) -> None:
    assert equivalent(one, gold, tolerance=tolerance) is same


def test_verdicts_say_what_was_read() -> None:
    verdict = AnswerVerifier()(task("0.5"), "so \\boxed{\\frac{1}{2}}")
    assert (verdict.correct, verdict.answer, verdict.why) == (True, "0.5", "")
    wrong = AnswerVerifier()(task("12"), "#### 21")
    assert (wrong.correct, wrong.answer) == (False, "21")
    assert wrong.why == "got 21, expected 12"
    nothing = AnswerVerifier()(task("12"), "it is 12")
    assert (nothing.correct, nothing.answer) == (False, None)
    assert AnswerVerifier(strict=False)(task("12"), "it is 12").correct
    assert not AnswerVerifier()(task(None), "#### 12").correct


def test_answers_that_are_words() -> None:
    verify = AnswerVerifier()
    assert verify(task("Paris"), "<answer>paris.</answer>").correct
    assert not verify(task("Paris"), "<answer>Paris or London</answer>").correct
    assert not verify(task("Paris"), "Paris").correct
    assert AnswerVerifier(strict=False)(task("Paris"), "Which one?\nParis.").correct


@pytest.mark.parametrize("answer", [None, "", " . ", "5 apples and 3 pears", "(1, 2)", "1.2.3", "7" * 1001])
def test_a_gold_that_cannot_be_compared_with_is_refused_at_load_time(answer: str | None) -> None:
    with pytest.raises(DataError, match=r"task 't'.*Remedy"):
        AnswerVerifier().check_gold(task(answer))


def test_golds_that_can_be_compared_with_are_accepted() -> None:
    for answer in ("42", "1,234", "$5.00", "1/2", "Paris", "B"):
        AnswerVerifier().check_gold(task(answer))
    with pytest.raises(DataError, match="not one number"):
        AnswerVerifier(tolerance=1e-3).check_gold(task("Paris"))


@pytest.mark.parametrize("setting", [{"tolerance": -1.0}, {"tolerance": float("nan")}, {"latex_seconds": 0.0}])
def test_impossible_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected a finite number"):
        AnswerVerifier(**setting)  # type: ignore[arg-type]


def test_every_gsm8k_solution_is_read_as_its_gold(data_dir: Path) -> None:
    lines = [line for name in ("train", "test") for line in (data_dir / "gsm8k" / f"{name}.jsonl").open()]
    answers = [json.loads(line)["answer"] for line in lines]
    golds = [answer.rpartition("####")[2].strip() for answer in answers]
    read = sum(extract_strict(answer) == gold.replace(",", "") for answer, gold in zip(answers, golds, strict=True))
    assert (read, len(answers)) == (8792, 8792)
    for gold in golds:
        AnswerVerifier().check_gold(task(gold))


def test_every_svamp_answer_is_read(data_dir: Path) -> None:
    rows = json.loads((data_dir / "svamp" / "SVAMP.json").read_text())
    verify = AnswerVerifier(tolerance=1e-3)
    golds = [task(str(row["Answer"])) for row in rows]
    right = sum(verify(gold, f"#### {row['Answer'] + 9e-4:.4f}").correct for gold, row in zip(golds, rows, strict=True))
    wrong = sum(verify(gold, f"#### {row['Answer'] + 1}").correct for gold, row in zip(golds, rows, strict=True))
    assert (right, wrong, len(rows)) == (1000, 0, 1000)


LONG = 10**6


def _long(piece: str) -> str:
    return (piece * (LONG // len(piece) + 1))[:LONG]


def _noise() -> str:
    rng = random.Random(0)
    return "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0xD7FF)])) for _ in range(LONG))


def _mixture() -> str:
    pieces = ["1", "-", "/", "#### ", "\\boxed{", "}", "answer is ", "<answer>", "</answer>", " ", ",", ".", "x", "\n"]
    rng = random.Random(1)
    return "".join(rng.choice(pieces) for _ in range(LONG // 3))[:LONG]


HOSTILE = {
    **{
        name: _long(piece)
        for name, piece in {
            "digits": "7",
            "opening braces": "{",
            "open boxes": "\\boxed{",
            "boxes": "\\boxed{1}",
            "boxes without braces": "\\boxed ",
            "opening tags": "<answer>",
            "tags": "<answer>1</answer>",
            "hashes": "####",
            "marked lines": "#### 1\n",
            "answer is": "answer is ",
            "statements": "answer is 5. ",
            "minus": "-",
            "commas": "1,",
            "slashes": "1/",
            "points": "1.",
            "numbers": "1 ",
            "words with digits, by line": "x1\n",
            "fractions": "\\frac{1}{2}",
            "parentheses": "(1",
            "open wrappers": "\\text{",
            "thoughts": "<think></think>",
            "vulgar fractions": "½",
            "other digits": "٤",
            "superscripts": "²",
            "zero width": "\u200b",
            "long numbers": "7" * 401 + " ",
            "carets": "^ ",
        }.items()
    },
    "a number far back": "5 " + "a" * (LONG - 2),
    "one tag, much in it": "<answer>" + _long("1 ")[: LONG - 20] + "</answer>",
    "noise": _noise(),
    "mixture": _mixture(),
}


@pytest.mark.parametrize("family", HOSTILE)
def test_a_million_characters_take_less_than_fifty_milliseconds(family: str) -> None:
    text, taken = HOSTILE[family], []
    assert len(text) <= LONG
    for strict, gold in ((True, "7"), (False, "7"), (True, "Paris")):
        taken.append(min(_seconds(AnswerVerifier(strict=strict), task(gold), text) for _ in range(3)))
    assert max(taken) < 0.050


def _seconds(verify: AnswerVerifier, question: Task, text: str) -> float:
    start = time.thread_time()
    verify(question, text)
    return time.thread_time() - start


_PIECES = st.sampled_from(
    ["<answer>", "</answer>", "\\boxed{", "}", "{", "####", "answer is", "<think>", "</think>", "1", "2/3", "-", "½",
     "\\frac", "\\text{", "$", ",", ".", "\n", " ", "(", ")", "%", "e9", "^", "²", "𝟙", "٤", "x"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(st.one_of(_PIECES, st.text(max_size=3)), max_size=30).map("".join)), st.booleans())
def test_the_verifier_never_raises_and_never_accepts_what_it_did_not_read(text: str, strict: bool) -> None:
    verdict = AnswerVerifier(strict=strict)(task("1000003"), text)
    assert not verdict.correct or verdict.answer == "1000003"
    assert extract_strict(text) is None or extract_flexible(text) == extract_strict(text)
    content = marked(text)
    assert content is None or content in outside_thoughts(text)
