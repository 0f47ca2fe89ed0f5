"""Runs with a critic: trained, checkpointed and resumed to the bit; a critic that is missing or idle is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from maieutic.cli import main
from maieutic.config import parse_config
from maieutic.errors import ConfigError
from maieutic.run.build import make_stage_algorithm
from maieutic.run.runner import Silent, resume_or_begin
from maieutic.run.store import Store
from maieutic.types import Step

REWARD = '''
def even(completion):
    """1 where it writes an even number of digits: untrained models differ in it."""
    return float(sum(c.isdigit() for c in completion) % 2 == 0)
'''

CRITICS: dict[str, dict[str, Any]] = {
    "head": {"kind": "head", "learning_rate": 1e-2},
    "separate": {"kind": "separate", "learning_rate": 5e-3, "hidden": 8},
}


def config_of(folder: Path, critic: dict[str, Any] | None, **stage: Any) -> dict[str, Any]:
    """A run of 3 steps of PPO on a model of 30 000 weights, a checkpoint after each."""
    (folder / "reward.py").write_text(REWARD)
    return {
        "threads": 1, "keep_checkpoints": 5,
        "model": {"small": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "context": 128}},
        "tasks": {"train": {"taskset": "arithmetic", "difficulty": 1, "limit": 32}},
        "stages": [
            {
                "algorithm": "ppo",
                "options": {"epochs": 2, "minibatches": 2, "kl_target": 0.5, "critic_warmup": 1},
                "steps": 3, "prompts": 3, "num_generations": 2, "max_completion_length": 6, "checkpoint_every": 1,
                "rewards": {f"{folder}/reward.py:even": 1.0},
                "optimiser": {"learning_rate": 1e-3},
                **({} if critic is None else {"critic": critic}),
                **stage,
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


def metrics(run: Path, name: str) -> list[float]:
    with Store.open_reader(run / "run.db") as store:
        return [value for _, value in store.metrics("ppo", name)]


def files(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / "ppo" / f"step-{step:06d}"
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("kind", CRITICS)
def test_a_run_with_a_critic_learns_and_resumes_to_the_bit(tmp_path: Path, kind: str) -> None:
    config = parse_config(config_of(tmp_path, CRITICS[kind]))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    resume_or_begin(config, whole, resume=False)
    for at in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            resume_or_begin(config, killed, resume=at > 1, watch=Pulled(at))
    resume_or_begin(config, killed, resume=True)

    assert files(whole, 3).keys() == {"model.safetensors", "learner.safetensors"}
    assert files(whole, 3) == files(killed, 3)
    for name in ("critic/value", "critic/explained_variance", "kl/reference", "kl/beta", "loss"):
        assert metrics(whole, name) == metrics(killed, name)
    assert metrics(whole, "kl/beta")[0] == 0.05
    assert len(metrics(whole, "critic/value")) == 3

    last = json.loads((whole / "checkpoints/ppo/step-000003/checkpoint.json").read_text())
    beta, warmup = last["state"]["algorithm"]
    assert warmup == {"batches": 1}
    assert beta["beta"] != 0.05  # it has followed the KL
    assert last["state"] == json.loads((killed / "checkpoints/ppo/step-000003/checkpoint.json").read_text())["state"]

    weights = [load_file(whole / f"checkpoints/ppo/step-{n:06d}/learner.safetensors") for n in (1, 3)]
    own = [name for name in weights[0] if name.startswith("critic.")]
    assert any(name.startswith("critic.module.") for name in own) is (kind == "separate")
    assert any((weights[0][name] != weights[1][name]).any() for name in own)
    moved = files(whole, 1)["model.safetensors"] != (whole / "start" / "model.safetensors").read_bytes()
    assert moved is (kind == "head")  # in the warm-up a separate critic learns alone


def test_a_missing_and_an_idle_critic_are_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = parse_config(config_of(tmp_path, None)).stages[0]
    with pytest.raises(ConfigError, match=r"stage 'ppo': ppo learns with a critic.*Add a table \[stages.critic\]"):
        make_stage_algorithm(missing)
    idle = parse_config(config_of(tmp_path, CRITICS["head"], algorithm="grpo", options={})).stages[0]
    with pytest.raises(ConfigError, match=r"got \[stages.critic\], which does nothing: grpo reads no values"):
        make_stage_algorithm(idle)
    (tmp_path / "run.toml").write_text(
        "[model.small]\nlayers = 1\nwidth = 16\nheads = 2\nkv_heads = 1\ncontext = 64\n"
        '[tasks.train]\ntaskset = "arithmetic"\nlimit = 8\n'
        '[[stages]]\nalgorithm = "ppo"\nsteps = 1\nprompts = 2\nnum_generations = 1\n'
    )
    assert main(["train", str(tmp_path / "run.toml"), "--run", str(tmp_path / "run")]) == 2
    assert "Add a table [stages.critic]" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("critic", "message"),
    [
        ({"kind": "heads"}, "stages.0.critic.kind"),
        ({"kind": "head", "path": "somewhere"}, 'take "separate"'),
        ({"learning_rate": 0.0}, "stages.0.critic.learning_rate"),
        ({"hiden": 8}, "did you mean 'hidden'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_critics_are_refused(tmp_path: Path, critic: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(config_of(tmp_path, critic))
    assert message in str(error.value)


def test_a_critic_may_begin_with_another_model(tmp_path: Path) -> None:
    """A folder of its own, with the policy's tokenizer; one with another tokenizer is refused."""
    resume_or_begin(parse_config(config_of(tmp_path, CRITICS["head"], steps=1)), tmp_path / "first", resume=False)
    path = str(tmp_path / "first/checkpoints/ppo/step-000001/model")
    other = config_of(tmp_path, {"kind": "separate", "path": path}, steps=1)
    resume_or_begin(parse_config(other), tmp_path / "second", resume=False)
    assert len(metrics(tmp_path / "second", "critic/value")) == 1
    other["tasks"]["train"] = {"taskset": "arithmetic", "difficulty": 3, "limit": 32}  # other words, another tokenizer
    with pytest.raises(ConfigError, match="tokenizer is not that of the policy"):
        resume_or_begin(parse_config(other), tmp_path / "third", resume=False)
