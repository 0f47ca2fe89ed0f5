"""Scoring is the same however a sequence reaches the model; loading and saving lose nothing; references stay put."""

from __future__ import annotations

import json
import math
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maieutic.errors import ConfigError, ModelError
from maieutic.models.causal import (
    CausalModel,
    load_causal,
    save_causal,
    selected_logprobs,
    selected_logprobs_and_entropy,
    token_logprobs,
    without_dropout,
)
from maieutic.models.find import adapter_revision
from maieutic.models.lora import LoRA, merged
from maieutic.models.reference import AdapterOff, FrozenAdapter, FrozenCopy, reference_of
from maieutic.models.small import ARCHITECTURES, tiny_folder

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="LoRA needs peft: pip install 'maieutic[lora]'")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("causal")
    for architecture in ARCHITECTURES:
        tiny_folder(architecture, place)
    return place


def _tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(5, 30, (rows, length), generator=torch.Generator().manual_seed(seed))


# ---- log-probs -----------------------------------------------------------------------------------------------------


def test_logprobs_of_three_tokens_by_hand() -> None:
    # V = 3. Position 0 predicts token 1, position 1 predicts token 2; the last logits are never used.
    #   softmax(log [1, 2, 1]) = [1/4, 2/4, 1/4]; token 1 is id 1: log 1/2
    #   softmax(log [6, 3, 1]) = [6, 3, 1] / 10;  token 2 is id 2: log 1/10
    logits = torch.tensor([[[1.0, 2.0, 1.0], [6.0, 3.0, 1.0], [9.0, 9.0, 9.0]]]).log()
    got = token_logprobs(logits, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(got, torch.tensor([[0.0, math.log(1 / 2), math.log(1 / 10)]]))


def test_temperature_divides_the_logits() -> None:
    # At temperature 1/2 odds are squared: [1, 2, 1] -> [1, 4, 1] / 6; [6, 3, 1] -> [36, 9, 1] / 46.
    logits = torch.tensor([[[1.0, 2.0, 1.0], [6.0, 3.0, 1.0], [9.0, 9.0, 9.0]]]).log()
    got = token_logprobs(logits, torch.tensor([[0, 1, 2]]), temperature=0.5)
    torch.testing.assert_close(got, torch.tensor([[0.0, math.log(4 / 6), math.log(1 / 46)]]))


def test_entropy_by_hand() -> None:
    # H[1/4, 1/2, 1/4] = 1.5 bits = 1.5 log 2; at temperature 1/2 H[1/6, 4/6, 1/6] = log 6 - 4/6 log 4
    logits = torch.tensor([[1.0, 2.0, 1.0]]).log()
    chosen, entropy = selected_logprobs_and_entropy(logits, torch.tensor([1]))
    torch.testing.assert_close(chosen, torch.tensor([math.log(1 / 2)]))
    torch.testing.assert_close(entropy, torch.tensor([1.5 * math.log(2)]))
    _, sharper = selected_logprobs_and_entropy(logits, torch.tensor([1]), temperature=0.5)
    torch.testing.assert_close(sharper, torch.tensor([math.log(6) - 4 / 6 * math.log(4)]))


def test_half_precision_logits_are_scored_in_float32() -> None:
    """A23: logits become float32 before the log-softmax."""
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).bfloat16() * 8
    got = selected_logprobs(logits, torch.arange(5))
    assert got.dtype == torch.float32
    exact = logits.double().log_softmax(-1)[torch.arange(5), torch.arange(5)]
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=0)
    assert selected_logprobs(logits.double(), torch.arange(5)).dtype == torch.float64


def test_gradient_of_a_logprob_is_onehot_minus_softmax() -> None:
    # d log p[1] / d z = [0, 1, 0] - [1/4, 1/2, 1/4]
    logits = torch.tensor([[1.0, 2.0, 1.0]]).log().requires_grad_()
    selected_logprobs(logits, torch.tensor([1])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.25, 0.5, -0.25]]))


def test_wrong_shapes_and_temperatures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[B, T, V\] and \[B, T\]"):
        token_logprobs(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"expected \[N, V\] and \[N\]"):
        selected_logprobs(torch.zeros(3, 5), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="expected a positive one"):
        selected_logprobs(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long), temperature=0.0)


# ---- one sequence, four ways ---------------------------------------------------------------------------------------


def _cached(module, tokens: Tensor) -> Tensor:
    past, columns = None, []
    for t in range(tokens.shape[1]):
        out = module(tokens[:, t : t + 1], past_key_values=past, use_cache=True)
        past = out.past_key_values
        columns.append(out.logits)
    return torch.cat(columns, dim=1)


def _padded(module, tokens: Tensor, *, left: int, right: int) -> Tensor:
    wide = torch.nn.functional.pad(tokens, (left, right), value=0)
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (left, right))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = module(wide, attention_mask=mask, position_ids=positions).logits
    return logits[:, left : left + tokens.shape[1]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_full_cached_and_padded_passes_agree(architecture: str, folders: Path) -> None:
    module = load_causal(folders / architecture).module.eval()
    tokens = _tokens(2, 24)  # longer than the sliding window of 16
    full = token_logprobs(module(tokens).logits, tokens)
    for logits in (
        _cached(module, tokens),
        _padded(module, tokens, left=5, right=0),
        _padded(module, tokens, left=0, right=7),
    ):
        torch.testing.assert_close(token_logprobs(logits, tokens), full, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_sliding_window_slides(folders: Path) -> None:
    # Two layers with a window of 16 see at most 2 * 15 tokens back: token 0 cannot reach position 40, in Llama it does.
    tokens = _tokens(1, 41)
    changed = tokens.clone()
    changed[0, 0] = tokens[0, 0] % 24 + 5
    assert changed[0, 0] != tokens[0, 0]
    for architecture, reaches in (("mistral_sliding", False), ("llama", True)):
        module = load_causal(folders / architecture).module.eval()
        assert (module(tokens).logits[0, 40] != module(changed).logits[0, 40]).any().item() is reaches


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_without_dropout_two_passes_agree_even_in_training_mode(architecture: str, folders: Path, tmp_path) -> None:
    model = load_causal(folders / architecture)
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"):
        if hasattr(model.module.config, name):
            setattr(model.module.config, name, 0.5)
    folder, tokens = save_causal(model, tmp_path / "wet"), _tokens(2, 12)
    wet = load_causal(folder, dropout=True).module.train()
    assert not torch.equal(wet(tokens).logits, wet(tokens).logits)
    dry = load_causal(folder).module.train()
    assert torch.equal(dry(tokens).logits, dry(tokens).logits)
    assert without_dropout(wet) is wet
    assert torch.equal(wet(tokens).logits, dry(tokens).logits)


# ---- loading and saving --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_model_comes_back_bit_for_bit(architecture: str, dtype: str, folders: Path, tmp_path: Path) -> None:
    first = load_causal(folders / architecture, dtype=dtype)
    again = load_causal(save_causal(first, tmp_path / "saved"), dtype=dtype)
    kept = again.module.state_dict()
    assert first.module.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in first.module.state_dict().items())
    assert (again.chat.stop_ids, again.chat.end_id) == (first.chat.stop_ids, first.chat.end_id)
    assert again.chat.encode("what is 3 + 4 ?") == first.chat.encode("what is 3 + 4 ?")


def test_what_is_no_model_is_refused_with_a_remedy(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"did you mean '.*/llama'"):
        load_causal(folders / "lama")
    with pytest.raises(ModelError, match=r"holds no model .* did you mean '.*/gemma'"):
        load_causal(folders)
    with pytest.raises(ModelError, match="got the file"):
        load_causal(folders / "llama" / "config.json")
    with pytest.raises(ModelError, match="give the folder that a model was saved to"):
        load_causal(tmp_path)
    with pytest.raises(ModelError, match="no such folder here"):
        load_causal("not a valid/hub id")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot read the model"):
        load_causal(tmp_path)
    with pytest.raises(ConfigError, match="got dtype 'float31'"):
        load_causal(folders / "llama", dtype="float31")


# ---- adapters ------------------------------------------------------------------------------------------------------


def _nudge(module, scale: float = 0.05) -> None:
    """Change what is trainable, as an update would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def adapter_folder(folders: Path, tmp_path: Path) -> Path:
    model = load_causal(folders / "llama", lora=LoRA(rank=4, alpha=8))
    _nudge(model.module)
    return save_causal(model, tmp_path / "adapter")


@needs_peft
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
@torch.no_grad()
def test_a_fresh_adapter_starts_at_the_base_and_trains_alone(architecture: str, folders: Path) -> None:
    tokens = _tokens(2, 10)
    base = load_causal(folders / architecture).module
    adapted = load_causal(folders / architecture, lora=LoRA(rank=4)).module
    assert torch.equal(adapted(tokens).logits, base(tokens).logits)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name and ".default." in name for name in trained)
    torch.rand(1)  # other draws in between change nothing
    again = load_causal(folders / architecture, lora=LoRA(rank=4)).module
    assert all(torch.equal(a, b) for a, b in zip(adapted.parameters(), again.parameters(), strict=True))
    other = load_causal(folders / architecture, lora=LoRA(rank=4, seed=1)).module
    assert not all(torch.equal(a, b) for a, b in zip(adapted.parameters(), other.parameters(), strict=True))


@needs_peft
def test_transposed_layers_are_adapted_without_a_warning(folders: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = load_causal(folders / "gpt2", lora=LoRA(rank=4))
    assert any("lora_A" in name for name, _ in model.module.named_parameters())


@needs_peft
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_merged_adapter_gives_the_adapters_logits(architecture: str, folders: Path) -> None:
    tokens = _tokens(2, 10)
    model = load_causal(folders / architecture, lora=LoRA(rank=4, alpha=8))
    before = model.module(tokens).logits
    _nudge(model.module)
    adapted = model.module(tokens).logits
    assert (adapted - before).abs().max() > 0.05
    plain = merged(model.module)
    assert not any("lora_" in name for name in plain.state_dict())
    torch.testing.assert_close(plain(tokens).logits, adapted, atol=1e-5, rtol=0)


@needs_peft
@torch.no_grad()
def test_adapter_folder_in_and_out(folders: Path, adapter_folder: Path, tmp_path: Path) -> None:
    tokens = _tokens(2, 10)
    model = load_causal(adapter_folder)
    assert model.adapter
    assert model.adapter_source == str(adapter_folder.resolve())
    assert (load_causal(folders / "llama").module(tokens).logits - model.module(tokens).logits).abs().max() > 0.05
    reference_of(model)  # adds a second adapter, which must not be saved
    again = load_causal(save_causal(model, tmp_path / "again"))
    assert torch.equal(again.module(tokens).logits, model.module(tokens).logits)
    assert sorted(p.name for p in (tmp_path / "again").glob("*.safetensors")) == ["adapter_model.safetensors"]
    assert not (tmp_path / "again" / "reference").exists()
    assert any(parameter.requires_grad for parameter in again.module.parameters())


@needs_peft
def test_adapters_that_cannot_be_are_refused(folders: Path, adapter_folder: Path) -> None:
    with pytest.raises(ConfigError, match="an adapter already"):
        load_causal(adapter_folder, lora=LoRA())
    with pytest.raises(ConfigError, match="do not fit this model"):
        load_causal(folders / "llama", lora=LoRA(targets=("no_such_layer",)))
    with pytest.raises(ConfigError, match="rank >= 1"):
        LoRA(rank=0)
    settings = adapter_folder / "adapter_config.json"
    said = json.loads(settings.read_text())
    settings.write_text(json.dumps({**said, "base_model_name_or_path": str(folders / "lama")}))
    with pytest.raises(ModelError, match=r"did you mean '.*/llama'"):
        load_causal(adapter_folder)
    settings.write_text(json.dumps({**said, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model"):
        load_causal(adapter_folder)
    settings.write_text(json.dumps({**said, "peft_type": "PREFIX_TUNING"}))
    with pytest.raises(ModelError, match="expected LORA"):
        load_causal(adapter_folder)


@needs_peft
def test_an_adapter_remembers_the_revision_of_its_base(folders: Path, tmp_path: Path) -> None:
    # without it a stage that goes on with the adapter, and its evaluation, would load the base's newest revision
    fresh = load_causal(folders / "llama", lora=LoRA(rank=2), revision="v1")
    assert adapter_revision(save_causal(fresh, tmp_path / "first")) == "v1"
    again = load_causal(tmp_path / "first")
    assert adapter_revision(save_causal(again, tmp_path / "second")) == "v1"
    assert adapter_revision(save_causal(load_causal(folders / "llama", lora=LoRA(rank=2)), tmp_path / "third")) is None


@needs_peft
def test_lora_dropout_is_off_unless_asked_for(folders: Path) -> None:
    tokens = _tokens(2, 10)
    for dropout, same in ((False, True), (True, False)):
        module = load_causal(folders / "llama", lora=LoRA(rank=4, dropout=0.5), dropout=dropout).module.train()
        _nudge(module)
        assert torch.equal(module(tokens).logits, module(tokens).logits) is same


# ---- references ----------------------------------------------------------------------------------------------------


def _kl(model: CausalModel, reference, tokens: Tensor) -> float:
    """Mean KL(policy || reference) over all positions, from whole distributions."""
    with torch.no_grad():
        policy = model.module(tokens).logits.log_softmax(-1)
    with reference.active(model.module) as frozen:
        anchor = frozen(tokens).logits.log_softmax(-1)
    return (policy.exp() * (policy - anchor)).sum(-1).mean().item()


@needs_peft
@pytest.mark.parametrize("start", ["all weights", "fresh adapter", "loaded adapter"])
def test_reference_is_where_the_run_started_and_stays_there(start: str, folders: Path, adapter_folder: Path) -> None:
    """A15: the KL to the reference is 0 at step 0, for all weights, a fresh adapter and one that was loaded."""
    model = {
        "all weights": lambda: load_causal(folders / "llama"),
        "fresh adapter": lambda: load_causal(folders / "llama", lora=LoRA(rank=4)),
        "loaded adapter": lambda: load_causal(adapter_folder),
    }[start]()
    kind = {"all weights": FrozenCopy, "fresh adapter": AdapterOff, "loaded adapter": FrozenAdapter}[start]
    tokens = _tokens(2, 16)
    next(parameter for parameter in model.module.parameters() if parameter.requires_grad).requires_grad_(False)
    trainable = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    reference = reference_of(model)
    assert isinstance(reference, kind)
    assert abs(_kl(model, reference, tokens)) <= 1e-6
    with reference.active(model.module) as frozen:
        anchor = frozen(tokens).logits
    assert not anchor.requires_grad
    _nudge(model.module)
    assert _kl(model, reference, tokens) > 1e-3
    with reference.active(model.module) as frozen:
        assert torch.equal(frozen(tokens).logits, anchor)
    # The policy is as before: same trainable weights, and gradients reach them and nothing else.
    assert [name for name, parameter in model.module.named_parameters() if parameter.requires_grad] == trainable
    model.module(tokens).logits.square().mean().backward()
    reached = [name for name, parameter in model.module.named_parameters() if parameter.grad is not None]
    assert reached == trainable


@needs_peft
def test_a_loaded_adapter_is_not_anchored_to_its_base(folders: Path, adapter_folder: Path) -> None:
    # The mistake this guards against: switching the adapter off measures the KL to another model than the start.
    model, tokens = load_causal(adapter_folder), _tokens(2, 16)
    assert abs(_kl(model, reference_of(model), tokens)) <= 1e-6
    assert _kl(model, AdapterOff(), tokens) > 1e-3


def test_a_saved_tokenizer_does_not_say_how_it_was_read(tmp_path: Path) -> None:
    """Folders of a run that went on and of one that was resumed are alike, byte for byte."""
    first = tiny_folder("llama", tmp_path / "made")
    again = save_causal(load_causal(first), tmp_path / "again")
    once_more = save_causal(load_causal(again), tmp_path / "once more")
    config = (again / "tokenizer_config.json").read_text()
    assert "is_local" not in config
    assert config == (once_more / "tokenizer_config.json").read_text()
