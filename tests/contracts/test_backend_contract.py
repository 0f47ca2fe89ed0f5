"""What every backend promises: a sampler and a learner on one set of weights, as `maieutic.protocols` says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.backends.toy import ToyChat, ToyScorer, toy_policy
from maieutic.core import losses, weights
from maieutic.errors import ConfigError, PromptTooLong
from maieutic.models.causal import load_causal
from maieutic.models.lora import LoRA
from maieutic.models.small import tiny_folder
from maieutic.pack import pack
from maieutic.protocols import Policy, Sampling
from maieutic.types import Example, Finish, Rollout

NUMBERS = [str(n) for n in range(10)]


@dataclass(frozen=True)
class Engine:
    """A backend under test: `open()` gives the same untrained policy every time, `frozen(policy)` its reference."""

    open: Callable[[], Policy]
    frozen: Callable[[Policy], object]


def toy(folder):
    """The table, with 8 positions and 16 buckets of prompts."""

    def opened():
        return toy_policy(ToyChat([*NUMBERS, "+", "="]), length=8, buckets=16, learning_rate=0.1)

    return Engine(opened, lambda policy: ToyScorer(policy.learner.model))


def local(architecture, lora=None):
    """The local backend on a tiny decoder."""

    def build(folder):
        source = tiny_folder(architecture, folder)
        # 40 tokens at a time, so that the few rows of these tests are several micro-batches
        backend = LocalBackend(micro_batch_tokens=40)

        def opened():
            model = load_causal(source, device="cpu", lora=lora)
            return backend.policy(model, Optimiser(learning_rate=0.01))

        return Engine(opened, lambda policy: backend.reference(policy.learner.model))

    return build


#: Every backend, and the local one with what makes it take another path: an adapter, and an architecture that its own
#: attention cannot serve.
BACKENDS = {
    "toy": toy,
    "local": local("llama"),
    "local with LoRA": local("llama", LoRA(rank=4)),
    "local, other attention": local("gemma2"),
}


@pytest.fixture(scope="module", params=BACKENDS)
def engine(request, tmp_path_factory):
    return BACKENDS[request.param](tmp_path_factory.mktemp("engine"))


@pytest.fixture
def policy(engine):
    return engine.open()


def sample(policy, text="1 + 2 =", n=4, **params):
    """Completions of a prompt in the chat's words."""
    params = {"max_tokens": 6, "stop_ids": policy.chat.stop_ids, "key": "k", **params}
    return asyncio.run(policy.sampler.sample(policy.chat.encode(text), Sampling(**params), n))


def rows(policy, prompts=("1 + 2 =", "7 ="), n=3, **params):
    """A batch of what the policy samples, two prompts of different lengths; advantages alternate."""
    temperature = params.get("temperature", 1.0) or 1.0
    examples = []
    for group, text in enumerate(prompts):
        prompt = policy.chat.encode(text)
        for i, done in enumerate(sample(policy, text, n, **params)):
            off = len(prompt)
            rollout = Rollout(
                f"t{group}", prompt + done.tokens, (False,) * off + done.mask, (0.0,) * off + done.logprobs,
                done.finish, sibling=i, version=done.version, temperature=temperature,
            )  # fmt: skip
            examples.append(Example(rollout, float(i % 2), group, group))
    batch = pack(examples)
    return batch.with_(weights=weights.token_mean()(batch), advantages=(2 * batch.rewards - 1)[:, None] * batch.mask)


def table(policy):
    """A copy of the trainable weights."""
    return {name: weight.detach().clone() for name, weight in policy.learner.weights().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def imitate(policy, batch):
    return policy.learner.step(batch, losses.nll().terms)


def test_completions_have_the_shape_that_they_should(policy):
    done = [c for key in ("a", "b") for c in sample(policy, n=8, key=key)]
    assert len(done) == 16
    for completion in done:
        assert 1 <= len(completion.tokens) <= 6
        assert len(completion.tokens) == len(completion.mask) == len(completion.logprobs)
        assert all(completion.mask)
        assert all(-50 < logprob < 0 for logprob in completion.logprobs)
        stopped = completion.tokens[-1] in policy.chat.stop_ids
        assert completion.finish is (Finish.STOP if stopped else Finish.LENGTH)
        assert stopped or len(completion.tokens) == 6
        assert not policy.chat.stop_ids & set(completion.tokens[:-1])  # nothing is written after a stop token
        assert completion.version == 0


def test_a_stop_token_ends_a_completion_and_belongs_to_it(policy):
    """A16: the stop token is the completion's last token, with its log-prob."""
    (anything,) = sample(policy, n=1, stop_ids=frozenset(), max_tokens=5)
    assert len(anything.tokens) == 5
    third = anything.tokens[2]
    (cut,) = sample(policy, n=1, stop_ids=frozenset({third}), max_tokens=5)
    assert cut.tokens == anything.tokens[: anything.tokens.index(third) + 1]
    assert cut.finish is Finish.STOP


def test_sampling_is_a_function_of_key_and_sibling(policy):
    first = sample(policy, n=6)
    assert sample(policy, n=6) == first
    # which rows share a batch may round log-probs otherwise, but never changes what is drawn
    assert [c.tokens for c in sample(policy, n=2)] == [c.tokens for c in first[:2]]
    assert sample(policy, n=6, key="other") != first
    assert len({c.tokens for c in first}) > 2


def test_concurrent_calls_do_not_change_each_other(policy):
    async def together():
        calls = [
            policy.sampler.sample(policy.chat.encode(text), Sampling(6, key=text, stop_ids=policy.chat.stop_ids), n)
            for text, n in (("1 + 2 =", 3), ("7 =", 1), ("1 + 2 =", 2), ("9", 4))
        ]
        return await asyncio.gather(*calls)

    one, other, again, last = asyncio.run(together())
    assert [c.tokens for c in one[:2]] == [c.tokens for c in again]
    for text, found, n in (("1 + 2 =", one, 3), ("7 =", other, 1), ("9", last, 4)):
        alone = sample(policy, text, n, key=text)
        assert [c.tokens for c in found] == [c.tokens for c in alone]
        for a, b in zip(found, alone, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_sampler_and_learner_agree(policy, temperature):
    """A20: both divide logits by the temperature of sampling before the log-softmax, or no ratio would be 1."""
    batch = rows(policy, temperature=temperature)
    assert batch.temperature == temperature
    torch.testing.assert_close(policy.learner.logprobs(batch), batch.sampler_logprobs, atol=2e-5, rtol=0)


def test_greedy_is_the_most_probable_token_with_its_logprob_at_temperature_one(policy):
    first, *others = sample(policy, temperature=0.0, n=3)
    assert [o.tokens for o in others] == [first.tokens] * 2
    batch = rows(policy, temperature=0.0)
    torch.testing.assert_close(policy.learner.logprobs(batch), batch.sampler_logprobs, atol=2e-5, rtol=0)
    (cold,) = sample(policy, temperature=1e-4, n=1)  # nearly greedy: the same tokens, almost certain of them
    assert cold.tokens == first.tokens
    assert sum(cold.logprobs) > sum(first.logprobs)


def test_what_the_environment_inserts_is_masked_and_context(policy):
    """A18: what the environment writes is context for what follows, and not learned."""
    inserted = policy.chat.encode("3 4")

    def interject(tokens):
        calls.append(tuple(tokens))
        return inserted if len(tokens) == 2 else ()

    calls = []
    everywhere = frozenset(range(len(NUMBERS) * 10))
    plain = sample(policy, n=2, stop_ids=frozenset(), max_tokens=7)
    done = sample(policy, n=2, stop_ids=frozenset(), max_tokens=7, interject=interject, interject_ids=everywhere)
    for before, after in zip(plain, done, strict=True):
        assert after.tokens[:2] == before.tokens[:2]
        assert after.tokens[2:4] == inserted
        assert after.mask == (True, True, False, False, True, True, True)  # the limit counts inserted tokens too
        assert after.logprobs[2:4] == (0.0, 0.0)
        assert after.finish is Finish.LENGTH
        assert after.tokens[:2] in calls
    batch = rows(policy, n=2, stop_ids=frozenset(), max_tokens=7, interject=interject, interject_ids=everywhere)
    assert not batch.mask.all(1).any()
    torch.testing.assert_close(policy.learner.logprobs(batch), batch.sampler_logprobs, atol=2e-5, rtol=0)


def test_what_does_not_fit_is_refused_and_leaves_the_sampler_working(policy):
    before = sample(policy)
    with pytest.raises((ConfigError, PromptTooLong), match="positions"):
        sample(policy, max_tokens=5000)
    assert sample(policy) == before


def test_logprobs_are_without_gradient_and_zero_off_the_mask(policy):
    batch = rows(policy)
    found = policy.learner.logprobs(batch)
    assert found.shape == batch.mask.shape
    assert not found.requires_grad
    assert not found[~batch.mask].any()
    assert (found[batch.mask] < 0).all()


def test_a_step_improves_a_supervised_loss_and_counts(policy):
    batch = rows(policy)
    losses_seen = [imitate(policy, batch)["loss"] for _ in range(8)]
    assert losses_seen[-1] < 0.9 * losses_seen[0]
    assert policy.learner.version == 8
    expected = -float((batch.weights * policy.learner.logprobs(batch)).sum())
    assert imitate(policy, batch)["loss"] == pytest.approx(expected, rel=1e-5)  # the loss is that before the step


def test_metrics_of_a_step(policy):
    metrics = imitate(policy, rows(policy))
    assert {"loss", "policy/sampler_mismatch_nats", "policy/entropy"} <= metrics.keys()
    assert all(isinstance(value, float) and value == value for value in metrics.values())
    assert metrics["policy/sampler_mismatch_nats"] < 1e-5
    assert 0 < metrics["policy/entropy"] < 4


def test_a_loss_that_reads_the_old_policy_gets_the_present_one(policy):
    surrogate = losses.clipped_surrogate()
    before = table(policy)
    metrics = policy.learner.step(rows(policy), surrogate.terms, needs=surrogate.needs)
    assert metrics["policy/ratio"] == 1.0
    assert not same(table(policy), before)


def test_rows_that_are_rewarded_become_more_likely(policy):
    batch = rows(policy)
    # sums over rows, because a row's tokens share its reward
    before = policy.learner.logprobs(batch).sum(1)
    for _ in range(3):
        policy.learner.step(batch, losses.policy_gradient().terms, needs=losses.policy_gradient().needs)
    change = policy.learner.logprobs(batch).sum(1) - before
    assert float(change[batch.rewards > 0.5].mean()) > 0 > float(change[batch.rewards < 0.5].mean())


def test_a_published_update_reaches_the_sampler(policy):
    batch = rows(policy)
    for _ in range(3):
        imitate(policy, batch)
    policy.publish()
    fresh = rows(policy)
    assert {c.version for c in sample(policy)} == {3}
    torch.testing.assert_close(policy.learner.logprobs(fresh), fresh.sampler_logprobs, atol=2e-5, rtol=0)
    assert imitate(policy, fresh)["policy/sampler_mismatch_nats"] < 1e-5


def test_weights_are_views(policy):
    views = policy.learner.weights()
    before = table(policy)
    imitate(policy, rows(policy))
    assert not same(before, table(policy))
    assert same({name: view.detach() for name, view in views.items()}, table(policy))


def test_two_policies_of_one_recipe_are_equal_and_apart(engine):
    one, other = engine.open(), engine.open()
    untouched = table(other)
    assert set(table(one)) == set(untouched)
    imitate(one, rows(one))
    assert same(table(other), untouched)


def test_going_on_after_save_and_load_is_the_same_as_never_having_stopped(engine, tmp_path):
    policy = engine.open()
    batch = rows(policy)
    for _ in range(2):
        imitate(policy, batch)
    policy.learner.save(tmp_path / "here")
    expected = [imitate(policy, batch) for _ in range(2)]
    resumed = engine.open()
    resumed.learner.load(tmp_path / "here")
    assert resumed.learner.version == 2
    assert [imitate(resumed, batch) for _ in range(2)] == expected
    assert same(table(resumed), table(policy))
    assert sample(resumed) == sample(policy)


def test_saving_changes_nothing(engine, tmp_path):
    saved, plain = engine.open(), engine.open()
    batch = rows(plain)
    for policy in (saved, plain):
        imitate(policy, batch)
        if policy is saved:
            policy.learner.save(tmp_path)
        imitate(policy, batch)
    assert same(table(saved), table(plain))


def test_reset_puts_weights_back_and_forgets_the_optimiser(engine, tmp_path):
    policy = engine.open()
    batch = rows(policy)
    policy.learner.save(tmp_path)
    start = table(policy)
    first = imitate(policy, batch)
    once = table(policy)
    for _ in range(2):
        imitate(policy, batch)
    policy.learner.reset(tmp_path / "model")
    assert same(table(policy), start)
    again = imitate(policy, batch)  # with the optimiser's state of before, this step would be another one
    assert again == first
    assert same(table(policy), once)


def test_a_reset_that_keeps_the_weights_forgets_the_optimiser_only(engine, tmp_path):
    kept, opened = engine.open(), engine.open()
    batch = rows(kept)
    imitate(kept, batch)
    kept.learner.save(tmp_path)
    before = table(kept)
    kept.learner.reset(keep_weights=True)
    assert same(table(kept), before)
    imitate(kept, batch)
    opened.learner.reset(tmp_path / "model")  # the same weights, and no optimiser's state either
    imitate(opened, batch)
    assert same(table(kept), table(opened))


def test_a_reference_stays_where_it_was_made(engine, policy):
    batch = rows(policy)
    reference = engine.frozen(policy)
    start = policy.learner.logprobs(batch)
    assert torch.equal(reference.logprobs(batch), start)
    for _ in range(3):
        imitate(policy, batch)
    assert torch.equal(reference.logprobs(batch), start)
    assert not torch.equal(policy.learner.logprobs(batch), start)
    assert not reference.logprobs(batch).requires_grad
