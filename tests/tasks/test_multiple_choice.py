"""Questions with options: three layouts, drawn orders, what is read in a completion."""

from __future__ import annotations

import doctest
import importlib
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.errors import DataError, UnknownName
from maieutic.tasks import ai2_arc, multiple_choice
from maieutic.tasks.multiple_choice import original_label, read_choice, read_questions

GASES = ["iron", "oxygen", "a stone", "Vitamin C"]


def row(**changes):
    """A row as the Hub has it."""
    choices = {"text": GASES, "label": ["A", "B", "C", "D"]}
    return {"id": "q1", "question": "Which is a gas?", "choices": choices, "answerKey": "B", **changes}


def written(folder, rows, name="questions.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def test_the_documentation_is_right():
    # By name: the package's attribute of this name is the function.
    tried = doctest.testmod(importlib.import_module("maieutic.tasks.multiple_choice"))
    assert tried.attempted >= 1
    assert tried.failed == 0


def layouts():
    """The same question in every layout."""
    each = [{"text": text, "label": label} for text, label in zip(GASES, "1234")]
    return {
        "hub": row(),
        "hub, digits": row(choices={"text": GASES, "label": list("1234")}, answerKey="2"),
        "AI2": {"id": "q1", "question": {"stem": "Which is a gas?", "choices": each}, "answerKey": "2"},
        "own, by text": {"id": "q1", "question": "Which is a gas?", "options": GASES, "answer": "oxygen"},
        "own, by letter": {"id": "q1", "prompt": "Which is a gas?", "choices": GASES, "answer": "B"},
        "own, by name": {"id": "q1", "question": "Which is a gas?", "options": dict(zip("wxyz", GASES)), "answer": "x"},
    }


@pytest.mark.parametrize("layout", layouts())
def test_every_layout_is_the_same_question(layout, tmp_path):
    (task,) = multiple_choice(written(tmp_path, [layouts()[layout]]))
    assert task.id == "questions/q1"
    assert sorted(task.meta["options"]) == sorted(GASES)
    assert task.meta["options"]["ABCD".index(task.answer)] == "oxygen"
    assert "Which is a gas?" in task.prompt[0].content
    assert f"{task.answer}. oxygen" in task.prompt[0].content
    labels = {"A": "B", "1": "2", "w": "x"}
    assert original_label(task, task.answer) == labels[task.meta["labels"][0]]


def test_options_may_be_three_or_five_with_digits_for_labels(tmp_path):
    rows = [
        row(id=f"q{n}", choices={"text": [f"o{i}" for i in range(n)], "label": list("12345")[:n]}, answerKey="3")
        for n in (3, 4, 5)
    ]
    for task, count in zip(multiple_choice(written(tmp_path, rows)), (3, 4, 5)):
        assert len(task.meta["options"]) == count
        assert task.meta["options"]["ABCDE".index(task.answer)] == "o2"
        assert original_label(task, task.answer) == "3"


def test_the_order_is_drawn_for_each_question_and_by_the_seed(tmp_path):
    path = written(tmp_path, [row(id=f"q{n}") for n in range(400)])
    tasks = multiple_choice(path)
    counts = Counter(task.answer for task in tasks)
    assert all(70 <= counts[letter] <= 130 for letter in "ABCD"), counts  # 100 each, standard deviation 8.7
    assert [t.answer for t in tasks] == [t.answer for t in multiple_choice(path, seed=0)]
    assert [t.answer for t in tasks] != [t.answer for t in multiple_choice(path, seed=1)]
    assert {t.answer for t in multiple_choice(path, shuffle_options=False)} == {"B"}


def test_another_order_leaves_right_what_is_right(tmp_path):
    """Whoever copies an option's words, and whoever maps a letter back, is right or wrong in every order alike."""
    path = written(tmp_path, [row(id=f"q{n}") for n in range(20)])
    for copied in GASES:
        for seed in range(5):
            tasks = multiple_choice(path, seed=seed)
            for task in tasks:
                verdict = tasks.verifier(task, f"I thought about it.\n{copied}")
                assert verdict.correct == (copied == "oxygen")
                assert original_label(task, verdict.answer) == "ABCD"[GASES.index(copied)]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<answer>B</answer>", "B"),
        ("<answer> (b) </answer>", "B"),
        ("<answer>B. oxygen</answer>", "B"),
        ("<answer>Oxygen.</answer>", "B"),
        ("<answer>A</answer> no: <answer>B</answer>", "B"),
        ("The answer is C. <answer>B</answer>", "B"),
        ("<answer>B and C</answer>", None),
        ("<answer>E</answer>", None),
        ("<answer>letter</answer>", None),
        ("The answer is B.", "B"),
        ("the answer is (B)", "B"),
        ("The answer is **B**, as it floats", "B"),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("The answer is option B", "B"),
        ("The answer is $\\boxed{B}$", "B"),
        ("answer is A. No, the answer is B", "B"),
        ("The answer is B because of oxygen", "B"),
        ("The answer is A because it is", "A"),
        ("The answer is A gas that we breathe", None),
        ("The answer is B or C", None),
        ("The answer is (B) and (C)", None),
        ("The answer is oxygen.", "B"),
        ("The answer is a stone", "C"),
        ("The answer is Vitamin C", "D"),
        ("The answer is not known", None),
        ("The answer is E", None),
        ("B", "B"),
        ("(b).", "B"),
        ("**B**", "B"),
        ("It floats.\n\nB\n", "B"),
        ("B. oxygen", "B"),
        ("B) Oxygen", "B"),
        ("B. iron", None),
        ("A\nB", None),
        ("B\nso B:\nB", "B"),
        ("oxygen", "B"),
        ("We breathe it:\nOxygen!", "B"),
        ("oxygen\niron", None),
        ("it is oxygen that we breathe", None),
        ("A stone is no gas", None),
        ("<think>The answer is A</think> The answer is B", "B"),
        ("<think>The answer is A", None),
        ("", None),
    ],
)
def test_what_is_read(text, letter):
    assert read_choice(text, GASES) == letter


def test_options_that_are_letters_or_alike():
    assert read_choice("<answer>B</answer>", ["C", "B", "A"]) == "B"
    assert read_choice("<answer>C</answer>", ["C", "A", "B"]) == "A"  # in a tag an option's own words come first
    assert read_choice("oxygen", ["oxygen", "Oxygen", "iron"]) is None


@given(st.text(max_size=200))
def test_any_text_is_read(text):
    assert read_choice(text, GASES) in (None, *"ABCD")


@pytest.mark.parametrize(
    "text",
    ["<answer>" * 20_000, "answer is" * 20_000, "answer is" + " " * 200_000, "(" * 200_000, "answer" + " " * 200_000,
     "A" + "." * 200_000 + "x", "\n".join(["answer:"] * 30_000), "* " * 100_000],
    ids=lambda text: text[:12].strip(),
)  # fmt: skip
def test_long_texts_are_read_in_passing(text):
    """Quadratic, any of these would take minutes."""
    assert read_choice(text, GASES) is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (row(answerKey="E"), "got the answer 'E'; expected one of the labels A, B, C, D"),
        (row(answerKey=""), "no answer"),
        ({k: v for k, v in row().items() if k != "answerKey"}, "no answer"),
        (row(choices={"text": GASES, "label": ["A", "B", "B", "D"]}), "label 'B' of more than one option"),
        (row(choices={"text": GASES[:3], "label": ["A", "B", "C", "D"]}), "got 3 options with 4 labels"),
        (row(choices={"text": ["x"], "label": ["A"]}), "got 1 options"),
        (row(choices={"text": [" ", "x"], "label": ["A", "B"]}), "option A is ' '"),
        (row(choices="A or B"), "no options"),
        (row(question=""), "no question"),
        ({"question": "2?", "options": ["1", "2"], "answer": 1}, "is the first option 0 or 1"),
        ({"question": "2?", "options": ["x", "x"], "answer": "x"}, "the text of 2 options"),
    ],
)
def test_a_row_that_cannot_be_used_is_said_with_its_place(wrong, why, tmp_path):
    with pytest.raises(DataError, match=why) as said:
        multiple_choice(written(tmp_path, [row(id="q0"), {**wrong, "id": "q9"}]))
    assert "questions.jsonl:2" in str(said.value)


def test_ids_are_unique_and_there_is_a_question():
    with pytest.raises(DataError, match="'q1' again, which a:1 has"):
        read_questions([("a:1", row()), ("a:2", row())])
    with pytest.raises(DataError, match="no rows"):
        read_questions([])


@pytest.mark.parametrize(("first_index", "right"), [(0, "b"), (1, "a")])
def test_answers_that_are_numbers_count_from_where_it_is_said(first_index, right, tmp_path):
    path = written(tmp_path, [{"question": "?", "options": ["a", "b", "c"], "answer": 1}])
    (task,) = multiple_choice(path, first_index=first_index)
    assert task.meta["options"]["ABC".index(task.answer)] == right
    beyond = written(tmp_path, [{"question": "?", "options": ["a", "b"], "answer": 7}])
    with pytest.raises(DataError, match="got the answer 7; expected"):
        multiple_choice(beyond, first_index=first_index)


def test_arc_is_found_in_its_folder_by_either_name(tmp_path):
    written(tmp_path, [row()], "ARC-Challenge-Test.jsonl")
    (tmp_path / "ARC-Easy").mkdir()
    written(tmp_path / "ARC-Easy", [row(id="easy")], "test.jsonl")
    assert ai2_arc("test", tmp_path)[0].id == "ai2_arc/ARC-Challenge/test/q1"
    assert ai2_arc("test", tmp_path, config="ARC-Easy")[0].id == "ai2_arc/ARC-Easy/test/easy"
    with pytest.raises(DataError, match="no file of split 'train'"):
        ai2_arc("train", tmp_path)
    with pytest.raises(UnknownName, match="ARC-Easy"):
        ai2_arc("test", tmp_path, config="ARC-easy")


def test_parquet_as_the_hub_writes_it(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="writing Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="writing Parquet needs pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist([row()]), tmp_path / "test-00000-of-00001.parquet")
    assert ai2_arc("test", tmp_path)[0].meta["labels"] == ("A", "B", "C", "D")
