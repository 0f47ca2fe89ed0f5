"""Peak memory among the metrics of a step."""

from __future__ import annotations

import resource

import torch

from maieutic.config import parse_config
from maieutic.run.memory import PEAK_DEVICE, PEAK_RSS, peak_resident, with_memory
from maieutic.run.runner import resume_or_begin
from maieutic.run.store import Store
from maieutic.run.timing import TIMES
from maieutic.types import Step


def test_the_peak_is_that_of_the_system_and_never_falls():
    before = peak_resident()
    assert before == 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = torch.ones(before // 4 + (1 << 24))  # as much again as there was at the most, and 64 MiB
    step = with_memory(Step(0, (), (), None, {"loss": 1.0}), torch.device("cpu"))
    del held
    assert step.metrics[PEAK_RSS] >= before + (1 << 24)
    assert step.metrics["loss"] == 1.0
    assert PEAK_DEVICE not in step.metrics
    assert with_memory(step, torch.device("cpu")).metrics[PEAK_RSS] >= step.metrics[PEAK_RSS]


def test_every_step_of_a_run_has_its_peak_and_it_is_no_result(tmp_path):
    config = parse_config({
        "model": {"small": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "context": 128}},
        "tasks": {"train": {"taskset": "arithmetic", "difficulty": 1, "size": 8}},
        "stages": [{"algorithm": "sft", "steps": 2, "prompts": 2}],
    })  # fmt: skip
    resume_or_begin(config, tmp_path / "run", resume=False)
    with Store.open_reader(tmp_path / "run" / "run.db") as store:
        peaks = store.metrics("sft", PEAK_RSS)
    assert [step for step, _ in peaks] == [0, 1]
    assert 0 < peaks[0][1] <= peaks[1][1] == peak_resident()
    assert PEAK_RSS.startswith(TIMES)
