"""Saving and loading: a run that stopped goes on to the same bits as one that never did."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maieutic.backends.local import LocalLearner, Optimiser, ValueHead
from maieutic.errors import ModelError, RunError
from maieutic.models.causal import CausalModel, load_causal
from maieutic.models.lora import LoRA
from maieutic.types import Batch, Outputs

Load = Callable[..., CausalModel]
ADAMW = Optimiser(learning_rate=3e-3, weight_decay=0.01, schedule="cosine", warmup_steps=2, total_steps=6)
MUON = Optimiser(kind="muon", learning_rate=3e-3, muon_learning_rate=0.02, schedule="linear", total_steps=6)


def batch(seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 32, (6, 14), generator=draw)
    mask = (torch.arange(14) >= 4).expand(6, 14)
    return Batch(
        tokens=tokens,
        mask=mask,
        lengths=torch.full((6,), 14),
        sampler_logprobs=torch.zeros(6, 14),
        rewards=torch.zeros(6),
        token_rewards=torch.zeros(6, 14),
        terminated=torch.ones(6, dtype=torch.bool),
        groups=torch.arange(6),
        units=torch.arange(6),
        columns={"weights": mask / mask.sum()},
    )


def nll(outputs: Outputs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    return -outputs.logprobs, {}


def bits(learner: LocalLearner) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in learner.model.module.named_parameters()}


@pytest.mark.parametrize("optimiser", [ADAMW, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_stopping_changes_no_bit(
    tiny: Load, tmp_path: Path, architecture: str, lora: LoRA | None, optimiser: Optimiser
) -> None:
    whole = LocalLearner(tiny(architecture, lora=lora), optimiser)
    start = bits(whole)
    expected = [whole.step(batch(seed), nll) for seed in range(3)]

    first = LocalLearner(tiny(architecture, lora=lora), optimiser)
    assert first.step(batch(0), nll) == expected[0]
    first.save(tmp_path / "saved")
    second = LocalLearner(tiny(architecture, lora=lora), optimiser)
    second.load(tmp_path / "saved")
    assert second.version == 1
    assert [second.step(batch(seed), nll) for seed in (1, 2)] == expected[1:]

    done = bits(whole)
    assert any(not torch.equal(done[name], start[name]) for name in done)
    for name, weight in bits(second).items():
        assert torch.equal(weight, done[name]), name
    assert second.updater.state().keys() == whole.updater.state().keys()
    for name, value in second.updater.state().items():
        assert torch.equal(value, whole.updater.state()[name]), name


def test_the_folder_is_a_plain_model_without_pickle(tiny: Load, tmp_path: Path) -> None:
    learner = LocalLearner(tiny(), ADAMW)
    learner.step(batch(0), nll)
    learner.save(tmp_path)
    again = load_causal(tmp_path / "model", device="cpu")
    for name, weight in again.module.named_parameters():
        assert torch.equal(weight, bits(learner)[name])
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"learner.safetensors", "learner.json", "config.json", "model.safetensors"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    assert json.loads((tmp_path / "learner.json").read_text())["optimiser"]["schedule"] == "cosine"


def test_a_value_head_is_saved_with_its_optimiser_state(tiny: Load, tmp_path: Path) -> None:
    def learner() -> LocalLearner:
        return LocalLearner(tiny(), ADAMW, critic=ValueHead(learning_rate=0.05))

    def loss(outputs: Outputs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert outputs.values is not None
        return (outputs.values - 1).square() - outputs.logprobs, {}

    whole, first, second = learner(), learner(), learner()
    for seed in range(3):
        whole.step(batch(seed), loss)
    first.step(batch(0), loss)
    first.save(tmp_path)
    second.load(tmp_path)
    for seed in (1, 2):
        second.step(batch(seed), loss)
    for name, weight in whole.weights().items():
        assert torch.equal(weight, second.weights()[name]), name
    assert whole.weights()["critic.head.layers.0.weight"].any()


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_reset_puts_weights_back_and_forgets_the_optimiser(tiny: Load, tmp_path: Path, lora: LoRA | None) -> None:
    learner = LocalLearner(tiny(lora=lora), ADAMW)
    learner.step(batch(0), nll)
    learner.save(tmp_path)
    kept = bits(learner)
    weights = dict(learner.weights())
    learner.step(batch(1), nll)
    for folder in (tmp_path, tmp_path / "model"):
        learner.reset(folder)
        assert all(torch.equal(weight, kept[name]) for name, weight in bits(learner).items())
        assert all(
            weights[name] is weight for name, weight in learner.weights().items()
        )  # in place: the sampler sees it
        assert not learner.updater.state()
        assert learner.updater.steps == 0
    assert learner.version == 2  # still counts all updates


def test_a_reset_begins_the_schedule_anew_and_says_where_it_ends(tiny: Load) -> None:
    """Linear to 0 with one step of warm-up: 1 and then 1 − i/(n − 1) of the rate; a round of one step is warm-up."""
    learner = LocalLearner(
        tiny(), Optimiser(learning_rate=1.0, schedule="linear", warmup_steps=1, total_steps=10**9), restart=True
    )
    for total, wanted in ((5, [1.0, 1.0, 0.75, 0.5, 0.25]), (3, [1.0, 1.0, 0.5]), (1, [1.0])):
        learner.reset(total_steps=total, keep_weights=total == 3)
        assert [learner.step(batch(i), nll)["optim/learning_rate"] for i in range(total)] == wanted


def test_what_cannot_be_loaded_is_said(tiny: Load, tmp_path: Path) -> None:
    learner = LocalLearner(tiny(), MUON)
    learner.step(batch(0), nll)
    learner.save(tmp_path / "muon")
    with pytest.raises(RunError, match="muon/"):
        LocalLearner(tiny(), ADAMW).load(tmp_path / "muon")
    with pytest.raises(RunError, match="cannot resume"):
        LocalLearner(tiny(), ADAMW).load(tmp_path / "nothing")
    (tmp_path / "muon" / "learner.safetensors").write_bytes(b"cut off")
    with pytest.raises(RunError, match="cannot resume"):
        LocalLearner(tiny(), MUON).load(tmp_path / "muon")
    with pytest.raises(ModelError, match="an adapter"):
        LocalLearner(tiny(lora=LoRA(rank=4)), ADAMW).reset(tmp_path / "muon")
    with pytest.raises(ModelError, match="a model"):
        LocalLearner(tiny("gpt2"), ADAMW).reset(tmp_path / "muon")
