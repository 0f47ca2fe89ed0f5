"""`maieutic plan`: of configs, of comparisons, with a trial, and of runs that have gone on."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from maieutic.cli import complete
from maieutic.models.small import SmallModel, build_small
from maieutic.run.memory import PEAK_RSS
from maieutic.run.store import Store

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A byte-level model in an ordinary folder, where an example would download one."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    spec = SmallModel(layers=1, width=16, heads=2, kv_heads=1, context=1024)
    return build_small(folder, spec, ["A farm has 12 hens. #### 12"], tokenizer="bpe", vocabulary_size=300)


@pytest.fixture
def at_home():
    """In the repository's root, as README has it: examples name files from there."""
    before = Path.cwd()
    os.chdir(ROOT)
    yield
    os.chdir(before)


def sets(**settings: object) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def test_a_config_is_foreseen_stage_by_stage(command, config):
    said = command("plan", config, "--json", "-")
    assert said.code == 0
    sft, rl = said.json["stages"]
    assert set(sft["assumptions"]) == set(rl["assumptions"]) == {"a guess", "at the most"}
    guess, most = rl["assumptions"]["a guess"], rl["assumptions"]["at the most"]
    # 2 prompts, 2 rollouts each, of 8 tokens at most
    assert (most["step"]["samples"], most["step"]["generated_tokens"]) == (4, 32)
    assert (guess["lengths"]["completion"], most["lengths"]["completion"]) == (4, 8)
    assert guess["lengths"]["longest_completion"] == 8
    assert set(most["step"]["seconds"]) == {"sampling/prefill", "sampling/decode", "update"}
    assert all(seconds > 0 for seconds in most["step"]["seconds"].values())
    assert most["step"]["seconds_known"] == pytest.approx(sum(most["step"]["seconds"].values()))
    assert most["seconds"] == pytest.approx(2 * most["step"]["seconds_known"] + most["evaluation_seconds"])
    assert said.json["seconds"]["at the most"] == pytest.approx(
        sum(stage["assumptions"]["at the most"]["seconds"] for stage in (sft, rl))
    )
    assert set(most["memory"]["phases"]) == {"sampling", "update", "evaluation"}
    for phase in most["memory"]["phases"].values():
        items = [*most["memory"]["standing"], *phase["items"]]
        assert phase["peak_bytes"] == sum(item["bytes"] for item in items)
    assert set(sft["assumptions"]["a guess"]["step"]["seconds"]) == {"update"}
    assert rl["warnings"] == rl["remedies"] == []
    assert "stage rl: grpo, 2 steps" in said.err  # people read on stderr where stdout is JSON


def test_what_people_read(command, config, tmp_path):
    said = command("plan", config, "--completion-length", 5, "--json", tmp_path / "plan.json")
    assert said.code == 0
    for words in ("stage sft: sft, 2 steps", "rollouts a step", "activations", "together", "as told: 5 tokens",
                  "sampling/decode", "not known before", "all stages"):  # fmt: skip
        assert words in said.out
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["stages"][1]["assumptions"]["as told"]["step"]["generated_tokens"] == 20


def test_nothing_is_written(command, config, tmp_path, at_home):
    os.chdir(tmp_path)
    assert command("plan", config, "--quiet").code == 0
    assert list(tmp_path.iterdir()) == []


def test_longer_completions_take_longer_and_more_of_everything(command, config):
    def told(length: int):
        said = command("plan", config, "--set", "stages.1.max_completion_length=64", "--completion-length", length,
                       "--json", "-")  # fmt: skip
        return said.json["stages"][1]["assumptions"]["as told"]["step"]

    short, long = told(4), told(40)
    assert long["generated_tokens"] == 10 * short["generated_tokens"]
    assert long["operations"]["sampling/decode"] > 10 * short["operations"]["sampling/decode"]


def test_what_will_not_fit_is_said_with_the_setting_that_makes_it_fit(command, config):
    # a decoder of some 170 G weights on paper: nothing of it is made
    large = sets(**{"model.small.width": 16384, "model.small.layers": 64, "model.small.heads": 32})
    said = command("plan", config, *large, "--json", "-")
    assert said.code == 0
    warnings = said.json["stages"][1]["warnings"]
    assert any("'rl', update: needs" in warning and "there is" in warning for warning in warnings)
    assert any("train an adapter (model.lora), or take a smaller model" in warning for warning in warnings)
    assert "will not fit" in said.err


def test_activations_that_will_not_fit_have_a_remedy(command, config):
    wide = sets(**{
        "model.small.width": 2048, "model.small.layers": 24, "model.small.heads": 16, "model.small.context": 1048576,
        "stages.1.max_completion_length": 65536, "stages.1.num_generations": 64, "micro_batch_tokens": 8388608,
    })  # fmt: skip
    said = command("plan", config, *wide, "--set", "max_rows=4096", "--json", "-")
    rl = said.json["stages"][1]
    values = {(r["phase"], r["key"]): r["value"] for r in rl["remedies"]}
    told = values["update", "micro_batch_tokens"]
    assert told is None or told < 8388608
    if told is not None:
        assert any(f"--set micro_batch_tokens={told}" in warning for warning in rl["warnings"])


def test_a_trial_runs_two_steps_and_corrects_the_forecast(command, config, tmp_path):
    said = command("plan", config, "--trial", "--json", "-")
    assert said.code == 0
    rl = said.json["stages"][1]
    assert set(rl["assumptions"]) == {"as in the trial", "at the most"}
    assert rl["assumptions"]["as in the trial"]["lengths"]["completion"] <= 8
    trial = rl["trial"]
    assert trial["steps"] == 2
    for name, seconds in rl["assumptions"]["as in the trial"]["step"]["seconds"].items():
        assert seconds == pytest.approx(trial["seconds"][name])  # what was measured, at the lengths it was measured at
    assert rl["assumptions"]["as in the trial"]["reward_seconds"] == trial["seconds"]["reward"]


def test_a_run_is_compared_with_its_forecast(command, trained):
    said = command("plan", trained, "--json", "-")
    assert said.code == 0
    sft, rl = said.json["stages"]
    lines = {line["what"]: line for line in rl["lines"]}
    with Store.open_reader(trained / "run.db") as store:
        update = dict(store.metrics("rl", "time/update"))
        peak = max(value for _, value in store.metrics("rl", PEAK_RSS))
        length = dict(store.metrics("rl", "completions/mean_length"))
    assert lines["update"]["happened"] == pytest.approx(update[1])  # the first step warms up and is left out
    assert lines["update"]["ratio"] == pytest.approx(update[1] / lines["update"]["predicted"])
    assert lines["peak memory"]["happened"] == peak
    assert 0.3 < lines["peak memory"]["ratio"] < 3.0  # Python and torch, above all
    assert lines["reward"]["predicted"] is None
    assert rl["completion"] == pytest.approx(length[1])
    assert lines["generated tokens"]["predicted"] == pytest.approx(lines["generated tokens"]["happened"])
    assert {line["what"] for line in sft["lines"]} >= {"update", "step", "evaluation", "trained tokens", "peak memory"}
    assert "happened" in command("plan", trained).out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.toml"], 2, "no config at nowhere.toml"),
        (["{config}", "--completion-length", "0"], 2, "greater than or"),
        (["{config}", "--set", "max_row=3"], 2, "did you mean 'max_rows'?"),
        (["{config}", "--set", "stages.1.max_completion_length=5000"], 2, "got 5000; the model has"),
        (["{trained}", "--trial"], 2, "what happened cannot be changed"),
        (["{trained}", "--set", "max_rows=3"], 2, "expected them with a config"),
        (["{empty}"], 7, "no run at"),
    ],
)
def test_refusals(command, config, trained, tmp_path, arguments, code, message):
    places = {"config": config, "trained": trained, "empty": tmp_path}
    said = command("plan", *(argument.format(**places) for argument in arguments))
    assert said.code == code
    assert message in " ".join(said.err.split())


def test_a_run_without_a_step_is_refused(command, trained, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text((trained / "config.toml").read_text())
    said = command("plan", tmp_path / "run")
    assert said.code == 7
    assert "has not made a step yet" in said.err


def test_help_and_completion(command, config):
    said = command("plan", "--help")
    assert "maieutic plan runs/my" in said.out
    assert str(config) in [name for name, _ in complete.plans(f"{config.parent}/")]


SVAMP = [f"tasks.{name}.path" for name in ("demonstrations", "practice", "heldout", "svamp")]


#: All but those of `maieutic teach` and `distil`, which are not foreseen.
FORESEEN = sorted(path.name for path in EXAMPLES.glob("*.toml") if "[lesson]" not in path.read_text())


@pytest.mark.parametrize("example", FORESEEN)
def test_every_example_is_foreseen(command, example, tiny, request, at_home):
    settings: dict[str, object] = {}
    if re.search(r'path = "(Qwen|runs/)', (EXAMPLES / example).read_text()):
        settings["model.path"] = tiny
    if "svamp" in example:
        settings |= dict.fromkeys(SVAMP, request.getfixturevalue("data_dir") / "svamp")
    if "gsm8k" in example:
        folder = request.getfixturevalue("data_dir") / "gsm8k"
        settings |= {"tasks.train.path": folder, "tasks.test.path": folder}
    said = command("plan", EXAMPLES / example, *sets(**settings), "--completion-length", 20, "--json", "-")
    assert said.code == 0, said.err
    for stage in said.json["stages"]:
        told = stage["assumptions"]["as told"]
        assert told["seconds"] is None or told["seconds"] > 0
        assert all(phase["peak_bytes"] > 0 for phase in told["memory"]["phases"].values())
    assert (said.json["stages"][0]["times"] > 1) == (example in ("compare.toml", "sweep.toml"))


def test_a_comparison_is_its_start_and_its_arms_once_a_seed(command, at_home):
    said = command("plan", EXAMPLES / "compare.toml", "--completion-length", 20, "--json", "-")
    told = [(stage["part"], stage["times"], stage["assumptions"]["as told"]["name"]) for stage in said.json["stages"]]
    assert told == [("start", 3, "sft"), ("grpo", 3, "train"), ("rloo", 3, "train"), ("dapo", 3, "train")]
    seconds = [stage["assumptions"]["as told"]["seconds"] for stage in said.json["stages"]]
    assert said.json["seconds"]["as told"] == pytest.approx(3 * sum(seconds))
    # 8,000 samples, 16 prompts with 8 rollouts a step
    assert said.json["stages"][1]["assumptions"]["as told"]["steps"] == 63
