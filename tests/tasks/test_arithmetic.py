"""The procedural word problems: exact chains, splits that cannot overlap, a demonstrator wrong by the right amount."""

from __future__ import annotations

import os
import subprocess
import sys
from random import Random

import pytest

from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Taskset
from maieutic.tasks import arithmetic, arithmetic_vocabulary
from maieutic.tasks.arithmetic import KINDS, LEVELS, SPLITS, Event, Problem, demonstrate, draw_problem, say
from maieutic.types import Task

PROBLEM = Problem(10, (Event("gives", 4), Event("other buys", 5), Event("half")))


def text(task: Task) -> str:
    (message,) = task.prompt
    assert message.role == "user"
    return message.content


def test_a_chain_by_hand() -> None:
    # 10 apples, 4 given away: 6; somebody else's 5 do not count; half of 6: 3.
    assert demonstrate(PROBLEM, limit=20) == "10 - 4 = 6 ; 6 / 2 = 3 ; # 3"


def test_every_misreading_by_hand() -> None:
    # "gives 4" read as + 4: 14; the other person's 5 counted: 19; "keeps half" read as - 2: 17.
    assert demonstrate(PROBLEM, 20, Random(0), misreading=1.0) == "10 + 4 = 14 ; 14 + 5 = 19 ; 19 - 2 = 17 ; # 17"


def test_a_misreading_that_would_leave_the_range_is_not_made() -> None:
    # 18 + 4 = 22 > 20, so "gives" is read rightly: 14; then half of 14 misread as - 2: 12.
    problem = Problem(18, (Event("gives", 4), Event("half")))
    assert demonstrate(problem, 20, Random(0), misreading=1.0) == "18 - 4 = 14 ; 14 - 2 = 12 ; # 12"


def test_a_slip_is_off_by_one_and_carried_on() -> None:
    # One step with certain slip: 10 - 4 = 6, written 5 or 7.
    made = {demonstrate(Problem(10, (Event("loses", 4),)), 20, Random(i), slip=1.0) for i in range(20)}
    assert made == {"10 - 4 = 5 ; # 5", "10 - 4 = 7 ; # 7"}


def test_bags_take_two_steps() -> None:
    assert demonstrate(Problem(2, (Event("bags", 3, 4), Event("doubles"))), 50) == (
        "3 * 4 = 12 ; 2 + 12 = 14 ; 14 * 2 = 28 ; # 28"
    )


@pytest.mark.parametrize("difficulty", LEVELS)
def test_every_step_of_every_perfect_chain_is_right(difficulty: int) -> None:
    tasks, level = arithmetic("train", size=500, difficulty=difficulty), LEVELS[difficulty]
    for task in tasks:
        *steps, last = task.meta["solution"].split(" ; ")
        for step in steps:
            left, operator, right, equals, result = step.split()
            a, b, c = int(left), int(right), int(result)
            # Division is checked as multiplication, so that a rounded half cannot pass.
            right_way = {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b * c == a}
            assert equals == "="
            assert right_way[operator], step
            assert 0 <= c <= level.limit
        assert last == f"# {task.answer}"
        assert task.meta["solution"] == task.meta["reference"]
        assert tasks.verifier(task, task.meta["solution"]).correct
        assert level.fewest <= len(task.meta["kinds"]) <= level.most
        assert task.meta["difficulty"] == difficulty


def test_harder_levels_use_more_kinds_and_longer_chains() -> None:
    seen = {kind for task in arithmetic(size=500, difficulty=6) for kind in task.meta["kinds"]}
    assert seen == set(KINDS)
    lengths = [
        sum(len(task.meta["reference"]) for task in arithmetic(size=300, difficulty=level)) / 300 for level in LEVELS
    ]
    assert lengths == sorted(lengths)


def test_no_problem_is_in_two_splits() -> None:
    contents = {}
    for split in SPLITS:
        for seed in (0, 1):
            for difficulty in (1, 2):
                prompts = arithmetic(split, size=600, seed=seed, difficulty=difficulty)
                contents.setdefault(split, set()).update(skeleton(text(task)) for task in prompts)
    assert not contents["train"] & contents["validation"]
    assert not contents["train"] & contents["test"]
    assert not contents["validation"] & contents["test"]
    assert len(contents["train"]) > 1200  # else the three sets would be disjoint for want of problems


def skeleton(prompt: str) -> str:
    """The prompt with its hero, other people and objects made anonymous: what two disguises of a problem share."""
    words = prompt.split()
    hero, thing = words[0], words[-2]
    names = {word for word in words if word[0].isupper()}
    return " ".join("hero" if w == hero else "other" if w in names else "thing" if w == thing else w for w in words)


def test_splits_partition_all_problems_by_content_alone() -> None:
    drawn = [draw_problem(Random(i), LEVELS[2]) for i in range(5000)]
    shares = {split: sum(problem.split == split for problem in drawn) / 5000 for split in SPLITS}
    # 80, 10 and 10 %; four standard deviations of a share of 0.8 among 5000 are 4 * sqrt(.16 / 5000) = 0.023.
    assert shares["train"] == pytest.approx(0.8, abs=0.023)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert PROBLEM.split == Problem(10, PROBLEM.events).split


def test_the_imperfect_demonstrator_is_right_57_percent_of_the_time() -> None:
    tasks = arithmetic(size=4000, demonstrations="imperfect")
    verdicts = [tasks.verifier(task, task.meta["solution"]) for task in tasks]
    # Four standard deviations: 4 * sqrt(.57 * .43 / 4000) = 0.031.
    assert sum(v.correct for v in verdicts) / 4000 == pytest.approx(0.57, abs=0.031)
    assert all(v.answer is not None for v in verdicts)
    assert all(tasks.verifier(task, task.meta["reference"]).correct for task in tasks)


def test_the_demonstrator_errs_mostly_where_a_sentence_can_be_misread() -> None:
    right = {True: [], False: []}
    tasks = arithmetic(size=3000, demonstrations="imperfect")
    for task in tasks:
        misreadable = any(KINDS[kind].misread for kind in task.meta["kinds"])
        right[misreadable].append(task.meta["solution"] == task.meta["reference"])
    # Without a misreadable sentence only slips remain: 0.97 to the power of about 3.4 steps is 0.90.
    assert sum(right[False]) / len(right[False]) > 0.85
    assert sum(right[True]) / len(right[True]) < 0.55


def test_prompts_do_not_depend_on_who_demonstrates() -> None:
    perfect, imperfect = arithmetic(size=50), arithmetic(size=50, demonstrations="imperfect")
    assert [text(task) for task in perfect] == [text(task) for task in imperfect]
    assert [task.answer for task in perfect] == [task.answer for task in imperfect]
    assert [task.meta["solution"] for task in perfect] != [task.meta["solution"] for task in imperfect]


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_vocabulary_is_complete_and_has_no_word_that_never_occurs(difficulty: int) -> None:
    seen: set[str] = set()
    for task in arithmetic(size=1200, difficulty=difficulty, demonstrations="imperfect"):
        for line in (text(task), task.meta["solution"], task.meta["reference"]):
            assert " ".join(line.split()) == line
            seen.update(line.split())
    vocabulary = arithmetic_vocabulary(difficulty)
    assert vocabulary == sorted(set(vocabulary))
    assert seen == set(vocabulary)


def test_lengths_of_the_small_recipe() -> None:
    tasks = arithmetic(size=1000)
    assert len(arithmetic_vocabulary()) == 78
    assert sum(len(text(task).split()) for task in tasks) / 1000 == pytest.approx(26, abs=1)
    assert sum(len(task.meta["solution"].split()) for task in tasks) / 1000 == pytest.approx(20, abs=1.5)


def test_the_same_problems_in_another_process_with_other_hash_randomisation() -> None:
    program = (
        "from maieutic.tasks import arithmetic\n"
        "t = arithmetic('test', size=20, seed=7, difficulty=3, demonstrations='imperfect')\n"
        "print([(x.id, x.prompt[0].content, x.answer, x.meta['solution']) for x in t])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    tasks = arithmetic("test", size=20, seed=7, difficulty=3, demonstrations="imperfect")
    here = [(t.id, text(t), t.answer, t.meta["solution"]) for t in tasks]
    assert outputs[0].decode().strip() == str(here)


def test_a_task_depends_on_its_index_alone() -> None:
    small, large = arithmetic(size=5), arithmetic(size=10**9)
    assert small[3] == large[3] == small[-2]
    assert large[10**9 - 1].id == f"arithmetic/2/train/0/{10**9 - 1}"
    assert isinstance(small, Taskset)
    with pytest.raises(IndexError):
        small[5]


def test_neighbouring_seeds_and_splits_share_no_sequence() -> None:
    heads = [text(arithmetic(split, seed=seed)[i]) for split in SPLITS for seed in range(3) for i in range(3)]
    assert len(set(heads)) == len(heads)


def test_say_names_everybody_once() -> None:
    prompt = say(PROBLEM, Random(1))
    words = prompt.split()
    assert words[:3] == [words[0], "has", "10"]
    assert prompt.endswith(f"how many {words[3]} now ?")
    assert f"{words[0]} keeps half ." in prompt


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": "tset"}, UnknownName, "did you mean 'test'"),
        ({"demonstrations": "imprefect"}, UnknownName, "did you mean 'imperfect'"),
        ({"difficulty": 7}, ConfigError, "expected one of 1, 2, 3, 4, 5, 6"),
        ({"size": 0}, ConfigError, "at least one task"),
        ({"size": "many"}, ConfigError, "got size='many'"),
        ({"slip": "often"}, ConfigError, "got slip='often'"),
        ({"misreading": 1.5}, ConfigError, "misreading=1.5"),
        ({"slip": -0.1}, ConfigError, "slip=-0.1"),
    ],
)
def test_wrong_options(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        arithmetic(**options)


def test_no_vocabulary_for_a_difficulty_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="expected one of 1, 2, 3, 4, 5, 6"):
        arithmetic_vocabulary(0)


def test_the_number_of_events_can_be_chosen():
    longer = arithmetic(difficulty=2, events=[5, 6], size=40)
    assert {len(task.meta["kinds"]) for task in longer} == {5, 6}
    assert longer.name == "arithmetic/2:5-6/train/0"
    assert arithmetic(difficulty=2, events=(2, 4), size=3)[2] == arithmetic(difficulty=2, size=3)[2]
    for wrong in ([3], [0, 2], [4, 3]):
        with pytest.raises(ConfigError, match="fewest and the most"):
            arithmetic(events=wrong)
