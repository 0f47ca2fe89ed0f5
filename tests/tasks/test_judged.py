"""Judged completions in the layouts in which they are published."""

import json

import pytest

from maieutic.errors import DataError, UnknownName
from maieutic.tasks.judged import Judged, Preference, balanced, by_prompt, distinct, held_out, read_judged
from maieutic.types import Message

QUESTION = (Message("user", "What is 3 + 4, doubled?"),)


def write(folder, *rows, name="data.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_pairs_and_pointwise_rows(tmp_path):
    pairs = write(
        tmp_path,
        {"prompt": "What is 3 + 4, doubled?", "chosen": "14", "rejected": "11", "margin": 2},
        {
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}],
        },
    )
    assert read_judged(pairs) == [
        Preference(QUESTION, "14", "11", 2.0),
        Preference((Message("user", "Hi"),), "Hello", "No", None),
    ]
    pointwise = write(
        tmp_path,
        {"prompt": "What is 3 + 4, doubled?", "completion": "14", "label": True},
        {"prompt": "What is 3 + 4, doubled?", "completion": "11", "label": 0.25},
        {"prompt": "What is 3 + 4, doubled?", "completion": "12", "label": None},
    )
    assert read_judged(pointwise) == [Judged(QUESTION, ("14",), 1.0), Judged(QUESTION, ("11",), 0.25)]


def test_own_steps_are_pieces_of_the_text(tmp_path):
    row = {"prompt": "What is 3 + 4, doubled?", "steps": ["3 + 4 = 7 ;", " # 7"], "labels": [1, 0.25], "label": False}
    (made,) = read_judged(write(tmp_path, row))
    assert made == Judged(QUESTION, ("3 + 4 = 7 ;", " # 7"), 0.0, (1.0, 0.25))
    assert made.text == "3 + 4 = 7 ; # 7"


def test_the_last_step_of_a_finished_solution_may_be_its_end_alone(tmp_path):
    row = {"prompt": "What is 3 + 4, doubled?", "steps": ["7 * 2 = 14 ;", ""], "labels": [1, 0], "finished": True}
    (made,) = read_judged(write(tmp_path, row))
    assert made == Judged(QUESTION, ("7 * 2 = 14 ;", ""), None, (1.0, 0.0))
    for wrong in ({"finished": False}, {"steps": ["", "7 * 2 = 14 ;"]}, {"steps": [""], "labels": [1]}):
        with pytest.raises(DataError, match="got '' in 'steps'"):
            read_judged(write(tmp_path, row | wrong))


def test_trl_stepwise_rows_get_a_separator_after_every_step(tmp_path):
    row = {
        "prompt": "What is 3 + 4, doubled?",
        "completions": ["3 + 4 = 7", "7 + 2 = 9"],
        "labels": [True, False],
    }
    (made,) = read_judged(write(tmp_path, row))
    assert made == Judged(QUESTION, ("3 + 4 = 7\n", "7 + 2 = 9\n"), None, (1.0, 0.0), finished=False)


def test_math_shepherd_rows(tmp_path):
    question = "What is 3 + 4, doubled?"
    row = {
        "input": f"{question} Step 1: 3 + 4 = 7. ки\nStep 2: The answer is: 9 ки",
        "label": f"{question} Step 1: 3 + 4 = 7. +\nStep 2: The answer is: 9 -",
        "task": "GSM8K",
    }
    (made,) = read_judged(write(tmp_path, row))
    assert made.prompt == (Message("user", question),)
    assert made.steps == ("Step 1: 3 + 4 = 7.", "\nStep 2: The answer is: 9")
    assert made.labels == (1.0, 0.0)
    with pytest.raises(DataError, match=r"data.jsonl:1: got .* where 'input' has"):
        read_judged(write(tmp_path, {**row, "label": row["label"].replace("+\n", "?\n")}))


def prm800k(*steps, **row):
    return {
        "labeler": "e90a38f3", "timestamp": "2022-07-17T17:02:33.831230", "generation": None,
        "is_quality_control_question": False, "is_initial_screening_question": False,
        "question": {
            "problem": "What is 3 + 4, doubled?", "ground_truth_solution": "14", "ground_truth_answer": "14",
            "pre_generated_steps": None, "pre_generated_answer": None, "pre_generated_verifier_score": None,
        },
        "label": {"steps": list(steps), "total_time": 278270, "finish_reason": "solution"},
        **row,
    }  # fmt: skip


def offered(*rated, chosen=None, human=None):
    completions = [{"text": text, "rating": rating, "flagged": None} for text, rating in rated]
    return {"completions": completions, "human_completion": human, "chosen_completion": chosen}


def test_prm800k_follows_the_trajectory_that_the_labeller_took(tmp_path):
    row = prm800k(
        offered(("First, a mistake.", -1), ("3 + 4 is 7.", 1), chosen=1),
        offered(("Hm.", 0), chosen=0),
        offered(("7 doubled is 15.", -1), human={"text": "7 doubled is 14.", "source": "human"}),
        offered(("So it is 16.", -1)),
        offered(("never looked at", None), chosen=0),
    )
    (made,) = read_judged(write(tmp_path, row))
    assert made.steps == ("3 + 4 is 7.\n", "Hm.\n", "7 doubled is 14.\n", "So it is 16.\n")
    assert made.labels == (1.0, 1.0, None, 0.0)  # 0 counts as right; a human's step has no rating
    (other,) = read_judged(write(tmp_path, row), neutral=None)
    assert other.labels == (1.0, None, None, 0.0)


def test_prm800k_steps_that_nobody_rated_are_no_mistakes(tmp_path):
    row = prm800k(offered(("3 + 4 is 7.", 1), chosen=0), offered(("7 doubled is 14.", None), chosen=0))
    (made,) = read_judged(write(tmp_path, row))
    assert made.labels == (1.0, None)


def test_prm800k_rows_of_quality_control_and_screening_are_left_out(tmp_path):
    step = offered(("3 + 4 is 7.", 1), chosen=0)
    kept = prm800k(step)
    rows = (prm800k(step, is_quality_control_question=True), prm800k(step, is_initial_screening_question=True), kept)
    assert len(read_judged(write(tmp_path, *rows))) == 1
    with pytest.raises(DataError, match="none of its 2 rows can be learned from"):
        read_judged(write(tmp_path, *rows[:2]))


def test_what_sample_wrote(tmp_path):
    made = {"tokens": 3, "pieces": [], "why": "", "answer": "14"}
    task = {
        "id": "t/1", "answer": "14", "prompt": [{"role": "user", "content": "What is 3 + 4, doubled?"}],
        "completions": [
            {**made, "text": "# 14", "correct": True, "finish": "stop"},
            {**made, "text": "3 + 4", "correct": False, "finish": "length"},
        ],
    }  # fmt: skip
    path = tmp_path / "said.json"
    path.write_text(json.dumps({"model": "m", "task": "arithmetic", "tasks": [task]}))
    assert read_judged(path) == [
        Judged(QUESTION, ("# 14",), 1.0),
        Judged(QUESTION, ("3 + 4",), 0.0, finished=False),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "?", "text": "!"}, "expected those of a layout"),
        ({"prompt": "?", "completion": "!", "label": 3}, "got the label 3"),
        ({"prompt": "?", "steps": ["a", "b"], "labels": [1]}, "got 2 steps and 1 labels"),
        ({"prompt": "?", "chosen": "a", "rejected": ""}, "no rejected completion"),
        ({"prompt": "?", "chosen": "a", "rejected": "b", "margin": -1}, "got the margin -1"),
        ({"prompt": "?", "completions": [], "labels": []}, "at least one entry"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, row, said):
    with pytest.raises(DataError, match=said):
        read_judged(write(tmp_path, row))


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'prm800k'"):
        read_judged(write(tmp_path, {"prompt": "?"}), "prm80k")


def judged(prompt: str, *rows: tuple[str, float | None]) -> list[Judged]:
    return [Judged((Message("user", prompt),), (text,), label) for text, label in rows]


def test_classes_are_balanced_within_each_prompt():
    rights = [(f"right {i}", 1.0) for i in range(6)]
    wrongs = [(f"wrong {i}", 0.0) for i in range(9)]
    data = [
        *judged("easy", *rights, ("wrong", 0.0), ("wrong ", 0.0)),  # the last two say the same
        *judged("hard", *wrongs),
        *judged("both", *rights, *wrongs, ("unknown", None)),
    ]
    kept = balanced(data)
    counted = {members[0].prompt[0].content: sorted(m.label for m in members) for members in by_prompt(kept).values()}
    assert counted == {"easy": [0.0, 1.0], "both": [0.0] * 4 + [1.0] * 4}
    assert balanced(data) == kept
    assert len(balanced(data, equal=False)) == (4 + 1) + 4 + (4 + 4)
    assert len(balanced(data, cap=None, equal=False)) == (6 + 1) + 9 + (6 + 9)


def test_duplicates_go_and_a_prompt_is_held_out_whole():
    data = judged("q", ("a b", 1.0), ("a  b", 1.0), ("a b c", 0.0))
    assert [each.text for each in distinct(data)] == ["a b", "a b c"]
    share = sum(held_out(f"prompt {i}", 0.2) for i in range(1000)) / 1000
    assert 0.15 < share < 0.25
    assert held_out("prompt 1", 0.0) is False
    assert held_out("prompt 1", 1.0) is True
