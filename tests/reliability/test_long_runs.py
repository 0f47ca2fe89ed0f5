"""A long run is read as fast as a short one: a page touches its own rows, found by an index, however many there are.

What SQLite does is counted in the operations of its virtual machine, some ten of which go to a row that is looked at.
"""

from __future__ import annotations

import math
import random
import re
import sqlite3
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from maieutic.report.curves import finite, moves, smoothed, thinned
from maieutic.report.plots import DRAWN, Series, lines
from maieutic.run.records import INSERT_ROLLOUT, TABLES
from maieutic.run.store import Store
from maieutic.types import Finish, Group, Message, Rollout, Score, Step, Task

SHORT, LONG, SIBLINGS = 40, 400, 4
NAMES = ("loss", "optim/grad_norm", "reward/mean")


class Watched(Store):
    """A store that tells what it asks of SQLite."""

    def operations(self, read: Callable[[], object]) -> int:
        """How many operations of SQLite's machine it takes."""
        count = 0

        def tick() -> int:
            nonlocal count
            count += 1
            return 0

        self._db.set_progress_handler(tick, 1)
        read()
        self._db.set_progress_handler(None, 0)
        return count

    def plans(self, read: Callable[[], object]) -> list[str]:
        """How SQLite carries out each of its queries."""
        asked: list[str] = []
        self._db.set_trace_callback(asked.append)
        read()
        self._db.set_trace_callback(None)
        words = ("SELECT", "DELETE", "WITH")
        told = [self._db.execute(f"EXPLAIN QUERY PLAN {q}").fetchall() for q in asked if q.startswith(words)]
        return [row["detail"] for rows in told for row in rows]


def step(index: int) -> Step:
    task = Task(f"t/{index % 7}", (Message("user", "2 + 2?"),), answer="4")
    rollouts = tuple(
        Rollout(task.id, (5, 6, 7), (False, True, True), (0.0, -0.5, -0.5), Finish.STOP, sibling=s)
        for s in range(SIBLINGS)
    )
    scores = tuple(Score((index * SIBLINGS + s) % 11 / 10) for s in range(SIBLINGS))
    return Step(index, (Group(task, rollouts, scores, id=index),), (), None, dict.fromkeys(NAMES, float(index)))


def write(folder: Path, steps: int) -> Watched:
    """Two stages of so many steps, the second one a step further."""
    folder.mkdir()
    store = Watched(folder / "run.db")
    for stage, count in (("sft", steps), ("rl", steps + 1)):
        for index in range(count):
            made = step(index)
            store.write_step(stage, made, ledger=[(index, made.groups[0].task.id)], source={"visits": index})
    return store


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with write(folder / "short", SHORT) as short, write(folder / "long", LONG) as long:
        yield short, long


#: What is read of a run however long it is, and in how many rows it is found.
PAGES: dict[str, Callable[[Store], object]] = {
    "metric_names": lambda s: s.metric_names("rl"),
    "step_metrics": lambda s: s.step_metrics("rl", 7),
    "last_step": lambda s: s.last_step("rl"),
    "source_state": lambda s: s.source_state("rl", 7),
    "best": lambda s: s.best(5),
    "best of a stage": lambda s: s.best(5, stage="rl"),
    "best of a step": lambda s: s.best(5, stage="rl", step=7),
    "worst": lambda s: s.worst(5),
    "worst of a stage": lambda s: s.worst(5, stage="sft"),
    "recent": lambda s: s.recent(5),
    "recent of a step": lambda s: s.recent(5, step=7),
    "rollouts": lambda s: s.rollouts(limit=5),
    "rollouts of a step": lambda s: s.rollouts("rl", 7),
    "a step's count": lambda s: s.count_rollouts("rl", 7),
    "rollout": lambda s: s.rollout(3),
    "events": lambda s: s.events("rl", limit=5),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_a_long_run_reads_no_more_rows(runs, name):
    short, long = (store.operations(lambda store=store: PAGES[name](store)) for store in runs)
    assert short > 0
    # ten times the steps: were they all looked at, it would be ten times the operations and not a tenth more
    assert long <= 1.1 * short + 10


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_found_in_an_index(runs, name):
    plans = runs[1].plans(lambda: PAGES[name](runs[1]))
    assert plans
    whole = [plan for plan in plans if plan in ("SCAN metrics", "SCAN ledger", "SCAN steps")]
    assert not whole
    # the first and the last rollouts are those at the ends of the table itself
    assert "SCAN rollouts" not in plans or name in ("recent", "rollouts")


def test_rewinding_looks_at_what_it_forgets(runs):
    plans = runs[1].plans(lambda: runs[1].rewind("rl", LONG))
    assert "SEARCH rollouts USING INDEX rollouts_by_step (step>?)" in plans
    assert "SEARCH metrics USING PRIMARY KEY (stage=? AND name=? AND step>?)" in plans


def test_names_and_metrics_are_those_that_were_written(runs):
    for store in runs:
        assert store.metric_names("rl") == store.metric_names() == sorted(NAMES)
        assert store.metric_names("nothing") == []
        assert store.step_metrics("rl", 7) == dict.fromkeys(NAMES, 7.0)
        assert store.step_metrics("rl", 10**6) == store.step_metrics("nothing", 7) == {}


def test_drawn_tells_which_of_some_tasks_were(runs):
    asked = {"t/0", "t/6", "t/7", 'no "such', "\ud800"}
    assert runs[0].drawn(asked) == {"t/0", "t/6"}
    assert runs[0].drawn([]) == set()


def test_seconds_are_added_up(tmp_path):
    with Store(tmp_path / "run.db") as store:
        for index in range(3):
            store.write_step("rl", step(index), seconds=1.5)
        assert store.seconds("rl") == 4.5 == sum(each.seconds for each in store.steps("rl"))
        assert store.seconds("nothing") == 0.0


def test_only_the_newest_state_of_a_source_is_kept(tmp_path):
    """One that holds something of every task would otherwise fill the disk, step after step."""
    with Store(tmp_path / "run.db") as store:
        for index in range(300):
            state = {"until": dict.fromkeys(map(str, range(1000)), index)}
            store.write_step("rl", Step(index, (), (), None, {}), source=state)
        assert store.source_state("rl", 299) == state
        assert [index for index in range(300) if store.source_state("rl", index) is not None] == [299]
    # 300 states of some 12 kB would be 3.6 MB
    assert (tmp_path / "run.db").stat().st_size < 300_000


def test_rewinding_forgets_the_same_rows_in_a_long_run(tmp_path):
    with write(tmp_path / "run", SHORT) as store:
        store.rewind("sft", 9, later=["rl"])
        assert store.stages() == ["sft"]
        assert store.last_step("sft") == 9
        assert store.count_rollouts() == 10 * SIBLINGS
        assert store.metric_names() == sorted(NAMES)
        assert [index for index, _ in store.metrics("sft", "loss")] == list(range(10))
        assert store.metrics("rl", "loss") == []


def test_a_run_of_the_first_version_is_read_and_gone_on_with(tmp_path):
    """Its tables, written without this class: every step has its source's state, and nothing else differs."""
    with sqlite3.connect(tmp_path / "run.db") as db:
        for statement in TABLES:
            db.execute(statement)
        db.executemany("INSERT INTO meta VALUES (?, ?)", [("schema", "1"), ("maieutic", "0.1.0")])
        db.execute("INSERT INTO tasks(digest, id, prompt, answer) VALUES (x'01', 't/0', '[]', '4')")
        for index in range(3):
            db.execute("INSERT INTO steps VALUES ('rl', ?, 0.0, 2.0, ?)", (index, f'{{"visits": {index}}}'))
            db.execute("INSERT INTO metrics VALUES ('rl', 'loss', ?, ?)", (index, None if index == 1 else 1.0))
            db.execute("INSERT INTO ledger VALUES ('rl', ?, ?, 't/0')", (index, index))
            row = (
                "rl",
                index,
                index,
                0,
                b"\x01",
                1.0,
                1,
                "stop",
                0,
                1.0,
                0,
                "",
                "",
                "",
                "{}",
                "[]",
                "[]",
                b"",
                b"",
                b"",
            )
            db.execute(INSERT_ROLLOUT, (*row, None))
    db.close()
    with Store(tmp_path / "run.db") as store:
        assert store.source_state("rl", 1) == {"visits": 1}
        assert store.metric_names("rl") == ["loss"]
        assert [index for index, _ in store.metrics("rl", "loss")] == [0, 1, 2]
        assert [math.isnan(value) for _, value in store.metrics("rl", "loss")] == [False, True, False]
        assert store.drawn(["t/0", "t/1"]) == {"t/0"}
        assert store.seconds("rl") == 6.0
        store.write_step("rl", step(3))
        store.rewind("rl", 1)
        assert store.count_rollouts() == 2


# ---- the curves of a long run


def test_a_plot_of_a_long_curve_is_made_of_few_points():
    """20,000 points, one of them far above the others: it is told, and 400 are drawn of each line."""
    points = [(i, 1.0 if i % 2 else 3.0) for i in range(20_000)]
    points[7777] = (7777, 50.0)
    text = str(lines("loss", [Series("loss", points)]))
    assert "loss from 3 to 1, lowest 1, highest 50" in text
    drawn = [found.split() for found in re.findall(r'<polyline points="([^"]*)"', text)]
    assert [len(each) for each in drawn] == [DRAWN, DRAWN]
    heights = [{place.partition(",")[2] for place in each} for each in drawn]
    assert len(heights[0]) == 2  # stretches of 50 have the mean 2, and one of them a little more
    assert len(text) < 100_000


def test_a_running_mean_is_of_the_neighbours_that_are_there():
    # of 3: (1 + 2) / 2 at the end, (1 + 2 + 6) / 3, (2 + 6 + 7) / 3, (6 + 7) / 2
    assert smoothed([(0, 1.0), (1, 2.0), (2, 6.0), (3, 7.0)], 3) == [(0, 1.5), (1, 3.0), (2, 5.0), (3, 6.5)]
    draw = random.Random(0)
    points = [(i, draw.gauss(0, 1)) for i in range(3000)]
    means = [value for _, value in smoothed(points, 201)]
    exact = [statistics.fmean(v for _, v in points[max(0, i - 100) : i + 101]) for i in range(3000)]
    assert means == pytest.approx(exact, abs=1e-12)


def test_what_moves_has_two_numbers():
    nan = math.nan
    assert moves([(0, nan), (1, 2.0), (2, 2.0), (3, 3.0)])
    for still in ([], [(0, nan)], [(0, 2.0), (1, nan), (2, 2.0)]):
        assert not moves(still)


def test_finite_leaves_out_what_is_no_number_and_thinned_takes_means():
    nan, inf = math.nan, math.inf
    assert finite([(0, 1.0), (1, nan), (2, -inf), (3, 4.0)]) == [(0, 1.0), (3, 4.0)]
    assert finite([(0, 1.0), (3, 4.0)]) == [(0, 1.0), (3, 4.0)]
    assert thinned([(i, float(i)) for i in range(5)], 2) == [(1, 0.5), (4, 3.0)]
