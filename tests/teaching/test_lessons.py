"""Lessons: what a teacher is given, what a student is shown, and what is never taken for an explanation."""

from __future__ import annotations

import json

import pytest

from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.models.chat import chat_format
from maieutic.models.small import small_tokenizer
from maieutic.sources import demonstration, solution_of
from maieutic.tasks import arithmetic, file, teaching
from maieutic.tasks.teaching import TAGS, Tags, lesson_of
from maieutic.types import Message

CHAIN = {"tags": "words", "solution": "# {answer}", "explanation": "solution", "until": "#"}


def rows(tmp_path, *given):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, given)))
    return file(path)


def test_a_teacher_is_given_the_solution_and_writes_after_it(tmp_path):
    tasks = rows(tmp_path, {"question": "2 + 2?", "solution": "It is 4.", "reasoning_trace": "Two and two.\n\nFour."})
    task = teaching(tasks)[0]
    s1 = TAGS["s1"]
    assert [message.role for message in task.prompt] == ["system", "user", "assistant"]
    assert task.prompt[-1].content == (
        "<|begin_of_solution|>It is 4.<|end_of_solution|>\n\n<|begin_of_explanation|>\n\n"
    )
    assert solution_of(task) == "Two and two.\n\nFour.<|end_of_explanation|>"
    lesson = lesson_of(task)
    assert (lesson.solution, lesson.tags) == ("It is 4.", s1)
    assert lesson.question == (Message("system", s1.student), Message("user", "2 + 2?"))
    student = teaching(tasks, role="student")[0]
    assert student.prompt == lesson.question
    assert solution_of(student) == (
        "<|begin_of_thought|>Two and two.\n\nFour.<|end_of_thought|>\n\n"
        "<|begin_of_solution|>It is 4.<|end_of_solution|>"
    )
    # the system messages name the tags, a task's own message goes before them, and "" is none
    assert "<|begin_of_explanation|>" in s1.teacher
    assert [m.role for m in teaching(tasks, system="")[0].prompt] == ["user", "assistant"]
    assert teaching(tasks, system="Teach.")[0].prompt[0].content == "Teach."


def test_the_solution_is_never_taken_for_an_explanation(tmp_path):
    # the released loader reads prompt, solution and reasoning_trace, and takes the solution for a trace that is missing
    tasks = rows(tmp_path, {"prompt": "2 + 2?", "solution": "It is 4."}, {"question": "3 + 3?", "answer": 6})
    for task, gold in zip(teaching(tasks), ("It is 4.", "6"), strict=True):
        assert lesson_of(task).solution == gold
        with pytest.raises(DataError, match="no worked solution"):
            solution_of(task)


def test_a_chain_that_ends_in_its_answer_is_cut_before_it():
    source = arithmetic(demonstrations="imperfect", misreading=1.0)
    tasks = teaching(source, **CHAIN)
    wrong = next(i for i in range(50) if source[i].meta["solution"].split()[-1] != source[i].answer)
    task = tasks[wrong]
    assert lesson_of(task).solution == f"# {source[wrong].answer}"  # the known one, whatever the chain ends in
    chain = source[wrong].meta["solution"].rpartition("#")[0].strip()
    assert solution_of(task) == f"{chain} </explanation>"
    assert task.prompt[-1].content == f"<solution> # {task.answer} </solution> <explanation> "
    assert tasks.verifier(task, f"{chain} </explanation>").correct
    assert [tasks.verifier(task, text).why for text in (chain, "</explanation>")] == [
        "no </explanation>", "the explanation is empty",
    ]  # fmt: skip
    asked = teaching(source, role="student", **CHAIN)
    assert asked.verifier(asked[wrong], f"<think> {chain} </think> <solution> # {task.answer} </solution>").correct


def test_the_loss_of_a_warm_up_is_on_explanation_and_closing_tag():
    tasks = teaching(arithmetic(), **CHAIN)
    chat = chat_format(small_tokenizer(256, [" ".join(m.content for m in tasks[0].prompt), solution_of(tasks[0])]))
    rollout = demonstration(tasks[0], solution_of(tasks[0]), chat)
    learned = [token for token, chosen in zip(rollout.tokens, rollout.mask) if chosen]
    assert chat.decode(learned) == solution_of(tasks[0])
    # the turn stays open: one turn's marks, no stop token before the explanation
    assert not set(rollout.tokens[: rollout.prompt_length]) & chat.stop_ids
    assert chat.decode(rollout.tokens[: rollout.prompt_length]).endswith("</solution> <explanation>")


def test_what_is_wrong_is_said(tmp_path):
    tasks = arithmetic()
    for given, error, said in (
        ({"role": "pupil"}, UnknownName, "pupil"),
        ({"tags": "s2"}, UnknownName, "s1"),
    ):
        with pytest.raises(error, match=said):
            teaching(tasks, **given)
    with pytest.raises(ConfigError, match="expected a taskset"):
        teaching("train")
    with pytest.raises(DataError, match="cannot be filled in"):
        teaching(tasks, solution="{gold}")[0]
    with pytest.raises(DataError, match="is no lesson"):
        lesson_of(tasks[0])
    own = Tags(("", ""), ("", ""), ("", " END"), " ")
    assert own.learned("1 + 1 = 2", "# 2") == "1 + 1 = 2 # 2"
    assert teaching(tasks, tags=own, solution="{answer}")[0].prompt[-1].content.split() == [tasks[0].answer]
