"""`maieutic train` and `maieutic demo` on a run of four steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from maieutic.config import read_config, write_toml
from maieutic.run.build import load_model
from maieutic.run.store import Store

INTERVAL = {"value", "low", "high"}
MEASURED = {"greedy", "pass@1", "pass@2", "vote@2", "strict@2"}


def test_the_json_of_a_run_holds_everything(trained):
    told = json.loads((trained.parent / "train.json").read_text())
    assert set(told) == {"run", "model", "report", "seconds", "evaluations", "differences"}
    assert (Path(told["model"]) / "config.json").is_file()
    assert Path(told["report"]).is_file()
    assert set(told["seconds"]) == {"sft", "rl"}
    for stage in ("sft", "rl"):
        metrics = told["evaluations"][stage]["test"]
        assert set(metrics) >= MEASURED
        assert all(set(metrics[name]) == INTERVAL for name in MEASURED)
    changed = {(each["metric"], each["new"], each["old"]) for each in told["differences"]}
    assert ("pass@1", "rl", "sft") in changed
    assert all("verdict" in each for each in told["differences"])


def test_a_run_says_how_it_goes_and_where_everything_lies(command, config, tmp_path):
    said = command("train", config, "--run", tmp_path / "run")
    assert said.code == 0
    assert "stage sft: 2/2" in said.err
    assert "evaluate rl on test: 8/8" in said.err
    assert "rl against sft, on the same problems" in said.out
    for place in ("run.db", "report.html", "checkpoints/rl/step-000002/model"):
        assert (tmp_path / "run" / place).exists()
    assert str(tmp_path / "run" / "checkpoints/rl/step-000002/model") in said.out
    assert f"maieutic show {tmp_path / 'run'}" in said.out


def test_quiet_says_nothing_but_the_result(command, trained):
    said = command("train", "--run", trained, "--resume", "--quiet")
    assert said.code == 0
    assert said.err == ""
    assert "pass@1" in said.out
    assert command("--quiet", "train", "--run", trained, "--resume").err == ""


def test_settings_on_the_command_line_override_the_file(command, config, tmp_path):
    said = command(
        "train", config, "--dry-run", "--set", "stages.1.steps=7", "--set", "name=other", "--seed", 5, "--json", "-"
    )
    told = said.json["config"]
    assert told["stages"][1]["steps"] == 7
    assert told["seed"] == 5
    assert said.json["run"] == "runs/other"


def test_a_dry_run_prints_config_and_plan_and_writes_nothing(command, config, tmp_path):
    said = command("train", config, "--dry-run", "--run", tmp_path / "run")
    assert said.code == 0
    assert "num_generations = 2" in said.out
    assert "stage rl: grpo on train (64 tasks), 2 steps" in said.out
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_with_the_last_stage_is_found_before_the_first_begins(command, config, tmp_path):
    for setting, wrong in {
        "stages.1.rewards.niceness=1.0": "unknown reward 'niceness'",
        "stages.1.options.epsilom=0.3": "has no option 'epsilom'; did you mean 'epsilon'?",
        "model.small.width=17": "expected a multiple of 4",
        "stages.1.optimiser={schedule='linear',warmup_steps=2}": "expected total_steps, larger than warmup_steps",
        "device=gpu": "got device 'gpu'",
        "stages.1.max_completion_length=5000": "stages.1.max_completion_length: got 5000; the model has",
        "evaluation.max_completion_length=5000": "evaluation.max_completion_length: got 5000; the model has",
    }.items():
        said = command("train", config, "--run", tmp_path / "run", "--set", setting)
        assert said.code == 2
        assert wrong in said.err
        assert not (tmp_path / "run").exists()


def test_the_seed_of_a_run_draws_its_adapter_too(config, trained):
    def first_matrix(seed):
        wanted = read_config(config, [f"seed={seed}", "model.lora.rank=2"])
        weights = dict(load_model(wanted, str(trained / "start")).module.named_parameters())
        return next(weight for name, weight in weights.items() if "lora_A" in name)

    assert first_matrix(0).equal(first_matrix(0))
    assert not first_matrix(0).equal(first_matrix(1)), "runs of several seeds would all begin with the same adapter"


def test_a_run_that_exists_is_not_overwritten(command, config, trained):
    said = command("train", config, "--run", trained)
    assert said.code == 7
    assert "--resume" in said.err


def test_a_complete_run_that_is_resumed_shows_its_results(command, trained):
    before = (trained / "run.complete").read_text()
    said = command("train", "--run", trained, "--resume", "--json", "-")
    assert said.code == 0
    assert said.json == {**json.loads((trained.parent / "train.json").read_text())}
    assert (trained / "run.complete").read_text() == before


def test_without_a_config_a_run_must_be_named(command):
    assert command("train").code == 2
    assert "--run DIR --resume" in command("train").err
    assert command("train", "--run", "nowhere-at-all", "--resume").code == 7


def test_a_run_stopped_by_ctrl_c_says_how_to_go_on_and_goes_on(config, tmp_path):
    folder, steps = tmp_path / "run", 60
    begin = [sys.executable, "-m", "maieutic", "train", str(config), "--run", str(folder)]
    begin += ["--set", f"stages.0.steps={steps}"]
    process = subprocess.Popen(begin, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    assert process.stderr.readline().startswith(f"stage sft: 0/{steps}")
    deadline = time.monotonic() + 60
    while not (folder / "run.db").exists() or not _steps(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    again = f"maieutic train --run {folder} --resume"
    assert again in told
    assert "Traceback" not in told
    done = len(_steps(folder))
    assert 0 < done < steps
    assert not (folder / "run.complete").exists()

    words = [sys.executable, "-m", *again.split()]
    resumed = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert [each.step for each in _steps(folder)] == list(range(steps))
    assert (folder / "run.complete").exists()


def _steps(folder: Path):
    with Store.open_reader(folder / "run.db") as store:
        return store.steps("sft")


def test_the_demo_goes_on_where_it_was_and_shows_its_results_again(command, config, tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    # a folder with a config and nothing else is a run that was killed at once; this one has four steps, not 1,200
    (folder / "config.toml").write_text(write_toml(read_config(config, ["name=demo"])))
    said = command("demo", "--run", folder, "--json", tmp_path / "demo.json")
    assert said.code == 0
    assert "not complete" in " ".join(said.err.split())  # however long the path is
    assert "misreads" in said.err
    for words in ("after SFT", "after RL", "RL against SFT", "before and after", "report.html", "--seed 1"):
        assert words in said.out
    told = json.loads((tmp_path / "demo.json").read_text())
    assert list(told) == ["stages", "difference", "seconds", "seed", "run", "model"]
    assert set(told["stages"]) == {"sft", "rl"}
    for stage in told["stages"].values():
        assert set(stage) == MEASURED
        assert all(set(value) == INTERVAL for value in stage.values())
    assert set(told["difference"]) == MEASURED
    assert all(set(value) == {*INTERVAL, "verdict"} for value in told["difference"].values())
    assert list(told["seconds"]) == ["sft", "rl", "evaluation", "total"]
    assert told["seconds"]["total"] >= told["seconds"]["sft"] + told["seconds"]["rl"]

    again = command("demo", "--run", folder, "--json", "-")
    assert again.code == 0
    assert {key: again.json[key] for key in ("stages", "difference", "model")} == {
        key: told[key] for key in ("stages", "difference", "model")
    }
    assert "is complete" in " ".join(again.err.split())


def test_the_demo_leaves_other_runs_alone(command, trained):
    for more in ([], ["--fresh"]):
        said = command("demo", "--run", trained, *more)
        assert said.code == 7
        assert (trained / "run.complete").exists()


def test_the_demo_asks_before_it_takes_another_seed(command, config, tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "config.toml").write_text(write_toml(read_config(config, ["name=demo", "seed=3"])))
    said = command("demo", "--run", folder, "--seed", 4)
    assert said.code == 7
    assert "seed 3, not 4" in said.err
