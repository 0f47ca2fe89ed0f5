"""`maieutic plan` of teachers, of their students, and of tasks that are played turn by turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w

from maieutic.config import write_toml
from maieutic.config.reading import parse_table
from maieutic.config.teaching import DistilConfig, TeachConfig
from maieutic.forecast.sizes import sizes_of
from maieutic.forecast.work import forward, prefill, reread, seen
from maieutic.models.outline import outline
from maieutic.models.small import SmallModel, build_small
from maieutic.tasks import arithmetic_vocabulary
from maieutic.tasks.teaching import TAGS

TASKS = {"train": {"taskset": "arithmetic", "difficulty": 1, "size": 40}}
LESSON = {"tags": "words", "solution": "# {answer}", "explanation": "solution", "until": "#"}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, width in (("teacher", 16), ("student", 32)):
        spec = SmallModel(layers=1, width=width, heads=2, kv_heads=1, context=160)
        build_small(folder / name, spec, vocabulary=[*arithmetic_vocabulary(1), *TAGS["words"].words])
    return folder


def phases(stage, assumption="at the most"):
    told = stage["assumptions"][assumption]
    return told, {name: phase["peak_bytes"] for name, phase in told["memory"]["phases"].items()}


def planned(command, file: Path):
    """What is said, and the same as data."""
    said = command("plan", file, "--json", file.with_suffix(".json"))
    assert said.code == 0, said.err
    return said.out, json.loads(file.with_suffix(".json").read_text())


def standing(told):
    return {item["what"]: item["bytes"] for item in told["memory"]["standing"]}


def test_a_teachers_run_has_the_student_beside_it(command, models, tmp_path):
    given = {
        "model": {"path": str(models / "teacher")}, "student": str(models / "student"), "lesson": LESSON,
        "tasks": TASKS, "threads": 1, "warmup": {"steps": 2, "prompts": 4},
        "rl": {"steps": 3, "prompts": 2, "num_generations": 3, "max_completion_length": 8},
    }  # fmt: skip
    (tmp_path / "teach.toml").write_text(write_toml(parse_table(TeachConfig, given, "test")))
    said, told = planned(command, tmp_path / "teach.toml")
    assert "a frozen student's log-probs" in said
    warmup, rl = told["stages"]
    told, peaks = phases(rl)
    assert told["step"]["samples"] == 6
    assert {"sampling", "annotate", "update"} <= set(peaks)  # the KL asks a reference
    assert standing(told)["models of rewards"] == sizes_of(outline(str(models / "student"))).bytes()
    assert "models of rewards" not in standing(phases(warmup)[0])


def test_a_teachers_explanations_and_the_student_of_them(command, models, tmp_path):
    given = {
        "teacher": str(models / "teacher"), "lesson": LESSON, "tasks": TASKS, "threads": 1,
        "collect": {"limit": 34, "max_completion_length": 10, "candidates": 2, "rank": "reward",
                    "student": str(models / "student")},
        "student": {"model": {"path": str(models / "student")}, "epochs": 2, "prompts": 4},
    }  # fmt: skip
    file = tmp_path / "distil.toml"
    file.write_text(write_toml(parse_table(DistilConfig, given, "test")))
    said, found = planned(command, file)
    assert "which are not written yet" in said
    assert "left out: how candidates are ranked" in said
    collect, student = found["stages"]
    told, peaks = phases(collect)
    # 34 lessons, 32 at once, of 2 candidates of 10 tokens; nothing is trained
    assert (told["steps"], told["step"]["samples"], told["step"]["generated_tokens"]) == (2, 64, 640)
    assert (set(peaks), told["parameters"]["trained"], told["step"]["trained_tokens"]) == ({"sampling"}, 0, 0)
    assert standing(told)["models of rewards"] == sizes_of(outline(str(models / "student"))).bytes()
    assert told["seconds"] == pytest.approx(2 * told["step"]["seconds_known"])
    learned, peaks = phases(student)
    assert (learned["name"], learned["algorithm"], learned["steps"], set(peaks)) == ("student", "sft", 17, {"update"})
    assert learned["lengths"]["completion"] == 10  # at the most; half of it as a guess
    assert phases(student, "a guess")[0]["lengths"]["completion"] == 5
    assert command("plan", file, "--trial").code != 0


def test_episodes_are_read_again_at_each_turn(command, tmp_path):
    """4 turns of 3 tokens, of 24 that may follow the prompt: half is written, half is said to the model."""
    played = {"taskset": "guess", "highest": 8, "max_turn_length": 3}
    config = {
        "threads": 1, "model": {"small": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "context": 64}},
        "tasks": {"train": played, "test": {**played, "size": 8}},
        "stages": [{"name": "play", "algorithm": "grpo", "steps": 2, "prompts": 3, "num_generations": 4,
                    "max_completion_length": 24}],
    }  # fmt: skip
    (tmp_path / "played.toml").write_text(tomli_w.dumps(config))
    said, found = planned(command, tmp_path / "played.toml")
    assert "played: 4 turns counted, of at most 3 tokens" in said
    told, _ = phases(found["stages"][0])
    assert told["lengths"]["turns"] == 4
    assert told["step"]["generated_tokens"] == 12 * 24 / 2
    assert told["step"]["trained_tokens"] == 12 * (told["lengths"]["prompt"] + 24)
    config["tasks"]["train"] = {"taskset": "guess", "highest": 8, "max_turns": 1, "max_turn_length": 3}
    (tmp_path / "once.toml").write_text(tomli_w.dumps(config))
    once = phases(planned(command, tmp_path / "once.toml")[1]["stages"][0])[0]
    operations = [each["step"]["operations"]["sampling/prefill"] for each in (told, once)]
    assert operations[0] > 4 * operations[1]  # each sibling by itself, four times, and longer each time


def test_what_is_read_again_is_counted(models):
    """Two rows, a prompt of 3 tokens, 6 more in 2 turns: 3 and then 6 tokens each are read."""
    sizes = sizes_of(outline(str(models / "teacher")))
    again = reread(sizes, 2, 3, 6, 2)
    assert again.operations == forward(sizes, 2 * 9, 2 * (seen(0, 3) + seen(0, 6)), 4, 2).operations
    assert reread(sizes, 2, 3, 6, 1).operations == prefill(sizes, 2, 3).operations
