"""A trial: two real steps of every stage in a temporary folder, from which the rest is foreseen.

A step's first time loads and warms up, so the second one is what is measured. What it took, phase by phase, over what
was predicted for completions as long as they were, corrects the forecast; rewards are then known too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from maieutic.config import Config, parse_config
from maieutic.forecast.happened import Happened, read_run
from maieutic.forecast.measure import forget_peak
from maieutic.run.runner import Watch, resume_or_begin

#: Steps of each stage.
STEPS = 2


def short(config: Config) -> Config:
    """The config with two steps a stage, and nothing evaluated, validated or kept. Schedules of the rate are left out:
    they would not fit into two steps, and change nothing that is measured."""
    tables: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    tables.pop("evaluation", None)
    for stage in tables["stages"]:
        for key in ("steps", "epochs", "budget", "validation"):
            stage.pop(key, None)
        stage |= {"steps": STEPS, "checkpoint_every": STEPS}
        if stage.get("optimiser"):
            stage["optimiser"] |= {"schedule": "constant", "warmup_steps": 0}
    return parse_config(tables, "trial")


def run_trial(config: Config, watch: Watch | None = None) -> list[Happened]:
    """Make the steps, and what they took. Nothing is left of the run. Raises whatever the run raises."""
    forget_peak()
    with tempfile.TemporaryDirectory(prefix="maieutic-trial-") as folder:
        place = Path(folder) / "run"
        resume_or_begin(short(config), place, resume=False, watch=watch)
        return read_run(place)[1]
