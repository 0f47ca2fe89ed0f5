"""Compiled passes, attention and scores of an update: the numbers and slopes of the operations that they stand for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from maieutic.backends.local import LocalLearner, Optimiser, compiled_passes, kernels, memory, products
from maieutic.backends.local.coarse import has_units
from maieutic.backends.local.compiled_passes import COMPOSED, Compiled, passes_for
from maieutic.backends.local.evaluate import HELD, PackedForward
from maieutic.backends.local.lean import Lean, lean_for
from maieutic.backends.local.passes import Turns
from maieutic.backends.local.products import summing, unchanged, weight_slope
from maieutic.backends.local.scoring import right, scored, scoring_for
from maieutic.backends.local.segments import lay_out_segments
from maieutic.backends.local.trunk import Trunk
from maieutic.forecast.measure import resident
from maieutic.models.causal import POLICY
from maieutic.models.lora import LoRA, add_lora
from maieutic.models.softmax import scores
from maieutic.types import Batch, Outputs

pytest.importorskip("numba", reason="compiled passes need numba (pip install 'maieutic[fast]')")
from maieutic.backends.local.compiled import learning, parts

needs_products = pytest.mark.skipif(not products.available(), reason="this build of torch has no such products")


def drawn(*shapes: tuple[int, ...], spread: float = 2.0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [spread * torch.randn(shape, generator=draw) for shape in shapes]


def both_ways(
    found: Callable[..., Tensor], expected: Callable[..., Tensor], given: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Values and slopes of `found` in float32 and of `expected` in float64."""
    sides = []
    for function, dtype in ((found, torch.float32), (expected, torch.float64)):
        inputs = [each.to(dtype).requires_grad_() for each in given]
        out = function(*inputs)
        slope = torch.sin(torch.arange(out.numel())).view(out.shape).to(dtype)
        sides.append([out.detach(), *torch.autograd.grad(out, inputs, slope)])
    return [(a.double(), b) for a, b in zip(*sides, strict=True)]


def turns_of(count: int, size: int) -> Turns:
    (angle,) = drawn((count, size // 2))
    return Turns.of(*(torch.cat([x, x], dim=1) for x in (angle.cos(), angle.sin())))


def wide(turns: Turns) -> Turns:
    return Turns(*(each.double() for each in turns))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One thread, or as if torch had been told to use two."""
    start = kernels.crew()[0]
    if request.param > 1 and not start:
        pytest.skip("torch's OpenMP was not found: kernels work with one thread")
    monkeypatch.setattr(kernels, "crew", lambda: (start, request.param))
    return request.param


@pytest.mark.parametrize("count", [1, 31, 33, 300])
def test_passes_are_those_of_torch(count: int, threads: int) -> None:
    """More rows than a piece has, and fewer; widths that no vector divides."""
    passes, turns = Compiled(learning), turns_of(count, 24)
    cases: list[tuple[Any, Any, list[Tensor]]] = [
        (
            lambda x, w: passes.normed(x, w, 1e-3), lambda x, w: COMPOSED.normed(x, w, 1e-3),
            drawn((count, 37), (37,)),
        ),
        (
            lambda x, w: passes.normed(x, w, 1e-3), lambda x, w: COMPOSED.normed(x, w, 1e-3),
            drawn((count, 3, 24), (24,)),
        ),
        (passes.gated, COMPOSED.gated, drawn((count, 29), (count, 29), spread=6)),
        (
            lambda q, k: torch.cat(passes.turned(q, k, turns), dim=1),
            lambda q, k: torch.cat(COMPOSED.turned(q, k, wide(turns)), dim=1), drawn((count, 3, 24), (count, 1, 24)),
        ),
    ]  # fmt: skip
    for found, expected, given in cases:
        for mine, theirs in both_ways(found, expected, given):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=2e-6)


def test_a_gate_far_from_zero_is_finite() -> None:
    gate = torch.tensor([[-1e4, -90.0, -87.4, 0.0, 87.4, 90.0, 1e4]])
    for mine, theirs in both_ways(Compiled(learning).gated, COMPOSED.gated, [gate, torch.ones_like(gate)]):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


# Completions of a prompt: shorter and longer than the queries that are worked on together, one that is empty; a prompt
# with one completion, one with none, one with nine, of which two or three are a bundle.
PROMPTS, COMPLETIONS = [5, 70, 9, 2], [90, 4, 3, 0, 40, 3, 33, 32, 1, 1, 5, 64, 2]
OWNERS = [0, 1, 0, 2, 3, 0, 3, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(("heads", "shared", "size"), [(4, 4, 8), (6, 2, 16), (4, 1, 72), (3, 3, 64)])
def test_attention_is_that_of_segments(heads: int, shared: int, size: int, threads: int) -> None:
    layout, _, _ = lay_out_segments(PROMPTS, COMPLETIONS, OWNERS)
    count = sum(PROMPTS) + sum(COMPLETIONS)
    given = drawn((count, heads, size), (count, shared, size), (count, shared, size))
    found, expected = (
        lambda q, k, v, passes=passes: passes.attended(layout, 0, q, k, v, size**-0.5)
        for passes in (Compiled(learning), COMPOSED)
    )
    for mine, theirs in both_ways(found, expected, given):
        torch.testing.assert_close(mine, theirs, atol=3e-5, rtol=1e-5)


def test_every_completion_is_in_one_bundle_with_its_prompt() -> None:
    layout, starts_p, starts_c = lay_out_segments(PROMPTS, COMPLETIONS, OWNERS)
    bundles = layout.bundles
    segments = list(zip(bundles.starts.tolist(), bundles.widths.tolist(), strict=True))
    seen = {}
    for unit, (low, high) in enumerate(zip(bundles.bounds[:-1], bundles.bounds[1:], strict=True)):
        for segment in segments[low:high]:
            seen[segment] = (bundles.firsts[unit], bundles.prompts[unit])
    for owner in (0, 3):  # prompts that several completions share
        prompt = (starts_p[owner], PROMPTS[owner])
        assert seen[prompt][1] == 0
        for number, (length, own) in enumerate(zip(COMPLETIONS, OWNERS, strict=True)):
            if own == owner and length:
                assert seen[starts_c[number], length] == prompt
    assert seen[starts_p[1], 74][1] == 0  # the only completion follows its prompt
    assert sum(width for _, width in seen) == sum(PROMPTS) + sum(COMPLETIONS)
    of_prompts = np.flatnonzero(bundles.prompts)
    assert len(of_prompts) == 3 + 4  # 3 completions one by one, 8 by twos
    assert bundles.rows == 3 * 5 + 4 * 2
    assert bundles.places[of_prompts].tolist() == [0, 5, 10, 15, 17, 19, 21]


def head_of(width: int, vocabulary: int, bias: bool = False) -> torch.nn.Linear:
    torch.manual_seed(1)
    head = torch.nn.Linear(width, vocabulary, bias=bias)
    with torch.no_grad():
        head.weight.mul_(3)
    return head


@needs_products
@pytest.mark.parametrize("held", [HELD, 0], ids=["held", "made again"])
@pytest.mark.parametrize(("count", "bias"), [(5, True), (300, False), (700, True)])
def test_scores_are_those_of_the_softmax(
    count: int, bias: bool, held: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maieutic.backends.local.scoring.PIECE", 256 * 50)
    head, (states,) = head_of(12, 50, bias), drawn((count, 12))
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 50, (count, 3), generator=draw)
    to_found, to_spread = torch.randn(count, 3, generator=draw), torch.randn(count, generator=draw)
    mine, theirs = states.requires_grad_(), states.detach().double().requires_grad_()
    with unchanged():
        found, spread = scored(learning, head, mine, ids, 0.7, held)
        slopes = torch.autograd.grad([found, spread], [mine, *head.parameters()], [to_found, to_spread])
    plain = head_of(12, 50, bias).double()
    said = scores(plain(theirs), ids[:, 0], 0.7, entropy=True, candidates=ids[:, 1:])
    assert said.entropy is not None
    assert said.candidates is not None
    wanted = torch.cat([said.logprobs[:, None], said.candidates], dim=1)
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(spread.double(), said.entropy, atol=2e-5, rtol=1e-5)
    expected = torch.autograd.grad(
        [wanted, said.entropy], [theirs, *plain.parameters()], [to_found.double(), to_spread.double()]
    )
    for a, b in zip(slopes, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-5)


@needs_products
def test_one_of_the_slopes_alone_and_a_second_time() -> None:
    head, (states,) = head_of(12, 50), drawn((30, 12))
    ids = torch.arange(30)[:, None]
    given = states.requires_grad_()
    for which in (0, 1):
        out = scored(learning, head, given, ids, 1.0, HELD)[which]
        (mine,) = torch.autograd.grad(out.sum(), given, retain_graph=True)
        said = scores(head(given), ids[:, 0], entropy=True)
        (theirs,) = torch.autograd.grad(said[which].sum(), given)
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)
        with pytest.raises(RuntimeError, match="differentiated before"):
            torch.autograd.grad(out.sum(), given)


@needs_products
def test_scores_without_a_gradient_hold_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maieutic.backends.local.scoring.PIECE", 256 * 50)
    rows: list[int] = []
    made = SimpleNamespace(**{name: getattr(learning, name) for name in learning.__all__})
    made.score = lambda crew, logits, *rest: (rows.append(len(logits)), learning.score(crew, logits, *rest))
    head, (states,) = head_of(12, 50), drawn((600, 12))
    ids = torch.zeros(600, 1, dtype=torch.long)
    with torch.no_grad():
        found, _ = scored(made, head, states, ids, 1.0, HELD)
    assert rows == [256, 256, 88]
    torch.testing.assert_close(found[:, 0], scores(head(states), ids[:, 0]).logprobs.detach(), atol=2e-5, rtol=1e-5)


def model(kind: str = "qwen3", width: int = 32, **settings: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, num_hidden_layers=2, hidden_size=width, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=60, max_position_embeddings=256, **settings,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def batch_of() -> Batch:
    """5 prompts of 9 to 13 tokens with 4 completions each of 10 to 31: some 450 tokens, learned from at once."""
    draw = np.random.default_rng(0)
    rows = torch.zeros(20, 50, dtype=torch.long)
    mask = torch.zeros(20, 50, dtype=torch.bool)
    lengths = torch.zeros(20, dtype=torch.long)
    for group in range(5):
        prompt = draw.integers(5, 60, 9 + group)
        for row in range(4 * group, 4 * group + 4):
            text = torch.from_numpy(np.concatenate([prompt, draw.integers(5, 60, draw.integers(10, 32))]))
            rows[row, : len(text)], mask[row, len(prompt) : len(text)], lengths[row] = text, True, len(text)
    noise = torch.from_numpy(draw.standard_normal((20, 50), np.float32))
    return Batch(
        tokens=rows, mask=mask, lengths=lengths, sampler_logprobs=torch.zeros(20, 50), rewards=torch.zeros(20),
        token_rewards=torch.zeros(20, 50), terminated=torch.ones(20, dtype=torch.bool),
        groups=torch.arange(20) // 4, units=torch.arange(20), temperature=0.8,
        columns={"advantages": noise, "weights": torch.where(mask, 1.0 / 400, 0.0)},
    )  # fmt: skip


def loss(outputs: Outputs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    assert outputs.entropy is not None
    return -outputs.logprobs * batch.advantages - 0.1 * outputs.entropy, {}


def causal(module: torch.nn.Module) -> Any:
    return SimpleNamespace(module=module, adapter_name=POLICY, precision="auto")


def gradients(module: torch.nn.Module, forward: PackedForward, tokens: int = 10**6) -> dict[str, Tensor]:
    learner = LocalLearner(causal(module), Optimiser(), forward=forward, micro_batch_tokens=tokens)
    learner.accumulate(batch_of(), loss)
    return {name: weight.grad.clone() for name, weight in learner.weights().items() if weight.grad is not None}


def forwards(module: torch.nn.Module, recompute: bool = False) -> tuple[PackedForward, PackedForward]:
    """Compiled, and in torch's operations."""
    trunk = Trunk(module)
    mine, plain = PackedForward(trunk, recompute=recompute), PackedForward(trunk, recompute=recompute)
    assert mine.scoring is None  # too small for it to be worth while
    mine.lean, mine.scoring = Lean(trunk, passes=passes_for(trunk, learning)), scoring_for(trunk, learning)
    assert isinstance(mine.lean.passes, Compiled)
    return mine, plain


@needs_products
@pytest.mark.parametrize("tokens", [10**6, 300])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("kind", "tied"), [("qwen3", True), ("qwen2", False)])
def test_a_learner_makes_the_same_gradient(kind: str, tied: bool, recompute: bool, tokens: int) -> None:
    """In one micro-batch and in several, whose gradients add up; head and embedding may be one weight."""
    module = model(kind, tie_word_embeddings=tied)
    mine, plain = forwards(module, recompute)
    assert (len(mine.split(batch_of(), tokens)) > 1) is (tokens == 300)
    found, expected = gradients(module, mine, tokens), gradients(module, plain)
    assert found.keys() == expected.keys()
    assert ("lm_head.weight" in found) is not tied
    for name, slope in expected.items():
        torch.testing.assert_close(found[name], slope, atol=2e-6, rtol=1e-4, msg=lambda said, n=name: f"{n}: {said}")


@needs_products
def test_a_frozen_weight_has_no_gradient() -> None:
    module = model(tie_word_embeddings=False)
    frozen = {"lm_head.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"}
    for name, weight in module.named_parameters():
        weight.requires_grad_(name not in frozen)
    mine, plain = forwards(module)
    found, expected = gradients(module, mine), gradients(module, plain)
    assert found.keys() == expected.keys()
    assert not found.keys() & frozen
    for name, slope in expected.items():
        torch.testing.assert_close(found[name], slope, atol=2e-6, rtol=1e-4)


@needs_products
def test_an_adapter_learns_the_same_and_its_base_nothing() -> None:
    module = add_lora(model(tie_word_embeddings=False), LoRA(rank=4, alpha=8))
    with torch.no_grad():  # a new adapter's second matrix is zero, and the first one's slope with it
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(torch.sin(torch.arange(weight.numel())).view(weight.shape), alpha=0.1)
    mine, plain = forwards(module)
    found, expected = gradients(module, mine), gradients(module, plain)
    assert found.keys() == expected.keys() == {name for name, w in module.named_parameters() if w.requires_grad}
    assert all("lora" in name for name in found)
    for name, slope in expected.items():
        torch.testing.assert_close(found[name], slope, atol=2e-6, rtol=1e-4, msg=lambda said, n=name: f"{n}: {said}")
        assert slope.abs().max() > 0


@needs_products
def test_the_same_numbers_twice_and_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    start, module = kernels.crew()[0], model()
    mine, _ = forwards(module)
    made = []
    for threads in (1, 1, 2, 3):
        monkeypatch.setattr(kernels, "crew", lambda count=threads: (start, count if start else 1))
        made.append(gradients(module, mine))
    for other in made[1:]:
        for name, slope in made[0].items():
            assert torch.equal(other[name], slope), name


def test_slopes_are_added_up_where_nobody_else_asks_for_them() -> None:
    (slope, rows) = drawn((4, 3), (4, 2))
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    expected = slope.t() @ rows
    assert torch.equal(weight_slope(weight, slope, rows), expected)
    assert weight.grad is None
    with summing():
        assert weight_slope(weight, slope, rows) is None
        assert weight_slope(weight, slope, rows) is None
        torch.testing.assert_close(weight.grad, 2 * expected)
        made = weight * 1.0  # no weight of the model's: its slope goes on
        assert torch.equal(weight_slope(made, slope, rows), expected)
        weight.register_post_accumulate_grad_hook(lambda _weight: None)
        assert torch.equal(weight_slope(weight, slope, rows), expected)
    torch.testing.assert_close(weight.grad, 2 * expected)


def test_a_model_of_some_size_learns_by_them_without_being_asked() -> None:
    small, large = (Trunk(model(width=width)) for width in (32, 256))
    assert passes_for(small) is COMPOSED
    assert scoring_for(small) is None
    assert isinstance(passes_for(large), Compiled)
    assert (scoring_for(large) is not None) is products.available()
    assert isinstance(lean_for(large).passes, Compiled)


def test_what_gives_other_numbers_is_refused_and_said(caplog: pytest.LogCaptureFixture) -> None:
    made = {name: getattr(learning, name) for name in learning.__all__}

    def forgetful(crew: Any, slope: Any, gates: Any, ups: Any, to_gates: Any, to_ups: Any) -> None:
        learning.gate_slope(crew, slope, gates, np.ones_like(ups), to_gates, to_ups)

    trunk = Trunk(model())
    assert isinstance(passes_for(trunk, SimpleNamespace(**made)), Compiled)
    with caplog.at_level(logging.WARNING):
        assert passes_for(trunk, SimpleNamespace(**{**made, "gate_slope": forgetful})) is COMPOSED
    assert "differ from torch's by" in caplog.text

    def broken(*_given: Any) -> None:
        raise OSError("no space left on device")

    with caplog.at_level(logging.WARNING):
        assert passes_for(trunk, SimpleNamespace(**{**made, "attend": broken})) is COMPOSED
    assert "cannot be compiled (no space left on device)" in caplog.text


def test_other_numbers_go_the_ordinary_way() -> None:
    """float64 here; a layout in blocks, and heads that no tile divides."""
    passes = Compiled(learning)
    states, weight = (x.double() for x in drawn((5, 8), (8,)))
    assert torch.equal(passes.normed(states, weight, 1e-3), COMPOSED.normed(states, weight, 1e-3))
    assert torch.equal(passes.gated(states, states), COMPOSED.gated(states, states))
    layout, _, _ = lay_out_segments([5], [3, 4], [0, 0])
    query, key = drawn((12, 2, 12), (12, 2, 12))
    own, plain = (each.attended(layout, 0, query, key, key, 0.3) for each in (passes, COMPOSED))
    assert torch.equal(own, plain)
    assert passes_for(Trunk(model().double())) is COMPOSED


def test_where_torch_has_no_such_openmp_one_thread_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    assert kernels._start.__wrapped__() == 0
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "lib" / "libtorch_cpu.so").write_bytes(b"no library")
    assert kernels._start.__wrapped__() == 0
    monkeypatch.setattr(kernels, "_start", lambda: 0)
    assert kernels.crew() == (0, 1)


def test_what_is_kept_on_disk_is_for_these_files_alone() -> None:
    """Numba asks whether the function's own file has changed; what it calls may lie in another."""
    kept = learning.norm._cache._cache_file._source_stamp
    names = {name for name, _ in kept[1]}
    assert names == {"__init__.py", "parts.py", "decoding.py", "learning.py", "attending.py"}
    assert kept[1] == parts._FILES


def test_memory_is_given_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    now = [100.0]
    monkeypatch.setattr(memory, "_last", [0.0])
    monkeypatch.setattr(memory, "_trim", lambda: calls.append)
    monkeypatch.setattr(memory.time, "monotonic", lambda: now[0])
    for at in (100.0, 101.9, 102.1, 102.2):
        now[0] = at
        memory.give_back()
    assert calls == [0, 0]
    monkeypatch.undo()
    memory.give_back()  # with this machine's own library


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say what is resident")
def test_zeros_that_nobody_writes_to_take_no_memory() -> None:
    before = resident()
    made = memory.untouched((64, 1024, 1024), torch.float32)  # 256 MB
    assert resident() - before < 8 << 20
    made[:8] = 1.0
    assert 32 << 20 <= resident() - before < 48 << 20
    assert float(made.sum()) == 8 * 2**20
    assert resident() - before < 48 << 20  # to read is not to write
    del made
    assert resident() - before < 16 << 20


def test_zeros_where_no_pages_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape, dtype in [((0, 3), torch.float32), ((2, 3), torch.float32), ((5,), torch.bfloat16)]:
        made = memory.untouched(shape, dtype)
        assert torch.equal(made, torch.zeros(shape, dtype=dtype))
        made.add_(1)
    monkeypatch.setattr(memory.mmap, "mmap", lambda *_given: None)  # as on Windows, which knows no flags
    assert torch.equal(memory.untouched((2, 3), torch.float32), torch.zeros(2, 3))


def test_without_numba_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False)
    assert kernels.learning.__wrapped__() is None
    assert kernels.decoding.__wrapped__() is None
    monkeypatch.setattr(kernels, "learning", lambda: None)
    assert compiled_passes.usual.__wrapped__() is None


@needs_products
@pytest.mark.skipif(not has_units(torch.bfloat16), reason="this processor has no units for bfloat16")
def test_in_bfloat16_what_is_no_product_stays_float32() -> None:
    """Between compiled passes and torch's lies float32 rounding, which products in bfloat16 pass on, and no more."""
    module = model()
    trunk = Trunk(module)
    mine, plain = (PackedForward(trunk, numbers=torch.bfloat16) for _ in range(2))
    mine.lean, mine.scoring = Lean(trunk, passes=passes_for(trunk, learning)), scoring_for(trunk, learning)
    found, expected = gradients(module, mine), gradients(module, plain)
    whole = torch.cat([slope.flatten() for slope in expected.values()])
    apart = torch.cat([(found[name] - slope).flatten() for name, slope in expected.items()])
    assert float(apart.norm() / whole.norm()) < 5e-3


@needs_products
def test_scores_that_differ_are_refused_and_said(caplog: pytest.LogCaptureFixture) -> None:
    made = {name: getattr(learning, name) for name in learning.__all__}
    assert right(SimpleNamespace(**made))

    def without_entropy(crew: Any, logits: Any, ids: Any, warmth: Any, spread: Any, *rest: Any) -> None:
        learning.score_slope(crew, logits, ids, warmth, spread, *rest[:2], np.zeros_like(rest[2]))

    with caplog.at_level(logging.WARNING):
        assert not right(SimpleNamespace(**{**made, "score_slope": without_entropy}))
    assert "Compiled scores of an update differ" in caplog.text


def test_the_first_time_it_is_said_that_kernels_are_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(learning, "norm", SimpleNamespace(stats=SimpleNamespace(cache_path=str(tmp_path))))
    with caplog.at_level(logging.INFO):
        assert kernels.learning.__wrapped__() is learning
    assert f"kept in {tmp_path}" in caplog.text
    caplog.clear()
    (tmp_path / "learning.norm-1.py311.nbi").touch()
    with caplog.at_level(logging.INFO):
        kernels.learning.__wrapped__()
    assert not caplog.text
