"""`maieutic teach` and `maieutic distil` as jobs: short configs, ordinary runs, and going on to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maieutic.cli import main
from maieutic.config import parse_config, parse_table
from maieutic.config.teaching import CollectConfig, DistilConfig, TeachConfig
from maieutic.errors import ConfigError
from maieutic.models.small import SmallModel, build_small
from maieutic.run.directory import RunDirectory
from maieutic.run.distil import FILE, PREFERENCES, begin, collect, student_config
from maieutic.run.runner import Interrupted, Runner, Silent, config_text, resume_or_begin
from maieutic.run.store import Store
from maieutic.run.teaching import teacher_config
from maieutic.sources import preference_of, solution_of
from maieutic.tasks import arithmetic_vocabulary, file
from maieutic.tasks.teaching import TAGS

LESSON = {"tags": "words", "solution": "# {answer}", "explanation": "solution", "until": "#"}
TASKS = {"train": {"taskset": "arithmetic", "difficulty": 1, "size": 40}}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A teacher, and a student with more parameters and other tokens."""
    folder = tmp_path_factory.mktemp("models")
    words = [*arithmetic_vocabulary(1), *TAGS["words"].words]
    for name, width, seed in (("teacher", 16, 0), ("student", 32, 1)):
        spec = SmallModel(layers=1, width=width, heads=2, kv_heads=1, context=160)
        build_small(folder / name, spec, vocabulary=words[:: -1 if width == 32 else 1], seed=seed)
    return folder


def teach(models, **more) -> TeachConfig:
    given = {
        "model": {"path": str(models / "teacher")}, "student": str(models / "student"), "lesson": LESSON,
        "tasks": TASKS, "threads": 1, "warmup": {"steps": 2, "prompts": 4},
        "rl": {"steps": 3, "prompts": 2, "num_generations": 3, "max_completion_length": 8, "checkpoint_every": 1,
               "optimiser": {"learning_rate": 1e-2}},
    }  # fmt: skip
    return parse_table(TeachConfig, {**given, **more}, "test")


def asked(models, **more) -> DistilConfig:
    given = {
        "teacher": str(models / "teacher"), "lesson": LESSON, "tasks": TASKS, "threads": 1,
        "collect": {"limit": 34, "max_completion_length": 10, **more},
        "student": {"model": {"path": str(models / "student")}, "steps": 2, "prompts": 4},
    }  # fmt: skip
    return parse_table(DistilConfig, given, "test")


def test_what_is_left_out_is_as_in_the_released_run(models):
    whole = teacher_config(teach(models, warmup={"optimiser": {}}, rl={}, lesson={"solution": "{answer}"}))
    warmup, rl = whole.stages
    assert (warmup.algorithm, warmup.epochs, warmup.prompts) == ("sft", 10.0, 16)
    told = warmup.optimiser
    assert (told.learning_rate, told.schedule, told.weight_decay, told.betas) == (1e-5, "cosine", 1e-4, (0.9, 0.95))
    assert told.warmup_steps == 1  # 5 % of 40 · 10 / 16 = 25 steps
    assert (rl.steps, rl.prompts, rl.num_generations, rl.temperature) == (125, 16, 64, 0.7)
    assert (rl.optimiser.learning_rate, rl.optimiser.schedule, rl.optimiser.max_grad_norm) == (1e-6, "constant", 1.0)
    assert (rl.algorithm, rl.options) == ("grpo", {"beta": 0.04})  # one epoch, one minibatch: no ratio but 1
    assert rl.reference.following == {"every": 32, "mix": 0.9}
    assert rl.rewards == {"teaching": 1.0}
    assert [whole.tasks[s.tasks].taskset for s in whole.stages] == ["teaching", "teaching"]
    alone = teacher_config(teach(models, warmup=False, rl={"beta": 0.0}))
    assert [stage.name for stage in alone.stages] == ["teach"]
    assert alone.stages[0].reference is None


def weights(folder: Path) -> bytes:
    newest = max((folder / "checkpoints" / "teach").iterdir())
    return (newest / "model" / "model.safetensors").read_bytes()


def test_a_teacher_that_was_stopped_ends_with_the_same_weights(models, tmp_path):
    config = teacher_config(teach(models))
    resume_or_begin(config, tmp_path / "whole", resume=False)

    class Stops(Silent):
        runner: Runner

        def step(self, stage, step, seconds):
            if (stage, step.index) == ("teach", 0):
                self.runner.stop.set()

    watch = Stops()
    with RunDirectory.create(tmp_path / "cut", config_text(config, tmp_path / "cut", resume=False), resume=False) as to:
        watch.runner = Runner(config, to, watch)
        with pytest.raises(Interrupted):
            watch.runner.run()
    resume_or_begin(config, tmp_path / "cut", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    with Store.open_reader(tmp_path / "whole" / "run.db") as store:
        parts = {name.rsplit("teaching/")[-1] for name in store.metric_names("teach") if "parts/teaching/" in name}
        assert parts >= {"solution/mean", "solution/min", "kl/mean", "kl/max", "match"}
        assert [value for _, value in store.metrics("teach", "policy/ratio")] == [1.0] * 3


@pytest.mark.parametrize(
    "ranked",
    [
        {},
        {"candidates": 2, "rank": "reward", "margin": 0.01},
        {"candidates": 2, "rank": "exam", "exams": 1, "repeats": 1},
    ],
)
def test_explanations_are_collected_to_the_same_bytes(models, tmp_path, ranked):
    judge = {"reward": {"student": str(models / "student")}, "exam": {"students": [str(models / "student")]}}
    config = asked(models, **ranked, **judge.get(ranked.get("rank", ""), {}))
    for name in ("whole", "cut"):
        begin(config, tmp_path / name, resume=False)
    found = collect(config, tmp_path / "whole")
    with pytest.raises(Interrupted, match="after 32 of 34"):
        collect(config, tmp_path / "cut", stop=lambda: True)
    for name in (FILE, PREFERENCES)[: 1 + ("margin" in ranked)]:  # a kill in the middle of a line
        with (tmp_path / "cut" / name).open("ab") as out:
            out.write(b'{"half')
    assert {**collect(config, tmp_path / "cut"), "file": ""} == {**found, "file": ""}
    read = (tmp_path / "whole" / FILE).read_bytes()
    assert read == (tmp_path / "cut" / FILE).read_bytes()
    rows = [json.loads(line) for line in read.splitlines()]
    assert len(rows) + found["left_out"] == 34
    task = file(tmp_path / "whole" / FILE)[0]
    assert solution_of(task) == f"<think> {rows[0]['explanation']} </think> <solution> # {task.answer} </solution>"
    if "margin" in ranked:
        assert all(row["reward"] == row["value"] for row in rows)
        pair = file(tmp_path / "whole" / PREFERENCES)[0]
        assert pair.prompt[-1].content.endswith("<explanation> ")
        assert preference_of(pair)[0] != preference_of(pair)[1]
    with pytest.raises(ConfigError, match="is there already"):
        begin(config, tmp_path / "whole", resume=False)
    with pytest.raises(ConfigError, match="begun with other settings"):
        begin(asked(models, limit=3), tmp_path / "whole", resume=True)


def test_limits_and_reserved_explanations(models, tmp_path):
    begin(asked(models, reserved=True), tmp_path / "a", resume=False)
    # an untrained teacher closes next to nothing: the recorded explanation stands in
    found = collect(asked(models, reserved=True), tmp_path / "a")
    assert found["reserved"] > 20
    config = asked(models, max_tokens=40)
    begin(config, tmp_path / "b", resume=False)
    assert 0 < collect(config, tmp_path / "b")["left_out"] < 34
    for wrong, said in (
        ({"rank": "reward", "candidates": 2}, "without a student"),
        ({"rank": "exam", "candidates": 2}, "without students"),
        ({"rank": "reward", "student": "x"}, "of one candidate"),
        ({"student": "x"}, "does nothing"),
        ({"margin": 1.0}, "compares nothing"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_table(CollectConfig, wrong, "test")


def test_the_command_line(models, tmp_path, capsys):
    settings = tmp_path / "teach.toml"
    lesson = 'lesson = { tags = "words", solution = "# {answer}", explanation = "solution", until = "#" }\n'
    settings.write_text(
        f'student = "{models}/student"\n{lesson}model = {{ path = "{models}/teacher" }}\n'
        '[tasks.train]\ntaskset = "arithmetic"\ndifficulty = 1\nsize = 40\n'
        "[warmup]\nsteps = 1\nprompts = 2\n"
        "[rl]\nsteps = 1\nprompts = 2\nnum_generations = 2\nmax_completion_length = 8\n"
    )
    assert main(["teach", str(settings), "--dry-run", "-q"]) == 0
    assert "grpo on lessons" in capsys.readouterr().out
    assert main(["teach", str(settings), "--run", str(tmp_path / "teacher"), "-q"]) == 0
    distil = tmp_path / "distil.toml"
    distil.write_text(
        f'teacher = "{tmp_path}/teacher"\n{lesson}[tasks.train]\ntaskset = "arithmetic"\ndifficulty = 1\nsize = 6\n'
        f'[collect]\nmax_completion_length = 8\n[student]\nmodel = {{ path = "{models}/student" }}\nsteps = 1\n'
        "prompts = 2\n"
    )
    out = tmp_path / "out"
    for wrong in ("teacher=nobody", 'tasks.train.taskset="nothing"', "collect.students=['nobody']"):
        assert main(["distil", str(distil), "--out", str(out), "--only-collect", "-q", "--set", wrong]) in (2, 4)
        assert not out.exists(), "what was refused is not in the way"
    assert main(["distil", str(distil), "--out", str(out), "--only-collect", "-q"]) == 0
    assert not (out / "student").exists()
    capsys.readouterr()
    assert main(["distil", str(distil), "--out", str(out), "--resume", "-q", "--json", "-"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["student"]["model"]).is_dir()
    # what follows is an ordinary run from that model
    config = student_config(asked(models), out)
    assert config.stages[0].algorithm == "sft"
    assert main(["distil", str(distil), "--out", str(out), "--set", "collect.limt=2", "--resume"]) == 2
    assert "did you mean 'limit'" in capsys.readouterr().err


def test_lessons_in_a_config_name_other_tables(models):
    table = {"taskset": "teaching", "tasks": "train", **LESSON}
    stage = {"algorithm": "sft", "steps": 1, "tasks": "lessons"}
    whole = {"model": {"path": "x"}, "stages": [stage], "tasks": {**TASKS, "lessons": table}}
    from maieutic.run.tasksets import Tasksets

    assert len(Tasksets(parse_config(whole))["lessons"]) == 40
    for wrong, said in (("trian", "train"), ("lessons", "is made of itself")):
        broken = {**whole, "tasks": {**TASKS, "lessons": {**table, "tasks": wrong}}}
        with pytest.raises(ConfigError, match=said):
            Tasksets(parse_config(broken))["lessons"]
