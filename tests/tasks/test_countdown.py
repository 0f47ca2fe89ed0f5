"""The game of 24 and countdown: moves, solutions, judgement, generated problems."""

from __future__ import annotations

import doctest
import importlib
from fractions import Fraction
from itertools import combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.tasks.countdown import GAME_OF_24, Rules, after, check, finished, moves, solutions, solvable, solve, state

WHOLE = Rules(whole=True)


def test_the_documentation_is_right():
    tried = doctest.testmod(
        importlib.import_module("maieutic.tasks.countdown")
    )  # the package's attribute is the taskset
    assert tried.attempted >= 8
    assert tried.failed == 0


def test_of_four_numbers_up_to_ten_566_of_715_make_24():
    """A known count: each multiset of four of 1..10, fractions allowed."""
    draws = list(combinations_with_replacement(range(1, 11), 4))
    assert len(draws) == 715
    assert sum(solvable(draw) for draw in draws) == 566


@pytest.mark.parametrize(
    ("numbers", "only"),
    [([3, 3, 8, 8], "8 / (3 - 8 / 3)"), ([1, 5, 5, 5], "5 * (5 - 1 / 5)"), ([3, 3, 7, 7], "7 * (3 + 3 / 7)")],
)
def test_the_famous_ones_need_fractions(numbers, only):
    assert solutions(numbers) == [only]
    assert not solvable(numbers, 24, WHOLE)
    assert check(only, numbers).correct


def test_every_solution_checks_and_every_chain_ends_in_the_target():
    for numbers in ([1, 2, 3, 4], [4, 4, 10, 10], [5, 5, 5, 9], [2, 7, 7, 10]):
        for expression in solutions(numbers):
            assert check(expression, numbers).correct
        now = state(numbers)
        for step in solve(numbers):
            now = after(step, now)
        assert finished(now)
        assert now == (24,)
    assert solve([1, 1, 1, 1]) is None
    assert solutions([1, 1, 1, 1]) == []


@given(st.lists(st.integers(0, 13), min_size=2, max_size=4), st.booleans())
def test_a_move_in_words_leads_where_it_says(numbers, whole):
    rules = Rules(whole=whole)
    made = moves(numbers, rules)
    assert len(set(made)) == len(made)
    for words, left in made:
        assert after(words, numbers, rules) == left
        assert after(words.partition(" left")[0], numbers, rules) == left
        assert not whole or all(value >= 0 and value.denominator == 1 for value in left)


def test_moves_are_all_there_are():
    # 2 and 6: 8, 4, -4, 12, 3, 1/3
    assert {left for _, left in moves([2, 6])} == {(Fraction(v),) for v in (8, 4, -4, 12, 3, Fraction(1, 3))}
    assert {left for _, left in moves([2, 6], Rules(limit=8))} == {
        (Fraction(v),) for v in (8, 4, -4, 3, Fraction(1, 3))
    }
    assert [words for words, _ in moves([0, 0])] == ["0 + 0 = 0 left 0", "0 - 0 = 0 left 0", "0 * 0 = 0 left 0"]
    assert moves([24]) == []


def test_some_numbers_may_stay_unused():
    some = Rules(every=False)
    assert not solvable([2, 3, 4, 7], 12, Rules(every=True, limit=5))
    assert solvable([3, 4, 7], 12, some)
    assert check("3 * 4", [3, 4, 7], 12, some).correct
    assert check("3 * 4", [3, 4, 7], 12).why == "7 is not used"
    assert finished([5, 24], 24, some)
    assert not finished([5, 24])
    assert solve([24, 5], 24, some) == ()


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("4 + 20", "20 is used more often"),
        ("4 * 6 * 1", "1 is used more often"),
        ("4 * 6 / (2 - 2)", "no expression"),
        ("4 * 6 ** 1", "no expression"),
        ("4 // 6", "no expression"),
        ("-4 * -6", "no expression"),
        ("4 6", "no expression"),
        ("4(6)", "no expression"),
        ("__import__('os')", "no expression"),
        ("(" * 90 + "4" + ")" * 90, "6 is not used"),
        ("(" * 5000 + "4", "no expression"),
        ("04 * 6", "no expression"),
        ("", "no expression"),
        ("4 - 6", "its value is -2, expected 24"),
    ],
)
def test_what_is_wrong_is_said(expression, why):
    verdict = check(expression, [4, 6])
    assert not verdict.correct
    assert why in verdict.why


@given(st.text(alphabet="0123456789+-*/() ×÷−=x.", max_size=60))
def test_any_text_is_judged(text):
    assert check(text, [4, 6]).correct == (check(text, [4, 6]).answer == "4 * 6")
    assert after(text, [4, 6]) is None or "=" in text


def test_other_signs_are_the_same_signs():
    assert check("(8 − 2) × 4", [2, 4, 8]).correct
    assert after("8 ÷ 2 = 4 left 4 4", [2, 4, 8], GAME_OF_24) == (4, 4)
