"""docs/distillation.md: its configs run as they stand, but for fewer steps; its numbers are those of the code."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from maieutic.cli import main
from maieutic.config import parse_config
from maieutic.core.distillation import forward_kl
from maieutic.run.build import make_stage_algorithm
from maieutic.run.runner import resume_or_begin
from maieutic.teachers.records import Origin, Records, Said
from maieutic.types import Batch, Outputs

PAGE = (Path(__file__).parents[2] / "docs" / "distillation.md").read_text()
HEAD: dict[str, Any]
HEAD, *CONFIGS = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", PAGE, re.S)]
SIZE = 48
HEAD["tasks"]["train"]["size"] = SIZE  # of 2,000: words enough, and soon recorded


def told(config: dict[str, Any]) -> str:
    stage = config["stages"][0]
    return f"{stage['algorithm']} {' '.join(stage.get('teacher', {}))} {stage.get('options', '')}".strip()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the teacher of the page, its recording and its solutions, made by the page's commands."""
    folder = tmp_path_factory.mktemp("page")
    stage = {"algorithm": "sft", "steps": 3, "prompts": 8, "optimiser": {"learning_rate": 1e-3}}
    made = {**HEAD, "evaluation": None, "threads": 1, "seed": 5, "stages": [stage]}
    resume_or_begin(parse_config(made), folder / "run", resume=False)
    (folder / "models").mkdir()
    (folder / "run/checkpoints/sft/step-000003/model").rename(folder / "models/teacher")
    for name in ("student", "other-teacher"):
        (folder / "models" / name).symlink_to(folder / "models/teacher")
    return folder


@pytest.fixture
def here(place: Path) -> Iterator[Path]:
    with chdir(place):
        yield place


def commands() -> list[str]:
    return re.findall(r"^maieutic (teacher .*models/teacher .*)$", PAGE, re.M)


def test_its_commands_run(here: Path) -> None:
    """On 48 tasks; an untaught teacher is right of nothing, so all of what it writes is kept."""
    assert len(commands()) == 2
    for command in commands():
        words = command.replace("--limit 2000", f"--limit {SIZE}").replace("--most 2", "--keep all --max-tokens 60")
        assert main([*words.split(), "-q"]) == 0
    assert (here / "solutions.jsonl").exists()
    assert (here / "data/teacher-top20/teacher.json").exists()


@pytest.mark.parametrize("config", CONFIGS, ids=told)
def test_its_configs_run(here: Path, config: dict[str, Any]) -> None:
    if not (here / "data").exists():
        test_its_commands_run(here)
    stage = {key: value for key, value in config["stages"][0].items() if key not in ("steps", "epochs")}
    practised = {"num_generations": 2, "max_completion_length": 8} if "num_generations" in stage else {}
    tasks = {**HEAD["tasks"], **config.get("tasks", {})}
    whole = {**HEAD, "evaluation": None, "tasks": tasks, "threads": 1}
    parsed = parse_config({**whole, "stages": [{**stage, "steps": 1, "prompts": 4, **practised}]})
    make_stage_algorithm(parse_config({**HEAD, **config, "tasks": tasks}).stages[0])
    if "url" not in stage.get("teacher", {}):  # a server is there in tests/endpoint/test_vllm.py
        resume_or_begin(parsed, here / told(config).replace("/", "-"), resume=False)


def test_every_method_is_there() -> None:
    assert {config["stages"][0]["algorithm"] for config in CONFIGS} == {
        "sft",
        "distil",
        "gkd",
        "on_policy_distillation",
    }
    places = {name for config in CONFIGS for name in config["stages"][0].get("teacher", {})}
    assert places >= {"path", "recorded", "url", "mixture", "by_tasks"}


def test_its_numbers(tmp_path: Path) -> None:
    """The example worked by hand in tests/core; 4 bytes for the place, 4 for the token's own, 8 or 6 a candidate."""
    p, q = torch.tensor([0.5, 0.3, 0.1, 0.1]).log(), torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    found = {}
    for name, k, renormalise in (("whole vocabulary", 4, False), ("with a tail", 2, False), ("`renormalise", 2, True)):
        batch = _batch(p[:k])
        outputs = Outputs(torch.zeros(1, 1), top_logprobs=q[:k].view(1, 1, k))
        found[name] = float(forward_kl(renormalise=renormalise).terms(outputs, batch)[0])
    for name, value in found.items():
        (row,) = re.findall(rf"^\| {re.escape(name)}.*\| (\.\d+) \|$", PAGE, re.M)
        assert float(row) == pytest.approx(value, abs=5e-5)
    for k, wide, half in re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.M):
        for numbers, size in (("float32", wide), ("float16", half)):
            records = Records.begin(tmp_path / f"{numbers}{k}", Origin("t", "v", 99, int(k), numbers=numbers))
            many = torch.zeros(1000, int(k))
            records.add({b"k" * 16: Said(torch.arange(1000), many[:, 0], many.long(), many)})
            (part,) = (tmp_path / f"{numbers}{k}").glob("part-*")
            assert part.stat().st_size / 1000 == pytest.approx(int(size), rel=0.02)


def _batch(logprobs: torch.Tensor) -> Any:
    one = torch.zeros(1, 1)
    batch = Batch(one.long(), one == 0, one.long()[0] + 1, one, one[0], one, one[0] == 0, one.long()[0], one.long()[0])
    k = len(logprobs)
    return batch.with_(teacher_top_ids=torch.arange(k).view(1, 1, k), teacher_top_logprobs=logprobs.view(1, 1, k))
