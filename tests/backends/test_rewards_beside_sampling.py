"""Rewards run while sampling goes on: that of a finished group need not be there for the next one to be written."""

from __future__ import annotations

import asyncio
import threading

from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.rewards.lift import reward
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.types import Message, Score, Task

TASKS = [Task(f"t/{i}", (Message("user", text),)) for i, text in enumerate(("a b", "c", "d e f"))]

#: Seconds after which sampling is taken to wait for the reward that waits for it.
PATIENCE = 60.0


class Noting:
    """A sampler that counts the groups that it has written, and says when that was the last one."""

    def __init__(self, sampler, done):
        self.sampler, self.done, self.written = sampler, done, 0

    async def sample(self, prompt_tokens, params, n):
        made = await self.sampler.sample(prompt_tokens, params, n)
        self.written += 1
        if self.written == len(TASKS):
            self.done.set()
        return made


def source_of(tiny, done):
    """Three groups of two, of which two rows are written at once, so one group after the other; no reward yet."""
    policy = LocalBackend(max_rows=2).policy(tiny("llama"), Optimiser())
    sampler = Noting(policy.sampler, done)
    return sampler, lambda judge: Sampled(
        TASKS, Roller(sampler, policy.chat, judge, max_completion_length=6), prompts=3, num_generations=2
    )


def test_a_reward_that_waits_lets_the_others_be_written(tiny):
    """It waits for the last group to be written, and is asked of the first one."""
    asked = []
    sampler, judged_by = source_of(tiny, asyncio.Event())

    async def slow(_task, rollouts):
        asked.append(sampler.written)
        await asyncio.wait_for(sampler.done.wait(), PATIENCE)
        return [Score(1.0) for _ in rollouts]

    groups = judged_by(slow).next()
    assert asked == [1, 2, 3]
    assert [group.rewards for group in groups] == [(1.0, 1.0)] * 3


def test_a_plain_function_that_blocks_does_too(tiny):
    asked = []
    sampler, judged_by = source_of(tiny, threading.Event())

    def blocking(completion):
        asked.append(sampler.written)
        return float(sampler.done.wait(PATIENCE) and isinstance(completion, str))

    groups = judged_by(reward(blocking, timeout_seconds=2 * PATIENCE)).next()
    assert asked[0] < 3  # when it was first called, something was still to be written
    assert [group.rewards for group in groups] == [(1.0, 1.0)] * 3
