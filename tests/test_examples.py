"""Every example runs: made small by `--set`, on a tiny model folder where the example would download one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from maieutic.cli import main
from maieutic.models.small import SmallModel, build_small
from maieutic.tasks import arithmetic_vocabulary, gsm8k

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SMALL = ["--set", "threads=1", "--set", "stages.0.checkpoint_every=2"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level model of a few thousand parameters in an ordinary Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    spec = SmallModel(layers=1, width=16, heads=2, kv_heads=1, context=1024)
    return build_small(folder, spec, ["A farm has 12 hens. #### 12"], tokenizer="bpe", vocabulary_size=300)


def run(*arguments: str, verb: str = "train") -> dict:
    """`maieutic train …` from the repository's root, as README has it; what it writes as JSON."""
    out = Path(arguments[arguments.index("--json") + 1])
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        assert main([verb, *arguments]) == 0
    finally:
        os.chdir(before)
    return json.loads(out.read_text())


def test_every_example_is_run_here():
    # own_algorithm.py is run by algorithms/test_own_algorithm.py, judge.toml by endpoint/test_judges_page.py
    # own_tools.py is named by docs/tools-and-games.md, whose configs environments/test_tools_page.py makes
    here = Path(__file__).read_text()
    assert not [p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".toml") and p.name not in here]


def test_from_python():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "from_python.py", "--steps", "21"],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    first, second = (float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("sft"))
    assert second < 0.7 * first  # −log likelihood of demonstrations after 20 steps
    assert "grpo    1  reward" in done.stdout


def test_search(tmp_path):
    vocabulary = arithmetic_vocabulary(1)
    folder = build_small(tmp_path / "model", SmallModel(layers=1, width=16, heads=2, kv_heads=1), vocabulary=vocabulary)
    done = subprocess.run(
        [sys.executable, EXAMPLES / "search.py", folder, "--rounds", "1", "--tasks", "3"],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "round 0  the vote is right in 0.000 of 3" in done.stdout


def test_own_problems_with_own_rewards(tiny, tmp_path):
    # own_problems.toml, own_problems.jsonl and rewards.py together: LoRA, two rewards, one task with a system message
    made = run(
        str(EXAMPLES / "own_problems.toml"), "--run", str(tmp_path / "run"), "--json", str(tmp_path / "out.json"),
        *SMALL, "--set", f"model.path={tiny}", "--set", "stages.0.steps=2", "--set", "stages.0.prompts=2",
        "--set", "stages.0.optimiser.warmup_steps=0", "--set", "stages.0.max_completion_length=16",
    )  # fmt: skip
    assert (Path(made["model"]) / "adapter_config.json").exists()
    from maieutic.run.store import Store

    rollout = Store.open_reader(tmp_path / "run" / "run.db").recent(1)[0]
    words = len(rollout.rollout.text.split())
    assert rollout.score.parts["examples/rewards.py:short"] == pytest.approx(max(0.0, 1 - words / 200))


def test_a_game_of_ones_own(tmp_path):
    # own_environment.toml and own_environment.py
    made = run(
        str(EXAMPLES / "own_environment.toml"), "--run", str(tmp_path / "run"), "--json", str(tmp_path / "out.json"),
        *SMALL, "--set", "stages.1.steps=2", "--set", "stages.1.prompts=2", "--set", "tasks.test.size=2",
    )  # fmt: skip
    assert made["evaluations"]["play"]["test"]["turns"]["value"] >= 1


def test_the_game_of_24(tmp_path):
    # countdown.toml, and what a person sees of its tasks
    made = run(
        str(EXAMPLES / "countdown.toml"), "--run", str(tmp_path / "run"), "--json", str(tmp_path / "out.json"),
        *SMALL, "--set", "tasks.train.largest=6", "--set", "tasks.train.size=64", "--set", "tasks.test.largest=6",
        "--set", "stages.0.prompts=16", "--set", "evaluation.limit=2",
    )  # fmt: skip
    assert (Path(made["model"]) / "config.json").exists()


def test_questions_with_options(tiny, tmp_path):
    # choices.jsonl, by likelihood
    made = run(
        str(tiny), "multiple_choice", "--set", f"path={EXAMPLES / 'choices.jsonl'}", "--likelihood", "--json",
        str(tmp_path / "out.json"), verb="eval",
    )  # fmt: skip
    assert made["questions"] == 3


def test_teachers_and_what_follows_them(tmp_path):
    # teach_student.toml, teach.toml and distil.toml through teach_and_distil.py; then each command, and cold_start.toml
    done = subprocess.run(
        [sys.executable, EXAMPLES / "teach_and_distil.py", "--quick"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found, model = done.stdout.splitlines()[-2:]
    assert "'lessons': 8" in found
    with chdir(tmp_path):
        again = ["--set", "collect.limit=2", "--out", "runs/again", "--only-collect", "-q"]
        assert main(["distil", str(EXAMPLES / "distil.toml"), *again]) == 0
        assert main(["teach", str(EXAMPLES / "teach.toml"), "--dry-run", "-q"]) == 0
        settings = [f"model.path={model}", "stages.0.steps=1", "stages.0.prompts=2", "tasks.test.limit=4",
                    "stages.0.optimiser.warmup_steps=0"]  # fmt: skip
        given = [part for setting in settings for part in ("--set", setting)]
        assert main(["train", str(EXAMPLES / "cold_start.toml"), "-q", *given]) == 0


def test_gsm8k_with_lora_on_a_small_folder_and_the_real_files(tiny, tmp_path, data_dir):
    # gsm8k_lora.toml: everything but the download
    made = run(
        str(EXAMPLES / "gsm8k_lora.toml"), "--run", str(tmp_path / "run"), "--json", str(tmp_path / "out.json"),
        *SMALL, "--set", f"model.path={tiny}", "--set", f"tasks.train.path={data_dir / 'gsm8k'}",
        "--set", f"tasks.test.path={data_dir / 'gsm8k'}", "--set", "stages.0.steps=2", "--set", "stages.0.prompts=2",
        "--set", "stages.0.num_generations=2", "--set", "stages.0.optimiser.warmup_steps=0",
        "--set", "stages.0.max_completion_length=24", "--set", "evaluation.limit=5",
        "--set", "evaluation.samples=2", "--set", "evaluation.max_completion_length=24",
    )  # fmt: skip
    assert set(made["evaluations"]) == {"start", "rl"}
    assert (Path(made["model"]) / "adapter_model.safetensors").exists()
    assert len(gsm8k("test", data_dir / "gsm8k")) == 1319


def test_expert_iteration(tmp_path):
    # expert_iteration.toml: two rounds of a few problems
    made = run(
        str(EXAMPLES / "expert_iteration.toml"), "--run", str(tmp_path / "run"), "--json", str(tmp_path / "out.json"),
        *SMALL, "--set", "stages.0.epochs=0.1", "--set", "stages.1.steps=2", "--set", "stages.1.prompts=8",
        "--set", "tasks.demonstrations.limit=64", "--set", "tasks.validation.limit=20", "--set", "tasks.test.limit=20",
        "--set", "evaluation.samples=2", "--set", "model.small.width=32",
    )  # fmt: skip
    assert set(made["evaluations"]["ei"]) == {"validation", "test"}
    assert "best" in Path(made["model"]).parts


def test_svamp(tmp_path, data_dir):
    # svamp.toml on the real files, a few steps of each stage
    folder = data_dir / "svamp"
    paths = [f"--set=tasks.{name}.path={folder}" for name in ("demonstrations", "practice", "heldout", "svamp")]
    made = run(
        str(EXAMPLES / "svamp.toml"), "--run", str(tmp_path / "run"), "--json", str(tmp_path / "out.json"),
        *SMALL, *paths, "--set", "stages.0.epochs=1", "--set", "stages.1.steps=2", "--set", "stages.1.prompts=8",
        "--set", "stages.1.optimiser.warmup_steps=0", "--set", "evaluation.limit=20", "--set", "evaluation.samples=2",
    )  # fmt: skip
    assert set(made["evaluations"]["rl"]) == {"heldout", "svamp"}


#: Makes the studies small.
TINY = [
    "--set", "tasks.demonstrations.limit=64", "--set", "tasks.test.limit=10", "--set", "model.small.width=32",
    "--set", "stage.prompts=4", "--set", "evaluation.samples=4", "--set", "evaluation.k=2",
]  # fmt: skip


@pytest.mark.slow
def test_compare(tmp_path):
    # compare.toml: all its arms with one seed, two steps each
    made = run(
        str(EXAMPLES / "compare.toml"), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "out.json"), *TINY,
        "--set", "seeds=[1]", "--set", "budget.samples=64", "--set", "stage.validation.every=1",
        "--set", "stage.validation.limit=4", verb="compare",
    )  # fmt: skip
    assert made["failed"] == []
    assert {trial["arm"] for trial in made["trials"]} == {"grpo", "rloo", "dapo"}
    assert set(made["tasksets"]["test"]["start"]) >= {"greedy", "pass@1", "pass@2", "vote@2", "rerank@2", "unique"}


@pytest.mark.slow
def test_sweep(tmp_path):
    # sweep.toml: one of its hyper-parameters, one step a run
    made = run(
        str(EXAMPLES / "sweep.toml"), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "out.json"), *TINY,
        "--set", "stage.budget.samples=32", "--set", "grid={temperature=[0.7, 1.0]}", verb="sweep",
    )  # fmt: skip
    assert made["failed"] == []
    found = made["tasksets"]["test"]
    assert [(level["key"], level["value"], level["runs"]) for level in found["levels"]] == [
        ("temperature", 1.0, 3), ("temperature", 0.7, 3),
    ]  # fmt: skip
    assert {seed for setting in found["settings"] for seed in setting["by_seed"]} == {"1", "2", "3"}
    assert Path(made["page"]).is_file()
