"""A stage that ends with what it has cost: when, after a kill too, and which budgets are refused."""

from __future__ import annotations

import logging

import pytest

from maieutic.config import StageConfig, parse_config, parse_table
from maieutic.errors import ConfigError
from maieutic.run.budget import MAX_IDLE_STEPS, Spending, planned_steps
from maieutic.run.build import make_stage_algorithm
from maieutic.run.directory import RunDirectory
from maieutic.run.runner import Interrupted, Runner, Silent, config_text, resume_or_begin
from maieutic.run.store import Store
from maieutic.types import Step


def stage(**told) -> StageConfig:
    return parse_table(StageConfig, {"name": "s", "algorithm": "rloo", **told}, "stage")


def steps(**told) -> int | None:
    made = stage(**told)
    return planned_steps(made, make_stage_algorithm(made), 1000)


def test_how_many_steps_a_budget_is():
    # 4 prompts × 8 rollouts are 32 samples a step: 100 samples are reached with the fourth
    assert steps(budget={"samples": 100}, prompts=4, num_generations=8) == 4
    assert steps(budget={"samples": 96}, prompts=4, num_generations=8) == 3
    # DAPO draws again for groups without a signal, and tokens depend on what is written: nobody knows
    assert steps(budget={"samples": 100}, algorithm="dapo") is None
    assert steps(budget={"trained_tokens": 100}) is None


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"algorithm": "sft", "budget": {"samples": 9}}, "sft samples nothing: it would never end"),
        ({"algorithm": "dapo", "budget": {"samples": 9}, "optimiser": {"schedule": "linear"}}, "drawn again"),
        ({"budget": {"flops": 9}, "optimiser": {"schedule": "cosine"}}, "differ in length"),
        ({"budget": {"samples": 9}, "steps": 2}, "exactly one of `steps`, `epochs` and `budget`"),
        ({"budget": {}}, "exactly one of samples, generated_tokens, trained_tokens, flops"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(told, said):
    with pytest.raises(ConfigError, match=said):
        steps(**told)


def step(index: int, trained: float) -> Step:
    return Step(index, (), (), None, {"cost/trained_tokens": trained})


def test_a_stage_ends_with_the_step_that_reaches_its_budget(tmp_path):
    made = stage(budget={"trained_tokens": 100})
    with Store(tmp_path / "run.db") as store:
        spending = Spending(made, store, None)
        for index, trained in enumerate((40.0, 59.0)):
            done = spending.add(step(index, trained))
            store.write_step("s", done)
            assert not spending.ended(index + 1)
        assert done.metrics["budget/spent"] == 0.99
        again = Spending(made, store, None)  # after a kill: what was spent is in the store
        assert again.add(step(2, 2.0)).metrics["budget/spent"] == 1.01
        assert again.ended(3)


def test_a_stage_that_spends_nothing_any_more_ends_and_says_so(tmp_path, caplog):
    with Store(tmp_path / "run.db") as store, caplog.at_level(logging.WARNING):
        spending = Spending(stage(budget={"trained_tokens": 100}), store, None)
        spending.add(step(0, 25.0))
        for index in range(1, MAX_IDLE_STEPS + 1):
            assert not spending.ended(index)
            spending.add(step(index, 0.0))
        assert spending.ended(MAX_IDLE_STEPS + 1)
    assert "the stage ends with 25.0 % of it spent" in caplog.text


def config(tmp_path):
    """A small run whose one stage ends with a budget of tokens."""
    return parse_config(
        {
            "model": {"small": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "context": 96}},
            "tasks": {"train": {"taskset": "arithmetic", "difficulty": 1, "size": 16}},
            "threads": 1,
            "stages": [
                {"name": "s", "algorithm": "rloo", "budget": {"generated_tokens": 60}, "prompts": 2,
                 "num_generations": 2, "max_completion_length": 5, "optimiser": {"learning_rate": 1e-3},
                 "checkpoint_every": 2}
            ],
        }
    )  # fmt: skip


class StopAfter(Silent):
    """Asks for a stop after so many steps."""

    def __init__(self, count: int) -> None:
        self.count, self.runner = count, None

    def step(self, stage: str, step: Step, seconds: float) -> None:
        if step.index + 1 == self.count:
            self.runner.stop.set()


def test_a_stopped_stage_ends_where_an_unbroken_one_does(tmp_path):
    made = config(tmp_path)
    resume_or_begin(made, tmp_path / "whole", resume=False)
    watch = StopAfter(2)
    with RunDirectory.create(tmp_path / "broken", config_text(made, tmp_path, resume=False), resume=False) as directory:
        watch.runner = Runner(made, directory, watch)
        with pytest.raises(Interrupted):
            watch.runner.run()
    resume_or_begin(made, tmp_path / "broken", resume=True)
    curves = []
    for name in ("whole", "broken"):
        with Store.open_reader(tmp_path / name / "run.db") as store:
            curves.append([store.metrics("s", metric) for metric in ("cost/generated_tokens", "budget/spent", "loss")])
    assert curves[0] == curves[1]
    spent = [value for _, value in curves[0][1]]
    assert spent[-1] >= 1 > spent[-2]
    assert len(spent) > 2
