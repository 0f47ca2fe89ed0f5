"""Examinations: a solved example is worth what students answer who have read it."""

from __future__ import annotations

import json

import pytest

from maieutic.core.exams import RULES, preferred, select_answer
from maieutic.errors import ConfigError, DataError
from maieutic.loops import run_async
from maieutic.protocols import Completion
from maieutic.sources import preference_of
from maieutic.tasks import Tasks, file, number_after_marker
from maieutic.teaching.exams import Examinee, Examiner, example_of, preference_row
from maieutic.types import Finish, Message, Task

WORDS = ["<stop>", "#", "+", "=", "double", "triple", ";", *map(str, range(100))]


class Sums:
    """A chat of words."""

    stop_ids = frozenset({0})

    def prompt(self, messages):
        return self.encode(" ".join(message.content for message in messages))

    def completion(self, text):
        return (*self.encode(text), 0)

    def continuation(self, messages):
        return self.prompt(messages)

    def encode(self, text):
        return tuple(WORDS.index(word) for word in text.split())

    def decode(self, tokens):
        return " ".join(WORDS[token] for token in tokens if token)

    def tokens_ending(self, trigger):
        return frozenset({WORDS.index(trigger)})


class Copies:
    """A student that does with the last number what the example's rationale did: doubles it, or triples it."""

    def __init__(self):
        self.asked = []

    async def sample(self, prompt_tokens, params, n):
        words = [WORDS[token] for token in prompt_tokens]
        self.asked.append((params.key, words))
        method = {"double": 2, "triple": 3}[next(word for word in words if word in ("double", "triple"))]
        said = Sums().completion(f"# {method * int(words[-1])}")
        return [Completion(said, (True,) * len(said), (0.0,) * len(said), Finish.STOP) for _ in range(n)]


#: "n + n" is to be doubled.
TASKS = Tasks(
    "doubles",
    [Task(f"doubles/{n}", (Message("user", f"{n}"),), str(2 * n), {"odd": n % 2}) for n in range(2, 12)],
    number_after_marker,
)


def examiner(student, **settings):
    return Examiner([Examinee(student, Sums())], TASKS, **settings)


def test_a_right_rationale_scores_nine_and_a_wrong_one_nothing():
    student, task = Copies(), TASKS[0]
    right, wrong = (example_of(task.prompt, f"{method} ; # 4") for method in ("double", "triple"))
    assert run_async(examiner(student).scores(task, [right, wrong])) == [9, 0]
    assert examiner(student).highest == 9
    # both sat the same examination: three problems other than the task's own, with the same random numbers
    keys = [key for key, _ in student.asked]
    assert keys[:3] == keys[3:]
    assert len(set(keys)) == 3
    problems = examiner(student).problems(task)
    assert task.id not in {problem.id for problem in problems}
    assert {problem.id for problem in problems} == {p.id for p in examiner(student, repeats=1).problems(task)}
    # several students: their right answers add up
    two = Examiner([Examinee(student, Sums())] * 2, TASKS, exams=2, repeats=1)
    assert run_async(two.scores(task, [right])) == [4]


def test_similar_problems_come_first():
    same = examiner(Copies(), similar="odd").problems(TASKS[1])
    assert [problem.meta["odd"] for problem in same] == [1, 1, 1]
    filled = examiner(Copies(), similar="odd", exams=6).problems(TASKS[1])
    assert [problem.meta["odd"] for problem in filled] == [1, 1, 1, 1, 0, 0]
    with pytest.raises(DataError, match="got 9 other problems for an examination of 10"):
        examiner(Copies(), exams=10).problems(TASKS[0])
    with pytest.raises(ConfigError, match="exams=0"):
        examiner(Copies(), exams=0)


def test_answers_and_preferences_of_scores(tmp_path):
    task = TASKS[0]
    texts = ["triple ; # 6", "double ; # 4", "triple ; # 6"]
    scores = run_async(examiner(Copies()).scores(task, [example_of(task.prompt, text) for text in texts]))
    answers = [text.rpartition(" ")[2] for text in texts]
    assert scores == [0, 9, 0]
    assert {name: select_answer(answers, scores, rule) for name, rule in RULES.items()} == {
        "max": "4", "sum": "4", "avg": "4", "maj": "6",
    }  # fmt: skip
    ((chosen, rejected),) = preferred(scores)
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(preference_row(task, texts[chosen], texts[rejected])))
    read = file(path)[0]
    assert (read.prompt, preference_of(read)) == (task.prompt, ("double ; # 4", "triple ; # 6"))
