"""Runs whose policy, critic, reference and teacher are adapters over one base: trained, and resumed to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maieutic.cli.train import check
from maieutic.config import parse_config
from maieutic.errors import ConfigError
from maieutic.models.adapters import parameters_of
from maieutic.models.causal import load_causal, parameter_count
from maieutic.run.build import make_backend, make_stage_algorithm
from maieutic.run.runner import Silent, resume_or_begin
from maieutic.run.setup import Setup, set_up
from maieutic.run.store import Store
from maieutic.run.tasksets import Tasksets
from maieutic.types import Step

REWARD = '''
def even(completion):
    """1 where it writes an even number of digits: untrained models differ in it."""
    return float(sum(c.isdigit() for c in completion) % 2 == 0)
'''
SMALL: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2, "kv_heads": 1, "context": 128}


def config_of(folder: Path, stages: list[dict[str, Any]], **model: Any) -> dict[str, Any]:
    """A run on a model of 60 000 weights, a checkpoint after each step."""
    (folder / "reward.py").write_text(REWARD)
    sampled = {
        "num_generations": 2, "max_completion_length": 6, "rewards": {f"{folder}/reward.py:even": 1.0},
    }  # fmt: skip
    every = {"steps": 3, "prompts": 3, "checkpoint_every": 1, "optimiser": {"learning_rate": 1e-2}}
    shown = ("sft", "distil")
    return {
        "threads": 1, "keep_checkpoints": 9,
        "model": {"small": SMALL, "lora": {"rank": 2}, **model},
        "tasks": {"train": {"taskset": "arithmetic", "difficulty": 1, "limit": 32}},
        "stages": [{**every, **({} if stage["algorithm"] in shown else sampled), **stage} for stage in stages],
    }  # fmt: skip


SFT: dict[str, Any] = {"algorithm": "sft"}
PPO: dict[str, Any] = {
    "algorithm": "ppo", "options": {"epochs": 2, "minibatches": 2},
    "critic": {"kind": "adapter", "learning_rate": 5e-3, "hidden": 8},
}  # fmt: skip


class Pulled(Silent):
    """Someone who pulls the plug when a step was stored and its checkpoint was not yet written."""

    def __init__(self, stage: str, at: int) -> None:
        self.stage_name, self.at = stage, at

    def step(self, stage: str, step: Step, seconds: float) -> None:
        """Raises KeyboardInterrupt at the step."""
        if (stage, step.index) == (self.stage_name, self.at):
            raise KeyboardInterrupt


def files(run: Path, stage: str, step: int = 3) -> dict[str, bytes]:
    folder = run / "checkpoints" / stage / f"step-{step:06d}"
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


def metrics(run: Path, stage: str, name: str) -> list[float]:
    with Store.open_reader(run / "run.db") as store:
        return [value for _, value in store.metrics(stage, name)]


def setup_of(config: dict[str, Any], model: str, first: str, stage: int = 1) -> Setup:
    """What a stage works with, where it begins."""
    parsed = parse_config(config)
    given = parsed.stages[stage]
    backend, tasksets = make_backend(parsed), Tasksets(parsed)
    return set_up(parsed, given, backend, model, first, tasksets, make_stage_algorithm(given), 3)


def held(*models: Any) -> int:
    """Bytes of the parameters that these hold, each storage once."""
    found = [weight.untyped_storage() for module in models for weight in module.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


def test_sft_then_ppo_over_one_base_resumes_to_the_bit(tmp_path: Path) -> None:
    """LoRA all the way: the KL is to the adapter that SFT made, the critic is an adapter that begins there."""
    config = parse_config(config_of(tmp_path, [SFT, PPO]))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    resume_or_begin(config, whole, resume=False)
    for index, (stage, at) in enumerate([("sft", 1), ("ppo", 1), ("ppo", 2)]):
        with pytest.raises(KeyboardInterrupt):
            resume_or_begin(config, killed, resume=index > 0, watch=Pulled(stage, at))
    resume_or_begin(config, killed, resume=True)
    assert files(whole, "ppo").keys() == {"adapter_model.safetensors", "learner.safetensors"}
    for stage in ("sft", "ppo"):
        assert files(whole, stage) == files(killed, stage)
    for name in ("critic/value", "kl/reference", "loss", "cost/flops", "policy/sampler_mismatch_nats"):
        assert metrics(whole, "ppo", name) == metrics(killed, "ppo", name)
    assert max(metrics(whole, "ppo", "policy/sampler_mismatch_max")[:1]) < 1e-5

    begun, ended = (
        load_file(whole / f"checkpoints/{name}/step-000003/model/adapter_model.safetensors") for name in ("sft", "ppo")
    )
    assert begun.keys() == ended.keys()
    assert any((begun[name] != ended[name]).any() for name in begun)
    saved = load_file(whole / "checkpoints/ppo/step-000003/learner.safetensors")
    critic = {name: weight for name, weight in saved.items() if name.startswith("critic.")}
    assert {name.rpartition("lora_")[2] for name in critic if "lora_" in name} == {"A.critic.weight", "B.critic.weight"}
    assert all("lora_" in name or name.startswith("critic.head.") for name in critic)
    base = sum(weight.nbytes for weight in load_causal(whole / "start", device="cpu").module.parameters())
    assert sum(weight.nbytes for weight in saved.values()) < base  # moments and critic: no copy of the base


def test_the_stage_holds_one_base_and_its_adapters(tmp_path: Path) -> None:
    """Storages of policy, critic, reference and teacher: base + 4 adapters + heads, whatever role they have."""
    resume_or_begin(parse_config(config_of(tmp_path, [SFT])), tmp_path / "run", resume=False)
    model, start = str(tmp_path / "run/checkpoints/sft/step-000003/model"), str(tmp_path / "run/start")
    setup = setup_of(config_of(tmp_path, [SFT, PPO]), model, start)
    module = setup.policy.learner.model.module  # type: ignore[attr-defined]
    base = sum(weight.nbytes for weight in load_causal(start, device="cpu").module.parameters())
    adapter = sum(value.nbytes for value in load_file(Path(model) / "adapter_model.safetensors").values())
    reference = setup.reference.module  # type: ignore[union-attr]
    critic = setup.policy.learner.critic  # type: ignore[attr-defined]
    assert critic.model.module is reference is module
    assert held(module, reference, critic.model.module) == base + 3 * adapter  # policy, reference, critic
    assert setup.parameters == setup.reference_parameters == parameter_count(load_causal(model, device="cpu").module)
    assert parameters_of(critic.model) == setup.parameters

    shown = {"algorithm": "distil", "teacher": {"path": model}}
    again = setup_of(config_of(tmp_path, [SFT, shown]), model, start)
    own = again.policy.learner.model.module  # type: ignore[attr-defined]
    assert again.teacher.model.module is own  # type: ignore[union-attr]
    assert held(own) == base + 2 * adapter
    assert again.teacher_parameters == again.parameters


@pytest.mark.parametrize("role", ["teacher", "reference"])
def test_a_model_beside_the_policy_over_its_base_says_what_one_of_its_own_says(tmp_path: Path, role: str) -> None:
    """The same run, its teacher or reference in the policy's module, and in one of its own (under another path to the
    same base): to the bit."""
    resume_or_begin(parse_config(config_of(tmp_path, [SFT])), tmp_path / "first", resume=False)
    adapter, start = tmp_path / "first/checkpoints/sft/step-000003/model", tmp_path / "first/start"
    moved = tmp_path / "moved"
    moved.mkdir()
    for folder, to in ((adapter, moved / "adapter"), (start, moved / "base")):
        to.mkdir()
        for path in folder.iterdir():
            (to / path.name).write_bytes(path.read_bytes())
    settings = moved / "adapter/adapter_config.json"
    said = json.loads(settings.read_text())
    settings.write_text(json.dumps({**said, "base_model_name_or_path": str(moved / "base")}))
    stages = {
        "teacher": {"algorithm": "distil", "teacher": {"top_k": "all"}},
        "reference": {"algorithm": "grpo", "options": {"beta": 0.1}, "reference": {}},
    }
    name = stages[role]["algorithm"]
    found = []
    for path in (adapter, moved / "adapter"):
        stage = {**stages[role], role: {**stages[role][role], "path": str(path)}}
        config = config_of(tmp_path, [stage], small=None, path=str(start))
        run = tmp_path / f"run-{path.parent.name}"
        resume_or_begin(parse_config(config), run, resume=False)
        setup = setup_of(config, str(start), str(start), stage=0)
        within = getattr(setup, role).model.module is setup.policy.learner.model.module  # type: ignore[attr-defined]
        assert within is (path == adapter)
        found.append((files(run, name), metrics(run, name, "loss"), metrics(run, name, "cost/flops")))
    assert found[0] == found[1]
    assert len(found[0][1]) == 3


def test_a_critic_in_the_policys_module_begins_and_learns_as_a_separate_one(tmp_path: Path) -> None:
    """Both from a fresh adapter, drawn alike: the same run, to the bit."""
    runs = {}
    for kind in ("adapter", "separate"):
        stage = {**PPO, "critic": {**PPO["critic"], "kind": kind}}
        run = tmp_path / kind
        resume_or_begin(parse_config(config_of(tmp_path, [stage])), run, resume=False)
        runs[kind] = run
    for name in ("critic/value", "loss", "reward/mean"):
        assert metrics(runs["adapter"], "ppo", name) == metrics(runs["separate"], "ppo", name)
    assert (
        files(runs["adapter"], "ppo")["adapter_model.safetensors"]
        == files(runs["separate"], "ppo")["adapter_model.safetensors"]
    )
    saved = {kind: load_file(run / "checkpoints/ppo/step-000003/learner.safetensors") for kind, run in runs.items()}
    for name, weight in saved["adapter"].items():
        assert torch.equal(weight, saved["separate"][name.replace(".critic.", ".default.")]), name


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"lora": None}, {}, r"critic of kind 'adapter' for a policy all of whose weights are trained.*model\.lora"),
    (
        {"small": None, "path": "{adapter}", "lora": {"rank": 3}},
        {},
        r"got model\.lora with .*'rank': 3.*which has .*'rank': 2",
    ),
    (
        {"small": None, "path": "{start}"},
        {"path": "{other}"},
        r"from .*other.*, whose base is .*other.*; expected .*start",
    ),
]


@pytest.mark.parametrize(("model", "critic", "says"), REFUSED, ids=["no adapter", "another rank", "another base"])
def test_what_cannot_be_is_refused_before_anything_is_made(
    tmp_path: Path, model: dict[str, Any], critic: dict[str, Any], says: str
) -> None:
    resume_or_begin(parse_config(config_of(tmp_path, [{**SFT, "steps": 1}])), tmp_path / "first", resume=False)
    resume_or_begin(parse_config(config_of(tmp_path, [{**SFT, "steps": 1}])), tmp_path / "other", resume=False)
    names = {
        "{adapter}": str(tmp_path / "first/checkpoints/sft/step-000001/model"),
        "{start}": str(tmp_path / "first/start"),
        "{other}": str(tmp_path / "other/checkpoints/sft/step-000001/model"),
    }
    filled = {key: names.get(value, value) if isinstance(value, str) else value for key, value in model.items()}
    own = {key: names[value] for key, value in critic.items()}
    config = config_of(tmp_path, [{**PPO, "critic": {**PPO["critic"], **own}}], **filled)
    with pytest.raises(ConfigError, match=says):
        resume_or_begin(parse_config(config), tmp_path / "run", resume=False)
    assert not (tmp_path / "run/checkpoints").exists() or not list((tmp_path / "run/checkpoints").iterdir())
    with pytest.raises(ConfigError, match=says):
        check(parse_config(config))
