"""Runs with `overlap = true`: what one process would do, to the bit, whatever kills them and when; no process stays."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the installed package
sys.path.append(str(Path(__file__).parents[1]))

from ahead_practice import OneBehind

from benchmarks.kill_and_resume import Child, Run, differences
from maieutic.algorithms import dapo
from maieutic.cli import main
from maieutic.compare.plan import resolved
from maieutic.config import parse_config, write_toml
from maieutic.errors import ConfigError
from maieutic.run.build import describe, make_backend, make_stage_algorithm, start_model
from maieutic.run.overlap import cores_of, practise
from maieutic.run.runner import Silent, resume_or_begin
from maieutic.run.setup import set_up
from maieutic.run.store import Store
from maieutic.run.tasksets import Tasksets
from maieutic.train import train
from maieutic.types import Step

REWARD = '''
def even(completion):
    """1 where it writes an even number of digits: untrained models differ in it."""
    return float(sum(c.isdigit() for c in completion) % 2 == 0)
'''

STEPS = 5


def config_of(folder: Path, algorithm: str = "dapo", overlap: bool = True, **stage: Any) -> dict[str, Any]:
    """Uniform groups are drawn again, so what a batch is depends on the weights that sampled it."""
    (folder / "reward.py").write_text(REWARD)
    small = {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "context": 128}
    sampled = {"num_generations": 4, "max_completion_length": 12, "rewards": {f"{folder}/reward.py:even": 1.0}}
    return {
        "threads": 1, "keep_checkpoints": 5, "model": {"small": small},
        "tasks": {
            "train": {"taskset": "arithmetic", "difficulty": 1, "limit": 32},
            "test": {"taskset": "arithmetic", "split": "test", "limit": 2},
        },
        "stages": [
            {
                "algorithm": algorithm, "steps": STEPS, "prompts": 4, "checkpoint_every": 2,
                "optimiser": {"learning_rate": 1e-2}, "overlap": overlap, **sampled, **stage,
            }
        ],
        "evaluation": {"samples": 2, "max_completion_length": 6},
    }  # fmt: skip


class Pulled(Silent):
    """Someone who pulls the plug when a step was stored and its checkpoint was not yet written."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, stage: str, step: Step, seconds: float) -> None:
        """Raises KeyboardInterrupt at the step."""
        if step.index == self.at:
            raise KeyboardInterrupt


def metrics(run: Path, name: str) -> list[float]:
    with Store.open_reader(run / "run.db") as store:
        return [value for _, value in store.metrics("dapo", name)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("overlap")
    resume_or_begin(parse_config(config_of(folder)), folder / "run", resume=False)
    return Run(folder)


def test_it_is_what_one_process_would_do(unbroken: Run, tmp_path: Path) -> None:
    config = parse_config(config_of(unbroken.folder, overlap=False))
    stage, tasksets = config.stages[0], Tasksets(config)
    model = start_model(config, tasksets, tmp_path / "start")
    algorithm = make_stage_algorithm(stage)
    setup = set_up(config, stage, make_backend(config), model, model, tasksets, algorithm, STEPS)
    behind = OneBehind(practise(config, stage, model, model), setup.policy.learner)
    made = list(train(behind, setup.policy, setup.algorithm, steps=STEPS))
    with Store.open_reader(unbroken.database) as store:
        for step in made:
            rows = {(row.group, row.rollout.sibling): row for row in store.rollouts("dapo", step.index)}
            assert len(rows) == sum(len(group.rollouts) for group in step.groups)
            for group in step.groups:
                for rollout, score in zip(group.rollouts, group.scores):
                    row = rows[group.id, rollout.sibling]
                    assert (row.rollout.tokens, row.rollout.version) == (rollout.tokens, rollout.version)
                    assert row.score.reward == score.reward
    assert max(len(step.groups) for step in made) > 4  # some were drawn again
    saved = load_file(unbroken.path / "checkpoints" / "dapo" / f"step-{STEPS:06d}" / "model" / "model.safetensors")
    weights = setup.policy.learner.weights()
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())
    updates = [1.0 - skipped for skipped in metrics(unbroken.path, "train/skipped")]
    assert metrics(unbroken.path, "policy/staleness") == [0.0, *updates[:-1]]
    assert metrics(unbroken.path, "policy/sampler_mismatch_nats")[0] < 1e-6


def test_stopped_between_any_two_steps_it_ends_the_same(unbroken: Run, tmp_path: Path) -> None:
    """Checkpoints are written after steps 2, 4 and 5, with the batch that is ahead in them."""
    config = parse_config(config_of(unbroken.folder))
    run = Run(tmp_path)
    for at in (1, 2, 3):  # after steps 2, 3 and 4: before any checkpoint, after the first one, before the second one
        with pytest.raises(KeyboardInterrupt):
            resume_or_begin(config, run.path, resume=at > 1, watch=Pulled(at))
        assert run.stored()[-1] == ("dapo", at)
    resume_or_begin(config, run.path, resume=True)
    assert differences(unbroken, run) == []


def children(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    own = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return own + [each for child in own for each in children(child)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc to see which processes there are")
def test_killed_it_leaves_no_process_and_ends_the_same(unbroken: Run, tmp_path: Path) -> None:
    run = Run(tmp_path)
    raw = config_of(unbroken.folder)
    (tmp_path / "config.toml").write_text(write_toml(parse_config(raw)))
    child = Child(tmp_path, run.arguments())
    while ("dapo", 2) not in run.stored():
        assert child.running(), (tmp_path / "err.txt").read_text()
        time.sleep(0.01)
    beside = children(child.process.pid)
    assert beside  # the one that samples, and the one that its reward runs in
    child.kill()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/cmdline").exists() and alive(pid) for pid in beside):
        assert time.monotonic() < until
        time.sleep(0.05)
    with contextlib.chdir(tmp_path):
        assert main(["--quiet", "train", "--run", "run", "--resume"]) == 0
    assert differences(unbroken, run) == []


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended (one that nobody has asked for its exit code is still listed)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_loss_without_a_ratio_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    plain, corrected = (config_of(tmp_path, "rloo", **more) for more in ({}, {"options": {"correction": "token_mask"}}))
    with pytest.raises(ConfigError, match=r"rloo takes every row for the present policy's.*token_truncate"):
        make_stage_algorithm(parse_config(plain).stages[0])
    make_stage_algorithm(parse_config(corrected).stages[0])
    config = parse_config(config_of(tmp_path))
    assert "sampled one step ahead" in describe(config, Tasksets(config))
    shown = {"algorithm": "sft", "steps": 2, "overlap": True}
    with pytest.raises(ConfigError, match="got overlap = True, which does nothing: sft learns from demonstrations"):
        make_stage_algorithm(parse_config({**plain, "stages": [shown]}).stages[0])
    # where the arms of a comparison share it, it is for those that sample
    assert not resolved({"overlap": True, "steps": 2}, {"algorithm": "sft"}, "arm").overlap
    assert resolved({"overlap": True, "steps": 2}, {"algorithm": "dapo"}, "arm").overlap
    assert dapo().loss.needs >= {"old_logprobs"}


def test_each_process_has_half_of_the_cores_unless_the_config_says(tmp_path: Path) -> None:
    raw = config_of(tmp_path)
    given, free = parse_config(raw), parse_config({**raw, "threads": None})
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for config, own in ((given, 4), (free, 2)):  # given: as `make_backend` has set it
            with cores_of(config, config.stages[0]):
                assert torch.get_num_threads() == own
            assert torch.get_num_threads() == 4
        alone = parse_config(config_of(tmp_path, overlap=False)).stages[0]
        with cores_of(free, alone):
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
