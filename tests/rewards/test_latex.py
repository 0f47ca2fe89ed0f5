"""LaTeX equivalence in a process that can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from maieutic.errors import DataError
from maieutic.rewards.answers import AnswerVerifier
from maieutic.rewards.latex import Equivalence, LatexComparer, compare
from maieutic.types import Message, Task

TOWER = "9^{9^{9^{9}}}"  # sympy would compute it


def task(answer: str) -> Task:
    return Task("t", (Message("user", "Simplify."),), answer)


@pytest.mark.parametrize(
    ("gold", "given", "expected"),
    [
        ("x^2+1", "1+x^2", Equivalence.EQUAL),
        ("\\sqrt{8}", "2\\sqrt2", Equivalence.EQUAL),
        ("\\{1,2\\}", "\\{2,1\\}", Equivalence.EQUAL),  # sets have no order
        ("(1,2)", "(2,1)", Equivalence.DIFFERENT),  # tuples have
        ("(1,2]", "[1,2]", Equivalence.DIFFERENT),  # intervals have ends
        ("5", "x = 5", Equivalence.EQUAL),
        ("2", "x^2 = 2", Equivalence.DIFFERENT),  # states that x is √2
        ("\\sqrt{2}", "1.41421356", Equivalence.DIFFERENT),  # an exact gold wants an exact answer
        ("3", "1, 2, 3", Equivalence.DIFFERENT),
        ("2", "21", Equivalence.DIFFERENT),
        ("x+1", "", Equivalence.UNPARSABLE),
        ("x+1", "y" * 1001, Equivalence.UNPARSABLE),
        ("x+1", "{" * 300 + "x+1" + "}" * 300, Equivalence.UNPARSABLE),
    ],
)
def test_comparisons(gold: str, given: str, expected: Equivalence) -> None:
    assert compare(gold, given) is expected


def test_a_power_tower_times_out_and_the_next_comparison_works() -> None:
    start = time.monotonic()
    assert compare("2", TOWER, timeout_seconds=0.5) is Equivalence.TIMEOUT
    assert time.monotonic() - start < 10
    assert compare("x+x", "2x") is Equivalence.EQUAL


def test_it_works_outside_the_main_thread() -> None:
    # Where signal.alarm raises, and every answer used to be wrong.
    found: list[Equivalence] = []
    thread = threading.Thread(target=lambda: found.append(compare("x+x", "2x")))
    thread.start()
    thread.join()
    assert found == [Equivalence.EQUAL]


def test_a_worker_that_dies_is_replaced() -> None:
    comparer = LatexComparer()
    assert comparer("x+x", "2x") is Equivalence.EQUAL
    first = comparer.worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert comparer("x+x", "2x") is Equivalence.EQUAL
    assert comparer.worker.pid not in (None, first)
    comparer.close()
    assert comparer.worker.pid is None


def test_a_worker_killed_during_a_comparison_is_asked_once_more() -> None:
    comparer = LatexComparer()
    comparer("x", "x")
    first = comparer.worker.pid
    assert first is not None
    threading.Timer(0.15, os.kill, (first, signal.SIGKILL)).start()
    assert comparer("2", TOWER, timeout_seconds=0.5) is Equivalence.TIMEOUT  # from the second process
    comparer.close()


def test_verdicts_with_latex() -> None:
    verify = AnswerVerifier(latex=True, latex_seconds=1.0)
    assert verify(task("2\\sqrt{2}"), "so \\boxed{\\sqrt{8}}").correct
    assert not verify(task("2\\sqrt{2}"), "so \\boxed{\\sqrt{9}}").correct
    assert verify(task("42"), "so \\boxed{42}").correct
    assert not verify(task("3"), "<answer>1, 2, 3</answer>").correct
    assert not verify(task("0.05"), "<answer>5\\%</answer>").correct
    assert not verify(task("72"), "<answer>3*14+30</answer>").correct  # a number is asked for, not a sum
    late = verify(task("2x"), f"so \\boxed{{{TOWER}}}")
    assert (late.correct, late.why) == (False, "LaTeX comparison: timeout")


def test_golds_are_parsed_at_load_time() -> None:
    AnswerVerifier(latex=True).check_gold(task("x^2 + 1"))
    with pytest.raises(DataError, match=r"math-verify cannot read.*Remedy"):
        AnswerVerifier(latex=True).check_gold(task("\\frac{}{"))


def test_math_verify_is_imported_in_the_worker_only_and_the_worker_ends_with_its_parent() -> None:
    script = (
        "import sys; from maieutic.rewards import latex; print(latex.compare('x+x', '2x').value); "
        "print('math_verify' in sys.modules, 'torch' in sys.modules); print(latex._shared[0].worker.pid)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    value, modules, pid = done.stdout.split("\n")[:3]
    assert (value, modules) == ("equal", "False False")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
