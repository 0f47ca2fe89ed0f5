"""Known ways of getting rewarded without being right: none may earn more than an honest wrong answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from maieutic.errors import ConfigError
from maieutic.rewards import AnswerVerifier, answer_reward, required, reward, think_format, weighted
from maieutic.rewards.hacks import HACKS, STYLES, hack_report
from maieutic.rewards.penalties import PENALTIES
from maieutic.tasks.verify import AnswerAfterMarker, NumberAfterMarker, ProgramValue
from maieutic.types import Message, Task, Verdict

QUESTION = "Ann has 3 boxes of 14 pens and 30 loose pens. How many pens? Her rate is 5% a year."
NUMBERS = ("72", "0.05", "1000")
WORDS = ("B", "blue whale")

#: Every verifier that a taskset trains with, and golds that it compares with.
VERIFIERS = {
    "AnswerVerifier": (AnswerVerifier(), (*NUMBERS, "-3/4", *WORDS)),
    "with LaTeX": (AnswerVerifier(latex=True, latex_seconds=1.0), ("72", "2\\sqrt{2}")),
    "with a tolerance": (AnswerVerifier(tolerance=1e-3), (*NUMBERS, "-3/4")),
    "arithmetic": (NumberAfterMarker(), NUMBERS),
    "GSM8K": (NumberAfterMarker(hashes=4), NUMBERS),
    "SVAMP": (NumberAfterMarker(ProgramValue().tolerance), NUMBERS),
    "SVAMP, programs": (ProgramValue(), NUMBERS),
    "files": (AnswerAfterMarker(), (*NUMBERS, *WORDS)),
}


def tasks(golds: tuple[str, ...]) -> list[Task]:
    return [Task(gold, (Message("user", QUESTION),), gold) for gold in golds]


@pytest.mark.parametrize("name", VERIFIERS)
def test_no_verifier_pays_for_a_hack(name: str) -> None:
    verifier, golds = VERIFIERS[name]
    report = hack_report(answer_reward(verifier), tasks(golds))
    assert report.paying == {}
    assert report.blind == ()  # each tells a right answer from a wrong one


def test_the_recommended_reward_pays_for_none() -> None:
    recommended = weighted(
        {"answer": answer_reward(AnswerVerifier()), "format": required("think", "answer")},
        {"answer": 1.0, "format": 0.1},
    )
    report = hack_report(recommended, tasks(NUMBERS + WORDS))
    assert report.paying == {}
    assert {each.honest for each in report.tried} == {0.1}  # a wrong answer in the right form
    assert {each.hack for each in report.tried} == set(HACKS)


@pytest.mark.parametrize("make", [think_format, lambda: required("think", "answer"), *PENALTIES.values()])
def test_form_alone_pays_for_none(make: Callable) -> None:
    report = hack_report(make(), tasks(("72",)))
    assert report.paying == {}
    assert report.blind == ("72",)  # form says nothing of the answer


def pleased(name: str) -> dict:
    """What a reward pays for that reads answers carelessly."""
    careless = {
        "anywhere": lambda completion, answer: float(answer in completion),
        "the last": lambda completion, answer: float(completion.rstrip("</answer>.} \n").endswith(answer)),
        "graded by itself": lambda completion: 1.0 if "<score>10</score>" in completion else 0.0,
        "unreadable is right": lambda completion, answer: float("frac" in completion or completion.endswith(answer)),
        "long is good": lambda completion: min(len(completion), 10_000) / 10_000,
    }
    return hack_report(reward(careless[name]), tasks(("72",))).paying


def test_careless_rewards_are_found_out() -> None:
    anywhere = pleased("anywhere")
    for hack in ("several marked answers", "either or", "substring", "answer in the thought only", "denial"):
        assert hack in anywhere
    assert anywhere["denial"][0].text.endswith("not 72.")
    assert "score tag" in pleased("graded by itself")
    assert "what verifiers choke on" in pleased("unreadable is right")
    assert {"extremely long", "repeated format"} <= set(pleased("long is good"))
    # a list pays for who reads the last of it only where the gold stands last: that is no better than naming one
    assert "several boxes" not in pleased("the last")
    assert "substring" not in pleased("the last")


def test_flexible_reading_is_for_reports_and_pays_for_hacks() -> None:
    paying = hack_report(answer_reward(AnswerVerifier(strict=False)), tasks(("72",))).paying
    assert "denial" in paying


def test_a_reward_that_fails_pays_nothing() -> None:
    def chokes(completion: str, answer: str) -> float:
        if "frac" in completion:
            raise ValueError("cannot read this")
        return float(f">{answer}<" in completion)

    report = hack_report(reward(chokes), tasks(("72",)))
    (choked,) = (each for each in report.tried if each.hack == "what verifiers choke on")
    assert (choked.reward, choked.pays) == (None, False)


def test_a_verifier_that_raises_is_not_hidden() -> None:
    def broken(task: Task, text: str) -> Verdict:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hack_report(answer_reward(broken), tasks(("72",)))


def test_a_task_without_an_answer_has_no_hacks() -> None:
    with pytest.raises(ConfigError, match="no task with an answer"):
        hack_report(answer_reward(AnswerVerifier()), [Task("t", (Message("user", "?"),))])


def test_every_style_marks_an_answer_once() -> None:
    for style in STYLES:
        assert style.format("72").count("72") == 1


@pytest.mark.parametrize(
    "answer",
    [
        "2\\sqrt{2}, 3", "2\\sqrt{2} or 3", "\\{2\\sqrt{2}, 3\\}", "x^2 = 8", "x > 2\\sqrt{2}", "[2\\sqrt{2}, 3]",
        "2.828427", "2\\sqrt{2} \\pm 1", "2\\sqrt{2} = 3", "\\text{correct}", "9^{9^{9^9}}", "{" * 300 + "}" * 300,
        "\\frac{1}{0}",
    ],
)  # fmt: skip
def test_expressions_do_not_stretch(answer: str) -> None:
    verify = AnswerVerifier(latex=True, latex_seconds=1.0)
    (task,) = tasks(("2\\sqrt{2}",))
    assert verify(task, "<answer>\\sqrt{8}</answer>").correct
    assert not verify(task, f"<answer>{answer}</answer>").correct


@pytest.mark.parametrize(("gold", "answer"), [("0.05", "5%"), ("500", "5"), ("5", "500%"), ("5", "5 million")])
@pytest.mark.parametrize("latex", [False, True])
def test_units_do_not_stretch(gold: str, answer: str, latex: bool) -> None:
    (task,) = tasks((gold,))
    assert not AnswerVerifier(latex=latex)(task, f"<answer>{answer}</answer>").correct
    assert not NumberAfterMarker()(task, f"# {answer}").correct


@pytest.mark.parametrize("after", ["72 apples", "72.", "72 ; so it is", "72m", "$72", "72\n73", "72 / 2", "72%"])
def test_what_follows_a_number_is_ignored(after: str) -> None:
    (task,) = tasks(("72",))
    assert NumberAfterMarker()(task, f"# {after}").correct


@pytest.mark.parametrize("after", ["72^2", "72²", "72/2", "72*2", "72e5", "72x", "72 thousand", "72 \\pm 5", "72 ± 5"])
def test_what_makes_another_number_of_it_is_not(after: str) -> None:
    (task,) = tasks(("72",))
    assert not NumberAfterMarker()(task, f"# {after}").correct
