"""The config: what is written is what is read, and every mistake is answered with the remedy."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.config import Config, StageConfig, parse_config, read_config, write_toml
from maieutic.errors import ConfigError
from maieutic.run.demo import demo_config
from maieutic.run.runner import config_text

SMALLEST = {
    "model": {"small": {}},
    "tasks": {"train": {"taskset": "arithmetic"}},
    "stages": [{"algorithm": "sft", "steps": 3}],
}
FULL = {
    **SMALLEST,
    "name": "full",
    "seed": 7,
    "threads": 2,
    "model": {"path": "models/tiny", "lora": {"rank": 4, "targets": ["q_proj", "v_proj"]}, "revision": "main"},
    "tasks": {
        "train": {"taskset": "arithmetic", "difficulty": 3, "size": 100, "shuffle": True},
        "gsm8k": {"taskset": "gsm8k", "path": "data/gsm8k", "start": 5, "limit": 50},
        "both": {"mixture": {"train": 3, "gsm8k": 1.5}, "size": 40},
    },
    "stages": [
        {"algorithm": "sft", "epochs": 1.5, "tasks": "gsm8k"},
        {
            "name": "practice",
            "algorithm": "grpo",
            "steps": 10,
            "tasks": "both",
            "options": {"beta": 0.04, "kl": "k2"},
            "rewards": {"answer": 1.0, "mine.py:brief": 0.2},
            "optimiser": {"kind": "muon", "learning_rate": 5e-3, "betas": [0.9, 0.99], "schedule": "cosine"},
        },
    ],
    "evaluation": {"tasks": ["train", "gsm8k"], "samples": 16, "k": 8, "at_start": True},
}


def with_(**changes):
    return {**SMALLEST, **changes}


@pytest.mark.parametrize("data", [SMALLEST, FULL, demo_config(3).model_dump(mode="json", exclude_none=True)])
def test_what_is_written_is_read_again(data, tmp_path):
    config = parse_config(data)
    path = tmp_path / "config.toml"
    path.write_text(write_toml(config))
    again = read_config(path)
    assert again == config
    assert write_toml(again) == write_toml(config), "a run's config must not look changed when the run is resumed"


def test_the_resolved_config_writes_every_default_out():
    written = tomllib.loads(write_toml(parse_config(SMALLEST)))
    assert written["stages"][0]["num_generations"] == 8
    assert written["stages"][0]["name"] == "sft", "a stage without a name is called after its algorithm"
    assert written["stages"][0]["optimiser"]["betas"] == [0.9, 0.95]
    assert written["model"]["small"]["tokenizer"] == "word"


def test_nothing_of_a_users_is_changed():
    given = parse_config(FULL)
    assert given.stages[1].options == {"beta": 0.04, "kl": "k2"}
    assert given.tasks["train"].options == {"difficulty": 3, "size": 100}
    assert given.tasks["gsm8k"].options == {"path": "data/gsm8k"}
    assert given.tasks["both"].options == {}, "the size of a mixture is the mixture's own"
    with pytest.raises(ValueError, match="frozen"):
        given.seed = 8


WRONG = {
    "unknown key at the top": (with_(sead=1), "unknown key 'sead'; did you mean 'seed'?"),
    "unknown key in a table": (with_(model={"small": {"widht": 64}}), "'model.small.widht'; did you mean 'width'?"),
    "unknown key in a stage": (
        with_(stages=[{"algorithm": "sft", "steps": 1, "temprature": 1.0}]),
        "'stages.0.temprature'; did you mean 'temperature'?",
    ),
    "unknown key two tables deep": (
        with_(stages=[{"algorithm": "sft", "steps": 1, "optimiser": {"learning_rte": 1e-3}}]),
        "'stages.0.optimiser.learning_rte'; did you mean 'learning_rate'?",
    ),
    "unknown key unlike any": (with_(zzz=1), "unknown key 'zzz'. Known here: name, seed"),
    "missing table": ({k: v for k, v in SMALLEST.items() if k != "model"}, "model is missing"),
    "missing key": (with_(stages=[{"steps": 1}]), "stages.0.algorithm is missing"),
    "no stage": (with_(stages=[]), "stages: got []"),
    "wrong type": (with_(seed="many"), "seed: got 'many'; input should be a valid integer"),
    "below the least": (with_(stages=[{"algorithm": "sft", "steps": 0}]), "stages.0.steps: got 0;"),
    "not one of a few": (
        with_(stages=[{"algorithm": "sft", "steps": 1, "optimiser": {"kind": "adam"}}]),
        "stages.0.optimiser.kind: got 'adam'; input should be 'adamw' or 'muon'",
    ),
    "neither path nor small": (with_(model={}), "model: expected exactly one of `path"),
    "both path and small": (with_(model={"path": "x", "small": {}}), "model: expected exactly one of `path"),
    "neither steps nor epochs": (with_(stages=[{"algorithm": "sft"}]), "exactly one of `steps`, `epochs` and `budget`"),
    "both steps and epochs": (
        with_(stages=[{"algorithm": "sft", "steps": 1, "epochs": 1}]),
        "exactly one of `steps`, `epochs` and `budget`",
    ),
    "neither taskset nor mixture": (with_(tasks={"train": {"size": 3}}), "tasks.train: expected exactly one of"),
    "tasks that are not there": (
        with_(stages=[{"algorithm": "sft", "steps": 1, "tasks": "trian"}]),
        "unknown tasks 'trian'; did you mean 'train'? Known: train. Add a table [tasks.trian].",
    ),
    "evaluation of tasks that are not there": (with_(evaluation={"tasks": ["train", "test"]}), "[tasks.test]"),
    "mixture of tasks that are not there": (
        with_(tasks={"train": {"taskset": "arithmetic"}, "all": {"mixture": {"trian": 1}}}),
        "did you mean 'train'?",
    ),
    "two stages of one name": (
        with_(stages=[{"algorithm": "sft", "steps": 1}, {"algorithm": "sft", "steps": 2}]),
        "two stages are called 'sft'",
    ),
    "a stage called as the first evaluation is": (
        with_(stages=[{"name": "start", "algorithm": "sft", "steps": 1}]),
        "a stage is called 'start', as the evaluation before the first stage is",
    ),
    "options of a mixture, which has none": (
        with_(tasks={"a": {"taskset": "arithmetic"}, "train": {"mixture": {"a": 1}, "difficulty": 3, "limt": 4}}),
        "tasks.train: a mixture has no option difficulty, limt",
    ),
    "a dropout that no run would have": (
        with_(model={"small": {}, "lora": {"dropout": 0.1}}),
        "unknown key 'model.lora.dropout'",
    ),
    "a rate of decay that is none": (
        with_(stages=[{"algorithm": "sft", "steps": 1, "optimiser": {"betas": [0.9, 1.5]}}]),
        "stages.0.optimiser.betas.1: got 1.5; input should be less than 1",
    ),
    "a stage's name that is no folder": (
        with_(stages=[{"name": "../x", "algorithm": "sft", "steps": 1}]),
        "a stage is called '../x'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_answered_with_the_remedy(case):
    data, said = WRONG[case]
    with pytest.raises(ConfigError) as error:
        parse_config(data, "my.toml")
    assert str(error.value).startswith("my.toml: ")
    assert said in str(error.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        parse_config(with_(seed="many", sead=1, stages=[{"algorithm": "sft"}]))
    assert str(error.value).count("; ") >= 3
    for place in ("seed: got", "'sead'", "stages.0: expected"):
        assert place in str(error.value)


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "tiny.toml").write_text(write_toml(parse_config(SMALLEST)))
    (tmp_path / "empty.toml").write_text("# nothing yet\n")
    (tmp_path / "broken.toml").write_text("[model\n")
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    for name, said in {
        "tinny.toml": f"expected a TOML file. Did you mean {tmp_path / 'tiny.toml'}?",
        "nowhere/at/all.toml": "no config at",
        "": "is a folder; expected a TOML file",
        "empty.toml": "is empty; expected at least [model], [tasks.train] and [[stages]]",
        "broken.toml": "is not TOML",
        "latin.toml": "cannot read",
    }.items():
        with pytest.raises(ConfigError) as error:
            read_config(tmp_path / name)
        assert said in str(error.value)
        assert str(tmp_path) in str(error.value)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(write_toml(parse_config(SMALLEST)))
    return path


def test_overrides_reach_everywhere(file):
    before = file.read_text()
    config = read_config(
        file,
        [
            "name=quick",  # text needs no quotes
            'device="cpu"',  # but may have them
            "stages.0.steps=9",
            "stages.0.optimiser.learning_rate=0.5",
            "stages.0.optimiser={ learning_rate = 0.25 }",  # the last one counts
            "stages.0.options.beta=0.1",
            "tasks.train.difficulty=4",
            "tasks.new.taskset=arithmetic",  # a table that was not there
            "evaluation.tasks=new",
            "model.small.tied=false",
        ],
    )
    assert config.name == "quick"
    assert config.stages[0].steps == 9
    assert config.stages[0].optimiser.learning_rate == 0.25
    assert config.stages[0].options == {"beta": 0.1}
    assert config.tasks["train"].options == {"difficulty": 4}
    assert config.tasks["new"].taskset == "arithmetic"
    assert config.evaluation is not None
    assert config.evaluation.names == ["new"]
    assert config.model.small is not None
    assert not config.model.small.tied
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("stages.1.steps=3", "got '1' where a number below 1 was expected (stages is a list)"),
        ("stages.first.steps=3", "got 'first' where a number below 1 was expected"),
        ("stages.-1.steps=3", "got '-1' where a number below 1 was expected"),
        ("name.first=3", "name is a value, not a table"),
        ("stages.0.steps.x=3", "stages.0.steps is a value, not a table"),
        ("stages.0.stps=3", "unknown key 'stages.0.stps'; did you mean 'steps'?"),
        ("seed=abc", "seed: got 'abc'"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(file, override, said):
    with pytest.raises(ConfigError) as error:
        read_config(file, [override])
    assert said in str(error.value)


def test_epochs_are_passes_over_the_tasks():
    # 1.5 passes over 100 tasks at 8 a step: 150 / 8 = 18.75, rounded 19; never less than one step
    assert StageConfig(algorithm="sft", epochs=1.5, prompts=8).step_count(100) == 19
    assert StageConfig(algorithm="sft", epochs=0.01, prompts=8).step_count(10) == 1
    assert StageConfig(algorithm="sft", steps=5).step_count(100) == 5


@given(
    seed=st.integers(-(2**31), 2**31),
    rate=st.floats(1e-9, 10, allow_nan=False),
    words=st.text(max_size=20).filter(lambda text: "\x00" not in text),
    steps=st.integers(1, 10**6),
)
def test_any_values_survive_writing(seed, rate, words, steps):
    stage = {"algorithm": "sft", "steps": steps, "optimiser": {"learning_rate": rate}}
    tasks = {"train": {"taskset": "file", "system": words}}
    config = parse_config(with_(seed=seed, tasks=tasks, stages=[stage]))
    assert Config.model_validate(tomllib.loads(write_toml(config))) == config


def test_a_run_resumes_with_a_config_that_says_the_same_in_other_words(tmp_path):
    # written before a key existed: the default fills it, and nothing has changed
    config = parse_config(SMALLEST)
    (tmp_path / "config.toml").write_text(write_toml(config).replace("max_rows = 512\n", ""))
    assert config_text(config, tmp_path, resume=True) == (tmp_path / "config.toml").read_text()
    other = parse_config(with_(seed=5))
    assert config_text(other, tmp_path, resume=True) == write_toml(other)


def test_more_votes_than_samples_are_refused():
    with pytest.raises(ConfigError, match="k = 9 and samples = 8"):
        parse_config({**SMALLEST, "evaluation": {"tasks": "train", "k": 9, "samples": 8}})


@pytest.mark.parametrize("name", ["", "../elsewhere", ".hidden", "a/b"])
def test_a_run_is_named_as_a_folder(name):
    with pytest.raises(ConfigError, match="expected the name of a folder"):
        parse_config({**SMALLEST, "name": name})


@pytest.mark.parametrize(
    "teacher",
    [
        {"path": "m"},
        {"recorded": "r"},
        {"url": "http://x/v1", "model": "m"},
        {"mixture": [{"path": "m"}, {"path": "n"}]},
    ],
    ids=lambda teacher: next(iter(teacher)),
)
def test_a_config_with_a_teacher_is_read_again_as_a_run_has_written_it(teacher):
    stage = {"algorithm": "distil", "tasks": "train", "steps": 1, "teacher": teacher}
    tables = {"model": {"path": "s"}, "tasks": {"train": {"taskset": "arithmetic"}}, "stages": [stage]}
    config = parse_config(tables)
    assert parse_config(tomllib.loads(write_toml(config))) == config
