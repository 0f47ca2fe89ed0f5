"""Countdown and the game of 24 as tasksets: problems, demonstrations, what is read."""

from __future__ import annotations

import doctest
from itertools import combinations_with_replacement

import pytest

from maieutic.errors import ConfigError, UnknownName
from maieutic.tasks import countdown, countdown_vocabulary, game_of_24, number_games
from maieutic.tasks.countdown import Rules, after, finished, solvable, state
from maieutic.tasks.number_games import SPLITS, check_chain, split_of


def test_the_documentation_is_right():
    tried = doctest.testmod(number_games)
    assert tried.attempted >= 1
    assert tried.failed == 0


def drawn(tasks, count=30):
    return [tasks[i] for i in range(min(count, len(tasks)))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"numbers": 3, "largest": 50, "target": [100, 200], "every": True},
        {"numbers": 3, "target": 24, "largest": 13, "every": True, "whole": False},
        {"largest_result": 60, "target": [20, 60], "demonstrations": "first"},
    ],
)
def test_every_problem_can_be_solved_and_is_of_its_split(options):
    for split in SPLITS:
        for task in drawn(countdown(split, size=10, seed=3, **options)):
            numbers, target = task.meta["numbers"], task.meta["target"]
            assert split_of(numbers, target) == split
            assert solvable(numbers, target, Rules(task.meta["every"], options.get("whole", True)))
            assert max(numbers) <= options.get("largest", 20)


def test_a_demonstration_is_a_chain_of_legal_moves_within_the_limit():
    rules = Rules(every=False, whole=True, limit=60)
    for task in drawn(countdown(largest_result=60, target=[20, 60])):
        now = state(task.meta["numbers"])
        for step in task.meta["solution"].removesuffix(" ;").split(" ; "):
            now = after(step, now, rules)
            assert now is not None, task.meta["solution"]
        assert finished(now, task.meta["target"], rules)


def test_the_vocabulary_holds_every_word():
    words = set(countdown_vocabulary(100))
    for tasks in (
        countdown(target=[10, 100], largest_result=100),
        game_of_24("test", largest=8, whole=True, largest_result=100),
    ):
        for task in drawn(tasks):
            assert set(f"{task.prompt[-1].content} {task.meta['solution']}".split()) <= words


def test_the_game_of_24_has_each_problem_once():
    splits = [game_of_24(split, largest=8) for split in SPLITS]
    problems = [task.meta["numbers"] for tasks in splits for task in (tasks[i] for i in range(len(tasks)))]
    known = {draw for draw in combinations_with_replacement(range(1, 9), 4) if solvable(draw)}
    assert len(problems) == len(known)
    assert set(problems) == known


def test_beyond_its_problems_there_are_other_demonstrations_of_them():
    tasks = game_of_24("test", largest=8, whole=True)
    more = game_of_24("test", largest=8, whole=True, size=4 * len(tasks))
    again = [more[i] for i in range(0, 4 * len(tasks), len(tasks))]
    assert len({task.id for task in again}) == 4
    assert len({task.meta["numbers"] for task in again}) == 1
    chains = {more[i].meta["solution"] for i in range(len(more))}
    assert len(chains) > 1.5 * len(tasks)


def test_a_seed_draws_other_problems():
    one, other = countdown(seed=1, size=20), countdown(seed=2, size=20)
    assert [task.meta for task in drawn(one)] == [task.meta for task in drawn(countdown(seed=1, size=20))]
    assert [task.meta for task in drawn(one)] != [task.meta for task in drawn(other)]


CHAIN = "2 * 6 = 12 left 4 12 ; 4 + 12 = 16 left 16 ;"


@pytest.mark.parametrize(
    ("text", "answer", "why"),
    [
        (CHAIN, "4 + 2 * 6", ""),
        ("2 * 6 = 12\n4 + 12 = 16", "4 + 2 * 6", ""),
        ("# 4 + 6 * 2", "4 + 2 * 6", ""),
        ("2 * 6 is 12 . <answer>4 + 6 × 2 = 16</answer>", "4 + 2 * 6", ""),
        ("<answer>4</answer> <answer>4 + 6 * 2</answer>", "4 + 2 * 6", ""),
        ("<think>2 + 4 = 6</think># 4 + 6 * 2", "4 + 2 * 6", ""),
        # slips: what was meant is still the answer, so that a vote can count it
        ("2 * 6 = 13 left 4 13 ; 4 + 13 = 17 left 17 ;", "4 + 2 * 6", "2 * 6 is not 13"),
        ("2 * 6 = 12 left 5 12 ; 4 + 12 = 16 left 16 ;", "4 + 2 * 6", "after 2 * 6 there is left 4 12"),
        ("2 * 6 = 12 left 4 12 ;", "2 * 6", "it ends with 4 12, expected 16"),
        ("2 * 7 = 14 left 4 14 ;", None, "there is no 7"),
        ("2 * 2 = 4 left 4 4 6 ;", None, "there is no 2"),
        ("2 / 0 = 1 ;", None, "there is no 0"),
        ("so we begin", None, "'so we begin' is no move"),
        ("# 4 + 6 * 2 # 4", None, "more than one #"),
        ("# 6 + 4 + 2", "2 + 4 + 6", "its value is 12, expected 16"),
        ("", None, "no move"),
    ],
)
def test_what_is_read(text, answer, why):
    tasks = countdown(numbers=3, size=5)
    task = tasks[0]
    task = type(task)(task.id, task.prompt, None, {"numbers": (2, 4, 6), "target": 16, "every": True})
    verdict = tasks.verifier(task, text)
    assert verdict.correct == (not why)
    assert verdict.answer == answer
    assert why in verdict.why


def test_not_every_number_must_be_used_where_the_rules_say_so():
    some = Rules(every=False)
    assert check_chain("2 * 6 = 12 left 4 12 ;", [2, 4, 6], 12, some).correct
    assert not check_chain("2 * 6 = 12 left 4 12 ;", [2, 4, 6], 12, Rules()).correct


def test_a_model_that_does_not_know_the_game_is_told():
    plain, told = countdown(size=1)[0], game_of_24("test", largest=6, instructed=True, system="Be brief.")[0]
    assert "<answer>" not in plain.prompt[-1].content
    assert "<answer>" in told.prompt[-1].content
    assert told.prompt[0].content == "Be brief."


def test_what_makes_no_game_is_refused():
    with pytest.raises(UnknownName, match="split"):
        countdown("tset")
    with pytest.raises(UnknownName, match="demonstrations"):
        game_of_24(demonstrations="some")
    for wrong in ({"numbers": 1}, {"numbers": 9}, {"largest": 0}, {"target": [9, 2]}, {"size": 0}):
        with pytest.raises(ConfigError, match="expected"):
            countdown(**wrong)
    with pytest.raises(ConfigError, match="largest_result"):
        countdown(largest_result=5)
    with pytest.raises(ConfigError, match="no problem"):
        countdown(numbers=2, largest=2, target=99, every=True)[0]
