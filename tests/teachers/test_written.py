"""Solutions that a teacher writes: which are kept, what is counted, and that a student learns from the file."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.cli import main
from maieutic.endpoint import Bill, Outcome, Reply, ScriptedRespondent
from maieutic.errors import ConfigError, DataError, ModelError
from maieutic.models.causal import load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.run.recording import write_solutions
from maieutic.run.runner import Interrupted
from maieutic.run.tasksets import named_taskset
from maieutic.sources import Recorded
from maieutic.tasks.arithmetic import arithmetic
from maieutic.teachers.written import Counts, Writer
from maieutic.train import train

TASKS = arithmetic(difficulty=1)


def scripted(*texts):
    """Says the first text to the first sample of each task, and so on."""
    return ScriptedRespondent(lambda messages, sample: texts[sample])


def solved(messages, sample):
    """The worked solution of whichever task is asked, twice the same and once wrong."""
    task = next(task for task in (TASKS[i] for i in range(40)) if task.prompt == tuple(messages))
    return "# 999999" if sample == 2 else task.meta["solution"]


def test_which_are_kept():
    task = TASKS[0]
    right, other = task.meta["solution"], f"well ; {task.meta['solution']}"
    texts = (right, "# 999999", f" {right}\n", other, Reply(Outcome.CUT, right), Reply(Outcome.TIMED_OUT, note="slow"))
    found = asyncio.run(Writer(scripted(*texts), TASKS, samples=6)(task))
    assert found.texts == (right, other)
    assert found.counts == Counts(failed=1, cut=1, wrong=1, again=1, kept=2)
    one = asyncio.run(Writer(scripted(*texts), TASKS, samples=6, most=1)(task))
    assert (one.texts, one.counts.beyond) == ((right,), 1)
    unfiltered = asyncio.run(Writer(scripted(*texts), TASKS, samples=6, right_only=False)(task))
    assert unfiltered.texts == (right, "# 999999", other)
    assert found.bill.requests == 6
    assert found.rows("them")[1] == {
        "id": f"{task.id}#1", "prompt": [{"role": m.role, "content": m.content} for m in task.prompt],
        "answer": task.answer, "solution": other, "teacher": "them",
    }  # fmt: skip


def test_a_teacher_that_refuses_stops_it():
    refusing = scripted(Reply(Outcome.REFUSED, note="HTTP 401"), "# 1")
    with pytest.raises(ModelError, match=r"scripted could not be asked for task .*refused: HTTP 401"):
        asyncio.run(Writer(refusing, TASKS, samples=2)(TASKS[0]))


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"most": 0}, {"max_tokens": 0}, {"temperature": -1.0}])
def test_numbers_that_cannot_be_meant(wrong):
    with pytest.raises(ConfigError, match="expected at least 1 of each"):
        Writer(scripted("a"), TASKS, **wrong)
    with pytest.raises(ConfigError, match="4 samples at temperature 0"):
        Writer(scripted("a"), TASKS, temperature=0.0)


def test_it_stops_and_goes_on_to_the_same_bytes(tmp_path):
    def writer():
        return Writer(ScriptedRespondent(solved), TASKS, samples=3)

    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    told = write_solutions(writer(), whole, {"a": 1}, limit=40)
    assert (told["kept"], told["wrong"], told["again"], told["solved"]) == (40, 40, 40, 40)
    with pytest.raises(Interrupted, match="stopped after 32 of 40"):
        write_solutions(writer(), parts, {"a": 1}, limit=40, stop=lambda: True)
    with parts.open("a") as file:
        file.write('{"half a row')  # killed while the next ones were written
    again = writer()
    assert write_solutions(again, parts, {"a": 1}, limit=40, resume=True) == {**told, "file": str(parts)}
    assert parts.read_bytes() == whole.read_bytes()
    assert len(again.teacher.asked) == 3 * 8
    with pytest.raises(ConfigError, match="is there already"):
        write_solutions(writer(), parts, {"a": 1}, limit=40)
    with pytest.raises(ConfigError, match=r"other settings.*'a': \(1, 2\)"):
        write_solutions(writer(), parts, {"a": 2}, limit=40, resume=True)
    (tmp_path / "mine.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match="was not begun by `maieutic teacher write`"):
        write_solutions(writer(), tmp_path / "mine.jsonl", {}, resume=True)
    with pytest.raises(DataError, match="nothing was kept"):
        write_solutions(Writer(scripted("# 999999"), TASKS, samples=1), tmp_path / "none.jsonl", {}, limit=2)


def test_a_student_of_another_vocabulary_learns_from_the_file(tmp_path):
    """The bill is that of the words; the student has never seen the teacher's tokens."""
    told = write_solutions(Writer(ScriptedRespondent(solved), TASKS, samples=1), tmp_path / "s.jsonl", {}, limit=32)
    assert Bill(**told["bill"]).requests == 32
    shown = named_taskset("file", {"path": str(tmp_path / "s.jsonl")})
    assert len(shown) == 32
    words = [f"{shown[i].prompt[-1].content} {shown[i].meta['solution']}" for i in range(32)]
    spec = SmallModel(layers=1, width=32, heads=2, kv_heads=1, context=128)
    student = load_causal(build_small(tmp_path / "student", spec, words, tokenizer="bpe", vocabulary_size=300))
    policy = LocalBackend().policy(student, Optimiser(learning_rate=1e-2))
    from maieutic.algorithms import sft

    losses = [s.metrics["loss"] for s in train(Recorded(shown, policy.chat, batch=16), policy, sft(), steps=12)]
    assert losses[-1] < 0.6 * losses[0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An untrained model writes; all is kept that ends, and the file is one of tasks."""
    words = [" ".join([*(m.content for m in TASKS[i].prompt), TASKS[i].meta["solution"]]) for i in range(60)]
    spec = SmallModel(layers=1, width=32, heads=2, kv_heads=1, context=128)
    model = build_small(tmp_path / "teacher", spec, words, seed=2)
    out = tmp_path / "solutions.jsonl"
    given = ["teacher", "write", str(model), "arithmetic", "--set", "difficulty=1", "--out", str(out), "--limit", "6"]
    assert main([*given, "--keep", "all", "--samples", "8", "--max-tokens", "60", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == told["kept"] > 0
    assert told["kept"] + told["cut"] + told["again"] + told["failed"] == 48
    assert len({row["id"] for row in rows}) == len(rows)
    assert main([*given, "--keep", "best"]) == 2
    assert main(given[:4]) == 2
    assert main(["teacher", "record", str(model), "arithmetic", "--url", "http://h/v1", "--out", str(tmp_path)]) == 2
