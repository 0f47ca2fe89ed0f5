"""One tiny trained run for all tests of the command line, and the command line as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from maieutic.cli import main

CONFIG = """
name = "tiny"

[model]
small = { layers = 1, width = 16, heads = 2, kv_heads = 1, context = 128 }

[tasks.train]
taskset = "arithmetic"
difficulty = 1
size = 64

[tasks.test]
taskset = "arithmetic"
split = "test"
difficulty = 1
size = 8

[[stages]]
name = "sft"
algorithm = "sft"
steps = 2
prompts = 4
optimiser = { learning_rate = 1e-3 }

[[stages]]
name = "rl"
algorithm = "grpo"
steps = 2
prompts = 2
num_generations = 2
max_completion_length = 8
optimiser = { learning_rate = 1e-3 }

[evaluation]
tasks = "test"
samples = 2
max_completion_length = 8
"""


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be JSON and nothing else."""
        return json.loads(self.out)


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    """A config whose two stages train for two steps each."""
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def trained(config, tmp_path_factory) -> Path:
    """The folder of a complete run of that config; `train.json` beside it is what `--json` wrote."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    code = main(["train", str(config), "--run", str(folder), "--json", str(folder.parent / "train.json"), "-q"])
    assert code == 0
    return folder


@pytest.fixture
def command(capsys) -> Callable[..., Said]:
    """`command("tasks", "--json", "-")` runs the command line in this process."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run
