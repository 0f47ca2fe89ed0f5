"""What the tests of sampling ahead share with the processes that they start, which import this file by its name."""

from __future__ import annotations

import logging
import os
import signal
import time

import torch

from maieutic.ahead import Practice
from maieutic.backends.toy import ToyChat, ToySums, toy_policy
from maieutic.errors import RewardError
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.types import Score

TASKS = ToySums(limit=3)
CHAT = ToyChat(TASKS.vocabulary)


async def digits(task, rollouts):
    """1 for the right text, a tenth for a text of the right length; says and prints something."""
    print("rewards may print")
    logging.getLogger("maieutic.tests").warning("judged %s", task.id)
    return [
        Score(
            float(r.text == task.answer) + 0.1 * (len(r.text) == len(task.answer)),
            correct=r.text == task.answer,
            parts={"length": float(len(r.text))},
            step_rewards=((len(r.tokens) - 1, 0.0),),
            answer=r.text,
        )
        for r in rollouts
    ]


class Failing:
    """Judges as `digits` does, and does something else at its nth group."""

    def __init__(self, at, fail):
        self.at, self.fail, self.calls = at, fail, 0

    async def __call__(self, task, rollouts):
        self.calls += 1
        if self.calls > self.at:
            self.fail()
        return await digits(task, rollouts)


def divide():
    """An error of somebody's own code."""
    return 1 / 0


def refuse():
    """An error that is raised on purpose."""
    raise RewardError("enough of this")


def hang():
    """A reward that takes an hour, and keeps everything else waiting."""
    time.sleep(3600)


def die():
    """What a system does that has run out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def policy_of(seed=1):
    return toy_policy(CHAT, length=3, buckets=32, seed=seed)


def source_of(policy, reward=digits, **options):
    roller = Roller(policy.sampler, CHAT, reward, max_completion_length=3, seed=5)
    return Sampled(TASKS, roller, **{"prompts": 4, "num_generations": 4, "seed": 5, **options})


def practise(seed, at=None, fail=None):
    """A practice whose own weights, of another seed than the learner's, must not matter."""
    policy = policy_of(seed)
    return Practice(source_of(policy, digits if fail is None else Failing(at, fail)), policy)


class OneBehind:
    """Sampling ahead in one process: the next batch is drawn before this one is learned from, by a copy of the weights
    that was made in between."""

    stale = samples = True

    def __init__(self, practice, learner):
        self.practice, self.learner = practice, learner
        self.pending = None

    def _draw(self):
        own = self.practice.policy.learner
        with torch.no_grad():
            for name, weight in own.weights().items():
                weight.copy_(self.learner.weights()[name])
        own.version = self.learner.version
        return self.practice.source.next()

    def next(self):
        now = self._draw() if self.pending is None else self.pending
        self.pending = self._draw()
        return now
