"""Outlines: the same names, shapes, types and gradient flags as the loaded model, and not a byte of memory."""

from __future__ import annotations

import pytest
import torch

from maieutic.backends.local.check import why_not, why_not_by_config
from maieutic.errors import ModelError
from maieutic.models.causal import load_causal, save_causal
from maieutic.models.lora import LoRA
from maieutic.models.outline import chat_of, outline, small_outline
from maieutic.models.small import ARCHITECTURES, SmallModel, build_small, small_tokenizer, tiny_folder
from maieutic.types import Message


def described(module):
    weights = {name: (w.shape, w.dtype, w.requires_grad) for name, w in module.named_parameters()}
    return weights, {name: (kept.shape, kept.dtype) for name, kept in module.named_buffers()}


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["all weights", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_outline_is_the_loaded_module_without_its_weights(architecture, lora, tmp_path):
    folder = tiny_folder(architecture, tmp_path)
    loaded, drawn = load_causal(folder, lora=lora, dtype="float32", device="cpu").module, outline(folder, lora=lora)
    assert described(drawn) == described(loaded)
    assert {w.device.type for w in [*drawn.parameters(), *drawn.buffers()]} == {"meta"}
    assert why_not_by_config(drawn) == why_not(loaded)


def test_an_adapter_folder_has_the_outline_of_its_base_with_its_adapter(tmp_path):
    model = load_causal(tiny_folder("llama", tmp_path), lora=LoRA(rank=3, targets=("q_proj",)), device="cpu")
    save_causal(model, tmp_path / "adapter")
    again = load_causal(tmp_path / "adapter", dtype="float32", device="cpu")
    assert described(outline(tmp_path / "adapter")) == described(again.module)
    asked = (Message("user", "what is 2 + 2 ?"),)
    assert chat_of(tmp_path / "adapter").prompt(asked) == again.chat.prompt(asked)


def test_a_small_model_that_is_not_built_yet_has_the_outline_that_it_will_have(tmp_path):
    spec, text = SmallModel("qwen3", layers=3, width=32), ["2 apples and 3 apples", "4 nuts"]
    built = load_causal(build_small(tmp_path / "built", spec, text), dtype="float32", device="cpu")
    drawn = small_outline(spec, small_tokenizer(spec.context, text))
    assert described(drawn) == described(built.module)


def test_another_precision():
    text = small_tokenizer(64, ["a b"])
    weights = small_outline(SmallModel(layers=1, width=16, heads=2), text, dtype=torch.bfloat16).parameters()
    assert {weight.dtype for weight in weights} == {torch.bfloat16}


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no model"):
        outline(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot read the model"):
        outline(tmp_path)
