"""The benchmarks of rates: operations counted by hand, tables from made-up measurements, and a run of each."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks._operations import (
    Lengths,
    Operations,
    Product,
    Shape,
    Work,
    forward_work,
    positions_seen,
    rollout,
    rollout_bytes,
    rollout_work,
    scoring,
    shape_of,
    update,
)

#: Two layers of width 8 with 2 query heads and 1 key-value head of size 4, a feed-forward of 16, 10 tokens.
TINY = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 10, "max_position_embeddings": 64,
}  # fmt: skip


def tiny(kind: str = "llama") -> torch.nn.Module:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY), dtype=torch.float32)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_shape_is_read_from_the_modules(kind):
    shape = shape_of(tiny(kind))
    # a layer: q and o 8 × 8, k and v 8 × 4, gate and up 8 × 16, down 16 × 8; two layers
    assert set(shape.products) == {Product(8, 8, 4), Product(8, 4, 4), Product(8, 16, 4), Product(16, 8, 2)}
    assert shape.head == Product(8, 10)
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_width, shape.bytes_each) == (2, 2, 1, 4, 4)
    # 2 · (64 + 64 + 32 + 32 + 128 + 128 + 128) = 1152 numbers, and 80 of the head, of 4 bytes
    assert shape.weight_bytes == 4 * (1152 + 80)
    assert shape.token_bytes == 4 * 2 * 2 * 4  # keys and values, two layers, one head of 4 numbers of 4 bytes


def test_adapters_are_products_and_what_is_frozen_has_no_gradient():
    shape = shape_of(get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj"])))
    frozen = {product for product in shape.products if not product.trained}
    assert frozen == {Product(8, 8, 4, False), Product(8, 4, 4, False), Product(8, 16, 4, False),
                      Product(16, 8, 2, False)}  # fmt: skip
    assert set(shape.products) - frozen == {Product(8, 2, 2), Product(2, 8, 2)}
    assert not shape.head.trained
    made = update(shape, [Lengths(2, (1,))])  # two tokens fed, one predicted
    # 2 · 2 tokens · (2 · 1152 frozen numbers + 3 · 64 of the adapters); the head 2 · 2 · 80 for one prediction
    assert made.products == 2 * 2 * (2 * 1152 + 3 * 64)
    assert made.head == 2 * 2 * 80


def test_every_position_sees_itself_and_what_precedes():
    assert positions_seen(0, 3) == 1 + 2 + 3
    assert positions_seen(2, 4) == 3 + 4
    assert positions_seen(5, 5) == 0


def test_work_by_hand():
    groups = [Lengths(3, (2, 4)), Lengths(2, (1,))]
    # tokens: 3 + (2 - 1) + (4 - 1) and 2 + 0; seen: 1 + 2 + 3, then 4, then 4 + 5 + 6, and 1 + 2
    assert forward_work(groups) == Work(tokens=9, seen=6 + 4 + 15 + 3, predictions=7)
    assert rollout_work(groups) == Work(tokens=9, seen=28, predictions=6)  # two siblings' first token in one


def test_operations_by_hand():
    shape = Shape((Product(8, 4, 3),), Product(8, 10), layers=3, heads=2, kv_heads=1, head_width=4)
    groups = [Lengths(3, (2,))]  # 4 tokens, 1 + 2 + 3 + 4 = 10 positions, 2 predictions
    # products 2 · 4 · 96, head 2 · 2 · 80, attention 4 · 3 layers · 8 · 10
    assert scoring(shape, groups) == Operations(768, 320, 960)
    assert rollout(shape, groups) == scoring(shape, groups)
    assert update(shape, groups) == Operations(3 * 768, 3 * 320, 3 * 960)
    assert scoring(shape, groups).total == 2048


def test_bytes_of_decoding_by_hand():
    shape = Shape((Product(8, 4, 3),), Product(8, 10), layers=3, heads=2, kv_heads=1, head_width=4)
    # 4 bytes · (96 + 80) numbers a step, 4 · 2 · 3 · 4 = 96 bytes a position
    assert rollout_bytes(shape, [Lengths(3, (3, 2))]) == 3 * 704 + 96 * ((4 + 5) + 4)


def test_a_dense_model_takes_six_operations_a_weight_and_token():
    """The customary 6·N, with `N` without embeddings, is what remains of `update` without attention."""
    model = tiny()
    shape = shape_of(model)
    linear = sum(part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Linear))
    made = update(shape, [Lengths(1, (101,))])  # 101 tokens fed, 101 predicted
    assert made.products + made.head == 6 * linear * 101
