"""What `run.db` promises: exact round trips, whole steps after any crash, readers beside the writer, clear errors."""

from __future__ import annotations

import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maieutic.errors import RunError
from maieutic.run.store import Store
from maieutic.types import Batch, Example, Finish, Group, Message, Rollout, Score, Span, Step, Task

TASK = Task("t/1", (Message("user", "2 + 2?"),), answer="4")


def rollout(sibling: int = 0, tokens: tuple[int, ...] = (5, 6, 7), prompt: int = 1, text: str = "") -> Rollout:
    chosen = tuple(place >= prompt for place in range(len(tokens)))
    return Rollout(TASK.id, tokens, chosen, tuple(-0.5 * c for c in chosen), Finish.STOP, text=text, sibling=sibling)


def step(index: int, rewards: tuple[float | None, ...] = (1.0, 0.0), **metrics: float) -> Step:
    rollouts = tuple(rollout(sibling) for sibling in range(len(rewards)))
    return Step(index, (Group(TASK, rollouts, tuple(Score(reward) for reward in rewards)),), (), None, metrics)


def batch(rows: int, width: int) -> Batch:
    wide, flags = torch.zeros(rows, width), torch.zeros(rows, width, dtype=torch.bool)
    numbers = torch.zeros(rows, dtype=torch.long)
    return Batch(wide.long(), flags, numbers, wide, wide[:, 0], wide, flags[:, 0], numbers, numbers)


# ---- round trips

texts = st.text(max_size=20)
floats32 = st.floats(width=32, allow_nan=False)
counts = st.integers(0, 2**31 - 1)


@st.composite
def rollouts_with_scores(draw: st.DrawFn, sibling: int) -> tuple[Rollout, Score]:
    length = draw(st.integers(0, 40))
    mask = [False] * min(length, 1) + draw(
        st.lists(st.booleans(), min_size=max(length - 1, 0), max_size=max(length - 1, 0))
    )
    made = Rollout(
        "", tuple(draw(st.lists(counts, min_size=length, max_size=length))), tuple(mask),
        tuple(draw(st.lists(floats32, min_size=length, max_size=length))), draw(st.sampled_from(Finish)), draw(texts),
        tuple(draw(st.lists(st.builds(Span, texts, counts, counts), max_size=3))), sibling, draw(counts),
        draw(st.floats(0, 2)), draw(texts),
    )  # fmt: skip
    score = Score(
        draw(st.none() | st.floats(allow_nan=False)), draw(st.none() | st.booleans()),
        draw(st.dictionaries(texts, st.floats(allow_nan=False), max_size=3)),
        tuple(draw(st.lists(st.tuples(counts, st.floats(allow_nan=False)), max_size=3))), draw(texts),
    )  # fmt: skip
    return made, score


@st.composite
def groups(draw: st.DrawFn, id: int) -> Group:
    task = Task(
        draw(texts), tuple(draw(st.lists(st.builds(Message, texts, texts), max_size=3))), draw(st.none() | texts)
    )
    pairs = [draw(rollouts_with_scores(sibling)) for sibling in range(draw(st.integers(0, 4)))]
    made = tuple(Rollout(task.id, *(getattr(r, name) for name in Rollout.__slots__[1:])) for r, _ in pairs)
    return Group(task, made, tuple(score for _, score in pairs), id)


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_what_is_written_is_read(data: st.DataObject) -> None:
    made = tuple(data.draw(groups(id)) for id in range(data.draw(st.integers(0, 3))))
    metrics = data.draw(st.dictionaries(texts, st.floats(), max_size=4))
    visits = data.draw(st.dictionaries(counts, texts, max_size=4))
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "run.db") as store:
        store.write_step("rl", Step(3, made, (), None, metrics), ledger=list(visits.items()), source={"at": [1, None]})
        stored = store.rollouts(limit=100)
        curves = {name: store.metrics("rl", name) for name in store.metric_names()}
        assert store.ledger("rl") == sorted(visits.items())
        assert store.source_state("rl", 3) == {"at": [1, None]}
    expected = [(g.id, g.task, r, s) for g in made for r, s in zip(g.rollouts, g.scores)]
    assert [(s.group, s.task, s.rollout, s.score) for s in stored] == expected
    assert {(s.stage, s.step) for s in stored} <= {("rl", 3)}
    assert curves.keys() == metrics.keys()
    for name, value in metrics.items():
        [(index, got)] = curves[name]
        assert index == 3
        assert got == value or (math.isnan(got) and math.isnan(value))


def test_advantages_find_their_rollout(tmp_path: Path) -> None:
    # Two groups of two. The select kept three rows in another order, and rewrote the last (a label was put in front):
    #   row 0 = group 1, sibling 1 (3 tokens) · row 1 = group 0, sibling 0 (4 tokens) · row 2 = group 1, sibling 0
    # Group 0's sibling 1 was not trained on. Rows are padded to 4: row 0 is cut back to its 3 tokens.
    zero = (rollout(0, (5, 6, 7, 8)), rollout(1))
    one = (rollout(0), rollout(1))
    scores = (Score(1.0), Score(0.0))
    rewritten = rollout(0, (9, 5, 6, 7), prompt=2)
    examples = (Example(one[1], 0.0, 1, 0), Example(zero[0], 1.0, 0, 1), Example(rewritten, 1.0, 1, 2))
    advantages = torch.tensor([[0.0, -1.5, -1.5, 0.0], [0.0, 0.25, 0.5, 0.75], [0.0, 0.0, 2.0, 2.0]])
    made = Step(0, (Group(TASK, zero, scores, 0), Group(TASK, one, scores, 1)), examples,
                batch(3, 4).with_(advantages=advantages), {})  # fmt: skip
    with Store(tmp_path / "run.db") as store:
        store.write_step("rl", made)
        got = {(each.group, each.rollout.sibling): each.advantages for each in store.rollouts()}
    assert got[0, 1] is None
    assert got[1, 0] is None
    assert got[1, 1] is not None
    assert got[1, 1].dtype == np.float32
    np.testing.assert_array_equal(got[1, 1], [0.0, -1.5, -1.5])
    np.testing.assert_array_equal(got[0, 0], [0.0, 0.25, 0.5, 0.75])


def test_a_batch_without_credit_stores_no_advantages(tmp_path: Path) -> None:
    one = rollout()
    made = Step(0, (Group(TASK, (one,), (Score(1.0),)),), (Example(one, 1.0, 0, 0),), batch(1, 3), {})
    with Store(tmp_path / "run.db") as store:
        store.write_step("sft", made)
        assert store.rollouts()[0].advantages is None


def test_advantages_that_do_not_fit_and_groups_that_share_an_id_are_refused(tmp_path: Path) -> None:
    group = step(0).groups[0]
    with Store(tmp_path / "run.db") as store:
        with pytest.raises(ValueError, match="2 rows of advantages for 0 examples"):
            store.write_step("rl", step(0), advantages=torch.zeros(2, 3))
        with pytest.raises(ValueError, match=r"group ids \[0, 0\] repeat"):
            store.write_step("rl", Step(0, (group, group), (), None, {}))
        assert store.last_step("rl") is None


def test_awkward_values(tmp_path: Path) -> None:
    # SQLite has no NaN: a NaN reward is unscorable. A lone surrogate cannot be UTF-8: it becomes "?".
    made = Step(0, (Group(TASK, (rollout(text="a\x00b\ud800c 𝟙"),), (Score(math.nan),)),), (), None, {"loss": math.inf})
    with Store(tmp_path / "run.db") as store:
        store.write_step("rl", made)
        [read] = store.rollouts()
        assert store.metrics("rl", "loss") == [(0, math.inf)]
    assert read.score.reward is None
    assert read.rollout.text == "a\x00b?c 𝟙"


def test_the_same_task_id_with_another_prompt_keeps_both_prompts(tmp_path: Path) -> None:
    again = Task(TASK.id, (Message("user", "Explain why 2 + 2 is 4."),), answer="4")
    with Store(tmp_path / "run.db") as store:
        for index, task in enumerate([TASK, again, TASK]):
            store.write_step("rl", Step(index, (Group(task, (rollout(),), (Score(1.0),)),), (), None, {}))
        assert [each.task for each in store.rollouts()] == [TASK, again, TASK]
    with sqlite3.connect(tmp_path / "run.db") as raw:
        assert raw.execute("SELECT count(*) FROM tasks").fetchone() == (2,)  # stored once each


# ---- reading


def test_pages(tmp_path: Path) -> None:
    # ids in the order written: step 0 → 1, 2, 3; step 1 → 4, 5, 6; the unscorable id 2 is never best or worst
    with Store(tmp_path / "run.db") as store:
        store.write_step("a", step(0, (0.5, None, 1.0), m=1.0))
        store.write_step("a", step(1, (1.0, 0.0, 0.5), m=2.0))
        store.write_step("b", step(0, (2.0,), m=3.0, n=4.0))

        def ids(found: list) -> list[int]:
            return [each.id for each in found]

        assert ids(store.rollouts()) == [1, 2, 3, 4, 5, 6, 7]
        assert ids(store.rollouts("a", 1)) == [4, 5, 6]
        assert ids(store.rollouts(step=0)) == [1, 2, 3, 7]
        assert ids(store.rollouts(limit=2, offset=3)) == [4, 5]
        assert ids(store.recent(3)) == [7, 6, 5]
        assert ids(store.recent(2, stage="a", offset=1)) == [5, 4]
        assert ids(store.best(3)) == [7, 4, 3]  # 2.0, then the two 1.0, the last written first
        assert ids(store.best(10, stage="a")) == [4, 3, 6, 1, 5]
        assert ids(store.best(2, stage="a", offset=3)) == [1, 5]
        assert ids(store.worst(3)) == [5, 1, 6]  # 0.0, then the two 0.5, the first written first
        assert ids(store.worst(9, stage="a", step=0)) == [1, 3]
        assert store.rollout(7) is not None
        assert store.rollout(8) is None
        assert [store.count_rollouts(), store.count_rollouts("a"), store.count_rollouts("a", 1)] == [7, 6, 3]

        assert store.stages() == ["a", "b"]
        assert store.metric_names() == ["m", "n"]
        assert store.metric_names("a") == ["m"]
        assert store.metrics("a", "m") == [(0, 1.0), (1, 2.0)]
        assert store.metrics(None, "m") == [(0, 1.0), (1, 2.0), (0, 3.0)]
        assert store.step_metrics("b", 0) == {"m": 3.0, "n": 4.0}
        assert [each.step for each in store.steps("a")] == [0, 1]
        assert (store.last_step("a"), store.last_step("c")) == (1, None)


def test_events_and_evaluations(tmp_path: Path) -> None:
    with Store(tmp_path / "run.db") as store:
        store.write_event("rl", 0, "skipped", "no group carried a signal")
        store.write_event("rl", 4, "reward", "judge failed", {"count": 3})
        store.write_evaluation("rl", 0, "gsm8k", {"pass@1": 0.25})
        store.write_evaluation("rl", 4, "gsm8k", {"pass@1": 0.5})
        store.write_evaluation("rl", 4, "gsm8k", {"pass@1": 0.75})  # made again after a resume
        assert [(e.step, e.kind, e.data) for e in store.events()] == [(4, "reward", {"count": 3}), (0, "skipped", {})]
        assert store.events("sft") == []
        assert store.evaluation("rl", "gsm8k") == {"pass@1": 0.75}
        assert store.evaluation("rl", "svamp") is None
        assert [(e.step, e.result["pass@1"]) for e in store.evaluations()] == [(0, 0.25), (4, 0.75)]


def test_rewind_forgets_what_came_after(tmp_path: Path) -> None:
    with Store(tmp_path / "run.db") as store:
        for stage in ("sft", "rl", "distil"):
            for index in range(4):
                store.write_step(stage, step(index, m=1.0), ledger=[(index, TASK.id)])
                store.write_event(stage, index, "k", "m")
                store.write_evaluation(stage, index, "e", {})
        store.rewind("rl", 1, later=["distil"])
        assert store.stages() == ["sft", "rl"]
        assert (store.last_step("sft"), store.last_step("rl"), store.last_step("distil")) == (3, 1, None)
        assert (store.count_rollouts("sft"), store.count_rollouts("rl"), store.count_rollouts("distil")) == (8, 4, 0)
        assert [len(store.ledger(stage)) for stage in ("sft", "rl", "distil")] == [4, 2, 0]
        assert [len(store.events(stage)) for stage in ("sft", "rl", "distil")] == [4, 2, 0]
        assert [len(store.evaluations(stage)) for stage in ("sft", "rl", "distil")] == [4, 2, 0]
        store.write_step("rl", step(2), ledger=[(2, TASK.id)])  # and it goes on from there
        store.rewind("rl", -1)
        assert store.stages() == ["sft"]


# ---- exactly once, whole or not at all


def test_a_visit_or_a_step_is_never_counted_twice(tmp_path: Path) -> None:
    with Store(tmp_path / "run.db") as store:
        store.write_step("rl", step(0, m=1.0), ledger=[(0, "a"), (1, "b")])
        with pytest.raises(RunError, match=r"ledger\.stage, ledger\.visit.*rewind"):
            store.write_step("rl", step(1, m=1.0), ledger=[(2, "c"), (1, "b")])
        with pytest.raises(RunError, match=r"steps\.stage, steps\.step.*rewind"):
            store.write_step("rl", step(0, m=1.0))
        store.write_step("sft", step(0), ledger=[(0, "a")])  # another stage counts for itself
        # nothing of the refused steps is there
        assert store.last_step("rl") == 0
        assert store.metrics("rl", "m") == [(0, 1.0)]
        assert store.ledger("rl") == [(0, "a"), (1, "b")]
        assert store.count_rollouts("rl") == 2


#: Appends whole steps (2 metrics, 8 rollouts of 2 groups, 2 visits) to the store at argv[1] until step argv[2], and
#: says so after the first. It reads where the store ends, as a resumed run does.
WRITER = """
import sys
from maieutic.errors import RunError
from maieutic.run.store import Store
from maieutic.types import *
tokens = tuple(range(300))
def group(index, id):
    task = Task(f"t/{index}/{id}", (Message("user", "q" * 200),), "4")
    mask, logprobs = (False,) + (True,) * 299, (0.0,) + (-0.5,) * 299
    made = tuple(Rollout(task.id, tokens, mask, logprobs, Finish.STOP, text=str(index), sibling=sibling)
                 for sibling in range(4))
    return Group(task, made, (Score(1.0),) * 4, id)
def write(store, index):
    made = Step(index, (group(index, 0), group(index, 1)), (), None, {"a": float(index), "b": 0.0})
    store.write_step("rl", made, ledger=[(2 * index, "x"), (2 * index + 1, "y")], source={"cursor": 2 * index + 2})
"""
LOOP = """
with Store(sys.argv[1]) as store:
    first = -1 if store.last_step("rl") is None else store.last_step("rl")
    for index in range(first + 1, int(sys.argv[2])):
        write(store, index)
        if index == first + 1:
            print("writing", flush=True)
"""


def check_whole(store: Store, last: int) -> None:
    """Steps 0 … last are there whole, and nothing else is."""
    assert [each.step for each in store.steps("rl")] == list(range(last + 1))
    assert store.metrics("rl", "a") == [(index, float(index)) for index in range(last + 1)]
    assert len(store.metrics("rl", "b")) == last + 1
    assert [visit for visit, _ in store.ledger("rl")] == list(range(2 * last + 2))
    assert store.source_state("rl", last) == {"cursor": 2 * last + 2}
    assert store.count_rollouts() == 8 * (last + 1)
    assert all(store.count_rollouts("rl", index) == 8 for index in range(last + 1))
    assert {each.rollout.text for each in store.recent(8)} == {str(last)}


def test_killed_at_any_moment_the_store_holds_whole_steps(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    moments = random.Random(4)
    ends = []
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER + LOOP, path, "1000000"], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            time.sleep(moments.uniform(0.0, 0.1))
            writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        with Store(path) as store:
            store.check()
            last = store.last_step("rl")
            assert last is not None
            check_whole(store, last)
            ends.append(last)
    assert ends == sorted(set(ends))  # each of the six wrote and was killed in the middle of it


def test_a_reader_never_meets_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    Store(path).close()
    seen = []
    with subprocess.Popen([sys.executable, "-c", WRITER + LOOP, path, "300"], stdout=subprocess.DEVNULL) as writer:
        with Store.open_reader(path) as reader:
            while writer.poll() is None:
                last = reader.last_step("rl")
                if last is not None:
                    assert reader.count_rollouts("rl", last) == 8  # a step is seen whole or not yet
                    assert {each.rollout.text for each in reader.rollouts("rl", last)} == {str(last)}
                    seen.append(last)
            check_whole(reader, 299)
        assert writer.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 5  # it did read while the writer wrote


def test_threads_may_share_a_store(tmp_path: Path) -> None:
    with Store(tmp_path / "run.db") as store:
        failures = []

        def tell(name: str) -> None:
            try:
                for index in range(30):
                    store.write_event(name, index, "k", "m")
            except RunError as error:
                failures.append(error)

        threads = [threading.Thread(target=tell, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for index in range(30):
            store.write_step("rl", step(index))
            assert len(store.rollouts("rl", index)) == 2
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(store.events()) == 60


# ---- what goes wrong

FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
index = 0
try:
    while True:
        write(store, index)
        index += 1
except RunError as error:
    print(error)
assert store.last_step("rl") == index - 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
write(store, index)
print(index)
"""


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    # No file may grow beyond 400 kB: the system then refuses a write as it does on a full disk. Room is made again.
    ran = subprocess.run(
        [sys.executable, "-c", WRITER + FULL_DISK, tmp_path / "run.db"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    told, last = ran.stdout.splitlines()
    assert "is full" in told
    assert "--resume" in told
    assert f"write step {last} of stage 'rl'" in told
    assert int(last) > 3
    with Store(tmp_path / "run.db") as store:
        check_whole(store, int(last))


def test_a_damaged_store_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with Store(path) as store:
        for index in range(40):
            store.write_step("rl", step(index, (1.0,) * 20))
    size = path.stat().st_size
    with path.open("r+b") as file:  # a disk that lost the middle half
        file.seek(size // 4)
        file.write(os.urandom(size // 2))
    with pytest.raises(RunError, match=r"damaged.*backup"):
        Store(path)
    path.write_bytes(b"not a database at all, but long enough to have a header" * 100)
    with pytest.raises(RunError, match=r"damaged.*--run"):
        Store.open_reader(path)


def test_foreign_newer_and_missing_files_are_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "foreign.db") as raw:
        raw.execute("CREATE TABLE recipes(name)")
    with pytest.raises(RunError, match=r"not a run's database.*recipes"):
        Store(tmp_path / "foreign.db")
    Store(tmp_path / "newer.db").close()
    with sqlite3.connect(tmp_path / "newer.db") as raw:
        raw.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
        raw.execute("UPDATE meta SET value = '7.5.0' WHERE key = 'maieutic'")
    for readonly in (False, True):
        with pytest.raises(RunError, match=r"schema 99, written by maieutic 7\.5\.0.*Upgrade"):
            Store(tmp_path / "newer.db", readonly=readonly)
    with pytest.raises(RunError, match="no run database at"):
        Store.open_reader(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(RunError, match="check the run's name"):
        Store(tmp_path / "no" / "such" / "folder.db")


def test_a_reader_writes_nothing_and_a_second_writer_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with Store(path) as store, Store.open_reader(path) as reader, Store(path, patience=0.05) as second:
        with pytest.raises(RunError, match="reading only"):
            reader.write_event("rl", 0, "k", "m")
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunError, match="only one may write"):
            second.write_step("rl", step(0))
        holder.execute("ROLLBACK")
        holder.close()
        store.write_step("rl", step(0))
        assert reader.last_step("rl") == 0


def test_an_archived_run_can_be_read(tmp_path: Path) -> None:
    # A folder that may not be written, seen by a user who is not root (to whom nothing is forbidden).
    script = f"{WRITER}\nimport os\nif os.getuid() == 0: os.setuid(65534)\n" + (
        "with Store.open_reader(sys.argv[1]) as store: print(store.last_step('rl'), store.count_rollouts())"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.db"
        with Store(path) as store:
            store.write_step("rl", step(0))
        os.chmod(path, 0o444)
        os.chmod(folder, 0o555)
        ran = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
        os.chmod(folder, 0o755)
        assert [each.name for each in Path(folder).iterdir()] == ["run.db"]
    assert ran.stdout == "0 2\n", ran.stderr
