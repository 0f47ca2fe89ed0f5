"""A little of the fuzz: generated texts through every verifier, format reward and penalty, and through LaTeX."""

from __future__ import annotations

import ast
import asyncio
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the installed package

import maieutic
from benchmarks import _fuzz_tasks
from benchmarks._fuzz_calls import played, rewarded, verified
from benchmarks._fuzz_texts import text
from benchmarks.fuzz import VERIFIERS, Fuzz, Progress, fuzz, main, read_progress
from maieutic.protocols import Reply
from maieutic.rewards.penalties import PENALTIES
from maieutic.rewards.shaping import SHAPING
from maieutic.types import Message, Score, Task, Verdict

#: Another seed than the benchmark's own.
SEED = 7


def test_nothing_raises_and_nothing_takes_too_long() -> None:
    found = fuzz(Progress(SEED, latex=100), 600, float("inf"), lambda _: None)
    assert found.failures == []
    assert set(found.calls.values()) == {600, 6}  # and LaTeX, one in a hundred
    assert {f"penalty {name}" for name in {**SHAPING, **PENALTIES}} <= set(found.calls)
    assert found.correct["verifier strict"] > 0  # not all of it is garbage
    assert found.correct["taskset multiple_choice"] > 0


#: What answers in another process, where a text cannot harm; and the protocol.
ELSEWHERE = {"PassesTests", "GymVerifier", "Verifier"}


def test_every_verifier_of_the_library_is_fuzzed() -> None:
    """What takes a task and a text, by these names, and returns a verdict."""
    known = set()
    for path in Path(maieutic.__file__).parent.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source if "-> Verdict:" in source else "")
        for holder in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
            for function in (node for node in holder.body if isinstance(node, ast.FunctionDef)):
                takes = [argument.arg for argument in function.args.args if argument.arg != "self"]
                if takes == ["task", "text"] and ast.unparse(function.returns or ast.Constant(None)) == "Verdict":
                    known.add(holder.name if isinstance(holder, ast.ClassDef) else function.name)
    fuzzed = [*VERIFIERS.values(), *(verifier for verifier, _ in _fuzz_tasks.verifiers().values())]
    names = {getattr(each, "__qualname__", type(each).__name__).partition(".")[0] for each in fuzzed}
    assert known - ELSEWHERE == names


def test_tasksets_with_an_answer_are_answered() -> None:
    """Each of them accepts something of a few hundred texts and refuses the rest, or the fuzz would show nothing."""
    texts = [_fuzz_tasks.text(SEED, index) for index in range(600)]
    for name, (verifier, task) in _fuzz_tasks.verifiers().items():
        accepted = sum(verifier(task, said).correct for said in [*texts, *sum(_fuzz_tasks.ANSWERS.values(), ())])
        assert accepted < 300
        assert bool(accepted) is (task.answer is not None), name


def test_some_are_called_and_others_are_not(tmp_path: Path) -> None:
    only = ["taskset", "game guess"]
    found = fuzz(Progress(SEED, 10, only), 20, float("inf"), lambda progress: progress.write(tmp_path / "p.json"))
    assert set(found.calls.values()) == {20}
    assert {name for name in found.calls if not name.startswith("taskset")} == {"game guess"}
    assert read_progress(tmp_path / "p.json", SEED, 10, only).done == 20
    with pytest.raises(SystemExit, match="choose another"):
        read_progress(tmp_path / "p.json", SEED, 10)
    with pytest.raises(SystemExit, match="nothing is called so; there are verifier strict,"):
        Fuzz(Progress(SEED, 10, ["verifier", "tasksets"]))


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (None, "expected a verdict"), (Verdict(1), "expected a verdict"),  # type: ignore[arg-type]
        (Verdict(True, share=2.0), "share 2.0"), (Verdict(False, share=1.0), "share 1.0"),
        (Verdict(True, share=0.5), "share 0.5"),
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_found(verdict: Verdict, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        verified(lambda task, text: verdict)(Task("t", (Message("user", "?"),)), "")


class Odd:
    """A game of one turn that says what it is told to say."""

    name, max_turns, max_turn_length = "odd", 1, None

    def __init__(self, part: float, score: Score | None) -> None:
        self.part, self.outcome = part, score

    async def start(self, task: Task, seed: str) -> Odd:
        self.opening = task.prompt
        return self

    async def step(self, message: Message) -> Reply:
        return Reply(done=True, parts={"part": self.part})

    async def score(self) -> Score | None:
        return self.outcome

    async def close(self) -> None:
        self.opening = ()


async def waits(task: Task, rollouts: object) -> list[Score]:
    """A reward that gives way to others first."""
    await asyncio.sleep(0)
    return [Score(1.0)]


def test_a_game_or_a_reward_beyond_its_bounds_is_found() -> None:
    task = Task("t", (Message("user", "?"),))
    assert played(Odd(0.0, Score(1.0, True)))(task, "x") is True
    for odd in (
        Odd(float("nan"), Score(1.0, True)),
        Odd(0.0, None),
        Odd(0.0, Score(None, None)),
        Odd(0.0, Score(2.0, True)),
    ):
        with pytest.raises(ValueError, match="expected"):
            played(odd)(task, "x")
    with pytest.raises(TypeError, match="waits for something"):
        rewarded(waits, 0.0, 1.0)(task, "x")


def test_what_is_interrupted_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.json"
    fuzz(Progress(SEED, 10**9), 100, float("inf"), lambda progress: progress.write(path))
    found = fuzz(read_progress(path, SEED, 10**9), 150, float("inf"), lambda _: None)
    whole = fuzz(Progress(SEED, 10**9), 150, float("inf"), lambda _: None)
    assert (found.done, found.calls, found.correct, found.characters) == (
        whole.done, whole.calls, whole.correct, whole.characters,
    )  # fmt: skip


def test_a_judge_that_raises_or_hangs_is_found() -> None:
    judging = Fuzz(Progress(SEED, 10**9))

    def hangs(_task: object, said: str) -> bool:
        return any(len(said) * i == -1 for i in range(12_000_000))

    judging.judges = {"raises": lambda task, said: 1 // 0, "hangs": hangs}
    judging.one(0)
    assert [(each["judge"], each["what"].split(":")[0][:4]) for each in judging.progress.failures] == [
        ("raises", "Zero"), ("hangs", "took"),
    ]  # fmt: skip


def test_texts_are_functions_of_their_number() -> None:
    assert [text(SEED, i) for i in range(50)] == [text(SEED, i) for i in range(50)]
    assert len({text(SEED, i) for i in range(50)}) > 45


def test_the_command(tmp_path: Path) -> None:
    arguments = [
        "--texts",
        "20",
        "--latex",
        "10",
        "--progress",
        str(tmp_path / "p.json"),
        "--json",
        str(tmp_path / "j"),
    ]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "j").read_text())["done"] == 20
