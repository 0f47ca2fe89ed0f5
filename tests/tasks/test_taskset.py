"""Cutting, shuffling and mixing tasksets, and making them by name."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys

import pytest

from maieutic.calculator import Calculator
from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Taskset
from maieutic.tasks import TASKSETS, Tasks, arithmetic, make_taskset, mixture, number_after_marker, shuffled, take
from maieutic.types import Message, Task, Verdict


def letters(name: str, size: int, answer: str = "1", **options: object) -> Tasks:
    items = [Task(f"{name}/{i}", (Message("user", name),), answer, {"position": i}) for i in range(size)]
    return Tasks(name, items, number_after_marker, **options)


def ids(tasks: Taskset) -> list[str]:
    return [tasks[i].id for i in range(len(tasks))]


def test_take_slices() -> None:
    assert ids(take(letters("a", 10), 2, 5)) == ["a/2", "a/3", "a/4"]
    assert ids(take(letters("a", 10), 8)) == ["a/8", "a/9"]
    assert ids(take(take(letters("a", 10), 2), -2)) == ["a/8", "a/9"]
    with pytest.raises(ConfigError, match="it has 10"):
        take(letters("a", 10), 10)


def test_items_slice_lazily() -> None:
    items = arithmetic(size=10**9).items[5 : 10**8]
    assert len(items) == 10**8 - 5
    assert items[1:3][0].id == "arithmetic/2/train/0/6"


def test_shuffled_is_a_permutation_that_depends_on_the_seed_alone() -> None:
    tasks = letters("a", 100)
    once, again, other = shuffled(tasks, 0), shuffled(tasks, 0), shuffled(tasks, 1)
    assert ids(once) == ids(again) != ids(other)
    assert sorted(ids(once)) == sorted(ids(tasks))
    assert ids(once) != ids(tasks)


def test_mixture_has_exact_shares_and_unique_ids() -> None:
    # 3 : 1 of 10 tasks is 7.5 and 2.5: both remainders are .5, so the first gets the odd one: 8 and 2.
    mixed = mixture({letters("a", 50): 3, letters("b", 50): 1}, seed=0, size=10)
    drawn = ids(mixed)
    assert sum(i.startswith("a/") for i in drawn) == 8
    assert len(set(drawn)) == 10
    assert drawn == ids(mixture({letters("a", 50): 3, letters("b", 50): 1}, seed=0, size=10))
    assert drawn != ids(mixture({letters("a", 50): 3, letters("b", 50): 1}, seed=1, size=10))


def test_mixture_of_largest_size() -> None:
    # a : b = 3 : 1 with 30 and 100 tasks: a allows 30 * 4 / 3 = 40, b allows 400; so 40, of which 10 are b.
    mixed = mixture({letters("a", 30): 3, letters("b", 100): 1}, seed=0)
    assert len(mixed) == 40
    assert sum(i.startswith("a/") for i in ids(mixed)) == 30


def test_a_mixture_verifies_each_task_as_its_own_taskset_does_even_when_nested() -> None:
    def never(task: Task, text: str) -> Verdict:
        assert "position" in task.meta
        return Verdict(False, None, "never")

    picky = Tasks("picky", letters("picky", 5).items, never)
    outer = mixture({mixture({letters("a", 5): 1, picky: 1}, seed=0, name="inner"): 1, letters("c", 10): 1}, seed=0)
    correct = {task.id: outer.verifier(task, "# 1").correct for task in outer}
    assert len(correct) == 20
    assert {i for i, right in correct.items() if not right} == {f"inner/picky/{i}" for i in range(5)}


@pytest.mark.parametrize(
    ("weights", "size", "message"),
    [
        ({}, None, "no tasksets"),
        ({letters("a", 5): 0}, None, "got weight 0 for 'a'"),
        ({letters("a", 5): float("nan")}, None, "got weight nan"),
        ({letters("a", 5): 1, letters("a", 5): 1}, None, "expected different names"),
        ({letters("a", 5): 1, letters("b", 5, tool=Calculator()): 1}, None, "different tools"),
        ({letters("a", 5): 1, letters("b", 9): 1}, 12, "needs 6 of 'a', which has 5; give size <= 10"),
    ],
)
def test_impossible_mixtures(weights: dict, size: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mixture(weights, seed=0, size=size)


def test_orders_are_the_same_in_another_process() -> None:
    program = (
        "from maieutic.tasks import arithmetic, mixture, shuffled\n"
        "m = mixture({arithmetic(size=50): 1, arithmetic(size=50, difficulty=3): 2}, seed=5, size=30)\n"
        "print([t.id for t in shuffled(m, 3)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    mixed = mixture({arithmetic(size=50): 1, arithmetic(size=50, difficulty=3): 2}, seed=5, size=30)
    assert {output.decode().strip() for output in outputs} == {str([t.id for t in shuffled(mixed, 3)])}


def test_tasksets_cross_processes() -> None:
    mixed = mixture({arithmetic(size=9): 1, arithmetic(size=9, difficulty=3): 1}, seed=0)
    copy = pickle.loads(pickle.dumps(mixed))
    assert list(copy) == list(mixed)


def test_make_taskset() -> None:
    made = make_taskset("arithmetic", split="test", size=3)
    assert isinstance(made, Taskset)
    assert ids(made) == [f"arithmetic/2/test/0/{i}" for i in range(3)]
    with pytest.raises(UnknownName, match="did you mean 'arithmetic'"):
        make_taskset("arithmetics")
    with pytest.raises(ConfigError, match="no option 'dificulty'; did you mean 'difficulty'"):
        make_taskset("arithmetic", dificulty=3)
    with pytest.raises(ConfigError, match="'svamp' needs path"):
        make_taskset("svamp")


@pytest.mark.parametrize("name", TASKSETS)
def test_every_factory_can_be_listed_and_given_a_verifier_and_a_tool(name: str) -> None:
    first, *_ = (inspect.getdoc(TASKSETS[name]) or "").splitlines()
    assert 20 < len(first) <= 120
    assert {"verifier", "tool"} <= set(inspect.signature(TASKSETS[name]).parameters)


def test_tasks_need_no_torch() -> None:
    program = (
        "import sys, maieutic.tasks, maieutic.environments.tools\n"
        "print(sorted({'torch', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"
