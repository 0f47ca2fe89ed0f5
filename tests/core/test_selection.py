"""Choosing among n completions: the numbers worked by hand, and what perfect and constant scores must give."""

from __future__ import annotations

import itertools

import pytest

from maieutic.core.estimators import best_of_k, vote_at_k
from maieutic.core.selection import best_of, best_of_value, plurality, vote_value, weighted_vote, weighted_vote_at_k
from maieutic.errors import DataError

ANSWERS = ["A", "A", "A", "B", "B"]
SCORES = [0.2, 0.3, 0.1, 0.9, 0.4]


def test_three_rules_by_hand():
    """A has three votes of five; their weights are .6 against 1.3 for B, who has the best one too."""
    assert plurality(ANSWERS) == "A"
    assert weighted_vote(ANSWERS, SCORES) == "B"
    assert ANSWERS[best_of(SCORES)] == "B"
    right = [answer == "A" for answer in ANSWERS]
    assert vote_value(ANSWERS, right) == 1.0
    assert vote_value(ANSWERS, right, SCORES) == 0.0
    assert best_of_value(SCORES, right) == 0.0
    assert float(best_of_k(SCORES, right, 5)) == 0.0


def test_ties_go_to_the_earliest_and_are_worth_their_share():
    assert plurality(["B", "A", "A", "B"]) == "B"
    assert best_of([0.5, 0.7, 0.7]) == 1
    # two answers of three tied, one of which is right; one of the two best is right
    assert vote_value(["A", "A", "B", "B", "C"], [True, True, False, False, False]) == 0.5
    assert best_of_value([0.7, 0.7, 0.1], [True, False, True]) == 0.5
    # sums that are equal on paper are equal here: .1 + .2 + .3 against .3 + .2 + .1, and .6
    assert vote_value(["A", "A", "A", "B", "B", "B"], [True] * 3 + [False] * 3, [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]) == 0.5


def test_no_answer_wins_only_where_there_is_no_other():
    assert plurality([None, None, "A"]) == "A"
    assert weighted_vote([None, "A"], [0.9, 0.0]) == "A"
    assert best_of([0.9, 0.2], [None, "A"]) == 1
    assert best_of_value([0.9, 0.2], [False, True], [None, "A"]) == 1.0
    assert (plurality([None, None]), best_of([0.1, 0.2], [None, None])) == (None, 1)
    assert vote_value([None, None], [False, False]) == 0.0


@pytest.mark.parametrize("right", range(6))
def test_perfect_scores_give_pass_at_n_and_equal_ones_the_plurality(right):
    answers = ["A"] * right + ["B", "C", "B", "D", "E"][: 5 - right]
    correct = [answer == "A" for answer in answers]
    perfect = [float(value) for value in correct]
    assert best_of_value(perfect, correct) == float(right > 0)  # pass@5
    assert best_of_value([0.3] * 5, correct) == pytest.approx(right / 5)  # pass@1
    assert vote_value(answers, correct, [0.1] * 5) == vote_value(answers, correct)
    if right:
        assert vote_value(answers, correct, perfect) == 1.0


def test_a_vote_of_k_is_the_mean_over_subsets():
    """Of A A B with weights .4 .1 .3, two at a time: AA right; AB .4 against .3 right; AB .1 against .3 wrong."""
    assert weighted_vote_at_k(["A", "A", "B"], [True, True, False], [0.4, 0.1, 0.3], 2) == pytest.approx(2 / 3)
    answers = ["A", "A", "A", "B", "B", "C"]
    correct = [answer == "A" for answer in answers]
    for k in range(1, 7):
        assert weighted_vote_at_k(answers, correct, [1.0] * 6, k) == pytest.approx(float(vote_at_k(3, [2, 1], k)))
    # more subsets than are looked at: 2,000 drawn ones are within three standard errors, 3 · ½ / √2000
    many, where = answers * 3, correct * 3
    drawn = weighted_vote_at_k(many, where, [1.0] * 18, 9)
    assert abs(drawn - float(vote_at_k(9, [6, 3], 9))) < 0.034
    assert drawn == weighted_vote_at_k(many, where, [1.0] * 18, 9)


def test_best_of_k_with_ties_is_the_mean_over_subsets():
    scores, correct = [0.1, 0.5, 0.5, 0.5, 0.9], [True, True, False, False, False]
    for k in range(1, 6):
        subsets = list(itertools.combinations(range(5), k))
        mean = sum(best_of_value([scores[i] for i in s], [correct[i] for i in s]) for s in subsets) / len(subsets)
        assert float(best_of_k(scores, correct, k)) == pytest.approx(mean)


def test_what_cannot_be_chosen_among_is_refused():
    for call, said in (
        (lambda: best_of([]), "at least one"),
        (lambda: best_of([0.1, float("nan")]), "not a number"),
        (lambda: weighted_vote(["A", "B"], [1.0]), "got 1 scores for 2"),
        (lambda: weighted_vote(["A", "B"], [1.0, -0.5]), "at least 0"),
        (lambda: weighted_vote_at_k(["A"], [True], [1.0], 2), "k = 2 with 1"),
    ):
        with pytest.raises(DataError, match=said):
            call()
