"""Exact answers after a marker."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.tasks.verify import NumberAfterMarker, number_after_marker
from maieutic.types import Message, Task


def task(answer: str | None) -> Task:
    return Task("t", (Message("user", "?"),), answer=answer)


@pytest.mark.parametrize(
    ("text", "answer", "correct"),
    [
        ("10 - 4 = 6 ; 6 / 2 = 3 ; # 3", "3", True),
        ("# 3", "3", True),
        ("#3", "3", True),
        ("#### 3", "3", True),
        ("#### 1,080", "1080", True),
        ("#### $18.", "18", True),
        ("# 3.0", "3", True),
        ("# 2.5", "2.5", True),
        ("# -4", "-4", True),
        ("# 3 apples , not 4", "3", True),
        ("# 3 \n ", "3", True),
        ("# 13", "3", False),
        ("# 3.1", "3", False),
        ("3", "3", False),
        ("", "3", False),
        ("#", "3", False),
        ("# three", "3", False),
        ("# the answer is 3", "3", False),
        ("# 1 # 2 # 3", "3", False),
        ("# 3 # 3", "3", False),
        ("# 3 ; # 4", "3", False),
        ("# 1.2.3", "1.2", False),
        ("# ٣", "3", False),
        ("# " + "9" * 5000, "9", False),
        ("# 3", None, False),
        ("# 3", "three", False),
    ],
)
def test_the_number_after_the_only_marker(text: str, answer: str | None, correct: bool) -> None:
    assert number_after_marker(task(answer), text).correct is correct


def test_reasons() -> None:
    assert number_after_marker(task("3"), "").why == "no # marker"
    assert number_after_marker(task("3"), "# 3 # 4").why == "more than one # marker"
    assert number_after_marker(task("3"), "# x").why == "no number after the # marker"
    assert number_after_marker(task("3"), "# 4").why == "expected 3"
    assert number_after_marker(task("3"), "# 4").answer == "4"


@given(st.text() | st.text(alphabet="# 0123456789.,-+$\n"))
def test_never_raises(text: str) -> None:
    verdict = number_after_marker(task("3"), text)
    assert verdict.correct == (verdict.answer == "3")


@pytest.mark.parametrize("text", ["#" * 10**6, "# 1 " * 250_000, "1" * 10**6, "# " + "1" * 10**6, "# " + " " * 10**6])
def test_a_million_characters_in_a_moment(text: str) -> None:
    start = time.thread_time()
    assert not number_after_marker(task("3"), text).correct
    assert time.thread_time() - start < 0.5


def test_a_tolerance_and_a_longer_marker() -> None:
    close = NumberAfterMarker(Fraction(1, 1000))
    assert close(task("0.3333333333"), "# 0.333").correct
    assert not close(task("0.3333333333"), "# 0.332").correct
    # GSM8K texts number things (#1), so only runs of four are markers there.
    assert NumberAfterMarker(hashes=4)(task("5"), "Route #1 has 2 stops. #### 5").correct
    assert not number_after_marker(task("5"), "Route #1 has 2 stops. #### 5").correct
