"""A little of the fuzz: generated texts through every verifier, format reward and penalty, and through LaTeX."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the installed package

from benchmarks._fuzz_texts import text
from benchmarks.fuzz import Fuzz, Progress, fuzz, main, read_progress
from maieutic.rewards.penalties import PENALTIES
from maieutic.rewards.shaping import SHAPING

#: Another seed than the benchmark's own.
SEED = 7


def test_nothing_raises_and_nothing_takes_too_long() -> None:
    found = fuzz(Progress(SEED, latex=100), 600, float("inf"), lambda _: None)
    assert found.failures == []
    assert set(found.calls.values()) == {600, 6}  # and LaTeX, one in a hundred
    assert {f"penalty {name}" for name in {**SHAPING, **PENALTIES}} <= set(found.calls)
    assert found.correct["verifier strict"] > 0  # not all of it is garbage


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
