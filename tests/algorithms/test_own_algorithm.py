"""docs/add-an-algorithm.md: its example is the file, is under 50 lines, is right, and runs from a config."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maieutic.algorithms import make_algorithm
from maieutic.cli import main
from maieutic.conformance import TableModel, rows_of
from maieutic.conformance.ours import batch_of
from maieutic.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-an-algorithm.md"
EXAMPLE = ROOT / "examples" / "own_algorithm.py"
WHERE = f"{EXAMPLE}:opo"


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def test_the_page_shows_the_file_as_it_stands():
    assert blocks()[0] == EXAMPLE.read_text()
    assert len(EXAMPLE.read_text().splitlines()) < 50


def test_the_proof_on_the_page_runs():
    code = f"import sys; sys.path.insert(0, {str(EXAMPLE.parent)!r})\n" + blocks()[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "expected_gradient  passed" in done.stdout


def test_its_advantages_worked_by_hand():
    # group 0: lengths 1, 1, 2 and rewards 1, 0, 0: baseline (1 + 0 + 0) / 4 = 1/4, so A = 3/4, −1/4, −1/4
    # group 1: lengths 3, 1 and rewards 1, 0: baseline 3/4, so A = 1/4, −3/4
    rows = rows_of(
        TableModel(), [[1]] * 5, [[2], [3], [2, 3], [1, 2, 3], [2]], [1.0, 0.0, 0.0, 1.0, 0.0], [0, 0, 0, 1, 1]
    )
    given = make_algorithm(WHERE, {}).credit(batch_of(rows)).advantages
    assert given[:, 1].tolist() == [0.75, -0.25, -0.25, 0.25, -0.75]
    assert torch.equal(given != 0, rows.mask)


def test_it_runs_from_a_config(tmp_path):
    config = tmp_path / "own.toml"
    config.write_text(
        f"""
        threads = 1
        [model.small]
        layers = 1
        width = 16
        heads = 2
        kv_heads = 1
        [tasks.train]
        taskset = "arithmetic"
        difficulty = 1
        [[stages]]
        algorithm = "{WHERE}"
        steps = 1
        prompts = 2
        num_generations = 4
        max_completion_length = 8
        """
    )
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "checkpoints" / "opo" / "step-000001" / "model").is_dir()


def test_a_comparison_of_siblings_is_refused_with_one_sample(tmp_path, capsys):
    config = tmp_path / "own.toml"
    config.write_text(
        f"""
        [model.small]
        [tasks.train]
        taskset = "arithmetic"
        [[stages]]
        algorithm = "{WHERE}"
        steps = 1
        num_generations = 1
        """
    )
    assert main(["train", str(config), "--dry-run"]) == 2
    assert "expected at least 2" in capsys.readouterr().err


def test_own_algorithms_that_are_none(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def nothing():\n    return 3\n")
    with pytest.raises(ConfigError, match="expected a function that returns an `Algorithm`"):
        make_algorithm(f"{file}:nothing", {})
    with pytest.raises(ConfigError, match="has no 'other'; its functions: nothing"):
        make_algorithm(f"{file}:other", {})
    with pytest.raises(ConfigError, match="has no option 'beta'"):
        make_algorithm(f"{file}:nothing", {"beta": 1})
    with pytest.raises(ConfigError, match="there is no file"):
        make_algorithm(f"{tmp_path / 'none.py'}:nothing", {})
    file.write_text("def nothing(:\n")
    with pytest.raises(DataError, match="cannot be run"):
        make_algorithm(f"{file}:nothing", {})
