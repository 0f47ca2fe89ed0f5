"""Rewards of steps: continuations from the ends of steps, on a toy whose chances are known."""

from __future__ import annotations

import math

import pytest
import torch

from maieutic.backends.toy import ToyChat, ToyModel, ToySampler
from maieutic.core.cost import Spent
from maieutic.environments.conditioned import Conditioned
from maieutic.errors import ConfigError, RewardError
from maieutic.loops import run_async
from maieutic.protocols import Completion
from maieutic.step_rewards import MonteCarlo, PrefixScores, StepRewards
from maieutic.steps import Labels, Steps
from maieutic.types import Finish, Message, Rollout, Score, Span, Task, Verdict

CHAT = ToyChat(["a", "b", ";", "=", "yes", "no", "[GOOD]", "[BAD]"])
STOP, A, B, SEMI, EQUALS, YES, NO, GOOD, BAD = range(9)
TASK = Task("t", (Message("user", "a"),), answer="yes")


def verifier(task, text):
    """Right when the last word is the answer."""
    return Verdict(text.split()[-1:] == [task.answer])


async def judge(task, rollouts):
    """1 for the right answer; no reward for what failed."""
    verdicts = [verifier(task, rollout.text).correct for rollout in rollouts]
    return [
        Score(None) if rollout.finish is Finish.ERROR else Score(float(right), correct=right, note="judged")
        for rollout, right in zip(rollouts, verdicts, strict=True)
    ]


def written(*tokens, finish=Finish.STOP):
    return Rollout(
        "t", (A, *tokens), (False, *[True] * len(tokens)), (0.0,) * (1 + len(tokens)), finish,
        text=CHAT.decode(tokens), spans=(Span("prompt", 0, 1), Span("assistant", 1, 1 + len(tokens))),
    )  # fmt: skip


class Fork:
    """A sampler that goes on with "yes" with a chance of `chances[last step's word]`, in equal shares of siblings.

    It notes what it is asked; `tokens` are written by each completion.
    """

    def __init__(self, chances):
        self.chances, self.asked = chances, []

    async def sample(self, prompt_tokens, params, n):
        """As a real sampler; greedy shares in the place of random numbers."""
        self.asked.append((tuple(prompt_tokens), params.max_tokens, n, params.key))
        good = round(self.chances[prompt_tokens[-2]] * n)
        tokens = [(YES if sibling < good else NO, STOP) for sibling in range(n)]
        return [Completion(each, (True, True), (-1.0, -1.0), Finish.STOP) for each in tokens]


def labeller(sampler, continuations=4, **options):
    estimate = MonteCarlo(sampler, CHAT, verifier, continuations, max_completion_length=10, **options)
    return StepRewards(judge, verifier, Steps(CHAT, " ;"), estimate)


def test_the_share_of_continuations_that_end_correct():
    """T4.1's numbers, with the verdict of the rule at the last step: 3/4, 1/4 and 0."""
    sampler = Fork({A: 3 / 4, B: 1 / 4})
    reward = labeller(sampler)
    # a ; | b ; | no <stop>     ends at tokens 2, 4 and 6 (the prompt is token 0)
    (score,) = run_async(reward(TASK, [written(A, SEMI, B, SEMI, NO, STOP)]))
    assert score.step_rewards == ((2, 3 / 4), (4, 1 / 4), (6, 0.0))
    assert (score.reward, score.correct) == (0.0, False)
    # each continues from the prompt and its steps, with the room that they leave of 10 tokens
    assert [(prompt, most, n) for prompt, most, n, _ in sampler.asked] == [
        ((A, A, SEMI), 8, 4),
        ((A, A, SEMI, B, SEMI), 6, 4),
    ]


def test_what_it_cost_is_counted():
    reward = labeller(Fork({A: 1.0, B: 0.0}))
    (score,) = run_async(reward(TASK, [written(A, SEMI, B, SEMI, NO, STOP)]))
    # 2 prefixes x 4 continuations x 2 tokens; 4 x (3 + 5) tokens of prompts and prefixes were read
    assert reward.spent == Spent(generated=16, read=32)
    assert score.note == "judged; 16 tokens sampled to judge its group's steps"
    run_async(reward(TASK, [written(A, SEMI, B, SEMI, NO, STOP)]))
    assert reward.spent == Spent(32, 64)


def test_steps_that_are_shared_are_asked_once():
    sampler = Fork({A: 1 / 2, B: 0.0})
    rows = [written(A, SEMI, YES, STOP), written(A, SEMI, NO, STOP), written(A, SEMI, B, SEMI, YES, STOP)]
    scores = run_async(labeller(sampler)(TASK, rows))
    assert len(sampler.asked) == 2  # a ;   and   a ; b ;
    assert [score.step_rewards for score in scores] == [
        ((2, 0.5), (4, 1.0)),
        ((2, 0.5), (4, 0.0)),
        ((2, 0.5), (4, 0.0), (6, 1.0)),
    ]


def test_what_has_no_reward_and_what_has_one_step_costs_nothing():
    sampler = Fork({})
    failed = Rollout("t", (A,), (False,), (0.0,), Finish.ERROR)
    scores = run_async(labeller(sampler)(TASK, [failed, written(YES, STOP)]))
    assert sampler.asked == []
    assert [score.step_rewards for score in scores] == [(), ((2, 1.0),)]
    assert scores[1].note == "judged"


@pytest.fixture(scope="module")
def toy():
    """A table in which "yes" follows "; " with a chance of 0.3, and everything else is "no"; then it stops."""
    model = ToyModel(len(CHAT.words), length=4, dtype=torch.float64)
    table = torch.full_like(model.table, -50.0)
    table[:, 0, SEMI, YES], table[:, 0, SEMI, NO] = math.log(0.3), math.log(0.7)
    table[:, 1:, :, STOP] = 0.0
    model.table.data = table
    return ToySampler(model)


def test_the_soft_label_is_unbiased_and_the_hard_one_optimistic(toy):
    """T2.5: E[c/N] = q, and E[c > 0] = 1 - (1 - q)^N: at q = 0.3 and N = 4 that is 1 - 0.7^4 = 0.7599.

    (At q = 0.1 and N = 8 the hard label says yes in 1 - 0.9^8 = 56.95 % of cases.)
    """
    n, repeats = 4, 1500
    found = []
    for seed in range(repeats):
        estimate = MonteCarlo(toy, CHAT, verifier, n, max_completion_length=4, seed=seed)
        (value,), _ = run_async(estimate(TASK, (A,), [(A, SEMI)]))
        found.append(value)
    soft, hard = sum(found) / repeats, sum(value > 0 for value in found) / repeats
    assert soft == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / (n * repeats)))  # four standard errors
    assert hard == pytest.approx(0.7599, abs=4 * math.sqrt(0.7599 * 0.2401 / repeats))


def test_the_same_prefix_draws_the_same_continuations(toy):
    def values(seed):
        estimate = MonteCarlo(toy, CHAT, verifier, 16, max_completion_length=4, seed=seed)
        return run_async(estimate(TASK, (A,), [(A, SEMI), (B, SEMI)]))[0]

    assert values(0) == values(0)
    assert len({tuple(values(seed)) for seed in range(5)}) > 1
    assert any(first != second for first, second in map(values, range(5)))  # each prefix has numbers of its own


class Echo:
    """A tool that writes "yes" after "=" where the text has "a =" in it, so it must see more than the continuation."""

    trigger = "="

    def __call__(self, text):
        """The reply."""
        return "yes" if text.startswith("a ; b =") else "no"


class Asking:
    """A sampler that writes b and =, and what the tool answers."""

    async def sample(self, prompt_tokens, params, n):
        """As a real sampler."""
        said = (*params.interject((B, EQUALS)),)
        return [Completion((B, EQUALS, *said, STOP), (True, True, False, True), (0.0,) * 4, Finish.STOP)] * n


def test_a_tool_sees_the_whole_completion():
    reward = labeller(Asking(), continuations=1, tool=Echo())
    (score,) = run_async(reward(TASK, [written(A, SEMI, NO, STOP)]))
    assert score.step_rewards == ((2, 1.0), (4, 0.0))
    assert reward.spent == Spent(generated=3, read=3 + 1)  # prompt, a, ; and what the tool wrote


def test_continuations_of_what_was_asked_for_good_steps_are_asked_too():
    labels = Labels(delimiter=" ;")
    sampler = Fork({A: 1.0})
    conditioned = Conditioned(sampler, CHAT, labels)
    estimate = MonteCarlo(conditioned, conditioned.chat, verifier, 2, max_completion_length=10)
    reward = StepRewards(judge, verifier, labels.bind(CHAT).steps, estimate)
    made = Rollout(
        "t", (A, GOOD, A, SEMI, GOOD, NO, STOP), (False, False, True, True, False, True, True), (0.0,) * 7,
        Finish.STOP, text="a ; no", spans=(Span("prompt", 0, 1), Span("tool", 1, 2), Span("assistant", 2, 7)),
    )  # fmt: skip
    sampler.chances = {SEMI: 1.0}  # the token before the label
    (score,) = run_async(reward(TASK, [made]))
    assert sampler.asked[0][:2] == ((A, GOOD, A, SEMI, GOOD), 10 - 3 - 1)  # the prefix, and the label of the next step
    assert score.step_rewards == ((3, 1.0), (6, 0.0))


@pytest.mark.parametrize("wait", [False, True])
def test_a_model_may_say_how_good_a_prefix_is(wait):
    seen = []

    def score(task, texts):
        seen.extend(texts)
        return [0.25 * len(text.split()) for text in texts]

    async def later(task, texts):
        return score(task, texts)

    estimate = PrefixScores(CHAT, later if wait else score)
    reward = StepRewards(judge, verifier, Steps(CHAT, " ;"), estimate)
    (made,) = run_async(reward(TASK, [written(A, SEMI, B, SEMI, YES, STOP)]))
    assert seen == ["a ;", "a ; b ;"]
    assert made.step_rewards == ((2, 0.5), (4, 1.0), (6, 1.0))
    assert reward.spent == Spent()
    wrong = StepRewards(judge, verifier, Steps(CHAT, " ;"), PrefixScores(CHAT, lambda task, texts: [2.0]))
    with pytest.raises(RewardError, match="expected one probability each, 0 to 1"):
        run_async(wrong(TASK, [written(A, SEMI, YES, STOP)]))


@pytest.mark.parametrize("options", [{"continuations": 0}, {"continuations": 2, "temperature": 0.0}])
def test_continuations_that_say_nothing_are_refused(options):
    with pytest.raises(ConfigError, match="expected at least one continuation"):
        MonteCarlo(Fork({}), CHAT, verifier, max_completion_length=4, **options)
