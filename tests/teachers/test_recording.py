"""`maieutic teacher record` and what a run learns from it: offline distillation with no teacher in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from standin import StandIn

from maieutic.backends.local import LocalBackend
from maieutic.cli import main
from maieutic.config import parse_config
from maieutic.errors import ConfigError, DataError, ModelError
from maieutic.models.causal import load_causal
from maieutic.run.build import make_stage_algorithm
from maieutic.run.recording import record
from maieutic.run.runner import Interrupted, resume_or_begin
from maieutic.run.store import Store
from maieutic.tasks.arithmetic import arithmetic
from maieutic.teachers import RecordedTeacher
from maieutic.teachers.records import Origin, fingerprint

TASKS = {"taskset": "arithmetic", "difficulty": 1, "limit": 32}


def config_of(algorithm: str, *, seed: int = 0, steps: int = 4, **stage: Any) -> dict[str, Any]:
    return {
        "threads": 1, "seed": seed, "keep_checkpoints": 5,
        "model": {"small": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "context": 128}},
        "tasks": {"train": TASKS},
        "stages": [{
            "algorithm": algorithm, "steps": steps, "prompts": 8, "checkpoint_every": 2,
            "optimiser": {"learning_rate": 3e-3}, **stage,
        }],
    }  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the students' tokens, which has been shown a little."""
    folder = tmp_path_factory.mktemp("teacher")
    resume_or_begin(parse_config(config_of("sft", seed=1, steps=12)), folder / "run", resume=False)
    return folder / "run/checkpoints/sft/step-000012/model"


@pytest.fixture(scope="module")
def recording(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording") / "top8"
    made = ["teacher", "record", str(teacher), "arithmetic", "--set", "difficulty=1", "--limit", "32"]
    assert main([*made, "--top", "8", "--out", str(folder), "-q"]) == 0
    return folder


def run(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The weights of a run, and its metrics."""
    resume_or_begin(parse_config(config), folder, resume=False)
    stage = config["stages"][0]["algorithm"]
    names = ("loss", "distil/kl", "distil/top1_agreement", "distil/kept_mass", "cost/flops", "asked/teacher/requests",
             "completions/mean_length", "reward/correct")  # fmt: skip
    with Store.open_reader(folder / "run.db") as store:
        found = {name: [value for _, value in store.metrics(stage, name)] for name in names}
    steps = config["stages"][0]["steps"]
    return load_file(folder / f"checkpoints/{stage}/step-{steps:06d}/model/model.safetensors"), found


def test_learning_from_a_recording_is_learning_from_its_teacher(tmp_path: Path, teacher: Path, recording: Path) -> None:
    """Recorded in other micro-batches, so to rounding; the KL falls, and no teacher is run."""
    weights, found = run(tmp_path / "recorded", config_of("distil", teacher={"recorded": str(recording)}))
    expected, loaded = run(tmp_path / "loaded", config_of("distil", teacher={"path": str(teacher), "top_k": 8}))
    for name in ("loss", "distil/kl", "distil/kept_mass"):
        assert found[name] == pytest.approx(loaded[name], rel=1e-3)
    assert max(float((weights[name] - expected[name]).abs().max()) for name in expected) < 2e-3
    assert found["distil/kl"][-1] < 0.8 * found["distil/kl"][0]
    assert found["cost/flops"][0] < loaded["cost/flops"][0]
    assert len(found["distil/top1_agreement"]) == len(found["completions/mean_length"]) == 4


def test_recording_again_asks_for_nothing_and_more_tasks_are_added(
    tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "top3"
    made = [
        "teacher",
        "record",
        str(teacher),
        "arithmetic",
        "--set",
        "difficulty=1",
        "--top",
        "3",
        "--out",
        str(folder),
    ]
    told = []
    for limit in (4, 4, 10):
        capsys.readouterr()
        assert main([*made, "--limit", str(limit), "--json", "-"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert [each["new"] for each in told] == [told[0]["sequences"], 0, told[2]["sequences"] - told[0]["sequences"]]
    assert told[2]["sequences"] > told[0]["sequences"]
    assert len(list(folder.glob("part-*"))) == 2
    assert main([*made, "--limit", "4", "--student", str(tmp_path / "nowhere")]) == 4
    assert main([*made[:-1], str(folder), "--top", "5", "--limit", "4", "-q"]) == 2


def test_a_recording_that_is_stopped_goes_on(tmp_path: Path, teacher: Path) -> None:
    """Whole parts stay; what the one that was never stopped holds is there in the end."""
    model = load_causal(teacher, device="cpu", dtype="float32")
    guide = LocalBackend().teacher(model, model, top_k=4)
    vocabulary = model.tokenizer.get_vocab()
    origin = Origin("t", fingerprint(vocabulary), len(vocabulary), 4)
    tasks = arithmetic(difficulty=1)
    with pytest.raises(Interrupted, match="stopped after 8 of 20"):
        record(guide, tasks, model.chat, tmp_path / "a", origin, limit=20, part=8, stop=lambda: True)
    before = len(RecordedTeacher(tmp_path / "a", vocabulary).records)
    found = record(guide, tasks, model.chat, tmp_path / "a", origin, limit=20, part=8)
    whole = record(guide, tasks, model.chat, tmp_path / "b", origin, limit=20, part=8)
    assert found["sequences"] == whole["sequences"] == found["new"] + before
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()
    }
    guide.limit = 3
    with pytest.raises(DataError, match="all 20 solutions are longer than the 3 tokens"):
        record(guide, tasks, model.chat, tmp_path / "c", origin, limit=20)


def test_a_run_asks_a_server_and_counts_what_that_costs(tmp_path: Path, teacher: Path) -> None:
    """Through HTTP the run is the same; every row of a step is one request, of which the log says."""
    served = StandIn(load_causal(teacher, device="cpu", dtype="float32"))
    try:
        spec = {"url": served.url, "model": "teacher", "top_k": 8}
        _, found = run(tmp_path / "served", config_of("distil", teacher=spec))
    finally:
        served.close()
    _, loaded = run(tmp_path / "loaded", config_of("distil", teacher={"path": str(teacher), "top_k": 8}))
    assert found["loss"] == pytest.approx(loaded["loss"], rel=1e-3)
    asked = found["asked/teacher/requests"]
    assert asked[0] <= 8 + 2  # and two by which they are introduced
    assert all(0 < each <= 8 for each in asked[1:])


SAMPLING = {"num_generations": 4, "max_completion_length": 12}
SEVERAL = [
    ("gkd", lambda t, r: {"mixture": [{"path": t, "weight": 3.0}, {"path": t}]}),
    ("on_policy_distillation", lambda t, r: {"by_tasks": {"arithmetic": {"path": t}}}),
    ("distil", lambda t, r: {"mixture": [{"recorded": r}, {"path": t, "top_k": 8}]}),
    ("gkd", lambda t, r: {"path": t, "too_long": "cut"}),
]


@pytest.mark.parametrize(("algorithm", "spec"), SEVERAL, ids=["mixture", "by tasks", "recorded and loaded", "cut"])
def test_runs_with_several_teachers_come_nearer_to_them(
    tmp_path: Path, teacher: Path, recording: Path, algorithm: str, spec: Any
) -> None:
    sampling = {} if algorithm == "distil" else SAMPLING
    config = config_of(algorithm, teacher=spec(str(teacher), str(recording)), steps=12, **sampling)
    _, found = run(tmp_path / "run", config)
    kls = found["distil/kl"]
    assert sum(kls[-3:]) < 0.8 * sum(kls[:3])
    assert len(found["completions/mean_length"]) == 12
    assert bool(found["reward/correct"]) == (algorithm != "distil")  # the student's accuracy, where it writes


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("gkd", {"recorded": "x"}, SAMPLING, r"got a recorded teacher, and gkd learns from what the policy writes"),
    ("gkd", {"mixture": [{"recorded": "x"}, {"path": "y"}]}, SAMPLING, "got a recorded teacher"),
    (
        "gkd",
        {"url": "http://h/v1", "model": "m"},
        {**SAMPLING, "temperature": 0.7},
        r"temperature = 0\.7 and a teacher",
    ),
]


@pytest.mark.parametrize(("algorithm", "spec", "stage", "says"), REFUSED, ids=[str(row[1]) for row in REFUSED])
def test_teachers_that_cannot_teach_this_are_refused_at_once(
    algorithm: str, spec: dict[str, Any], stage: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        make_stage_algorithm(parse_config(config_of(algorithm, teacher=spec, **stage)).stages[0])
    shown = config_of("gkd", teacher={"recorded": "x"}, options={"lmbda": 0.0})  # of shown rows alone it may
    assert not make_stage_algorithm(parse_config(shown).stages[0]).samples


TABLES: list[tuple[dict[str, Any], str]] = [
    ({"path": "x", "recorded": "y"}, "got path and recorded; expected exactly one of"),
    ({"recorded": "y", "dtype": "float32"}, "got dtype, which does nothing for a teacher with recorded"),
    ({"path": "x", "request": {"retries": 2}}, "got request, which does nothing for a teacher with path"),
    ({"url": "http://h/v1"}, "got a url without a model"),
    ({"mixture": [{"path": "x"}]}, "mixture"),
    ({"by_tasks": {"a": {"path": "x", "weight": 1.0}}}, "got a weight for a teacher by tasks"),
    ({"mixture": [{"path": "x"}, {"path": "y", "weight": 0.0}]}, r"mixture\.1\.weight"),
    ({"path": "x", "too_long": "crop"}, "too_long"),
]


@pytest.mark.parametrize(("spec", "says"), TABLES, ids=[str(spec) for spec, _ in TABLES])
def test_tables_that_cannot_be_meant(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(config_of("distil", teacher=spec))


def test_a_recording_of_other_tokens_stops_the_run(tmp_path: Path, recording: Path) -> None:
    config = config_of("distil", teacher={"recorded": str(recording)})
    config["tasks"]["train"] = {**TASKS, "difficulty": 3, "limit": 8}
    with pytest.raises(ModelError, match=r"expected the same tokens with the same ids .* sft"):
        resume_or_begin(parse_config(config), tmp_path / "run", resume=False)


def test_the_plan_names_every_teacher(
    tmp_path: Path, teacher: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text(
        f"""
[model]
path = "{teacher}"
[tasks.train]
taskset = "arithmetic"
difficulty = 1
[[stages]]
algorithm = "distil"
steps = 1
[[stages.teacher.mixture]]
path = "{teacher}"
weight = 3.0
[[stages.teacher.mixture]]
recorded = "{recording}"
"""
    )
    assert main(["train", str(tmp_path / "config.toml"), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"teacher 3 × ({teacher}, 64 candidates a token) + 1 × (as recorded in" in said
    assert main(["plan", str(tmp_path / "config.toml")]) == 0
