"""Gradient checkpointing: the same gradients, whatever ran in between, and one hidden state a layer kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from maieutic.backends.local import LocalLearner, Optimiser, SeparateCritic, ValueHead
from maieutic.backends.local.check import forward_for
from maieutic.backends.local.critic import Critic
from maieutic.backends.local.evaluate import PackedForward
from maieutic.backends.local.recompute import decoder_layers
from maieutic.config import parse_config
from maieutic.errors import ConfigError
from maieutic.models.adapters import copied
from maieutic.models.causal import CausalModel
from maieutic.models.lora import LoRA
from maieutic.run.build import make_backend
from maieutic.types import Batch, Outputs

Load = Callable[..., CausalModel]


def make_batch() -> Batch:
    """12 rows in 3 groups: prompts of 4 tokens, completions of 2 to 24."""
    draw = torch.Generator().manual_seed(0)
    lengths = 2 * torch.arange(12) + 6
    tokens = torch.randint(5, 32, (12, 30), generator=draw)
    for group in range(3):
        tokens[4 * group : 4 * group + 4, :4] = tokens[4 * group, :4]
    places = torch.arange(30)[None]
    mask = (places >= 4) & (places < lengths[:, None])
    zeros, rows = torch.zeros(12, 30), torch.arange(12)
    columns = {"advantages": torch.randn(12, 30, generator=draw), "weights": mask / mask.sum()}
    return Batch(
        tokens, mask, lengths, zeros, zeros[:, 0], zeros, rows >= 0, rows // 4, rows, temperature=0.9, columns=columns
    )


def loss(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    assert outputs.entropy is not None
    value = -outputs.logprobs * batch.advantages - 0.1 * outputs.entropy
    return value if outputs.values is None else value + (outputs.values - 1).square(), {}


def gradients(learner: LocalLearner) -> dict[str, Tensor]:
    learner.accumulate(make_batch(), loss)
    return {name: weight.grad.clone() for name, weight in learner.weights().items() if weight.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = torch.cat([each.flatten() for each in expected.values()]).norm()
    apart = torch.cat([(found[name] - expected[name]).flatten() for name in expected]).norm()
    assert scale > 0
    assert apart / scale < 1e-6


def moved(learner: LocalLearner) -> LocalLearner:
    """Its weights a little away from the start, where an adapter's gradients are not half zeros."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in learner.weights().values():
            weight.add_(0.02 * torch.randn(weight.shape, generator=draw).to(weight))
    return learner


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma2", "mistral_sliding"])
def test_gradients_are_the_same(tiny: Load, architecture: str, lora: LoRA | None) -> None:
    if architecture == "gpt2" and lora is not None:
        lora = LoRA(rank=4, targets=("c_attn", "c_proj"))
    plain, again = (
        moved(LocalLearner(tiny(architecture, lora=lora), Optimiser(), gradient_checkpointing=on))
        for on in (False, True)
    )
    assert_same(gradients(again), gradients(plain))
    torch.testing.assert_close(again.logprobs(make_batch()), plain.logprobs(make_batch()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["head", "model", "adapter"])
def test_gradients_of_critics_are_the_same(tiny: Load, kind: str) -> None:
    """An adapter beside the policy's is at work when its layers run again, though the policy's is by then."""

    def learner(on: bool) -> LocalLearner:
        model = tiny("llama", lora=LoRA(rank=4))
        critics: dict[str, Callable[[], Critic]] = {
            "head": ValueHead,
            "model": lambda: SeparateCritic(tiny("llama")),
            "adapter": lambda: SeparateCritic(copied(model, "critic", trainable=True)),
        }
        return moved(LocalLearner(model, Optimiser(), critic=critics[kind](), gradient_checkpointing=on))

    expected = gradients(learner(False))
    assert any(name.startswith("critic.") and bool(each.any()) for name, each in expected.items())
    assert_same(gradients(learner(True)), expected)


def bytes_kept(work: Callable[[], object], weights: set[int]) -> int:
    """Bytes kept for a backward pass, of distinct memory, weights left out."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    assert result is not None
    return sum(kept.values())


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_little_is_kept(tiny: Load, architecture: str) -> None:
    model, batch = tiny(architecture), make_batch()
    weights = {weight.untyped_storage().data_ptr() for weight in model.module.parameters()}
    ways = {on: forward_for(model.module, recompute=on) for on in (False, True)}
    kept = {on: bytes_kept(lambda on=on: ways[on].outputs(batch, True), weights) for on in ways}  # type: ignore[misc]
    beside = bytes_kept(lambda: ways[True].outputs(batch, True), weights)
    assert beside == kept[True]
    assert kept[True] < 0.5 * kept[False]
    with torch.no_grad():
        assert bytes_kept(lambda: ways[True].outputs(batch, True), weights) == 0


def test_the_module_is_as_it_was(tiny: Load) -> None:
    model = tiny("qwen2", lora=LoRA(rank=2))
    before = [dict(vars(part)) for part in model.module.modules()]
    gradients(LocalLearner(model, Optimiser(), gradient_checkpointing=True))
    for part, kept in zip(model.module.modules(), before, strict=True):
        assert "forward" not in vars(part)
        assert vars(part).keys() == kept.keys()


def test_a_module_without_a_list_of_layers_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"num_hidden_layers": 2})()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    with pytest.raises(ConfigError, match=r"Odd, which does not hold its 2 layers in a list.*micro_batch_tokens"):
        decoder_layers(Odd())


@pytest.mark.parametrize("on", [False, True])
def test_a_config_says_it(tiny: Load, on: bool) -> None:
    config = parse_config({
        "gradient_checkpointing": on,
        "model": {"path": "somewhere"},
        "tasks": {"train": {"taskset": "arithmetic"}},
        "stages": [{"algorithm": "grpo", "steps": 1}],
    })  # fmt: skip
    learner = make_backend(config).policy(tiny(), Optimiser()).learner
    assert isinstance(learner, LocalLearner)
    assert isinstance(learner.forward, PackedForward)
    assert learner.forward.recompute == on
