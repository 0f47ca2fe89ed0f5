"""Times of steps: as metrics by hand, in the store of a run, and after a stop; they change nothing else."""

from __future__ import annotations

import pytest
import torch

from maieutic.clock import Reading, listening, phase
from maieutic.config import Config, parse_config
from maieutic.run.directory import RunDirectory
from maieutic.run.runner import Interrupted, Runner, Silent, config_text, resume_or_begin
from maieutic.run.store import Store
from maieutic.run.timing import PEAK, TIMES, Times, finisher, machine_peak, time_metrics
from maieutic.types import Step

CPU = torch.device("cpu")


def test_the_metrics_of_a_reading():
    heard = Reading(
        total=10.0,
        seconds={"sampling": 0.5, "sampling/decode": 4.0, "sampling/prefill": 0.5, "reward": 1.0, "update": 3.0},
        busy={"reward": 4.0},
        tokens={"sampling/decode": 800.0, "sampling/prefill": 100.0, "update": 900.0},
        operations={"sampling/decode": 1600.0, "sampling/prefill": 200.0, "update": 5400.0},
    )
    found = time_metrics(heard, peak=2000.0, written=850.0)
    assert found == {
        "time/step": 10.0, "time/sampling": 5.0, "time/sampling/decode": 4.0, "time/sampling/prefill": 0.5,
        "time/reward": 1.0, "time/update": 3.0, "time/other": 1.0,
        # 4 s of rewards, of which one was waited for
        "beside/reward": 4.0, "beside/reward_hidden": 0.75,
        "rate/sampling_tokens_per_second": 170.0,
        "rate/decode_tokens_per_second": 200.0, "rate/decode_share_of_peak": 0.2,
        "rate/prefill_tokens_per_second": 200.0, "rate/prefill_share_of_peak": 0.2,
        "rate/update_tokens_per_second": 300.0, "rate/update_share_of_peak": 0.9,
        # 7,200 operations in 10 s
        "rate/flops_per_second": 720.0, "rate/share_of_peak": 0.36,
    }  # fmt: skip
    assert all(name.startswith(TIMES) for name in found)


def test_what_follows_the_last_step_is_part_of_it():
    now = [0.0]
    with listening(clock=lambda: now[0]) as heard:
        times = Times(heard, peak=1.0)
        with phase("update"):
            now[0] += 2.0
        made = times.add(Step(0, (), (), None, {"loss": 0.5}))
        with phase("store"):
            now[0] += 1.0
        with phase("update"):
            now[0] += 4.0
        second = times.add(Step(1, (), (), None, {}))
        with phase("checkpoint"):
            now[0] += 8.0
        last = times.last()
    assert (made.metrics["time/step"], made.metrics["loss"]) == (2.0, 0.5)
    assert (second.metrics["time/step"], second.metrics["time/store"]) == (5.0, 1.0)
    assert (last["time/step"], last["time/checkpoint"], last["time/update"]) == (13.0, 8.0, 4.0)


def test_the_machine_is_measured_once(tmp_path):
    with Store(tmp_path / "run.db") as store:
        first = machine_peak(store, "s", CPU)
        assert first > 0
        assert machine_peak(store, "s", CPU) == first
        assert [event.kind for event in store.events()] == [PEAK]
        # with other threads it is another machine
        store.write_event("s", -1, PEAK, "", {**store.events()[0].data, "threads": 99, "flops_per_second": 7})
        assert machine_peak(store, "s", CPU) == first


def test_there_is_nothing_to_wait_for_on_a_cpu():
    assert finisher(CPU, exact=True) is None
    assert finisher(torch.device("cuda"), exact=False) is None
    assert finisher(torch.device("cuda"), exact=True) is not None


def config() -> Config:
    """A small run with all phases: a reference, rewards, validation, checkpoints, an evaluation."""
    arithmetic = {"taskset": "arithmetic", "difficulty": 1, "size": 16}
    return parse_config(
        {
            "model": {"small": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "context": 96}},
            "tasks": {"train": arithmetic, "dev": {**arithmetic, "split": "validation", "limit": 2},
                      "test": {**arithmetic, "split": "test", "limit": 2}},
            "threads": 1,
            "stages": [
                {"name": "s", "algorithm": "grpo", "options": {"beta": 0.1}, "steps": 4, "prompts": 2,
                 "num_generations": 2, "max_completion_length": 5, "checkpoint_every": 2,
                 "optimiser": {"learning_rate": 1e-3}, "validation": {"tasks": "dev", "every": 2}}
            ],
            "evaluation": {"samples": 1, "max_completion_length": 5},
        }
    )  # fmt: skip


#: What every step of it tells.
TOLD = {
    "time/sampling", "time/sampling/decode", "time/sampling/prefill", "time/reward", "time/select", "time/pack",
    "time/annotate/ref_logprobs", "time/credit", "time/update/forward", "time/update/backward",
    "time/update/optimiser", "time/publish", "time/other", "beside/reward", "beside/reward_hidden",
    "rate/sampling_tokens_per_second", "rate/annotate_share_of_peak", "rate/update_tokens_per_second",
    "rate/flops_per_second", "rate/share_of_peak",
}  # fmt: skip
PARTS = ("decode", "prefill")


class StopAfter(Silent):
    """Asks for a stop after so many steps."""

    def __init__(self, count: int) -> None:
        self.count, self.runner = count, None

    def step(self, stage: str, step: Step, seconds: float) -> None:
        if step.index + 1 == self.count:
            self.runner.stop.set()


def test_a_run_tells_its_times_and_a_stopped_one_ends_the_same(tmp_path):
    made = config()
    resume_or_begin(made, tmp_path / "whole", resume=False)
    watch = StopAfter(3)
    with RunDirectory.create(tmp_path / "broken", config_text(made, tmp_path, resume=False), resume=False) as directory:
        watch.runner = Runner(made, directory, watch)
        with pytest.raises(Interrupted):
            watch.runner.run()
    resume_or_begin(made, tmp_path / "broken", resume=True)
    results = []
    for name in ("whole", "broken"):
        with Store.open_reader(tmp_path / name / "run.db") as store:
            steps = [store.step_metrics("s", step) for step in range(4)]
            assert len([event for event in store.events() if event.kind == PEAK]) == 1
        results.append([{k: v for k, v in metrics.items() if not k.startswith(TIMES)} for metrics in steps])
        for metrics in steps:
            assert metrics.keys() >= TOLD
            # the phases of the first level are the step
            first = [v for k, v in metrics.items() if k.startswith("time/") and k.count("/") == 1 and k != "time/step"]
            assert sum(first) == pytest.approx(metrics["time/step"])
            # a row's first token comes from the prefill and its last one is not read; a prompt is read once for two
            fed, read = (metrics[f"rate/{p}_tokens_per_second"] * metrics[f"time/sampling/{p}"] for p in PARTS)
            assert fed == pytest.approx(metrics["cost/generated_tokens"] - 4)
            assert read == pytest.approx(metrics["cost/prompt_tokens"] / 2)
        # what follows a step is told with the next one, and with the last one where none does
        assert ["time/store" in metrics for metrics in steps] == [False, True, True, True]
        checkpoints = ["time/checkpoint" in metrics for metrics in steps]
        assert checkpoints == [False, False, True, True]
        assert ["time/validation/decode" in metrics for metrics in steps] == checkpoints
        assert "time/evaluation/test" in steps[-1]
    assert results[0] == results[1]
