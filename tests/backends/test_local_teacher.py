"""Teachers of the local backend: their candidates, the student's log-probs of them, and who may teach whom."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maieutic.backends.local import LocalBackend, LocalLearner, Optimiser
from maieutic.backends.local.evaluate import Forward, PackedForward, PaddedForward
from maieutic.backends.local.trunk import Trunk
from maieutic.core.distillation import forward_kl, jensen_shannon
from maieutic.errors import ConfigError, DataError, ModelError
from maieutic.models.causal import CausalModel, load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.types import Batch

Load = Callable[..., CausalModel]


def make_batch(*, temperature: float = 0.8, seed: int = 0) -> Batch:
    """Five rows of two prompts, 14 tokens at most, a tool's tokens in one of them."""
    draw = random.Random(seed)
    lengths, prompts = [14, 9, 12, 5, 6], [4, 4, 4, 2, 2]
    tokens = torch.zeros(5, 14, dtype=torch.long)
    mask = torch.zeros(5, 14, dtype=torch.bool)
    for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        tokens[row, :length] = torch.tensor([draw.randrange(5, 32) for _ in range(length)])
        tokens[row, :prompt] = 7 + prompt
        mask[row, prompt:length] = True
    mask[0, 6:8] = False
    return Batch(
        tokens=tokens, mask=mask, lengths=torch.tensor(lengths), sampler_logprobs=torch.zeros(5, 14),
        rewards=torch.zeros(5), token_rewards=torch.zeros(5, 14), terminated=torch.ones(5, dtype=torch.bool),
        groups=torch.tensor([0, 0, 0, 1, 1]), units=torch.arange(5), temperature=temperature,
        columns={"weights": mask / mask.sum()},
    )  # fmt: skip


def plain(model: CausalModel, batch: Batch) -> Tensor:
    """`[B, T, V]` log-probs by the module's own forward, token-aligned."""
    logits = model.module(batch.tokens, use_cache=False).logits / batch.temperature
    return torch.log_softmax(logits, -1).roll(1, dims=1)


def another(tmp_path_factory: pytest.TempPathFactory, seed: int = 3, **shape: int) -> CausalModel:
    """A model with the tokens of the tiny ones, and other weights or sizes."""
    words = [*"0123456789", *"+-*/=;#?.", "what", "is", "the", "answer", "apples", "buys", "<think>", "</think>"]
    spec = SmallModel("llama", layers=1, width=24, heads=2, kv_heads=2, **{"context": 128, **shape})
    folder = build_small(tmp_path_factory.mktemp("other") / "teacher", spec, vocabulary=words, seed=seed)
    return load_causal(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    return another(tmp_path_factory)


@pytest.mark.parametrize("forward", [PackedForward, PaddedForward])
@pytest.mark.parametrize("temperature", [0.8, 1.0])
@torch.no_grad()
def test_the_candidates_are_the_likeliest_at_the_batchs_temperature(
    tiny: Load, teacher: CausalModel, forward: type, temperature: float
) -> None:
    found = LocalBackend(micro_batch_tokens=20).teacher(teacher, tiny(), top_k=5)
    found.forward = forward(Trunk(teacher.module)) if forward is PackedForward else forward(teacher.module)
    batch = make_batch(temperature=temperature)
    ids, logprobs = found.top(batch)
    assert ids.shape == logprobs.shape == (5, 14, 5)
    expected, likeliest = plain(teacher, batch).topk(5)
    assert torch.equal(ids[batch.mask], likeliest[batch.mask])
    torch.testing.assert_close(logprobs[batch.mask], expected[batch.mask], rtol=1e-4, atol=1e-5)
    assert not ids[~batch.mask].any()
    assert not logprobs[~batch.mask].any()
    assert (logprobs[batch.mask].exp().sum(-1) < 0.999).all()  # of the whole distribution, not renormalised


def test_a_whole_vocabulary_adds_up(tiny: Load, teacher: CausalModel) -> None:
    ids, logprobs = LocalBackend().teacher(teacher, tiny(), top_k=None).top(batch := make_batch())
    assert ids.shape[-1] == len(teacher.tokenizer.get_vocab()) == 32
    torch.testing.assert_close(logprobs[batch.mask].exp().sum(-1), torch.ones(int(batch.mask.sum())))


def ways(model: CausalModel) -> list[Forward]:
    """All in one piece, in chunks of a few predictions, and the module's own forward."""
    trunk = Trunk(model.module)
    return [PackedForward(trunk), PackedForward(trunk, held=96), PaddedForward(model.module)]


@pytest.mark.parametrize("way", [0, 1, 2], ids=["packed", "packed in chunks", "padded"])
@pytest.mark.parametrize("entropy", [True, False])
def test_the_student_speaks_of_the_teachers_candidates_with_gradient(
    tiny: Load, teacher: CausalModel, way: int, entropy: bool
) -> None:
    student = tiny("llama", "float64")
    ids, logprobs = LocalBackend().teacher(teacher, student, top_k=6).top(make_batch())
    batch = make_batch().with_(teacher_top_ids=ids, teacher_top_logprobs=logprobs)
    outputs = ways(student)[way].outputs(batch, entropy)
    assert outputs.top_logprobs is not None
    expected = plain(student, batch).gather(-1, ids)
    # RMS norms compute in float32 inside a float64 model
    torch.testing.assert_close(outputs.top_logprobs[batch.mask], expected[batch.mask], rtol=1e-6, atol=1e-6)
    assert not outputs.top_logprobs[~batch.mask].any()
    weights = torch.randn(ids.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = weights * batch.mask[..., None]
    grads = [
        torch.autograd.grad((weights * some).sum(), list(student.module.parameters()))
        for some in (outputs.top_logprobs, expected)
    ]
    for found, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_without_a_teacher_nothing_is_said_of_candidates(tiny: Load) -> None:
    outputs = LocalLearner(tiny(), Optimiser()).outputs(make_batch())
    assert outputs.top_logprobs is None
    assert outputs.entropy is not None


@pytest.mark.parametrize("forward", [PackedForward, PaddedForward])
def test_rows_in_which_nothing_was_chosen(tiny: Load, teacher: CausalModel, forward: type) -> None:
    student = tiny()
    engine = forward(Trunk(student.module)) if forward is PackedForward else forward(student.module)
    empty = replace(make_batch(), mask=torch.zeros(5, 14, dtype=torch.bool))
    ids, logprobs = engine.top(empty, 3, 32)
    assert ids.shape == logprobs.shape == (5, 14, 3)
    assert not ids.any()
    outputs = engine.outputs(empty.with_(teacher_top_ids=ids), True)
    assert outputs.top_logprobs.shape == (5, 14, 3)


@pytest.mark.parametrize("budget", [20, 10_000])
def test_learning_from_a_teacher_brings_the_student_to_it(tiny: Load, teacher: CausalModel, budget: int) -> None:
    """With the whole vocabulary the loss is the whole KL; it falls, and nothing of the teacher moves."""
    backend = LocalBackend(micro_batch_tokens=budget)
    student = tiny()
    learner = LocalLearner(student, Optimiser(learning_rate=1e-2), micro_batch_tokens=budget)
    guide = backend.teacher(teacher, student, top_k=None)
    kept = [weight.clone() for weight in teacher.module.parameters()]
    batch = make_batch()
    ids, logprobs = guide.top(batch)
    batch = batch.with_(teacher_top_ids=ids, teacher_top_logprobs=logprobs)
    with torch.no_grad():
        p, q = plain(teacher, batch), plain(student, batch)
        whole = (p.exp() * (p - q)).sum(-1)[batch.mask].mean()
    found = [learner.step(batch, forward_kl().terms, needs=forward_kl().needs) for _ in range(30)]
    assert found[0]["loss"] == pytest.approx(float(whole), rel=1e-3)
    assert found[0]["distil/kept_mass"] == pytest.approx(1.0, abs=1e-5)
    assert found[-1]["loss"] < 0.3 * found[0]["loss"]
    assert found[-1]["distil/kl"] < 0.5 * found[0]["distil/kl"]
    assert found[-1]["distil/top1_agreement"] > found[0]["distil/top1_agreement"]
    assert all(torch.equal(a, b) for a, b in zip(kept, teacher.module.parameters(), strict=True))


def test_a_student_that_is_its_teacher_does_not_move(tiny: Load) -> None:
    """A15: what is compared with itself differs by nothing, in float32 and at a temperature."""
    student = tiny()
    learner = LocalLearner(student, Optimiser(learning_rate=1e-2, max_grad_norm=1e9))
    ids, logprobs = LocalBackend().teacher(tiny(), student, top_k=8).top(batch := make_batch())
    found = learner.step(batch.with_(teacher_top_ids=ids, teacher_top_logprobs=logprobs), jensen_shannon(0.5).terms)
    assert abs(found["loss"]) < 1e-6
    assert abs(found["distil/kl"]) < 1e-6
    assert found["optim/grad_norm"] < 1e-5
    assert found["distil/top1_agreement"] == 1.0


def test_another_vocabulary_is_refused(tiny: Load, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = build_small(
        tmp_path_factory.mktemp("words") / "m", SmallModel(layers=1, width=16, heads=2), vocabulary=["a", "b"]
    )
    stranger = load_causal(folder, device="cpu")
    with pytest.raises(ModelError, match=r"teacher .* of 7 tokens for a policy .* of 32.*fine-tune on them \(sft\)"):
        LocalBackend().teacher(stranger, tiny())
    with pytest.raises(ModelError, match="got a teacher"):
        LocalBackend().teacher(tiny(), stranger)


def test_the_number_of_candidates(tiny: Load, teacher: CausalModel) -> None:
    with pytest.raises(ConfigError, match="top_k=0; expected at least 1"):
        LocalBackend().teacher(teacher, tiny(), top_k=0)
    assert LocalBackend().teacher(teacher, tiny()).top_k == 32  # 64, but there are no more


def test_rows_longer_than_the_teachers_context(tiny: Load, tmp_path_factory: pytest.TempPathFactory) -> None:
    short = LocalBackend().teacher(another(tmp_path_factory, context=13), tiny())
    with pytest.raises(DataError, match=r"14 tokens; the teacher .* has 13 positions"):
        short.top(make_batch())
    with pytest.raises(DataError, match="13 positions"):
        short.logprobs(make_batch())
    assert short.logprobs(make_batch().rows(torch.tensor([1]))).shape == (1, 14)


def test_a_teacher_whose_embedding_is_padded(tiny: Load, teacher: CausalModel) -> None:
    """Rows of the embedding that are no token (as in Qwen 2.5, by size) are no candidates, and keep their mass."""
    padded = tiny()
    padded.module.resize_token_embeddings(40)
    with torch.no_grad():
        padded.module.get_output_embeddings().weight[32:] = padded.module.get_output_embeddings().weight[:8]
    batch = make_batch()
    ids, logprobs = LocalBackend().teacher(padded, tiny(), top_k=None).top(batch)
    assert int(ids.max()) == 31
    assert (logprobs[batch.mask].exp().sum(-1) < 0.99).all()


def test_log_probs_are_made_of_float32_logits(tiny: Load, teacher: CausalModel) -> None:
    """A23: a bfloat16 teacher's log-softmax is computed in float32: its probabilities add up to 1 within 1e-5."""
    half = replace(teacher, module=load_causal(teacher.source, dtype="bfloat16", device="cpu").module)
    _, logprobs = LocalBackend().teacher(half, tiny(), top_k=None).top(batch := make_batch())
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs[batch.mask].exp().sum(-1), torch.ones(int(batch.mask.sum())), rtol=0, atol=1e-5)
