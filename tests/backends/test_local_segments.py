"""Attention over segments of a flat sequence: the numbers and gradients of attention under one dense mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from maieutic.backends.local import LocalLearner, Optimiser
from maieutic.backends.local.evaluate import PackedForward
from maieutic.backends.local.packing import pack_tokens
from maieutic.backends.local.segments import TOGETHER, Segments, lay_out_segments, serves
from maieutic.models.causal import CausalModel
from maieutic.types import Batch

Load = Callable[..., CausalModel]

# A prompt of 5 with completions of 3, 3 and 90; one of 70 with one of 4; one of 9 with none that is fed; one of 2 with
# 40 and 200, and one that is empty; one of 6 with one of 1.
PROMPTS = [5, 70, 9, 2, 6]
COMPLETIONS = [90, 4, 3, 0, 40, 3, 200, 0, 1]
OWNERS = [0, 1, 0, 2, 3, 0, 3, 3, 4]


def dense_mask(starts_p: list[int], starts_c: list[int]) -> Tensor:
    """`[N, N]`: who sees whom, written out from the meaning of prompts and completions."""
    size = sum(PROMPTS) + sum(COMPLETIONS)
    seen = torch.zeros(size, size, dtype=torch.bool)
    for start, length in zip(starts_p, PROMPTS, strict=True):
        seen[start : start + length, start : start + length] = torch.ones(length, length).tril().bool()
    for start, length, owner in zip(starts_c, COMPLETIONS, OWNERS, strict=True):
        seen[start : start + length, start : start + length] = torch.ones(length, length).tril().bool()
        seen[start : start + length, starts_p[owner] : starts_p[owner] + PROMPTS[owner]] = True
    return seen


def drawn(size: int, *shapes: tuple[int, int]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(size, *shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(("heads", "shared", "width"), [(4, 4, 8), (6, 2, 8), (4, 1, 5), (4, 2, 12)])
def test_numbers_and_gradients_of_dense_attention(heads: int, shared: int, width: int) -> None:
    layout, starts_p, starts_c = lay_out_segments(PROMPTS, COMPLETIONS, OWNERS)
    seen = dense_mask(starts_p.tolist(), starts_c.tolist())
    query, key, value = drawn(len(seen), (heads, 8), (shared, 8), (shared, width))
    found = layout.attend(0, query, key, value, 0.4)
    flat = (x.transpose(0, 1)[None] for x in (query, key, value))
    whole = scaled_dot_product_attention(*flat, attn_mask=seen, scale=0.4, enable_gqa=True)
    expected = whole[0].transpose(0, 1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    (slope,) = drawn(len(seen), (heads, width))
    for mine, plain in zip(
        torch.autograd.grad((found * slope).sum(), (query, key, value)),
        torch.autograd.grad((expected * slope).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(mine, plain, atol=1e-12, rtol=0)


def test_views_of_any_strides_and_gradients_without_any() -> None:
    layout, starts_p, starts_c = lay_out_segments(PROMPTS, COMPLETIONS, OWNERS)
    seen = dense_mask(starts_p.tolist(), starts_c.tolist())
    (joint,) = drawn(len(seen), (8, 12))  # as a module that makes all three in one product, last axis not contiguous
    query, key, value = joint.transpose(1, 2).split(4, dim=1)
    found = layout.attend(0, query, key, value, 0.4)
    (mine,) = torch.autograd.grad(found.sum(), joint)  # its gradient is one number, expanded
    flat = (x.transpose(0, 1)[None] for x in (query, key, value))
    (plain,) = torch.autograd.grad(scaled_dot_product_attention(*flat, attn_mask=seen, scale=0.4).sum(), joint)
    torch.testing.assert_close(mine, plain, atol=1e-12, rtol=0)


def test_every_token_is_in_one_run_and_short_segments_share_calls() -> None:
    layout, _, _ = lay_out_segments(PROMPTS, COMPLETIONS, OWNERS)
    covered = [token for run in layout.runs for token in range(run.start, run.start + run.rows * run.width)]
    assert covered == list(range(sum(PROMPTS) + sum(COMPLETIONS)))
    # 5 with 3 and 3 in one call under a mask; then 90; 70 + 4, causal from prompt to end; then 9 and 2 and 40, 51 in
    # all; then 200; then 6 + 1.
    assert [(run.rows, run.width, run.mask is None) for run in layout.runs] == [
        (1, 11, False), (1, 90, True), (1, 74, True), (1, 51, False), (1, 200, True), (1, 7, True),
    ]  # fmt: skip
    assert TOGETHER == 64
    assert [(each.start - each.first, each.stop - each.start) for each in layout.shared] == [(5, 96), (2, 240)]


def test_rows_of_one_length_are_one_call_without_a_mask() -> None:
    layout, _, _ = lay_out_segments([10], [64] * 8, [0] * 8)
    assert [(run.rows, run.width, run.mask is None) for run in layout.runs] == [(1, 10, True), (8, 64, True)]


ROWS = 3


def rows_kept(work: Callable[[], object]) -> list[torch.Size]:
    """The shapes of tensors with several rows that are kept for a backward pass."""
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return [shape for shape in kept if len(shape) == 4 and 1 < shape[0] <= ROWS]


def test_nothing_is_padded_gathered_or_repeated(tiny: Load) -> None:
    """The learner's forward on a CPU goes through segments: no tensor of it has more tokens than are fed."""
    model = tiny("llama", "float32")
    rows = [[7] * 3 + [5] * 20, [7] * 3 + [6] * 60, [8] * 50 + [9] * 4]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[0, 3:23] = mask[1, 3:63] = mask[2, 50:54] = True
    packed = pack_tokens(tokens, mask, segments=True)
    assert packed is not None
    assert isinstance(packed.layout, Segments)
    fed = 3 + 19 + 59 + 50 + 3
    assert len(packed.tokens) == fed
    zeros, one = torch.zeros(3, width), torch.arange(3)
    batch = Batch(tokens, mask, mask.sum(1), zeros, zeros[:, 0], zeros, one == 0, one, one)
    forward = LocalLearner(model, Optimiser()).forward
    assert isinstance(forward, PackedForward)
    # Rows side by side have four axes, the first of them the rows: attention keeps one flat row [1, heads, N, D], and
    # rotated heads are kept by token, [N, heads, 2, D / 2].
    assert rows_kept(lambda: forward.outputs(batch, entropy=True)) == []
    assert rows_kept(lambda: forward.logits(batch, mask)) != []  # in blocks, which may be differentiated twice


def test_where_it_serves() -> None:
    assert serves(torch.zeros(1))
    assert serves(torch.zeros(1, dtype=torch.float64))
    assert not serves(torch.zeros(1, dtype=torch.bfloat16))
    assert not serves(torch.zeros(1, device="meta"))
