"""Products in coarser numbers on a CPU: right to their rounding, learned through in bfloat16, and never taken for the
policy itself where only sampling is coarse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import linear, silu

from maieutic.algorithms import grpo, reinforce
from maieutic.annotate import is_anchored_at_sampler
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.backends.local.check import decoder_for
from maieutic.backends.local.coarse import LAYING, WITHIN, has_units, learned
from maieutic.backends.local.sampler import LocalSampler
from maieutic.core.corrections import truncated
from maieutic.errors import ConfigError, UnknownName
from maieutic.models.causal import CausalModel
from maieutic.protocols import Completion, Sampling
from maieutic.rewards.compose import answer_reward
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.train import train
from maieutic.types import Message, Task, Verdict

Load = Callable[..., CausalModel]
UNITS = {
    numbers: pytest.mark.skipif(not has_units(numbers), reason=f"this processor has no units for {numbers}")
    for numbers in WITHIN
}
BOTH = [pytest.param(numbers, marks=mark) for numbers, mark in UNITS.items()]
BYTES = UNITS[torch.qint8]


def near(found: torch.Tensor, expected: torch.Tensor, within: float) -> bool:
    difference = float((found - expected).norm() / expected.norm())
    return 0 < difference <= within


def numbers_of(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=draw) for shape in shapes]


@pytest.mark.parametrize("numbers", BOTH)
def test_products_are_right_to_their_rounding(numbers):
    rows, weight, bias, other = numbers_of((7, 96), (40, 96), (40,), (7, 40))
    made, expected, within = LAYING[numbers](weight, bias), linear(rows, weight, bias), WITHIN[numbers]
    with torch.no_grad():
        assert near(made(rows), expected, within)
        assert near(made(rows, "swish"), silu(expected), within)
        assert near(made.plus(rows, other), expected + other, within)
        assert near(made.times(rows, other), expected * other, within)


@BYTES
def test_an_output_whose_weights_are_all_zero_is_its_bias():
    weight = torch.cat([torch.ones(1, 8), torch.zeros(1, 8)])
    out = LAYING[torch.qint8](weight, torch.tensor([0.0, 3.0]))(torch.full((2, 8), 0.5))
    assert out[:, 1].tolist() == [3.0, 3.0]


@UNITS[torch.bfloat16]
def test_the_derivative_is_that_of_the_product_to_its_rounding():
    rows, weight, bias, slope = numbers_of((300, 32), (24, 32), (24,), (300, 24))
    found = [x.clone().requires_grad_() for x in (rows, weight, bias)]
    expected = [x.clone().requires_grad_() for x in (rows, weight, bias)]
    (learned(*found) * slope).sum().backward()
    (linear(*expected) * slope).sum().backward()
    assert all(near(a.grad, b.grad, 0.01) for a, b in zip(found[:2], expected[:2], strict=True))
    assert torch.equal(found[2].grad, slope.sum(0))  # nothing of it is rounded


def written(sampler: LocalSampler) -> list[Completion]:
    return asyncio.run(sampler.sample([1, 5, 9, 7], Sampling(max_tokens=24, temperature=0.0), 3))


@BYTES
def test_a_policy_that_samples_in_bytes_is_another_and_says_so(tiny: Load):
    model = tiny("qwen2")
    policy = LocalBackend(sampling_precision="int8").policy(model, Optimiser())
    assert policy.sampler.off_policy
    assert policy.exact is not None
    assert not policy.exact.off_policy
    plain = LocalBackend().policy(model, Optimiser())
    assert plain.exact is None
    assert [c.tokens for c in written(policy.exact)] == [c.tokens for c in written(plain.sampler)]
    # the same state, other log-probs; near ones
    coarse, exact = (written(each)[0].logprobs[:2] for each in (policy.sampler, policy.exact))
    assert 0 < np.abs(np.subtract(coarse, exact)).max() < 0.5


def tasks() -> list[Task]:
    return [Task(f"t/{i}", (Message("user", f"{i} + 1 ="),), str(i + 1)) for i in range(4)]


def source_of(policy) -> Sampled:
    right = answer_reward(lambda task, text: Verdict(len(text) % 2 == 0, text))
    roller = Roller(policy.sampler, policy.chat, right, max_completion_length=12, temperature=1.0, seed=0)
    return Sampled(tasks(), roller, prompts=2, num_generations=4)


@BYTES
def test_ratios_are_taken_to_the_policy_that_sampled(tiny: Load):
    policy = LocalBackend(sampling_precision="int8").policy(tiny("qwen2"), Optimiser())
    source = source_of(policy)
    assert source.stale
    assert is_anchored_at_sampler(source, grpo())
    assert not is_anchored_at_sampler(source, grpo(correction=truncated(2.0)))  # which reads the way itself
    (step,) = train(source, policy, grpo(), steps=1)
    assert torch.equal(step.batch.old_logprobs, step.batch.sampler_logprobs)
    assert 1e-6 < step.metrics["policy/sampler_mismatch_nats"] < 0.3
    assert step.metrics["policy/ratio"] != 1.0


@BYTES
def test_a_loss_that_takes_rows_for_its_own_is_refused(tiny: Load):
    policy = LocalBackend(sampling_precision="int8").policy(tiny("qwen2"), Optimiser())
    with pytest.raises(ConfigError, match=r"in coarser numbers.*sampling_precision = 'same'"):
        next(train(source_of(policy), policy, reinforce(), steps=1))


def test_what_cannot_be_sampled_in_bytes_is_refused(tiny: Load):
    with pytest.raises(UnknownName, match="did you mean 'int8'"):
        decoder_for(tiny("qwen2").module, sampling="int9")
    with pytest.raises(ConfigError, match="expected float32 weights on a CPU with units"):
        decoder_for(tiny("qwen2", dtype="bfloat16").module, sampling="int8")


@BYTES
def test_a_module_of_another_form_is_refused(tiny: Load):
    with pytest.raises(ConfigError, match="expected layers of the common form"):
        decoder_for(tiny("gemma").module, sampling="int8")
