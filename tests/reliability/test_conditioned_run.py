"""A run with return-conditioned stages: labelled rows, evaluated with the label forced, resumed to the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maieutic.cli import main
from maieutic.config import parse_config
from maieutic.environments.conditioned import INFERENCE, read_inference
from maieutic.errors import ConfigError, ModelError
from maieutic.models.causal import load_tokenizer
from maieutic.run.directory import RunDirectory
from maieutic.run.runner import Runner, Silent, config_text, resume_or_begin
from maieutic.run.store import Store
from maieutic.steps import Labels

LABELS = Labels(delimiter=" ;")
OPTIMISER = {"learning_rate": 3e-3}


def tables(**changes):
    """A config of three stages: demonstrations, return-conditioned rounds, and practice from there on."""
    practice = {"prompts": 4, "num_generations": 4, "max_completion_length": 24, "optimiser": OPTIMISER}
    return {
        "name": "conditioned",
        "model": {
            "small": {
                "layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "context": 128,
                "extra_words": ["[GOOD]", "[BAD]"],
            }
        },
        "tasks": {
            "train": {"taskset": "arithmetic", "difficulty": 1, "size": 64, "tool": "calculator"},
            "test": {"taskset": "arithmetic", "split": "test", "difficulty": 1, "size": 8, "tool": "calculator"},
        },
        "stages": [
            {"algorithm": "sft", "steps": 30, "prompts": 32, "optimiser": OPTIMISER},
            {
                "algorithm": "rcrl", "steps": 3, "checkpoint_every": 1, **practice,
                "options": {"delimiter": " ;", "labels": "monte_carlo", "continuations": 2, "rows": 8},
            },
            {"algorithm": "grpo", "steps": 2, **practice},
            {"name": "again", "algorithm": "sft", "steps": 1, "prompts": 4, "optimiser": OPTIMISER},
        ],
        "evaluation": {"tasks": "test", "samples": 2, "max_completion_length": 24},
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def config():
    return parse_config(tables())


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    resume_or_begin(config, folder, resume=False)
    return folder


def model_of(folder: Path, stage: str) -> Path:
    return max((folder / "checkpoints" / stage).glob("step-*")) / "model"


def test_the_models_say_how_they_are_asked(unbroken):
    """From the stage that learned labels on, as long as the policy practises; demonstrations have none."""
    assert not (model_of(unbroken, "sft") / INFERENCE).exists()
    assert read_inference(model_of(unbroken, "rcrl")) == LABELS
    assert read_inference(model_of(unbroken, "grpo")) == LABELS
    assert read_inference(model_of(unbroken, "again")) is None


def test_rounds_after_the_first_ask_with_the_label(unbroken):
    """The model has not seen a label before its first update; after it, it has seen nothing else."""
    (good,) = load_tokenizer(model_of(unbroken, "rcrl")).convert_tokens_to_ids([LABELS.good])
    with Store.open_reader(unbroken / "run.db") as store:
        labelled = [[good in each.rollout.tokens for each in store.rollouts("rcrl", step)] for step in range(3)]
    assert not any(labelled[0])
    assert all(labelled[1])
    assert all(labelled[2])


def test_what_was_sampled_and_what_it_cost(unbroken):
    with Store.open_reader(unbroken / "run.db") as store:
        steps = store.steps("rcrl")
        generated = dict(store.metrics("rcrl", "cost/generated_tokens"))
        lengths = dict(store.metrics("rcrl", "completions/mean_length"))
    assert len(steps) == 3
    # continuations are paid for beside the 16 rollouts of a step
    assert sum(generated.values()) > 16 * sum(lengths.values())


def test_the_evaluation_of_the_run_is_that_of_the_command_line(unbroken, capsys):
    with Store.open_reader(unbroken / "run.db") as store:
        kept = {stage: store.evaluation(stage, "test") for stage in ("sft", "rcrl")}
    assert kept["rcrl"]["problems"] != kept["sft"]["problems"]
    texts = [sample["text"] for problem in kept["rcrl"]["problems"] for sample in problem["samples"]]
    assert texts
    assert not any("[GOOD]" in text or "[BAD]" in text for text in texts)

    ask = ["arithmetic", "--set", "difficulty=1", "--set", "size=8", "--set", "tool=calculator", "--samples", "2"]
    ask += ["--max-completion-length", "24"]
    saved = unbroken.parent / "again.json"
    assert main(["eval", str(model_of(unbroken, "rcrl")), *ask, "--save", str(saved)]) == 0
    assert "is asked with '[GOOD]' before every step, as it was trained" in " ".join(capsys.readouterr().err.split())
    assert json.loads(saved.read_text())["problems"] == kept["rcrl"]["problems"]
    assert main(["eval", str(model_of(unbroken, "sft")), *ask, "-q"]) == 0
    assert "is asked with" not in capsys.readouterr().err


def test_sampling_from_the_command_line_says_it_too(unbroken, capsys):
    ask = ["arithmetic", "--set", "difficulty=1", "-n", "1", "--max-completion-length", "24"]
    assert main(["sample", str(model_of(unbroken, "rcrl")), *ask]) == 0
    said = capsys.readouterr()
    assert "is asked with '[GOOD]'" in " ".join(said.err.split())
    assert "[GOOD]" not in said.out


class Pulled(Exception):
    """The plug was."""


class Plug(Silent):
    """Pulls the plug after a step of a stage."""

    def __init__(self, stage, index):
        self.at = (stage, index)

    def step(self, stage, step, seconds):
        """Called after each step."""
        if (stage, step.index) == self.at:
            raise Pulled


@pytest.mark.parametrize("at", [("rcrl", 1), ("grpo", 0)])
def test_a_run_that_broke_off_ends_the_same(config, unbroken, tmp_path, at):
    folder = tmp_path / "broken"
    with (
        pytest.raises(Pulled),
        RunDirectory.create(folder, config_text(config, folder, resume=False), resume=False) as directory,
    ):
        Runner(config, directory, Plug(*at)).run()
    resume_or_begin(config, folder, resume=True)
    for stage in ("rcrl", "grpo", "again"):
        name = "model.safetensors"
        assert (model_of(folder, stage) / name).read_bytes() == (model_of(unbroken, stage) / name).read_bytes(), stage
        with Store.open_reader(folder / "run.db") as mine, Store.open_reader(unbroken / "run.db") as other:
            assert mine.evaluation(stage, "test") == other.evaluation(stage, "test")
            assert mine.metrics(stage, "cost/generated_tokens") == other.metrics(stage, "cost/generated_tokens")


def test_labels_that_the_model_lacks_stop_the_run_before_it_trains(tmp_path):
    small = {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "context": 128}
    config = parse_config(tables(model={"small": small}))
    with pytest.raises(ModelError, match=r"\[GOOD\].* is not in this model's vocabulary.*extra_words"):
        resume_or_begin(config, tmp_path / "run", resume=False)
    assert not list((tmp_path / "run" / "checkpoints").glob("sft/*"))


def test_a_delimiter_that_the_model_cannot_write_is_refused(tmp_path):
    stages = tables()["stages"]
    stages[1] = {**stages[1], "options": {}}
    with pytest.raises(ModelError, match=r"can end in the step delimiter '\\n'"):
        resume_or_begin(parse_config(tables(stages=stages)), tmp_path / "run", resume=False)


def test_a_later_stage_with_other_labels_is_refused(tmp_path):
    stages = tables()["stages"]
    quick = {**stages[1], "steps": 1, "options": {"delimiter": " ;"}}
    stages = [
        {**quick, "name": "one"},
        {**quick, "name": "two", "options": {"delimiter": " =", "good": "[BAD]", "bad": "[GOOD]"}},
    ]
    with pytest.raises(ConfigError, match=r"stage 'two'.*expected the same labels and delimiter"):
        resume_or_begin(parse_config(tables(stages=stages)), tmp_path / "run", resume=False)
