"""Answers on disk: asked once, whoever asks, and whatever is killed in between."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from maieutic.endpoint import Bill, Outcome, Remembered, Reply, ScriptedRespondent
from maieutic.errors import DataError
from maieutic.types import Message


def counting(name="scripted"):
    """A judge that never says the same twice."""
    said = []

    def script(messages, sample):
        said.append(messages)
        return f"{messages[-1].content}, {sample}: number {len(said)}"

    return ScriptedRespondent(script, name)


def ask(respondent, text="a", **settings):
    return asyncio.run(respondent.chat([Message("user", text)], **settings))


def test_what_was_asked_is_not_asked_again(tmp_path):
    inner = counting()
    remembered = Remembered(inner, tmp_path / "deep" / "answers.db")
    first, again = ask(remembered), ask(remembered)
    assert first.text == again.text == "a, 0: number 1"
    assert (first.bill.requests, again.bill) == (1, Bill(cached=1))
    assert remembered.counts() == (1, 1)
    other = Remembered(counting(), tmp_path / "deep" / "answers.db")  # another process would see the same
    assert ask(other).text == first.text
    assert other.respondent.asked == []
    assert other.counts() == (1, 2)


def test_anything_that_changes_the_answer_changes_the_key(tmp_path):
    remembered = Remembered(counting(), tmp_path / "a.db")
    asked = [
        {}, {"text": "b"}, {"temperature": 0.7}, {"temperature": 0.7, "sample": 1}, {"max_tokens": 5},
        {"schema": {"type": "object"}},
    ]  # fmt: skip
    assert len({ask(remembered, **each).text for each in asked}) == len(asked)
    renamed = Remembered(counting("another model"), tmp_path / "a.db")
    assert ask(renamed).bill.requests == 1
    assert remembered.counts() == (len(asked) + 1, 0)


def test_the_same_question_by_several_at_once_is_asked_once(tmp_path):
    inner = counting()
    remembered = Remembered(inner, tmp_path / "a.db")

    async def four():
        return await asyncio.gather(*(remembered.chat([Message("user", "a")]) for _ in range(4)))

    replies = asyncio.run(four())
    assert {reply.text for reply in replies} == {"a, 0: number 1"}
    assert sorted(reply.bill.requests for reply in replies) == [0, 0, 0, 1]
    assert len(inner.asked) == 1


def test_one_who_gives_up_takes_nothing_from_those_who_wait(tmp_path):
    class Slow(ScriptedRespondent):
        async def chat(self, messages, **settings):
            await asyncio.sleep(0.2)
            return await super().chat(messages, **settings)

    remembered = Remembered(Slow(lambda messages, sample: "late"), tmp_path / "a.db")

    async def two():
        first, second = (asyncio.ensure_future(remembered.chat([Message("user", "a")])) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        return await second

    assert asyncio.run(two()).text == "late"


def test_failures_are_not_kept(tmp_path):
    outcomes = [Reply(Outcome.TIMED_OUT, note="slow"), "better"]
    remembered = Remembered(ScriptedRespondent(lambda messages, sample: outcomes.pop(0)), tmp_path / "a.db")
    assert ask(remembered).outcome is Outcome.TIMED_OUT
    assert ask(remembered).text == "better"
    assert remembered.counts() == (1, 0)


CHILD = """
import asyncio, sys
from maieutic.endpoint import Remembered, ScriptedRespondent
from maieutic.types import Message
who, path = sys.argv[1], sys.argv[2]
judge = Remembered(ScriptedRespondent(lambda messages, sample: f"{messages[0].content} by {who}"), path)
for i in range(int(sys.argv[3])):
    print(asyncio.run(judge.chat([Message("user", str(i))])).text, flush=True)
"""


def child(who, path, count):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, who, str(path), str(count)], stdout=subprocess.PIPE, text=True
    )


def test_processes_share_a_file_and_hear_the_same(tmp_path):
    path = tmp_path / "a.db"
    said = [each.communicate(timeout=200)[0].split("\n") for each in [child(who, path, 40) for who in "xy"]]
    assert said[0] == said[1]
    assert len(said[0]) == 41


def test_a_process_that_is_killed_leaves_every_answer_that_it_showed(tmp_path):
    path = tmp_path / "a.db"
    running = child("x", path, 100_000)
    shown = [running.stdout.readline().strip() for _ in range(20)]
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    running.stdout.close()
    after = Remembered(ScriptedRespondent(lambda messages, sample: "by another"), path)
    assert [ask(after, str(i)).text for i in range(20)] == shown


def test_a_file_that_is_no_memory_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("my notes, which are longer than a header of a hundred bytes " * 20)
    with pytest.raises(DataError, match="cannot be used as a memory of answers"):
        ask(Remembered(counting(), tmp_path / "notes.txt"))
    with pytest.raises(DataError, match="cannot be used"):
        ask(Remembered(counting(), tmp_path / "notes.txt" / "a.db"))


def test_a_file_that_breaks_while_it_is_used_is_named(tmp_path):
    remembered = Remembered(counting(), tmp_path / "a.db")
    ask(remembered)
    remembered.answers._open().execute("DROP TABLE answers")
    with pytest.raises(DataError, match=r"a\.db: cannot be used"):
        ask(remembered)


def test_a_disk_that_is_full_costs_the_memory_and_not_the_answer(tmp_path, caplog):
    """A file may have no more pages: SQLite then says what it says of a full disk."""
    remembered = Remembered(counting(), tmp_path / "a.db")
    ask(remembered)
    connection = remembered.answers._open()
    connection.execute("PRAGMA max_page_count = 1")
    texts = [ask(remembered, "x" * 5000 + str(i)).text[-8:] for i in range(3)]
    assert texts == ["number 2", "number 3", "number 4"]
    assert len([r for r in caplog.records if "cannot be kept" in r.message]) == 1
