"""Trust regions on real decoders: products, divergences and steps, with an adapter and without."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from maieutic.algorithms import trpo
from maieutic.backends.local import LocalBackend, LocalLearner, Optimiser, ValueHead
from maieutic.core.parts import Loss
from maieutic.core.trust_region import backtracked, flatten, some_tokens
from maieutic.core.update import sgd
from maieutic.errors import ConfigError, NumericalError
from maieutic.models.causal import load_causal
from maieutic.models.lora import LoRA
from maieutic.protocols import Sampling
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.tasks import arithmetic
from maieutic.train import train
from maieutic.types import Batch, Score

#: Three that the plugged attention serves (one with grouped heads), and two that run through their own.
ARCHITECTURES = ("llama", "qwen3", "gpt2", "gemma2", "mistral_sliding")


def make_batch(dtype=torch.float32):
    """7 rows in 3 groups: prompts of 4, 9 and 1 tokens, completions of 1 to 12 with a hole in one of them."""
    draw = torch.Generator().manual_seed(0)
    groups, lengths = [0, 0, 0, 1, 1, 2, 2], [5, 1, 12, 7, 4, 6, 2]
    prompts = [torch.randint(5, 32, (n,), generator=draw).tolist() for n in (4, 9, 1)]
    tokens, mask = torch.zeros(7, 16, dtype=torch.long), torch.zeros(7, 16, dtype=torch.bool)
    ends = []
    for row, (group, length) in enumerate(zip(groups, lengths, strict=True)):
        text = prompts[group] + torch.randint(5, 32, (length,), generator=draw).tolist()
        tokens[row, : len(text)] = torch.tensor(text)
        mask[row, len(prompts[group]) : len(text)] = True
        ends.append(len(text))
    mask[2, 6:9] = False  # inserted by the environment
    noise = torch.randn(7, 16, generator=draw, dtype=dtype)
    columns = {"advantages": noise, "weights": mask.to(dtype) / mask.sum()}
    return Batch(
        tokens, mask, torch.tensor(ends), torch.zeros_like(noise), torch.zeros(7), torch.zeros(7, 16),
        torch.ones(7, dtype=torch.bool), torch.tensor(groups), torch.arange(7), 0.8, columns,
    )  # fmt: skip


def learner_of(model, **options):
    return LocalLearner(model, Optimiser(), **options)


def compared(batch, share=0.5):
    return some_tokens(batch.mask, share, "0")


def near(learner, batch, tokens=None):
    return learner.neighbourhood(batch, compared(batch) if tokens is None else tokens)


def directions(near, count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    start = near.parameters()
    return [torch.randn(len(start), generator=draw, dtype=start.dtype) for _ in range(count)]


def credited(learner, batch, scale=1.0):
    """With the old log-probs and advantages of which a step makes something."""
    return batch.with_(old_logprobs=learner.logprobs(batch), advantages=scale * batch.advantages * batch.mask)


def ordinary_logits(model, batch, tokens):
    """`[M, V]` by the module's own forward of each row, at the batch's temperature."""
    found = []
    for row in range(batch.size):
        own = batch.tokens[row : row + 1, : int(batch.lengths[row])]
        whole = model.module(input_ids=own, attention_mask=torch.ones_like(own), use_cache=False).logits[0]
        found += [whole[place - 1] for place in tokens[row].nonzero().flatten().tolist()]
    return torch.stack(found) / batch.temperature


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["whole", "adapter"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_products_are_those_of_gauss_newton(tiny, architecture, lora):
    """F v = Jᵀ (diag π − π πᵀ) J v / M, with J v by differences of the module's own logits and Jᵀ by one derivative."""
    model = tiny(architecture, "float64", lora=lora)
    learner, batch = learner_of(model), make_batch(torch.float64)
    assert "trust_region" in learner.capabilities
    tokens = compared(batch)
    around = near(learner, batch, tokens)
    start = around.parameters()
    weights = list(learner.weights().values())
    for v in directions(around, 2):
        v = v / v.norm()
        ends = []
        with torch.no_grad():
            for sign in (1, -1):
                around.move(start + sign * 1e-2 * v)
                ends.append(ordinary_logits(model, batch, tokens))
        around.move(start)
        change = (ends[0] - ends[1]) / 2e-2
        logits = ordinary_logits(model, batch, tokens)
        chances = torch.softmax(logits.detach(), -1)
        inner = chances * (change - (chances * change).sum(-1, keepdim=True)) / len(logits)
        made = torch.autograd.grad((logits * inner).sum(), weights, allow_unused=True)
        wanted = flatten([torch.zeros_like(w) if g is None else g for g, w in zip(made, weights, strict=True)])
        found = around.fisher_product(v)
        assert float(found.norm()) > 1e-3
        # RMS norms compute in float32 inside a float64 model, and differences over 1e-2 are not yet derivatives
        assert float((found - wanted).norm() / wanted.norm()) < 5e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_to_ask_what_it_can_do_changes_no_weight(tiny, dtype):
    model = tiny("llama", dtype)
    kept = [weight.detach().clone() for weight in model.module.parameters()]
    assert "trust_region" in learner_of(model).capabilities
    assert all(torch.equal(a, b) for a, b in zip(model.module.parameters(), kept, strict=True))
    assert all(weight.grad is None for weight in model.module.parameters())


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_products_are_symmetric_never_negative_and_linear(tiny, architecture):
    learner, batch = learner_of(tiny(architecture, "float64")), make_batch(torch.float64)
    around = near(learner, batch)
    u, v, w = directions(around, 3)
    image = around.fisher_product(v)
    assert float(v @ image) > 0
    assert float(u @ image) == pytest.approx(float(v @ around.fisher_product(u)), rel=1e-4)
    both = around.fisher_product(2 * v - w)
    assert float((both - 2 * image + around.fisher_product(w)).norm() / both.norm()) < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_divergence_and_products_are_of_the_same_masked_tokens(tiny, architecture):
    """A28: the KL is the exact one, over the vocabulary, at the tokens that were given and no others; so is ½ vᵀFv."""
    model = tiny(architecture, "float64")
    learner, batch = learner_of(model), make_batch(torch.float64)
    tokens = compared(batch, 0.2)
    assert 0 < int(tokens.sum()) < int(batch.mask.sum())
    around = near(learner, batch, tokens)
    start = around.parameters()
    assert around.kl() == 0.0
    with torch.no_grad():
        kept = torch.log_softmax(ordinary_logits(model, batch, tokens), -1)
        (v,) = directions(around, 1)
        step = 3e-3 * v / v.norm()
        around.move(start + step)
        now = torch.log_softmax(ordinary_logits(model, batch, tokens), -1)
    exact = float((kept.exp() * (kept - now)).sum(-1).mean())
    assert around.kl() == pytest.approx(exact, rel=1e-3)
    around.move(start)
    assert exact == pytest.approx(0.5 * float(step @ around.fisher_product(step)), rel=0.05)
    other = near(learner, batch, batch.mask & ~tokens)
    assert float(step @ other.fisher_product(step)) != pytest.approx(float(step @ around.fisher_product(step)))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_micro_batches_and_padding_change_nothing(tiny, architecture):
    model, batch = tiny(architecture, "float64"), make_batch(torch.float64)
    tokens = compared(batch, 0.5)
    whole = near(learner_of(model), batch, tokens)
    pieces = near(learner_of(model, micro_batch_tokens=30), batch, tokens)
    (v,) = directions(whole, 1)
    wide = {n: torch.nn.functional.pad(getattr(batch, n), (0, 7)) for n in ("tokens", "mask", "sampler_logprobs")}
    wide |= {n: torch.nn.functional.pad(getattr(batch, n), (0, 7)) for n in ("token_rewards", "advantages", "weights")}
    padded = near(learner_of(model), batch.with_(**wide), torch.nn.functional.pad(tokens, (0, 7)))
    image = whole.fisher_product(v)
    for other in (pieces, padded):
        assert float((other.fisher_product(v) - image).norm() / image.norm()) < 1e-6
    start = whole.parameters()
    whole.move(start + 2e-2 * v / v.norm())
    found = whole.kl()
    assert found > 1e-6
    assert pieces.kl() == pytest.approx(found, rel=1e-5)
    assert padded.kl() == pytest.approx(found, rel=1e-5)


def test_a_model_with_dropout_compares_without_it(tiny_folders):
    """A22: no dropout in any pass of a ratio, a divergence or a product: the policy is at distance 0 from itself."""
    model = load_causal(
        tiny_folders("gpt2"), dtype="float32", device="cpu", lora=LoRA(rank=2, dropout=0.5), dropout=True
    )
    assert any(part.p > 0 for part in model.module.modules() if isinstance(part, torch.nn.Dropout))
    around = near(learner_of(model), make_batch())
    (v,) = directions(around, 1)
    assert around.kl() == 0.0
    assert torch.equal(around.fisher_product(v), around.fisher_product(v))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_step_stays_within_its_bound_and_gains_what_it_says(tiny, architecture):
    learner = learner_of(tiny(architecture))
    batch = credited(learner, make_batch())
    row = trpo(kl_share=1.0)
    watching = near(learner, batch, batch.mask)
    weighed = batch.with_(weights=row.weigh(batch))
    before = near(learner, weighed).objective(row.loss.terms)
    assert before == pytest.approx(-float((weighed.weights * batch.advantages).sum()), rel=1e-4)  # every ratio is 1
    metrics = row.update(learner, batch, row)
    assert metrics["trpo/accepted"] == 1.0
    assert 1e-3 < metrics["trpo/kl"] <= 0.015
    assert metrics["trpo/kl"] == pytest.approx(watching.kl(), rel=1e-4)
    after = near(learner, weighed).objective(row.loss.terms)
    assert metrics["trpo/improvement"] == pytest.approx(before - after, rel=1e-3)
    assert metrics["trpo/improvement"] >= 0.1 * metrics["trpo/expected"] > 0
    assert learner.version == 1
    assert learner.updater.steps == 0
    assert all(weight.grad is None for weight in learner.weights().values())


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["whole", "adapter"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_failed_search_leaves_every_weight_as_it_was_to_the_bit(tiny, dtype, lora):
    def promises(outputs, _):
        return -(outputs.logprobs - outputs.logprobs.detach())  # it has a slope, and never gets any better

    model = tiny("llama", dtype, lora=lora)
    learner = learner_of(model)
    kept = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}
    row = dataclasses.replace(trpo(), loss=Loss("promises()", promises))
    metrics = row.update(learner, make_batch(), row)
    assert metrics["trpo/expected"] > 0
    assert (metrics["trpo/accepted"], metrics["trpo/step_fraction"], metrics["trpo/backtracks"]) == (0.0, 0.0, 10.0)
    assert all(torch.equal(weight, kept[name]) for name, weight in model.module.named_parameters())
    assert learner.version == 0


def test_with_an_adapter_the_base_has_no_gradient_and_stays(tiny):
    model = tiny("llama", lora=LoRA(rank=4))
    learner = learner_of(model)
    kept = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}
    batch, row = credited(learner, make_batch()), trpo()
    around = near(learner, batch)
    trainable = sum(weight.numel() for weight in learner.weights().values())
    assert len(around.parameters()) == trainable < sum(weight.numel() for weight in kept.values()) / 2
    # B = 0 at the start: nothing is felt of A yet, F is singular there, and damping carries the step
    (v,) = directions(around, 1)
    whole = around.fisher_product(v)
    image = torch.split(whole, [w.numel() for w in learner.weights().values()])
    felt = {name for name, part in zip(learner.weights(), image, strict=True) if part.norm() > 1e-5 * whole.norm()}
    assert felt == {name for name in learner.weights() if "lora_B" in name}
    for _ in range(2):
        metrics = row.update(learner, batch, row)
        assert metrics["trpo/accepted"] == 1.0
    base = [name for name in kept if "lora_" not in name]
    assert all(torch.equal(dict(model.module.named_parameters())[name], kept[name]) for name in base)
    assert all(weight.grad is None for weight in model.module.parameters())
    moved = {name for name, w in model.module.named_parameters() if not torch.equal(w, kept[name])}
    assert any("lora_A" in name for name in moved)  # felt once B has moved
    assert any("lora_B" in name for name in moved)


def test_gradients_that_are_not_finite_are_skipped_a_few_times(tiny):
    learner = LocalLearner(tiny("llama"), Optimiser(), max_skips=2)
    kept = {name: weight.detach().clone() for name, weight in learner.weights().items()}
    row, batch = trpo(), credited(learner, make_batch(), math.inf)
    for _ in range(2):
        metrics = row.update(learner, batch, row)
        assert metrics["optim/skipped"] == 1.0
        assert metrics["trpo/accepted"] == 0.0
    good = credited(learner, make_batch())
    assert row.update(learner, good, row)["optim/skipped"] == 0.0  # and a good one starts the count anew
    assert learner.version == 1
    kept = {name: weight.detach().clone() for name, weight in learner.weights().items()}
    row.update(learner, batch, row)
    row.update(learner, batch, row)
    with pytest.raises(NumericalError, match="not finite 3 times in a row"):
        row.update(learner, batch, row)
    assert all(torch.equal(weight, kept[name]) for name, weight in learner.weights().items())


def test_a_critic_is_carried_along_and_left_alone(tiny):
    learner = LocalLearner(tiny("llama"), Optimiser(), critic=ValueHead())
    batch, row = credited(learner, make_batch()), trpo()
    head = {name: w.detach().clone() for name, w in learner.weights().items() if name.startswith("critic.")}
    assert head
    assert row.update(learner, batch, row)["trpo/accepted"] == 1.0
    assert all(torch.equal(learner.weights()[name], value) for name, value in head.items())


def test_backtracked_holds_adam_within_the_bound(tiny):
    model = tiny("llama")
    learner = LocalLearner(model, Optimiser(learning_rate=0.01))
    batch = credited(learner, make_batch())
    watching = near(learner, batch, batch.mask)
    row = dataclasses.replace(trpo(), update=backtracked(sgd(), max_kl=1e-3, kl_share=1.0))
    metrics = row.update(learner, batch, row)
    assert 0 < metrics["trust_region/kl"] <= 1e-3
    assert metrics["trust_region/step_fraction"] < 1
    assert metrics["trust_region/kl"] == pytest.approx(watching.kl(), rel=1e-4)
    assert learner.updater.steps == learner.version == 1


class Once(torch.autograd.Function):
    """Attention with a first derivative and no second one."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling):
        ctx.save_for_backward(query, key, value, mask)
        ctx.scaling = scaling
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        *inputs, mask = ctx.saved_tensors
        with torch.enable_grad():
            query, key, value = (one.detach().requires_grad_() for one in inputs)
            out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=ctx.scaling)
            return *torch.autograd.grad(out, (query, key, value), slope), None, None


def attend_once(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **_):
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    size = query.shape[2]
    mask = torch.full((size, size), -math.inf).triu(1)
    return Once.apply(query, key, value, mask, scaling).transpose(1, 2), None


async def nothing(task, rollouts):
    return [Score(0.0) for _ in rollouts]


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["whole", "adapter"])
def test_a_model_that_cannot_be_differentiated_twice_is_refused_with_the_remedy(tiny_folders, lora):
    """Autograd says nothing here: it leaves the attention out, and the products would be wrong."""
    AttentionInterface.register("once", attend_once)
    model = load_causal(tiny_folders("mistral_sliding"), dtype="float32", device="cpu", lora=lora, attention="once")
    policy = LocalBackend().policy(model, Optimiser())
    assert policy.learner.step(make_batch(), trpo().loss.terms, needs=frozenset({"old_logprobs"}))  # once, it can
    assert "trust_region" not in policy.learner.capabilities
    roller = Roller(policy.sampler, policy.chat, nothing, max_completion_length=4)
    source = Sampled(arithmetic(), roller, prompts=1, num_generations=2)
    with pytest.raises(ConfigError, match=r"trpo needs a learner with Fisher-vector products.*twice.*eager"):
        train(source, policy, trpo(), steps=1)


async def short(task, rollouts):
    """The shorter the better."""
    return [Score(-float(len(rollout.tokens))) for rollout in rollouts]


def test_the_loop_runs_and_resumes_to_the_bit(tiny, tmp_path: Path):
    def policy_of():
        return LocalBackend().policy(tiny("llama"), Optimiser())

    def steps(policy, start, stop, source=None):
        roller = Roller(policy.sampler, policy.chat, short, max_completion_length=6, seed=1)
        made = Sampled(arithmetic(), roller, prompts=2, num_generations=6, seed=1)
        if source is not None:
            made.restore(source)
        metrics = [step.metrics for step in train(made, policy, trpo(), steps=stop, start=start)]
        return metrics, made.state()

    unbroken = policy_of()
    seen, _ = steps(unbroken, 0, 4)
    assert sum(one["trpo/accepted"] for one in seen) == unbroken.learner.version > 1
    assert all(one["policy/sampler_mismatch_nats"] < 1e-4 for one in seen)  # the sampler has the weights of each step
    first = policy_of()
    _, state = steps(first, 0, 2)
    first.learner.save(tmp_path)
    second = policy_of()
    second.learner.load(tmp_path)
    steps(second, 2, 4, state)
    for name, weight in unbroken.learner.weights().items():
        assert torch.equal(weight, second.learner.weights()[name])


def test_sampling_after_a_step_sees_the_new_weights(tiny):
    """A step moves the weights in place, and the sampler shares them."""
    policy = LocalBackend().policy(tiny("llama"), Optimiser())
    batch, row = credited(policy.learner, make_batch()), trpo()
    before = policy.learner.logprobs(batch)
    row.update(policy.learner, batch, row)
    assert not torch.equal(policy.learner.logprobs(batch), before)
    (one,) = asyncio.run(policy.sampler.sample([5, 6], Sampling(max_tokens=3), 1))
    assert one.version == 1
