"""Several adapters over one base: which is at work, what each takes, and what cannot lie beside what.

`B` rows, `T` tokens
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maieutic.errors import ConfigError, ModelError, UnknownName
from maieutic.models.adapters import (
    active,
    adapter_weights,
    beside,
    copied,
    counterparts,
    shares_base,
    trained_weights,
)
from maieutic.models.causal import BASE, CausalModel, load_causal, save_causal
from maieutic.models.lora import LoRA, plain, quick, read_adapter
from maieutic.models.small import tiny_folder

pytest.importorskip("peft", reason="the extra maieutic[lora] is not installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tiny_folder(architecture, root)
        return made[architecture]

    return folder


def nudge(module: nn.Module, seed: int) -> None:
    """Give every trainable matrix B numbers, so that the adapter says something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in trained_weights(module).items():
            if "lora_B" in name:
                weight.copy_(0.5 * torch.randn(weight.shape, generator=draw))


def trained(base: Path, to: Path, seed: int, lora: LoRA) -> Path:
    """The folder of an adapter of `base` that is not at its start any more."""
    model = load_causal(base, lora=lora, device="cpu")
    nudge(model.module, seed)
    return save_causal(model, to)


@pytest.fixture
def policy(folders: Callable[[str], Path], tmp_path: Path) -> CausalModel:
    """A policy that goes on from an adapter of rank 4."""
    return load_causal(trained(folders("llama"), tmp_path / "policy", 1, LoRA(rank=4)), device="cpu")


TOKENS = torch.randint(5, 32, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(module: nn.Module) -> Tensor:
    return module(TOKENS).logits


def test_each_name_is_its_own_model(policy: CausalModel, folders: Callable[[str], Path], tmp_path: Path) -> None:
    """The switch gives what a model gives that was loaded by itself, bit for bit; ranks and layers may differ."""
    module, base = policy.module, folders("llama")
    others = {
        "teacher": trained(base, tmp_path / "teacher", 2, LoRA(rank=7, alpha=3, seed=2)),
        "narrow": trained(base, tmp_path / "narrow", 3, LoRA(rank=2, targets=("q_proj",), seed=3)),
        "rooted": trained(base, tmp_path / "rooted", 4, LoRA(rank=4, rslora=True, seed=4)),
    }
    own = logits(module)
    models = {name: beside(policy, folder, name) for name, folder in others.items()}
    alone = {name: logits(load_causal(folder, device="cpu").module) for name, folder in others.items()}
    for name, model in models.items():
        assert model.module is module
        with active(module, name):
            assert torch.equal(logits(module), alone[name])
        assert torch.equal(logits(module), own)
    with active(module, BASE):
        assert torch.equal(logits(module), logits(load_causal(base, device="cpu").module))
    assert len({float(found.sum()) for found in (own, *alone.values())}) == 4


def test_a_switch_moves_no_flag_and_is_undone_by_an_error(policy: CausalModel) -> None:
    module = policy.module
    copied(policy, "critic", trainable=True)
    copied(policy, "reference")
    flags = {name: weight.requires_grad for name, weight in module.named_parameters()}
    assert {name for name, given in flags.items() if given} == {
        *adapter_weights(module, "default"), *adapter_weights(module, "critic"),
    }  # fmt: skip
    own = logits(module)
    with torch.no_grad():
        next(w for n, w in adapter_weights(module, "critic").items() if "lora_B" in n).add_(1.0)

    def stumble(name: str) -> None:
        with active(module, name):
            with active(module, "default"):  # one within another
                assert torch.equal(logits(module), own)
            assert {each: weight.requires_grad for each, weight in module.named_parameters()} == flags
            raise RuntimeError("stumbled")

    for name in ("critic", "reference", BASE):
        with pytest.raises(RuntimeError, match="stumbled"):
            stumble(name)
        assert torch.equal(logits(module), own)
        assert {each: weight.requires_grad for each, weight in module.named_parameters()} == flags
    with active(module, "critic"):
        assert not torch.equal(logits(module), own)


@pytest.mark.parametrize("whole", [None, ["lm_head"]], ids=["matrices", "and a whole layer"])
def test_a_switch_is_what_peft_calls_one(
    folders: Callable[[str], Path], tmp_path: Path, whole: list[str] | None
) -> None:
    """Beside peft's own verbs, also on an adapter that keeps a layer of its own (`modules_to_save`)."""
    import peft

    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], modules_to_save=whole)
    peft.get_peft_model(load_causal(folders("llama"), device="cpu").module, settings).save_pretrained(tmp_path)
    policy = load_causal(tmp_path, device="cpu")
    module = policy.module
    nudge(module, 1)
    own = logits(module)
    copied(policy, "other")
    with torch.no_grad():
        for weight in adapter_weights(module, "other").values():
            weight.add_(0.1)
    with active(module, "other"):
        ours = logits(module)
    with active(module, BASE):
        bare = logits(module)
    assert torch.equal(logits(module), own)
    module.set_adapter("other")  # type: ignore[operator]
    assert torch.equal(logits(module), ours)
    module.set_adapter("default")  # type: ignore[operator]
    with module.disable_adapter():  # type: ignore[operator]
        assert torch.equal(logits(module), bare)
    assert not torch.equal(ours, bare)


def test_gradients_reach_the_adapter_that_was_at_work(policy: CausalModel) -> None:
    """Also where the backward pass comes after the switch back."""
    module = policy.module
    copied(policy, "critic", trainable=True)
    with active(module, "critic"):
        total = module(TOKENS).logits.square().mean()
    total.backward()
    reached = {name for name, weight in module.named_parameters() if weight.grad is not None}
    assert reached == set(adapter_weights(module, "critic"))
    assert set(trained_weights(module)) == set(adapter_weights(module, "default"))


def test_a_copy_is_where_the_policy_is_and_follows_only_when_asked(policy: CausalModel) -> None:
    module = policy.module
    start = logits(module)
    held = copied(policy, "reference")
    assert held.adapter_name == "reference"
    assert not any(weight.requires_grad for weight in adapter_weights(module, "reference").values())
    nudge(module, 9)
    with active(module, "reference"):
        assert torch.equal(logits(module), start)
    copied(policy, "reference")
    with active(module, "reference"):
        assert torch.equal(logits(module), logits(policy.module))
    pairs = counterparts(module, "reference")
    assert pairs.keys() == trained_weights(module).keys()
    for name, weight in trained_weights(module).items():
        assert torch.equal(pairs[name], weight)
        assert pairs[name] is not weight


def test_what_lies_beside_takes_the_bytes_of_an_adapter(
    policy: CausalModel, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Rank 3 of every linear layer: 3 · (in + out) weights each, and the base's are the very same storage."""

    def storages() -> dict[int, int]:
        found = (weight.untyped_storage() for weight in policy.module.parameters())
        return {storage.data_ptr(): storage.nbytes() for storage in found}

    before = storages()
    linear = [part for part in policy.module.modules() if type(part).__name__ == "Linear" and hasattr(part, "lora_A")]
    wanted = sum(4 * 3 * (part.in_features + part.out_features) for part in linear)
    beside(policy, trained(folders("llama"), tmp_path / "teacher", 2, LoRA(rank=3)), "teacher")
    after = storages()
    assert before.items() <= after.items()
    assert sum(after.values()) - sum(before.values()) == wanted
    beside(policy, folders("llama"), "reference")  # the base itself: nothing
    assert storages() == after


def test_a_fresh_adapter_is_drawn_as_one_that_is_loaded(folders: Callable[[str], Path]) -> None:
    """Where a critic begins: at the base, its A as a model's that was loaded for the purpose."""
    model = load_causal(folders("llama"), lora=LoRA(rank=4, seed=5), device="cpu")
    nudge(model.module, 1)
    fresh = beside(model, folders("llama"), "critic", trainable=True, seed=5)
    alone = load_causal(folders("llama"), lora=LoRA(rank=4, seed=5), device="cpu").module
    with active(model.module, fresh.adapter_name):
        assert torch.equal(logits(model.module), logits(alone))
    theirs = adapter_weights(alone, "default")
    for name, weight in adapter_weights(model.module, "critic").items():
        assert torch.equal(weight, theirs[name.replace(".critic", ".default")])
        assert weight.requires_grad


def test_adding_changes_nothing_that_was_there(
    policy: CausalModel, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    frozen = next(iter(trained_weights(policy.module).values()))
    frozen.requires_grad_(False)
    before = {name: (weight.clone(), weight.requires_grad) for name, weight in policy.module.named_parameters()}
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    beside(policy, trained(folders("llama"), tmp_path / "teacher", 2, LoRA(rank=3, targets=("q_proj",))), "teacher")
    copied(policy, "critic", trainable=True)
    assert torch.equal(torch.rand(3), drawn)
    now = dict(policy.module.named_parameters())
    for name, (weight, flag) in before.items():
        assert torch.equal(now[name], weight)
        assert now[name].requires_grad is flag


def test_what_cannot_lie_beside_is_refused(policy: CausalModel, folders: Callable[[str], Path], tmp_path: Path) -> None:
    other = trained(folders("qwen2"), tmp_path / "other", 2, LoRA(rank=4))
    same = trained(folders("llama"), tmp_path / "same", 2, LoRA(rank=4))
    assert shares_base(policy, same)
    assert shares_base(policy, folders("llama"))
    assert not shares_base(policy, folders("llama"), revision="v2")
    assert not shares_base(policy, other)
    with pytest.raises(ConfigError, match=r"its base is .*qwen2; expected .*llama\. Load it by itself"):
        beside(policy, other, "teacher")
    with pytest.raises(ModelError, match="no model"):
        beside(policy, tmp_path / "nowhere", "teacher")
    whole = load_causal(folders("llama"), device="cpu")
    assert not shares_base(whole, same)
    with pytest.raises(ConfigError, match=r"all weights of .* are trained; expected a model with an adapter"):
        beside(whole, same, "teacher")
    with pytest.raises(ConfigError, match="expected a model with an adapter"):
        copied(whole, "reference")
    for name in ("default", "with.dots", "", "lora"):
        with pytest.raises(ConfigError, match=f"got the name '{name}'"):
            beside(policy, same, name)
    for name in ("teachr", "critic"):
        with pytest.raises(UnknownName, match=f"unknown adapter '{name}'"), active(policy.module, name):
            raise AssertionError("never within")
    with pytest.raises(UnknownName), active(whole.module, BASE):
        raise AssertionError("never within")
    with pytest.raises(ConfigError, match="got the adapter 'teacher' beside a policy to save"):
        save_causal(beside(policy, same, "teacher"), tmp_path / "saved")


def test_an_adapter_that_changed_its_base_lies_alone(
    policy: CausalModel, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = trained(folders("llama"), tmp_path / "changed", 2, LoRA(rank=4))
    settings = folder / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "init_lora_weights": "pissa"}))
    assert not shares_base(policy, folder)
    with pytest.raises(ConfigError, match="begun by 'pissa', which changes the base"):
        beside(policy, folder, "teacher")


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (LoRA(rank=8), r"28 of its weights differ.*got \(8, 88\), expected \(4, 88\)"),
        (LoRA(rank=4, targets=("q_proj",)), r"24 of its weights differ.*got none, expected \(4, 88\)"),
    ],
    ids=["rank", "layers"],
)
def test_weights_of_another_shape_are_not_read(
    policy: CausalModel, folders: Callable[[str], Path], tmp_path: Path, lora: LoRA, says: str
) -> None:
    """peft itself leaves the weights that a folder lacks as they are, without a word."""
    before = logits(policy.module)
    with pytest.raises(ModelError, match=says):
        read_adapter(policy.module, "default", trained(folders("llama"), tmp_path / "other", 2, lora))
    assert torch.equal(logits(policy.module), before)


# ---- the quick forward


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_the_quick_forward_computes_what_pefts_does(
    folders: Callable[[str], Path], architecture: str, rslora: bool
) -> None:
    model = load_causal(folders(architecture), lora=LoRA(rank=4, rslora=rslora), dtype="float64", device="cpu")
    module = model.module
    nudge(module, 1)

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        module.zero_grad()
        found = module(TOKENS).logits
        found.square().mean().backward()
        return found.detach(), {n: w.grad.clone() for n, w in trained_weights(module).items() if w.grad is not None}

    expected, slopes = run()
    with quick(module):
        found, quick_slopes = run()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert slopes.keys() == quick_slopes.keys() == trained_weights(module).keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(quick_slopes[name], slope, rtol=1e-9, atol=1e-12)


def operations(module: nn.Module) -> int:
    """How many operations of torch a forward takes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen, torch.no_grad():
        module(TOKENS)
    return sum(one.count for one in seen.key_averages() if one.key in ("aten::linear", "aten::mul", "aten::add"))


def test_it_takes_fewer_operations_and_leaves_nothing_behind(policy: CausalModel) -> None:
    module = policy.module
    layers = [part for part in module.modules() if hasattr(part, "lora_A")]
    usual = operations(module)
    with quick(module):
        assert operations(module) == usual - 3 * len(layers)  # of each: B's product, the scaling, the sum → one addmm
        with pytest.raises(RuntimeError, match="stumbled"), quick(policy.module.get_base_model()):  # type: ignore[operator]
            raise RuntimeError("stumbled")
    assert operations(module) == usual
    assert not any("forward" in vars(part) for part in layers)


def test_layers_that_are_not_plain_run_through_peft(folders: Callable[[str], Path]) -> None:
    """Dropout, merged weights, weights in another precision, a variant: bit for bit what peft's forward gives."""
    import peft

    base = load_causal(folders("llama"), device="cpu").module
    strange = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], use_dora=True))
    coarse = load_causal(folders("llama"), lora=LoRA(rank=2), dtype="bfloat16", device="cpu").module
    merged = load_causal(folders("llama"), lora=LoRA(rank=2), device="cpu").module
    loose = load_causal(folders("llama"), lora=LoRA(rank=2, dropout=0.5), dropout=True, device="cpu").module.train()
    for module in (strange, coarse, merged, loose):
        nudge(module, 1)
    merged.merge_adapter()  # type: ignore[operator]
    for module in (strange, coarse, merged, loose):
        torch.manual_seed(0)
        expected = logits(module)
        torch.manual_seed(0)
        with quick(module):
            assert torch.equal(logits(module), expected)


def test_a_layer_in_numbers(policy: CausalModel) -> None:
    """W + (alpha / rank) B A where the adapter is at work, W itself, not a copy, where it is not."""
    module = policy.module
    layer = next(part for part in module.modules() if hasattr(part, "lora_A"))
    base = layer.base_layer.weight
    found = plain(layer)
    assert found is not None
    rows = torch.randn(5, base.shape[1])
    torch.testing.assert_close(rows @ found.whole().t(), layer(rows), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found(rows), layer(rows), rtol=1e-5, atol=1e-5)
    merged = load_causal(policy.source, device="cpu").module
    merged.merge_adapter()  # type: ignore[operator]
    beside = next(part for part in merged.modules() if hasattr(part, "lora_A"))
    assert plain(beside) is None
    torch.testing.assert_close(found.whole(), beside.base_layer.weight.detach(), rtol=1e-6, atol=1e-7)
    with active(module, BASE):
        bare = plain(layer)
        assert bare is not None
        assert bare.whole().data_ptr() == base.data_ptr()
        assert torch.equal(bare(rows), layer.base_layer(rows))
    handle = layer.base_layer.register_forward_hook(lambda *_: None)
    assert plain(layer) is None
    handle.remove()
    with quick(module):
        assert plain(layer) is not None
    layer.forward = layer.base_layer.forward
    assert plain(layer) is None
    with quick(module):  # it keeps what it has
        assert layer.forward == layer.base_layer.forward
    del layer.forward
    assert plain(layer) is not None
    assert plain(layer.base_layer) is not None
    assert plain(nn.LayerNorm(3)) is None
