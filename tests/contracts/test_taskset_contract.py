"""What every taskset promises: ids, pure look-up, a verifier that knows right from wrong and never raises."""

from __future__ import annotations

import importlib.util
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from maieutic.backends.toy import ToySums
from maieutic.protocols import Taskset
from maieutic.tasks import TASKSETS, arithmetic, file, make_taskset, mixture, shuffled, take
from maieutic.types import Task


def solution(task):
    """The worked solution, where the demonstrator may err the perfect one."""
    return task.meta.get("reference") or task.meta["solution"]


def marked(task):
    """The gold answer after the mark that default verifiers read."""
    return f"# {task.answer}"


def off_by_one(task):
    """A worked-looking answer that is one too large."""
    return f"# {float(task.answer.replace(',', '')) + 1:g}"


@dataclass(frozen=True)
class Case:
    """How a taskset is made from the data folder and a temporary one, and what is right and wrong for its verifier."""

    taskset: str
    make: Callable[..., Taskset]
    right: Callable[[Task], str] = solution
    wrong: Callable[[Task], str] = off_by_one
    needs_data: bool = True
    answered: bool = True
    """False for tasks without an answer, of which nothing is right."""


def made(name, *place, **options):
    """A factory's taskset from the data folder."""
    return lambda data, _: make_taskset(name, path=data.joinpath(*place), **options)


def procedural(**options):
    """Arithmetic, which needs no data."""
    return Case("arithmetic", lambda data, tmp: make_taskset("arithmetic", **options), needs_data=False)


ROWS = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n), "id": f"row-{n}"} for n in range(12)]


def written(folder, name):
    """The rows as a JSON-lines file."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def hashes(task):
    """The mark of GSM8K has four signs."""
    return "###" + off_by_one(task)


def own_file(data, tmp):
    return make_taskset("file", path=written(tmp, "own.jsonl"))


def program(task):
    """The reference program of a code task, fenced as a model would write it."""
    return task.meta["solution"]


def other_program_text(task):
    """A program that defines what is asked for, and gets it wrong."""
    return f"```python\ndef {task.meta['function']}(*args):\n    return 'no'\n```"


def code_file(data, tmp):
    rows = [
        {"prompt": f"Add {n} to a number.", "function": "f", "solution": f"def f(x): return x + {n}",
         "tests": [f"assert f(1) == {n + 1}", {"args": [2], "expected": n + 2}]}
        for n in range(4)
    ]  # fmt: skip
    path = tmp / "programs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return make_taskset("code", path=path)


def own_folder(data, tmp):
    return make_taskset("hub", id=str(written(tmp, "train.jsonl").parent))


def own_documents(data, tmp):
    rows = [{"text": f"In {1900 + n} the mill had {n} wheels.", "id": f"row-{n}"} for n in range(12)]
    path = tmp / "documents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return make_taskset("documents", path=path)


def mixed(data, tmp):
    return mixture({arithmetic(size=50): 1, file(written(tmp, "own.jsonl")): 1}, 0)


def other_program(task):
    """A program with the value −77, which no problem has."""
    return "n0 * 0 - 77"


def guessed(task):
    """The secret, as a guess."""
    return f"<think>It must be this.</think>\n<guess>{task.answer}</guess>"


def guessed_otherwise(task):
    """A word that is no word."""
    return "<guess>QQQQQ</guess>"


def wordle_case(**options):
    """Wordle, which needs no data."""
    return Case("wordle", lambda data, tmp: make_taskset("wordle", **options), guessed, guessed_otherwise, False)


def number_beside(task):
    """A number that is not the secret."""
    return str(int(task.answer) + 1)


def own_questions(data, tmp):
    rows = [
        {"id": f"q{n}", "question": f"Which is {n}?", "options": [f"{n + i} apples" for i in range(4)], "answer": "A"}
        for n in range(12)
    ]
    path = tmp / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return make_taskset("multiple_choice", path=path)


def own_arc(data, tmp):
    rows = [
        {"id": f"q{n}", "question": f"Which is {n}?", "answerKey": str(1 + n % 3),
         "choices": {"text": [f"{i} pears" for i in range(3)], "label": ["1", "2", "3"]}}
        for n in range(12)
    ]  # fmt: skip
    path = tmp / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return make_taskset("ai2_arc", path=path.parent, split="test")


def another_letter(task):
    """An option that is there and not the right one."""
    return f"The answer is ({'B' if task.answer == 'A' else 'A'})."


def another_colour(task):
    """The right grid in other colours."""
    return task.answer.translate(str.maketrans("0123456789", "1234567890"))


def another_game(name, **options):
    """A number game, whose wrong answer is its problem's first number alone."""
    return Case(name, lambda data, tmp: make_taskset(name, **options), wrong=first_number, needs_data=False)


def first_number(task):
    return f"# {task.meta['numbers'][0]}"


CASES = {
    "ai2_arc": Case("ai2_arc", own_arc, wrong=another_letter, needs_data=False),
    "multiple_choice": Case("multiple_choice", own_questions, wrong=another_letter, needs_data=False),
    "arc_agi": Case("arc_agi", made("arc_agi", "arc_agi"), wrong=another_colour),
    "countdown": another_game("countdown", size=60, numbers=3),
    "game_of_24": another_game("game_of_24", largest=10, split="test", whole=True),
    "arithmetic": procedural(size=300),
    "arithmetic, validation": procedural(split="validation", difficulty=1),
    "arithmetic, test": procedural(split="test", difficulty=6, size=300),
    "arithmetic, imperfect": procedural(demonstrations="imperfect", size=300, seed=4),
    "gsm8k": Case("gsm8k", made("gsm8k", "gsm8k", split="test"), wrong=hashes),
    "gsm8k, calculator": Case("gsm8k", made("gsm8k", "gsm8k", "train.jsonl", calculator=True), wrong=hashes),
    "svamp": Case("svamp", made("svamp", "svamp")),
    "svamp, masked": Case("svamp", made("svamp", "svamp", mask_numbers=True), wrong=other_program),
    "mawps_asdiv": Case("mawps_asdiv", made("mawps_asdiv", "svamp", calculator=True, normalised=True)),
    "mawps_asdiv, masked": Case(
        "mawps_asdiv", made("mawps_asdiv", "svamp", split="validation", mask_numbers=True), wrong=other_program
    ),
    "file": Case("file", own_file, marked, needs_data=False),
    "code": Case("code", code_file, program, other_program_text, needs_data=False),
    "hub": Case("hub", own_folder, marked, needs_data=False),
    "documents": Case(
        "documents", own_documents, lambda t: t.meta["text"], lambda t: "#", needs_data=False, answered=False
    ),
    "guess": Case("guess", lambda data, tmp: make_taskset("guess", size=60), lambda t: t.answer, number_beside, False),
    "wordle, games": wordle_case(words=60),
    "wordle, snapshots": wordle_case(kind="snapshots", size=60),
    "episodes": Case(
        "episodes",
        lambda data, tmp: make_taskset("episodes", size=40, prompt="Play."),
        lambda t: "1",
        lambda t: "2",
        needs_data=False,
        answered=False,
    ),
    "teaching, student": Case(
        "teaching",
        lambda data, tmp: make_taskset(
            "teaching",
            tasks=arithmetic(size=40),
            role="student",
            tags="words",
            solution="# {answer}",
            explanation="solution",
            until="#",
        ),
        needs_data=False,
    ),
    "mixture": Case("", mixed, lambda t: t.meta.get("solution") or marked(t), needs_data=False),
    "shuffled": Case("", lambda data, tmp: shuffled(arithmetic(size=50), 3), needs_data=False),
    "take": Case("", lambda data, tmp: take(arithmetic(size=50), 10, 40), needs_data=False),
    "toy sums": Case("", lambda data, tmp: ToySums(limit=4), wrong=lambda t: "9 9", needs_data=False),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def tasks(case, request, tmp_path_factory):
    if case.taskset == "hub" and importlib.util.find_spec("datasets") is None:
        pytest.skip("reading a folder as a Hub data set needs the package datasets, which is not installed")
    data = request.getfixturevalue("data_dir") if case.needs_data else None
    return case.make(data, tmp_path_factory.mktemp("tasks"))


def some(tasks):
    """At most 200 tasks, spread over the whole set."""
    return [tasks[i] for i in range(0, len(tasks), max(1, len(tasks) // 200))]


def test_it_is_a_taskset(tasks):
    assert isinstance(tasks, Taskset)
    assert tasks.name
    assert len(tasks) > 0


def test_ids_are_unique(tasks):
    ids = [tasks[i].id for i in range(len(tasks))]
    assert len(set(ids)) == len(tasks)
    assert all(ids)


def test_beyond_its_end_there_is_nothing(tasks):
    for index in (len(tasks), len(tasks) + 10**6):
        with pytest.raises(IndexError):
            tasks[index]


def test_a_task_is_the_same_whenever_it_is_asked_for(tasks):
    indices = [0, len(tasks) // 2, len(tasks) - 1]
    first = [tasks[i] for i in indices]
    assert [tasks[i] for i in reversed(indices)] == first[::-1]


def test_a_task_asks_something_and_knows_the_answer(case, tasks):
    for task in some(tasks):
        assert task.prompt[-1].role == "user"
        assert task.prompt[-1].content.strip()
        assert bool(task.answer) is case.answered


def test_tasks_can_travel_to_another_process(tasks):
    task = tasks[0]
    assert pickle.loads(pickle.dumps(task)) == task


def test_the_verifier_accepts_what_is_right(case, tasks):
    for task in some(tasks):
        verdict = tasks.verifier(task, case.right(task))
        assert verdict.correct is case.answered, f"{task.id}: {case.right(task)!r} was refused: {verdict.why}"
        assert case.answered or "no answer" in verdict.why


def test_the_verifier_rejects_what_is_wrong(case, tasks):
    for task in some(tasks):
        verdict = tasks.verifier(task, case.wrong(task))
        assert not verdict.correct, f"{task.id}: {case.wrong(task)!r} was accepted for {task.answer!r}"


HOSTILE = [
    "", " ", "#", "####", "# ", "#\n", "\\boxed{", "\\boxed{}", "# nan", "# inf", "# 77e999", "# " + "9" * 5000,
    "# 77/0", "n0 / 0", "(" * 1000, "# 5 # 6", "<think>", "</think>", "\x00", "\ud83d", "# ١٢", "# −5", "a" * 50_000,
]  # fmt: skip


def test_the_verifier_never_raises_and_accepts_none_of_this(tasks):
    task = tasks[0]
    for text in HOSTILE:
        assert not tasks.verifier(task, text).correct, text[:50]


def test_the_verifier_is_deterministic(case, tasks):
    for task in some(tasks)[:20]:
        for text in (case.right(task), case.wrong(task)):
            assert tasks.verifier(task, text) == tasks.verifier(task, text)


def test_a_tool_completes_what_a_demonstration_shows(tasks):
    """Wherever the solution contains the trigger and the tool has something to write, it writes what stands there."""
    if tasks.tool is None:
        assert "<<" not in tasks[0].meta.get("solution", "")  # no demonstration of a tool that is not there
        return
    trigger, asked = tasks.tool.trigger, 0
    for task in some(tasks):
        text = task.meta["solution"]
        for end in (i + len(trigger) for i in range(len(text)) if text.startswith(trigger, i)):
            reply = tasks.tool(text[:end])
            if reply:
                asked += 1
                assert text.startswith(reply, end), f"{task.id}: after {text[:end]!r} the tool writes {reply!r}"
    assert asked > len(some(tasks)) / 2


def test_every_taskset_of_the_table_is_covered():
    assert {case.taskset for case in CASES.values()} - {""} == set(TASKSETS)
