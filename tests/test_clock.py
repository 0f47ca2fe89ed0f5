"""Phases nest and add up, what goes on beside them is not counted twice, and nothing is heard where nobody listens.

The clock is a list of numbers: what a phase takes is what `pass_` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading

import pytest
import torch

from maieutic.algorithms import grpo
from maieutic.backends.toy import ToyChat, ToySums, toy_policy
from maieutic.clock import Reading, beside, costing, count, handed_over, listening, phase, within
from maieutic.core.cost import Meter, Metered
from maieutic.loops import run_async
from maieutic.rewards.compose import answer_reward
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.train import train


class Hands:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def hands() -> Hands:
    return Hands()


def owned(reading: Reading) -> dict[str, float]:
    """The seconds of the phases that own any."""
    return {path: seconds for path, seconds in reading.seconds.items() if seconds}


def test_phases_nest_and_add_up(hands):
    with listening(clock=hands) as heard:
        hands.pass_(1.0)
        with phase("update"):
            hands.pass_(2.0)
            for _ in range(3):
                with phase("forward"):
                    hands.pass_(4.0)
                with phase("backward"):
                    hands.pass_(8.0)
        hands.pass_(16.0)
        found = heard.read()
    # a phase owns what its inner ones leave: 2; 3 · 4; 3 · 8; 1 + 16 belong to none
    assert found.seconds == {"update": 2.0, "update/forward": 12.0, "update/backward": 24.0}
    assert (found.other, found.total) == (17.0, 55.0)
    assert within(found.seconds, "update") == 38.0


def test_a_phase_within_one_of_its_name_is_that_phase(hands):
    with listening(clock=hands) as heard, phase("credit"), phase("credit"), phase("part"):
        hands.pass_(1.0)
        assert owned(heard.read()) == {"credit/part": 1.0}


def test_a_reading_begins_where_the_last_one_ended(hands):
    with listening(clock=hands) as heard:
        with phase("store"):
            hands.pass_(1.0)
            first = heard.read()
            hands.pass_(2.0)
        second = heard.read()
    assert (owned(first), owned(second)) == ({"store": 1.0}, {"store": 2.0})
    both = first.plus(second)
    assert (owned(both), both.total) == ({"store": 3.0}, 3.0)


def test_what_goes_on_beside_is_counted_once(hands):
    """Two rewards are awaited while decoding goes on: 4 s of their 7 s are hidden behind it."""

    async def judged(until: asyncio.Event) -> None:
        with beside("reward"):
            await until.wait()

    async def driven() -> None:
        until = asyncio.Event()
        rewards = [asyncio.create_task(judged(until)) for _ in range(2)]
        await asyncio.sleep(0)
        with phase("decode"):
            hands.pass_(4.0)
        hands.pass_(3.0)  # everything waits for the rewards
        until.set()
        await asyncio.gather(*rewards)
        hands.pass_(0.5)  # nobody judges any more

    with listening(clock=hands) as heard:
        with phase("sampling"):
            run_async(driven())
        found = heard.read()
    assert owned(found) == {"sampling/decode": 4.0, "reward": 3.0, "sampling": 0.5}
    assert found.busy == {"reward": 7.0}
    assert sum(found.seconds.values()) == found.total == 7.5


def test_work_done_on_the_loop_while_it_is_judged_is_the_rewards(hands):
    """A reward that computes instead of waiting is not hidden: nothing else can run."""

    async def judged() -> None:
        with beside("reward"):
            hands.pass_(2.0)
            await asyncio.sleep(0)

    with listening(clock=hands) as heard:
        with phase("sampling"):
            run_async(judged())
        found = heard.read()
    assert (found.seconds["reward"], found.busy["reward"]) == (2.0, 2.0)


def test_an_error_closes_what_it_leaves(hands):
    with listening(clock=hands) as heard:
        with contextlib.suppress(ZeroDivisionError), phase("sampling"), beside("reward"), phase("decode"):
            hands.pass_(1.0)
            raise ZeroDivisionError
        hands.pass_(2.0)
        found = heard.read()
        assert (heard.open, heard.spans) == ([], {})
    assert found.seconds["sampling/decode"] == 1.0
    assert found.other == 2.0


def test_tokens_and_what_they_take(hands):
    with listening(2.0, clock=hands) as heard:
        with phase("sampling"), phase("decode"):
            count(10)
        with phase("update"), costing(6.0), phase("forward"):
            count(5)
        count(1)  # the cost is what it was before
        found = heard.read()
    assert found.tokens == {"sampling/decode": 10, "update/forward": 5, "": 1}
    assert found.operations == {"sampling/decode": 20.0, "update/forward": 30.0, "": 2.0}


def test_a_metered_model_says_what_its_tokens_take():
    class Model:
        def logprobs(self, batch: Rows) -> None:
            count(int(batch.lengths.sum()))

        def step(self, batch: Rows) -> None:
            count(int(batch.lengths.sum()))

    class Rows:
        lengths = torch.tensor([3, 4])

    with listening(2.0) as heard:
        model = Metered(Model(), 1000, Meter())
        with phase("annotate"):
            model.logprobs(Rows())
        with phase("update"):
            model.step(Rows())
        found = heard.read()
    # 7 tokens: 2 · 1000 operations each forwards, 6 · 1000 with the gradient
    assert found.operations == {"annotate": 14_000.0, "update": 42_000.0}


def test_nothing_is_heard_where_nobody_listens(hands):
    with listening(clock=hands) as heard:
        pass
    with phase("update"), beside("reward"), costing(3.0):
        hands.pass_(1.0)
        count(3)
    assert heard.heard == Reading()
    assert phase("a") is phase("b") is beside("c")  # nothing is made either


def test_other_threads_are_not_heard_unless_they_are_waited_for(hands):
    def work() -> None:
        with phase("decode"):
            hands.pass_(1.0)

    with listening(clock=hands) as heard, phase("sampling"):
        for body in (work, handed_over(work)):
            thread = threading.Thread(target=body)
            thread.start()
            thread.join()
        with phase("after"):  # and this one is again
            hands.pass_(4.0)
        assert owned(heard.read()) == {"sampling": 1.0, "sampling/decode": 1.0, "sampling/after": 4.0}


def test_a_notebook_is_heard_too(hands):
    """Where an event loop runs already, asynchronous work runs in a thread."""

    async def driven() -> None:
        with phase("decode"):
            hands.pass_(1.0)

    async def notebook() -> Reading:
        with listening(clock=hands) as heard, phase("sampling"):
            run_async(driven())
            return heard.read()

    assert owned(asyncio.run(notebook())) == {"sampling/decode": 1.0}


def test_an_accelerator_is_waited_for_where_that_is_asked_for(hands):
    """What was asked of it is done when it is waited for: without waiting the seconds fall to a later phase."""
    pending = [0.0]

    def finish() -> None:
        hands.pass_(pending[0])
        pending[0] = 0.0

    def run(wait: bool) -> dict[str, float]:
        with listening(clock=hands, finish=finish if wait else None) as heard:
            with phase("forward"):
                pending[0] = 5.0
            with phase("metrics"):
                finish()
            return owned(heard.read())

    assert run(False) == {"metrics": 5.0}
    assert run(True) == {"forward": 5.0}


def test_the_loop_tells_its_phases():
    tasks = ToySums(limit=3)
    chat = ToyChat(tasks.vocabulary)
    policy = toy_policy(chat, length=3, buckets=32, seed=1)
    roller = Roller(policy.sampler, chat, answer_reward(tasks.verifier), max_completion_length=3, seed=5)
    source = Sampled(tasks, roller, prompts=4, num_generations=4, seed=5)
    with listening() as heard:
        made = list(train(source, policy, grpo(), steps=3))
        found = heard.read()
    assert any(step.batch is not None for step in made)
    assert found.seconds.keys() == {"sampling", "reward", "select", "pack", "credit", "update", "publish"}
    assert found.busy["reward"] >= found.seconds["reward"] > 0
    assert sum(found.seconds.values()) == pytest.approx(found.total - found.other)


def test_it_needs_no_torch():
    code = "import sys, maieutic.clock; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
