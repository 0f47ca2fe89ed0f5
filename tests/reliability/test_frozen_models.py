"""Runs with a teacher, or with references that stay, follow or come from elsewhere: trained, and resumed to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from maieutic.cli import main
from maieutic.config import parse_config
from maieutic.errors import ConfigError, ModelError
from maieutic.run.build import make_stage_algorithm
from maieutic.run.runner import Silent, resume_or_begin
from maieutic.run.store import Store
from maieutic.types import Step

REWARD = '''
def even(completion):
    """1 where it writes an even number of digits: untrained models differ in it."""
    return float(sum(c.isdigit() for c in completion) % 2 == 0)
'''
SAMPLING: dict[str, Any] = {"num_generations": 2, "max_completion_length": 6}


def config_of(folder: Path, algorithm: str, *, lora: bool = False, seed: int = 0, **stage: Any) -> dict[str, Any]:
    """A run of 3 steps on a model of 30 000 weights, a checkpoint after each."""
    (folder / "reward.py").write_text(REWARD)
    model: dict[str, Any] = {"small": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "context": 128}}
    sampled = {} if "num_generations" not in stage else {"rewards": {f"{folder}/reward.py:even": 1.0}}
    return {
        "threads": 1, "keep_checkpoints": 5, "seed": seed,
        "model": {**model, **({"lora": {"rank": 2}} if lora else {})},
        "tasks": {"train": {"taskset": "arithmetic", "difficulty": 1, "limit": 32}},
        "stages": [
            {
                "algorithm": algorithm, "steps": 3, "prompts": 3, "checkpoint_every": 1,
                "optimiser": {"learning_rate": 1e-3}, **sampled, **stage,
            }
        ],
    }  # fmt: skip


class Pulled(Silent):
    """Someone who pulls the plug when a step was stored and its checkpoint was not yet written."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, stage: str, step: Step, seconds: float) -> None:
        """Raises KeyboardInterrupt at the step."""
        if step.index == self.at:
            raise KeyboardInterrupt


def metrics(run: Path, stage: str, name: str) -> list[float]:
    with Store.open_reader(run / "run.db") as store:
        return [value for _, value in store.metrics(stage, name)]


def files(run: Path, stage: str, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / stage / f"step-{step:06d}"
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


def state(run: Path, stage: str, step: int) -> Any:
    folder = run / "checkpoints" / stage / f"step-{step:06d}"
    return json.loads((folder / "checkpoint.json").read_text())["state"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with the tokens of the policies here, which has been shown a little."""
    folder = tmp_path_factory.mktemp("teacher")
    resume_or_begin(parse_config(config_of(folder, "sft", seed=1)), folder / "run", resume=False)
    return str(folder / "run/checkpoints/sft/step-000003/model")


def both(tmp_path: Path, config: dict[str, Any]) -> tuple[Path, Path]:
    """A run that was never stopped, and the same one killed at two of its three steps."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    parsed = parse_config(config)
    resume_or_begin(parsed, whole, resume=False)
    for at in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            resume_or_begin(parsed, killed, resume=at > 1, watch=Pulled(at))
    resume_or_begin(parsed, killed, resume=True)
    return whole, killed


ROWS: list[tuple[str, dict[str, Any]]] = [
    ("distil", {}),
    ("distil", {"options": {"divergence": "reverse_kl"}, "teacher": {"top_k": 5}}),
    ("gkd", {**SAMPLING}),
    ("on_policy_distillation", {**SAMPLING, "options": {"task_reward": True}, "temperature": 0.8}),
]


@pytest.mark.parametrize(("algorithm", "stage"), ROWS, ids=[f"{name}-{len(stage)}" for name, stage in ROWS])
def test_a_run_with_a_teacher_learns_and_resumes_to_the_bit(
    tmp_path: Path, teacher: str, algorithm: str, stage: dict[str, Any]
) -> None:
    spec = {"path": teacher, "top_k": "all", **stage.get("teacher", {})}
    whole, killed = both(tmp_path, config_of(tmp_path, algorithm, **{**stage, "teacher": spec}))
    assert files(whole, algorithm, 3).keys() == {"model.safetensors", "learner.safetensors"}
    assert files(whole, algorithm, 3) == files(killed, algorithm, 3)
    assert state(whole, algorithm, 3) == state(killed, algorithm, 3)
    for name in ("loss", "distil/kl", "cost/flops"):
        assert metrics(whole, algorithm, name) == metrics(killed, algorithm, name)
    kls = metrics(whole, algorithm, "distil/kl")
    assert len(kls) == 3
    assert kls[0] > 0.01
    if algorithm == "distil":
        assert kls[2] < kls[0]


def test_a_mixture_takes_its_steps_from_both(tmp_path: Path, teacher: str) -> None:
    """GKD's λ = ½ over 8 steps: both kinds of step, no visit of the ledger twice."""
    stage = {**SAMPLING, "steps": 8, "teacher": {"path": teacher}}
    resume_or_begin(parse_config(config_of(tmp_path, "gkd", **stage)), tmp_path / "run", resume=False)
    last = state(tmp_path / "run", "gkd", 8)["source"]
    assert last["steps"] == 8
    sampled, shown = last["sampled"]["visits"], last["recorded"]["visits"]
    assert sampled + shown == 24
    assert min(sampled, shown) > 0
    with Store.open_reader(tmp_path / "run" / "run.db") as store:
        assert [visit for visit, _ in store.ledger("gkd")] == list(range(24))
    drawn = metrics(tmp_path / "run", "gkd", "cost/samples")
    assert sum(drawn) == 2 * sampled
    assert drawn.count(0.0) == shown / 3


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapter"])
def test_a_reference_that_follows_resumes_to_the_bit(tmp_path: Path, lora: bool) -> None:
    """A39: two optimiser steps a step of the loop, a move every three: before the second and the third update."""
    stage = {**SAMPLING, "options": {"beta": 0.1, "epochs": 2}}
    follows = {"reference": {"kind": "following", "every": 3, "mix": 0.5}}
    whole, killed = both(tmp_path, config_of(tmp_path, "grpo", lora=lora, **stage, **follows))
    assert "reference.safetensors" in files(whole, "grpo", 3)
    assert files(whole, "grpo", 3) == files(killed, "grpo", 3)
    assert metrics(whole, "grpo", "kl/reference") == metrics(killed, "grpo", "kl/reference")
    moves = [int(load_file(whole / f"checkpoints/grpo/step-{n:06d}/reference.safetensors")["moves"]) for n in (1, 2, 3)]
    assert moves == [0, 0, 1]  # asked at 0, 2 and 4 optimiser steps
    assert not list((whole / "checkpoints/grpo/step-000003/model").glob("**/reference*"))
    fixed = tmp_path / "fixed"
    resume_or_begin(parse_config(config_of(tmp_path, "grpo", lora=lora, **stage)), fixed, resume=False)
    apart, near = (metrics(run, "grpo", "kl/reference") for run in (fixed, whole))
    assert apart[:2] == near[:2]
    assert near[2] < apart[2]


def test_a_reference_from_elsewhere(tmp_path: Path, teacher: str) -> None:
    stage = {**SAMPLING, "options": {"beta": 0.1}, "reference": {"path": teacher}}
    whole, killed = both(tmp_path, config_of(tmp_path, "grpo", **stage))
    assert files(whole, "grpo", 3) == files(killed, "grpo", 3)
    assert metrics(whole, "grpo", "kl/reference")[0] > 0.01  # not where the policy begins


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gkd", {}, r"gkd learns from a teacher, and the stage has none.*\[stages.teacher\]"),
    ("on_policy_distillation", {}, "on_policy_distillation learns from a teacher"),
    ("grpo", {"teacher": {"path": "x"}}, r"got \[stages.teacher\], which does nothing: grpo as it is set asks no"),
    ("grpo", {"reference": {}}, r"got \[stages.reference\], which does nothing: grpo as it is set asks no reference"),
]


@pytest.mark.parametrize(("algorithm", "stage", "says"), REFUSED, ids=[f"{a}-{list(s)}" for a, s, _ in REFUSED])
def test_what_is_missing_or_idle_is_refused_before_anything_is_made(
    tmp_path: Path, algorithm: str, stage: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        make_stage_algorithm(parse_config(config_of(tmp_path, algorithm, **SAMPLING, **stage)).stages[0])


TABLES: list[tuple[dict[str, Any], str]] = [
    ({"teacher": {}}, "expected exactly one of path, recorded, url, mixture, by_tasks"),
    ({"teacher": {"path": "x", "top_k": 0}}, "stages.0.teacher.top_k"),
    ({"teacher": {"path": "x", "topk": 5}}, "did you mean 'top_k'"),
    ({"reference": {"kind": "follow"}}, "stages.0.reference.kind"),
    ({"reference": {"every": 5}}, 'expected them with kind = "following"'),
    ({"reference": {"kind": "following", "path": "x"}}, "it begins at the policy"),
    ({"reference": {"kind": "following", "mix": 0.0}}, "stages.0.reference.mix"),
    ({"reference": {"revision": "main"}}, "a revision without a path"),
]


@pytest.mark.parametrize(("stage", "says"), TABLES, ids=[str(stage) for stage, _ in TABLES])
def test_tables_that_cannot_be_meant(tmp_path: Path, stage: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(config_of(tmp_path, "grpo", **SAMPLING, **stage))


def test_defaults_of_following_are_trls(tmp_path: Path) -> None:
    stage = {**SAMPLING, "options": {"beta": 0.1}, "reference": {"kind": "following"}}
    found = parse_config(config_of(tmp_path, "grpo", **stage)).stages[0].reference
    assert found is not None
    assert found.following == {"every": 512, "mix": 0.6}


def test_a_teacher_with_other_tokens_stops_the_run(tmp_path: Path) -> None:
    other = config_of(tmp_path, "sft")
    other["tasks"]["train"] |= {"difficulty": 3, "limit": 8}
    resume_or_begin(parse_config(other), tmp_path / "other", resume=False)
    stranger = str(tmp_path / "other/checkpoints/sft/step-000003/model")
    with pytest.raises(ModelError, match="got a teacher"):
        resume_or_begin(
            parse_config(config_of(tmp_path, "distil", teacher={"path": stranger})), tmp_path / "run", resume=False
        )
    referred = {**SAMPLING, "options": {"beta": 0.1}, "reference": {"path": stranger}}
    with pytest.raises(ModelError, match="got a reference"):
        resume_or_begin(parse_config(config_of(tmp_path, "grpo", **referred)), tmp_path / "run2", resume=False)


def test_the_plan_says_what_is_beside_the_policy(
    tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "config.toml").write_text(
        f"""
        model.small = {{ layers = 1, width = 32, heads = 2, kv_heads = 1, context = 128 }}
        tasks.train = {{ taskset = "arithmetic", difficulty = 1, limit = 32 }}
        [[stages]]
        algorithm = "gkd"
        steps = 2
        max_completion_length = 6
        teacher.path = "{teacher}"
        [[stages]]
        algorithm = "grpo"
        steps = 2
        max_completion_length = 6
        options.beta = 0.1
        reference = {{ kind = "following", every = 32, mix = 0.9 }}
        """
    )
    assert main(["train", str(tmp_path / "config.toml"), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "sampled in 50% of the steps, demonstrations in the others" in said
    assert "64 candidates a token" in said
    assert "following: every 32 steps, mix 0.9" in said
    missing = (tmp_path / "config.toml").read_text().replace(teacher, str(tmp_path / "nowhere"))
    (tmp_path / "config.toml").write_text(missing)
    assert main(["train", str(tmp_path / "config.toml"), "--dry-run"]) != 0
