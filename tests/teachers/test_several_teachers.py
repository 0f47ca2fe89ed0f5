"""Mixtures of teachers, exact over whole vocabularies and bounded over candidates; teachers by tasks; teachers cut."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from maieutic.annotate import cut
from maieutic.backends.local import LocalBackend, LocalLearner, Optimiser
from maieutic.core.distillation import forward_kl
from maieutic.errors import ConfigError, DataError
from maieutic.teachers import MixedTeacher, Shortened, TeacherByTasks
from maieutic.teachers.several import united

WEIGHTS = (3.0, 1.0)


def teachers(models, top_k):
    return [LocalBackend().teacher(models(seed), models(0), top_k) for seed in (1, 2)]


@torch.no_grad()
def whole(models, batch):
    """`[B, T, V]` p = ¾ p₁ + ¼ p₂ by the modules' own forward."""
    each = [models(seed).module(batch.tokens, use_cache=False).logits.softmax(-1).roll(1, dims=1) for seed in (1, 2)]
    return 0.75 * each[0] + 0.25 * each[1]


def test_over_whole_vocabularies_the_mixture_is_exact(models, batch):
    mixed, p = MixedTeacher(teachers(models, None), WEIGHTS), whole(models, batch)
    ids, logprobs = mixed.top(batch)
    assert ids.shape[-1] == 32
    torch.testing.assert_close(logprobs.exp()[batch.mask], p.gather(-1, ids)[batch.mask], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logprobs.exp()[batch.mask].sum(-1), torch.ones(int(batch.mask.sum())))
    assert (logprobs[batch.mask].diff(dim=-1) <= 0).all()
    assert not ids[~batch.mask].any()
    own = p.gather(-1, batch.tokens[..., None])[..., 0].log()
    torch.testing.assert_close(mixed.logprobs(batch)[batch.mask], own[batch.mask], rtol=1e-4, atol=1e-5)
    assert not mixed.logprobs(batch)[~batch.mask].any()


@pytest.mark.parametrize("k", [1, 4, 12])
def test_over_candidates_it_is_within_the_tails_of_the_true_one(models, batch, k):
    """What is missing of a candidate is at most the tails of those who did not name it; in total variation too."""
    both, p = teachers(models, k), whole(models, batch)[batch.mask]
    ids, logprobs = (each[batch.mask] for each in MixedTeacher(both, WEIGHTS).top(batch))
    found, true = logprobs.exp(), p.gather(-1, ids)
    tails = [1 - teacher.top(batch)[1][batch.mask].exp().sum(-1) for teacher in both]
    bound = 0.75 * tails[0] + 0.25 * tails[1]
    assert ids.shape[-1] == k
    assert all(len(set(row)) == k for row in ids.tolist())  # a candidate stands there once
    missing = true - found
    assert (missing > -1e-6).all()
    assert (missing.amax(-1) <= bound + 1e-6).all()
    outside = (1 - found.sum(-1)) - (1 - true.sum(-1))
    assert (0.5 * (missing.sum(-1) + outside) <= bound + 1e-6).all()
    if k < 12:
        assert float(missing.max()) > 1e-4  # the bound is not there for nothing


def test_candidates_that_both_name_are_added_up():
    """(.5, .3) of tokens 4, 9 and (.6, .2) of 9, 7, half and half: 9 has .15 + .3, 4 has .25, 7 has .1."""
    ids = torch.tensor([[4, 9, 9, 7]])
    logs = torch.tensor([[0.5, 0.3, 0.6, 0.2]]).log() + math.log(0.5)
    names, values = united(ids, logs, 3)
    assert names.tolist() == [[9, 4, 7]]
    torch.testing.assert_close(values.exp(), torch.tensor([[0.45, 0.25, 0.10]], dtype=torch.float64))
    with pytest.raises(ValueError, match="fewer than 4 different"):
        united(ids, logs, 4)


def test_what_cannot_be_a_mixture(models):
    pair = teachers(models, 2)
    for some, weights in ((pair[:1], [1.0]), (pair, [1.0]), (pair, [1.0, 0.0]), (pair, [1.0, math.nan])):
        with pytest.raises(ConfigError, match="expected two or more, each with a positive weight"):
            MixedTeacher(some, weights)


def test_a_student_comes_nearer_to_the_mixture(models, batch):
    learner = LocalLearner(models(0), Optimiser(learning_rate=1e-2))
    ids, logprobs = MixedTeacher(teachers(models, 8), WEIGHTS).top(batch)
    batch = batch.with_(teacher_top_ids=ids, teacher_top_logprobs=logprobs)
    found = [learner.step(batch, forward_kl().terms, needs=forward_kl().needs)["loss"] for _ in range(20)]
    assert found[-1] < 0.5 * found[0]


def test_each_row_has_the_teacher_of_its_task(models, batch):
    first, second = teachers(models, 5)
    routed = TeacherByTasks({"a": first, "b": second})
    for found, one, other in zip(routed.top(batch), first.top(batch), second.top(batch), strict=True):
        torch.testing.assert_close(found[:3], one[:3], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[3:], other[3:], rtol=0, atol=1e-5)
    torch.testing.assert_close(routed.logprobs(batch)[3:], second.logprobs(batch)[3:], rtol=0, atol=1e-5)
    assert routed.logprobs(batch.rows(torch.tensor([4]))).shape == (1, 14)  # one of them is not asked


def test_tasks_without_a_teacher_are_refused(models, batch):
    first, second = teachers(models, 5)
    with pytest.raises(DataError, match=r"task 'b/7' has no teacher; .* begins with one of a, bb"):
        TeacherByTasks({"a": first, "bb": second}).logprobs(batch)
    with pytest.raises(DataError, match="whose tasks are not known"):
        TeacherByTasks({"a": first}).top(replace(batch, task_ids=()))
    with pytest.raises(ConfigError, match="expected the same top_k"):
        TeacherByTasks({"a": first, "b": teachers(models, 4)[0]}).top(batch)
    with pytest.raises(ConfigError, match="got none"):
        TeacherByTasks({})


def test_what_a_teacher_cannot_read_is_cut_from_both(models, batch):
    """A teacher of 9 positions: rows of 14, 12, 9 and 6 tokens teach what they would teach if they ended at 9."""
    short = Shortened(LocalBackend().teacher(models(1, context=9), models(0), 6), 9)
    shown = cut(batch, short.cuts_at)
    assert shown.mask.sum(1).tolist() == [3, 5, 5, 4, 4]
    ids, logprobs = short.top(shown)
    assert ids.shape == (5, 14, 6)
    assert not ids[~shown.mask].any()
    assert short.limit == 9
    by_hand = replace(
        batch, tokens=batch.tokens[:, :9], mask=batch.mask[:, :9], lengths=batch.lengths.clamp(max=9), columns={},
        sampler_logprobs=batch.sampler_logprobs[:, :9], token_rewards=batch.token_rewards[:, :9],
    )  # fmt: skip
    expected = short.teacher.top(by_hand)
    assert torch.equal(ids[:, :9], expected[0])
    assert torch.equal(short.logprobs(shown)[:, :9], short.teacher.logprobs(by_hand))
    weights = shown.mask / shown.mask.sum()
    steps = [
        LocalLearner(models(0), Optimiser(learning_rate=1e-2)).step(
            one.with_(teacher_top_ids=some, teacher_top_logprobs=likely, weights=weights[:, : one.tokens.shape[1]]),
            forward_kl().terms,
        )
        for one, some, likely in ((shown, ids, logprobs), (by_hand, *expected))
    ]
    for name in ("loss", "distil/kl", "optim/grad_norm"):
        assert steps[0][name] == pytest.approx(steps[1][name], rel=1e-5)
    assert MixedTeacher([short, teachers(models, 6)[1]], WEIGHTS).cuts_at == 9
    assert TeacherByTasks({"a": teachers(models, 6)[1]}).cuts_at is None
    with pytest.raises(ConfigError, match="expected at least 2"):
        Shortened(short, 1)
