"""docs/lora.md: its example runs and its config is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from maieutic.config import parse_config
from maieutic.config.tables import LoraConfig
from maieutic.models.lora import LoRA

PAGE = (Path(__file__).parents[1] / "docs" / "lora.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_example_runs() -> None:
    """Four models over one base: the KL to the SFT adapter is 0 at first, and not any more after an update."""
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = done.stdout.splitlines()
    losses = [float(line.split()[-1]) for line in said if line.startswith("sft")]
    assert losses[-1] < 0.8 * losses[0]
    first, second = (float(line.split()[-1]) for line in said if line.startswith("ppo"))
    assert abs(first) < 1e-5 < abs(second)
    assert said[-1] == "['critic', 'default', 'reference', 'teacher']"


def test_the_config_is_one() -> None:
    (text,) = blocks("toml")
    made = tomllib.loads(text)
    made |= {"tasks": {"train": {"taskset": "arithmetic"}}}
    config = parse_config({**made, "stages": [{**stage, "steps": 1} for stage in made["stages"]]})
    assert config.stages[1].critic is not None
    assert config.stages[1].critic.kind == "adapter"


def test_the_defaults_are_those_of_the_code() -> None:
    for made in (LoRA(), LoraConfig()):  # type: ignore[call-arg]
        assert (made.rank, made.alpha, made.targets, made.rslora) == (16, 32, "all-linear", False)
    for row in ('`targets` | `"all-linear"`', "`rank` | 16", "`alpha` | 32", "`rslora` | false"):
        assert f"| {row} |" in PAGE
