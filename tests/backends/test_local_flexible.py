"""Packed rows through one kernel that knows blocks: who sees whom, counted and asked, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from maieutic.backends.local.evaluate import PackedForward
from maieutic.backends.local.flexible import (
    AGREES,
    SIDE,
    Flexible,
    block_mask,
    compiled,
    difference,
    flexible_for,
    lay_out_flexibly,
)
from maieutic.backends.local.packing import pack_tokens
from maieutic.backends.local.trunk import Trunk
from maieutic.models.causal import CausalModel

Load = Callable[..., CausalModel]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def seen(prompts: list[int], completions: list[int], owners: list[int]) -> tuple[Flexible, np.ndarray]:
    """The layout, and `[N, N]` of who sees whom, written down token by token."""
    layout, starts_p, starts_c = lay_out_flexibly(prompts, completions, owners)
    sees = np.eye(layout.length, dtype=bool)
    for start, length in [*zip(starts_p, prompts, strict=True), *zip(starts_c, completions, strict=True)]:
        for q in range(start, start + length):
            sees[q, start : q + 1] = True
    for start, length, owner in zip(starts_c, completions, owners, strict=True):
        first = starts_p[owner]
        sees[start : start + length, first : first + prompts[owner]] = True
    return layout, sees


CASES = [
    ([3], [2, 4], [0, 0]),
    ([100, 30, 200], [60, 90, 5, 140, 150, 129], [0, 0, 0, 2, 2, 2]),
    ([256, 128], [128, 300, 0, 128], [0, 0, 1, 1]),  # whole blocks, an empty completion, an only one
    ([600], [500], [0]),
]


@pytest.mark.parametrize(("prompts", "completions", "owners"), CASES)
def test_blocks_are_counted_right(prompts: list[int], completions: list[int], owners: list[int]) -> None:
    layout, sees = seen(prompts, completions, owners)
    assert layout.length % SIDE == 0
    assert layout.length - sum(prompts) - sum(completions) < SIDE
    blocks = layout.length // SIDE
    by_block = sees.reshape(blocks, SIDE, blocks, SIDE).transpose(0, 2, 1, 3).reshape(blocks, blocks, -1)
    assert np.array_equal(layout.full.numpy(), by_block.all(2))
    assert np.array_equal(layout.partial.numpy(), by_block.any(2) & ~by_block.all(2))


@pytest.mark.parametrize(("prompts", "completions", "owners"), CASES)
def test_the_kernel_is_told_the_same(prompts: list[int], completions: list[int], owners: list[int]) -> None:
    layout, sees = seen(prompts, completions, owners)
    mask = block_mask(layout.own, layout.home, layout.partial, layout.full)
    blocks = layout.length // SIDE
    assert mask.shape[-2:] == (layout.length, layout.length)
    assert torch.equal(mask.to_dense()[0, 0].bool(), layout.partial | layout.full)
    assert int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()) == int((layout.partial | layout.full).sum())  # type: ignore[union-attr]
    assert blocks == mask.kv_num_blocks.shape[-1]
    places = torch.arange(layout.length)
    asked = mask.mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places[None, :])
    assert np.array_equal(asked.numpy(), sees)


def test_the_kernel_reads_what_plain_attention_reads() -> None:
    # Eagerly, as it runs on a CPU; without gradients, which it has on a GPU only.
    assert difference(flex_attention, torch.device("cpu"), torch.float32, (4, 2, 16)) < 1e-6
    assert 1e-4 < difference(flex_attention, torch.device("cpu"), torch.bfloat16, (4, 2, 16)) < AGREES


def test_rows_are_scored_and_learned_from_as_in_segments(tiny: Load) -> None:
    model = tiny("qwen2")
    model.module.eval()
    trunk = Trunk(model.module)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 30, (6, 50), generator=draw)
    tokens[1:4, :9] = tokens[0, :9]
    mask = torch.zeros(6, 50, dtype=torch.bool)
    for row, (first, last) in enumerate([(9, 50), (9, 20), (9, 10), (9, 33), (4, 30), (20, 45)]):
        mask[row, first:last] = True
    forward = PackedForward(trunk)
    slope = torch.randn(int(mask.sum()), 32, generator=draw)
    found = []
    for arrange in (None, lay_out_flexibly):
        packed = pack_tokens(tokens, mask, segments=arrange is None, arrange=arrange)
        assert packed is not None
        model.module.zero_grad()
        states = forward._hidden(packed).index_select(0, packed.sources)
        (states * slope).sum().backward()
        found.append((states.detach(), [w.grad.clone() for w in trunk.body.parameters() if w.grad is not None]))
    assert (found[0][0] - found[1][0]).abs().max() < 1e-5
    for own, other in zip(found[0][1], found[1][1], strict=True):
        assert (own - other).norm() <= 1e-5 * own.norm()


def test_a_cpu_keeps_its_own_way(tiny: Load) -> None:
    assert not flexible_for(tiny("llama").module.config, torch.device("cpu"), torch.bfloat16)


def test_a_kernel_that_fails_is_told_of_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Query heads that no number of key heads divides; without a GPU, that there is none."""
    odd = SimpleNamespace(num_attention_heads=3, num_key_value_heads=2, head_dim=16)
    assert not flexible_for(odd, torch.device("cuda"), torch.bfloat16)
    assert "attend in blocks, not through FlexAttention: it fails here (" in caplog.text


@CUDA
@pytest.mark.parametrize("heads", [(14, 2, 64), (28, 4, 128), (4, 4, 32)])
def test_the_compiled_kernel_has_the_numbers_and_gradients(heads: tuple[int, int, int]) -> None:
    assert difference(compiled(), torch.device("cuda"), torch.bfloat16, heads) < AGREES


@CUDA
def test_lengths_may_change() -> None:
    draw = torch.Generator().manual_seed(0)
    for length in (100, 700, 1500, 90):
        layout, _, _ = lay_out_flexibly([length], [50, length // 2], [0, 0])
        fast, plain = (replace(layout, kernel=each).to(torch.device("cuda")) for each in (compiled(), None))
        given = [torch.randn(layout.length, n, 64, generator=draw).cuda().bfloat16() for n in (4, 2, 2)]
        a, b = (each.attend(0, *given, scaling=0.125).float() for each in (fast, plain))
        assert (a - b).norm() < AGREES * b.norm()
