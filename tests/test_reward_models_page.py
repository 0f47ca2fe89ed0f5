"""docs/reward-models.md: its example runs, its configs are ones, its commands are known."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from maieutic.config import parse_config, parse_table
from maieutic.config.reward_training import RewardTrainConfig
from maieutic.rewards.aggregate import AGGREGATES, NORMALISE

PAGE = (Path(__file__).parents[1] / "docs" / "reward-models.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_example_runs() -> None:
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )  # fmt: skip
    auc, order, kind = done.stdout.splitlines()
    assert float(auc.removeprefix("AUC ")) > 0.8
    assert order == "right above wrong: True"
    assert kind == "LlamaForSequenceClassification"


def test_the_configs_are_ones() -> None:
    training, stage = (tomllib.loads(text) for text in blocks("toml"))
    assert parse_table(RewardTrainConfig, training, "page").at == "tokens"
    config = parse_config({**stage, "model": {"path": "m"}, "tasks": {"train": {"taskset": "arithmetic"}}})
    assert config.stages[0].rewards["model:models/other"] == 0.0


def test_the_tables_name_what_there_is() -> None:
    for name in (*AGGREGATES, *(how for how in NORMALISE if how != "none"), "potential"):
        assert f"`{name}`" in PAGE
