"""Who says what the policy was before an update: the learner by one more forward pass, or the sampler's own records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maieutic.algorithms import grpo, sft
from maieutic.annotate import RecordedOld, fillers
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.backends.toy import ToyChat, ToySums, toy_policy
from maieutic.errors import ConfigError, UnknownName
from maieutic.models.causal import load_causal
from maieutic.models.small import tiny_folder
from maieutic.protocols import Completion, Policy, Sampling
from maieutic.rollout import Roller
from maieutic.sources import Recorded, Sampled
from maieutic.train import train
from maieutic.types import Batch, Score

TASKS = ToySums(limit=3)
CHAT = ToyChat(TASKS.vocabulary)


async def digits(task, rollouts):
    return [Score(float(r.text == task.answer) + 0.1 * len(r.text)) for r in rollouts]


@dataclass
class Counting:
    """A learner that notes how many rows it is asked the log-probs of."""

    learner: Any
    asked: list[int] = field(default_factory=list)

    def logprobs(self, batch: Batch) -> Tensor:
        self.asked.append(batch.size)
        return self.learner.logprobs(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)


def run(old: str, steps: int = 3, off: float = 0.0) -> tuple[Counting, list[Tensor]]:
    """A run of 32 rows a step in four optimiser steps, with a sampler that reports log-probs off by so much."""
    policy = toy_policy(CHAT, length=3, buckets=32, seed=1)
    learner = Counting(policy.learner)

    @dataclass
    class Off:
        async def sample(self, prompt, params, n):
            found = await policy.sampler.sample(prompt, params, n)
            return [
                Completion(c.tokens, c.mask, tuple(x - off for x in c.logprobs), c.finish, c.version) for c in found
            ]

    roller = Roller(Off(), CHAT, digits, max_completion_length=3, seed=5)
    source = Sampled(TASKS, roller, prompts=4, num_generations=8, seed=5)
    counted = Policy(learner, Off(), policy.chat, policy.publish)
    weights = []
    for step in train(source, counted, grpo(minibatches=4), steps=steps, old_logprobs=old):
        assert step.batch is not None
        weights.append(torch.cat([w.detach().flatten().clone() for w in learner.weights().values()]))
    return learner, weights


def test_the_learner_is_asked_once_more_and_with_the_record_about_few_rows_only():
    by_learner, weights = run("learner")
    assert by_learner.asked == [32, 32, 32]
    by_sampler, same = run("sampler")
    assert by_sampler.asked == [2, 2, 2]  # one in sixteen
    for a, b in zip(weights, same, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_where_the_two_differ_the_learner_says_it_and_it_is_said_once(caplog):
    _, weights = run("learner", off=0.01)
    with caplog.at_level(logging.WARNING):
        learner, same = run("sampler", off=0.01)
    assert learner.asked == [2, 32, 2, 32, 2, 32]
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    assert [record.message for record in caplog.records if "old_logprobs" in record.message] == [
        "old_logprobs = 'sampler', but learner and sampler are 0.01 nats a token apart (accepted: 0.0001), so the "
        "learner computes them. Leave the setting out: here it only costs"
    ]


def test_a_single_optimiser_step_asks_for_neither():
    policy = toy_policy(CHAT, length=3, buckets=32, seed=1)
    learner = Counting(policy.learner)
    roller = Roller(policy.sampler, CHAT, digits, max_completion_length=3, seed=5)
    source = Sampled(TASKS, roller, prompts=4, num_generations=8, seed=5)
    counted = Policy(learner, policy.sampler, policy.chat, policy.publish)
    for _ in train(source, counted, grpo(), steps=2, old_logprobs="sampler"):
        pass
    assert learner.asked == []


def test_wrong_settings_are_refused():
    policy = toy_policy(CHAT, length=3, buckets=32, seed=1)
    with pytest.raises(UnknownName, match="did you mean 'sampler'"):
        fillers(policy, None, None, old_logprobs="sampled")
    with pytest.raises(ConfigError, match="a source with recorded rows"):
        train(Recorded(TASKS, CHAT, batch=4), policy, sft(), steps=1, old_logprobs="sampler")


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_local_backend_records_what_its_learner_says(tmp_path: Path, temperature: float) -> None:
    """Greedy rows carry log-probs at temperature 1, and inserted tokens none; the learner reads both so."""
    policy = LocalBackend().policy(load_causal(tiny_folder("qwen2", tmp_path), device="cpu"), Optimiser())
    insert: Callable[..., tuple[int, ...]] = lambda written: (9, 9) if len(written) == 3 else ()
    params = Sampling(12, temperature, key="k", interject=insert, interject_ids=frozenset(range(32)))
    prompts = [(5, 6, 7), (8, 9), (10,), (11, 12)]
    found = [asyncio.run(policy.sampler.sample(prompt, params, 2)) for prompt in prompts]
    rows = [(prompt, each) for prompt, completions in zip(prompts, found, strict=True) for each in completions]
    assert any(not all(each.mask) for _, each in rows)
    width = max(len(prompt) + len(each.tokens) for prompt, each in rows)
    tokens, mask = torch.zeros(8, width, dtype=torch.long), torch.zeros(8, width, dtype=torch.bool)
    recorded, lengths = torch.zeros(8, width), []
    for row, (prompt, each) in enumerate(rows):
        stop = len(prompt) + len(each.tokens)
        tokens[row, :stop] = torch.tensor([*prompt, *each.tokens])
        mask[row, len(prompt) : stop] = torch.tensor(each.mask)
        recorded[row, len(prompt) : stop] = torch.tensor(each.logprobs)
        lengths.append(stop)
    zeros, number = torch.zeros(8, width), torch.arange(8)
    batch = Batch(
        tokens, mask, torch.tensor(lengths), recorded, zeros[:, 0], zeros, number >= 0, number // 2, number, temperature
    )
    learner = Counting(policy.learner)
    filled = RecordedOld(learner, every=1)(batch)["old_logprobs"]
    assert learner.asked == [8]  # asked about all of them, it agreed, and was not asked again
    torch.testing.assert_close(filled, policy.learner.logprobs(batch), atol=1e-5, rtol=0)
