"""Trying a reward before a run trusts it: what it says of completions, how long it takes, whether it says it again.

    scores         every completion, its group judged together
    determinism    the same groups once more; in the reverse order; and, of functions that judge one completion at a
                   time, one by one
    threads        the same groups in four threads at once (in the reward's own process)
    spread         the standard deviation of the rewards within each group

A reward is broken when a call fails or hangs, when it never gives a number, or when it says different things of the
same completions. Everything else is for the reader to weigh.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from maieutic.errors import RewardError
from maieutic.protocols import Reward
from maieutic.rewards.adapt_arguments import Attempt
from maieutic.rewards.adapt_calls import judging
from maieutic.rewards.compose import judge_group
from maieutic.rewards.lift import Ending, Judgement, PlainReward
from maieutic.rewards.worker import Ended, Outcome, Worker
from maieutic.types import Rollout, Score, Task

THREADS = 4


@dataclass(frozen=True)
class Probe:
    """The completions of one task, and what each of them is."""

    task: Task
    rollouts: tuple[Rollout, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """What was found out about a reward; `[i][j]` is completion j of probe i.

    `again`, `turned`, `alone`: how many completions got another reward when judged once more, in reverse, one by one
    (None: not tried). `threads`: what differed or failed in threads ("" if nothing; None: not tried). Seconds are of
    one call, `start` of the first, which starts the process and imports the function.
    """

    probes: tuple[Probe, ...]
    judged: tuple[tuple[Judgement, ...], ...]
    start: float
    seconds: tuple[float, ...]
    again: int | None
    turned: int | None
    alone: int | None
    threads: str | None

    @property
    def spreads(self) -> list[float]:
        """The standard deviation of the rewards of each probe, of those with two or more."""
        values = [[j.score.reward for j in judged if j.score.reward is not None] for judged in self.judged]
        return [statistics.pstdev(rewards) for rewards in values if len(rewards) > 1]

    def ended(self, ending: Ending) -> list[Judgement]:
        """The judgements that ended so."""
        return [judgement for judged in self.judged for judgement in judged if judgement.ending is ending]


async def examine(reward: Reward, probes: Sequence[Probe]) -> Trial:
    """Try the reward on the probes. Never raises for what the reward does."""
    start = time.perf_counter()
    await _judged(reward, probes[0].task, probes[0].rollouts[:1])
    started = time.perf_counter() - start
    seconds: list[float] = []
    judged: list[list[Judgement]] = []
    for probe in probes:
        judged.append(await _timed(reward, probe, seconds))
        if any(each.ending is Ending.TIMED_OUT for each in judged[-1]):
            break  # the others would be waited for as long
    probes = probes[: len(judged)]
    sound = all(each.ending in (Ending.SCORED, Ending.UNSCORABLE) for group in judged for each in group)
    again = turned = alone = threads = None
    if sound:
        again = sum([_changed(one, await _timed(reward, probe, seconds)) for one, probe in zip(judged, probes)])
        reverse = [replace(p, rollouts=p.rollouts[::-1]) for p in probes]
        turned = sum([_changed(one[::-1], await _timed(reward, p, seconds)) for one, p in zip(judged, reverse)])
        if _one_by_one(reward):
            alone = sum([_changed(one, await _apart(reward, p, seconds)) for one, p in zip(judged, probes)])
        threads = await _threads(reward, probes, judged)
    return Trial(tuple(probes), tuple(map(tuple, judged)), started, tuple(seconds), again, turned, alone, threads)


def _one_by_one(reward: Reward) -> bool:
    return isinstance(reward, PlainReward) and not reward.form.family.group


async def _judged(reward: Reward, task: Task, rollouts: Sequence[Rollout]) -> list[Judgement]:
    try:
        if isinstance(reward, PlainReward):
            return await reward.judge(task, rollouts)
        scores = await judge_group(reward, task, rollouts)
    except RewardError as error:
        return [Judgement(Ending.FAILED, Score(None, note=str(error)), str(error)) for _ in rollouts]
    return [Judgement(Ending.UNSCORABLE if s.reward is None else Ending.SCORED, s) for s in scores]


async def _timed(reward: Reward, probe: Probe, seconds: list[float]) -> list[Judgement]:
    start = time.perf_counter()
    judged = await _judged(reward, probe.task, probe.rollouts)
    taken = time.perf_counter() - start
    seconds.append(taken / len(probe.rollouts) if _one_by_one(reward) else taken)
    return judged


async def _apart(reward: Reward, probe: Probe, seconds: list[float]) -> list[Judgement]:
    return [(await _timed(reward, replace(probe, rollouts=(r,)), seconds))[0] for r in probe.rollouts]


def _changed(one: Sequence[Judgement], two: Sequence[Judgement]) -> int:
    return sum(a.score.reward != b.score.reward for a, b in zip(one, two))


async def _threads(reward: Reward, probes: Sequence[Probe], judged: Sequence[Sequence[Judgement]]) -> str | None:
    """What is wrong with calls from several threads; "" if nothing, None where that cannot be tried safely."""
    if not isinstance(reward, PlainReward):
        copies = await asyncio.gather(*(_judged(reward, p.task, p.rollouts) for p in probes for _ in range(THREADS)))
        wanted = [one for one in judged for _ in range(THREADS)]
        return _said(sum(_changed(one, two) for one, two in zip(wanted, copies)))
    if reward.target is None:
        return None
    worker = Worker(
        replace(reward.target, adapt=f"{__name__}:threaded"), timeout_seconds=THREADS * reward.timeout_seconds
    )
    try:
        for probe, one in zip(probes, judged):
            attempts = [Attempt(r.text, r.tokens[r.prompt_length :]) for r in probe.rollouts]
            task = replace(probe.task, meta=dict(probe.task.meta))
            call = (task, attempts, reward.timeout_seconds, reward.form.conversational)
            outcome = await asyncio.to_thread(worker.call, *call)
            if outcome.ended is not Ended.RETURNED:
                return outcome.detail.strip().rpartition("\n")[2]
            for copy in outcome.value:
                failed = next((o.detail for o in copy if o.ended is not Ended.RETURNED), "")
                if failed:
                    return failed.strip().rpartition("\n")[2]
                differing = sum(o.value.reward != j.score.reward for o, j in zip(copy, one))
                if differing:
                    return _said(differing)
    finally:
        worker.close()
    return ""


def _said(differing: int) -> str:
    return f"{differing} rewards differ" if differing else ""


def threaded(found: Any) -> Any:
    """As `lift.reading`, but every call is made in several threads at once, and gives a list of outcomes for each."""
    plain = found.function if isinstance(found, PlainReward) else found

    def judge(task: Task, attempts: Sequence[Attempt], limit: float, conversational: bool) -> list[list[Outcome]]:
        def one(_: int) -> list[Outcome]:
            return judging(plain)(task, attempts, limit, conversational)

        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(one, range(THREADS)))

    return judge
