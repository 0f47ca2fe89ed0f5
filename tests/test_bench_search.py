"""The labels that the study `search` gives steps of the game of 24."""

import math

import pytest

from benchmarks._search_parts import exact_labels, written_steps
from benchmarks.search import VOTE, chosen
from maieutic.search.found import Cost
from maieutic.search.results import Solved, Tried
from maieutic.types import Finish


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        (["2 * 6 = 12 left 4 12 ;", " 4 + 12 = 16 left 16 ;"], [0, 0]),  # 12 and 4 make 16, 8, 48, 3
        (["6 - 2 = 4 left 4 4 ;", ""], [0, 0]),
        (["2 + 4 = 6 left 6 6 ;", " 6 * 6 = 36 left 36 ;", ""], [0, 0, 0]),
        (["6 / 2 = 3 left 3 8 ;", " 3 * 8 = 24 left 24 ;", ""], [0, 0, 0]),  # there is no 8: all after it is wrong
        (["6 - 4 = 2 left 2 2 ;"], [0]),
    ],
)
def test_what_cannot_become_24_of_2_4_6(steps, labels):
    assert exact_labels([2, 4, 6], 24, steps) == labels


def test_what_can():
    steps = written_steps("3 * 4 = 12 left 2 12 ; 2 * 12 = 24 left 24 ;")
    assert steps == ["3 * 4 = 12 left 2 12 ;", " 2 * 12 = 24 left 24 ;"]
    assert exact_labels([2, 3, 4], 24, [*steps, ""]) == [1, 1, 1]
    assert exact_labels([2, 3, 4], 24, [steps[0], ""]) == [1, 0]  # ended too soon
    assert exact_labels([2, 3, 4], 24, [steps[0], " 12 + 2 = 24 left 24 ;"]) == [1, 0]


def test_right_answers_vote_as_one_and_the_best_is_by_the_last_step():
    said = [("a", True), ("b", True), ("c", False), ("c", False), ("c", False), (None, False)]
    tried = tuple(Tried("", answer, right, None, Finish.STOP, (), "") for answer, right in said)
    row = Solved("t", 2, tried, Cost())
    scores = [[0.1, 0.2], [0.9, 0.3], [0.9, 0.1], [0.1, 0.1], [0.1, 0.2], [0.9, 0.9]]
    found = chosen(row, {"exact": scores})
    assert found[VOTE] == 0.0  # two right ones against three
    assert found["best of n by exact"] == 1.0  # .3 is the highest of those with an answer
    assert math.isclose(found["weighted vote by exact"], 1.0)  # .2 + .3 against .1 + .1 + .2
