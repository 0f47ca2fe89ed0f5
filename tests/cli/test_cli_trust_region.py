"""A stage that steps within a trust region, from its config to its checkpoints."""

from __future__ import annotations

import json
import sqlite3

import pytest

from maieutic.cli import main

CONFIG = """
name = "trust"

[model]
small = {{ layers = 1, width = 16, heads = 2, kv_heads = 1, context = 128 }}
{lora}

[tasks.train]
taskset = "arithmetic"
difficulty = 1
size = 32

[[stages]]
algorithm = "trpo"
options = {{ max_kl = 0.02 }}
steps = 2
prompts = 3
num_generations = 4
max_completion_length = 6
rewards = {{ "{reward}:longest" = 1.0 }}
{more}
"""
REWARD = "def longest(completion):\n    return float(len(completion))\n"


@pytest.fixture
def write(tmp_path):
    """`write(lora="", more="")` gives the path of a config."""

    def made(lora="", more=""):
        (tmp_path / "reward.py").write_text(REWARD)
        path = tmp_path / "trust.toml"
        path.write_text(CONFIG.format(lora=lora, more=more, reward=tmp_path / "reward.py"))
        return path

    return made


@pytest.mark.parametrize("lora", ["", "lora = { rank = 2 }"], ids=["whole", "adapter"])
def test_a_stage_runs_end_to_end(write, tmp_path, lora):
    folder = tmp_path / "run"
    assert main(["train", str(write(lora=lora)), "--run", str(folder), "-q"]) == 0
    with sqlite3.connect(folder / "run.db") as store:
        seen = dict(store.execute("select name, count(*) from metrics where name like 'trpo/%' group by name"))
        divergences = [value for (value,) in store.execute("select value from metrics where name = 'trpo/kl'")]
        accepted = [value for (value,) in store.execute("select value from metrics where name = 'trpo/accepted'")]
    assert {"trpo/accepted", "trpo/kl", "trpo/improvement", "trpo/expected", "trpo/cg_residual"} <= seen.keys()
    assert sum(accepted) >= 1
    assert all(kl <= 1.5 * 0.02 for kl in divergences)
    (kept,) = sorted(folder.glob("checkpoints/trpo/*/learner.json"))[-1:]
    assert json.loads(kept.read_text())["version"] == sum(accepted)


def test_an_optimiser_would_do_nothing_and_is_refused(write, tmp_path, command):
    path = write(more="optimiser = { learning_rate = 1e-3, warmup_steps = 4 }")
    said = command("train", path, "--run", tmp_path / "run")
    assert said.code == 2
    assert "learning_rate = 0.001, warmup_steps = 4, which does nothing: trpo" in " ".join(said.err.split())
    assert "max_kl" in said.err
    assert not (tmp_path / "run").exists()
    assert command("train", write(), "--run", tmp_path / "run", "--dry-run").code == 0
