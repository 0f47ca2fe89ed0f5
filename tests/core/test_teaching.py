"""The reward of a teacher, worked by hand, and what is chosen by it or by an examination."""

from __future__ import annotations

import pytest
import torch

from maieutic.core.exams import RULES, preferred, select_answer
from maieutic.core.kl import k3
from maieutic.core.teaching import Terms, choose_explanation

SOLUTION = torch.tensor([-0.1, -0.5, -2.0])
TEACHER = torch.tensor([-0.2, -0.4, -0.1])
STUDENT = torch.tensor([-0.3, -1.4, -0.1])
NOTHING = torch.tensor([])


def test_the_sum_of_the_released_run():
    # r_SS = −2.6/3 + 0.01 · (−2.0) = −0.8866667;  kl = (0.1, 1.0, 0)
    # λ r_KL = 3 · (1.1/3 + 0.01 · 1.0) = 1.13;    r = −0.8866667 − 1.13 = −2.0166667
    found = Terms()(SOLUTION, STUDENT, TEACHER, closed=True)
    assert found.reward == pytest.approx(-2.0166667, abs=1e-6)
    assert found.parts == pytest.approx(
        {"solution/mean": -0.8666667, "solution/min": -2.0, "kl/mean": 0.3666667, "kl/max": 1.0, "match": 0.0}
    )
    assert Terms()(SOLUTION, STUDENT, TEACHER, closed=False).reward == pytest.approx(-3.0166667, abs=1e-6)


def test_a_teacher_that_says_what_the_student_would_pays_nothing():
    found = Terms()(SOLUTION, TEACHER, TEACHER, closed=True)
    assert (found.scores["kl/mean"], found.scores["kl/max"]) == (0.0, 0.0)
    assert found.reward == pytest.approx(-0.8866667, abs=1e-6)


def test_what_is_empty():
    # an empty explanation: both KL scores 1, λ (1 + α) = 3.03
    assert Terms()(SOLUTION, NOTHING, NOTHING, closed=True).reward == pytest.approx(-0.8866667 - 3.03, abs=1e-6)
    # an empty solution: both log-prob scores −1, −(1 + α) = −1.01
    assert Terms()(NOTHING, STUDENT, TEACHER, closed=True).reward == pytest.approx(-1.01 - 1.13, abs=1e-6)
    bad = torch.tensor([float("nan")])
    assert Terms()(bad, bad, bad, closed=True).reward == pytest.approx(-1.01 - 3.03)


def test_other_terms():
    # without the teacher's entropy klⱼ = −lpSⱼ: mean 0.6, max 1.4
    alone = Terms(entropy=False)(SOLUTION, STUDENT, TEACHER, closed=True)
    assert (alone.scores["kl/mean"], alone.scores["kl/max"]) == pytest.approx((0.6, 1.4))
    # k3 of (lpT, lpS): e^(lpS − lpT) − (lpS − lpT) − 1; of a difference of −1: e⁻¹ + 1 − 1 = 0.3678794
    third = Terms(estimator=k3)(SOLUTION, STUDENT, TEACHER, closed=True)
    assert third.scores["kl/max"] == pytest.approx(0.3678794, abs=1e-6)
    # the file's own defaults are others than the released run's
    other = Terms(solution=(5.0, 0.05), kl=(5.0, 0.05))(SOLUTION, STUDENT, TEACHER, closed=True)
    assert other.reward == pytest.approx(5 * -0.8666667 + 0.05 * -2 - 5 * 0.3666667 - 0.05, abs=1e-5)
    cut = Terms(limit=1.0)(torch.tensor([-20.0]), STUDENT, TEACHER, closed=True)
    assert cut.scores["solution/mean"] == -1.0
    for wrong in (lambda: Terms(limit=0.0), lambda: Terms()(SOLUTION, STUDENT, NOTHING, closed=True)):
        with pytest.raises(ValueError, match="expected"):
            wrong()


def test_the_best_explanation_and_the_reserved_one():
    assert choose_explanation([-2.0, -1.0, None], [True, True, True], fallback=True) == 1
    assert choose_explanation([-2.0, -1.0], [True, False], fallback=True) is None  # the best is not closed
    assert choose_explanation([-2.0, -1.0], [True, False], fallback=False) == 1  # there is nothing in its place
    assert choose_explanation([-1.0, -1.0], [True, True], fallback=False) == 0
    assert choose_explanation([None], [True], fallback=False) is None
    with pytest.raises(ValueError, match="got 1 rewards and 0 closed"):
        choose_explanation([1.0], [], fallback=False)


def test_three_lukewarm_pairs_against_one_good_one():
    answers, scores = ["a", "b", "a", None, "a"], [2, 5, 2, 9, 2]
    chosen = {name: select_answer(answers, scores, rule) for name, rule in RULES.items()}
    assert chosen == {"max": "b", "sum": "a", "avg": "b", "maj": "a"}  # a: 2 + 2 + 2 = 6 > 5
    # ties: the answer that more pairs have, then the first
    assert select_answer(["a", "b", "b"], [4, 2, 4], max) == "b"
    assert select_answer(["b", "a"], [1, 1], sum) == "b"
    assert select_answer([None], [9], max) is None


def test_preferences_of_scores():
    assert preferred([0, 9, 3]) == [(1, 0)]
    assert preferred([0, 9, 3], margin=3, most=None) == [(1, 0), (1, 2), (2, 0)]
    assert preferred([4, 4]) == []
    with pytest.raises(ValueError, match="margin=0"):
        preferred([1, 2], margin=0)
