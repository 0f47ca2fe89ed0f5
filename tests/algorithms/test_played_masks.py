"""What an environment says is context and nothing else: no loss of the table learns from its tokens.

Groups are played by a `Player`; the environment writes the tokens at places 2, 3 and 6, 7 of every completion, so that
in a model that is a table the states in which these were "chosen" are states of their own: places in the table.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from test_invariance import CASES, noise

from maieutic.algorithms import make_algorithm
from maieutic.backends.toy import STOP, ToyChat, toy_policy
from maieutic.core.parts import Algorithm
from maieutic.pack import pack
from maieutic.play import Player
from maieutic.protocols import Completion, Reply
from maieutic.types import SHAPES, Batch, Finish, Group, Message, Score, Task

CHAT = ToyChat(["[GOOD]", "[BAD]", ";", *"abcdef", "higher", "lower"])
TURNS, TURN = 3, ("a", "b", "c", "d", "e", "f")
#: Places of a completion: a word and the stop token, two words of the environment, and so on.
SAID, CHOSEN = (2, 3, 6, 7), (0, 1, 4, 5, 8, 9)
#: Rows that put labels in front of steps are refused for tasks with an environment (`run.played`).
PLAYS = [case for case in CASES if make_algorithm(*case.values, max_completion_length=12).select.labels is None]
every_row_that_plays = pytest.mark.parametrize(("name", "options"), PLAYS)
#: Candidates of the teacher.
TOP_K = 3


class Told:
    """Says two words after every turn."""

    opening = (Message("user", "a b"),)

    async def step(self, message: Message) -> Reply:
        return Reply((Message("user", "higher lower" if message.content < "d" else "lower lower"),), reward=0.1)

    async def score(self) -> Score | None:
        return None

    async def close(self) -> None: ...


class Telling:
    name, max_turns, at_once = "telling", TURNS, True

    async def start(self, task: Task, seed: str) -> Told:
        return Told()


class RandomWords:
    """One word and a stop, with log-probs that are not the model's."""

    async def sample(self, prompt_tokens, params, n):
        draw = random.Random(f"{params.key}/{prompt_tokens}")
        word = CHAT.ids[draw.choice(TURN)]
        return [
            Completion((word, STOP), (True, True), (-draw.uniform(1, 3), -draw.uniform(1, 3)), Finish.STOP)
            for _ in range(n)
        ]


async def judged(task, rollouts):
    return [
        Score(float(i % 2) + 0.1 * i, correct=bool(i % 2), parts={"answer": float(i % 2), "format": 0.5})
        for i, _ in enumerate(rollouts)
    ]


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    player = Player(RandomWords(), CHAT, judged, Telling(), max_completion_length=12)

    async def play() -> list[Group]:
        return await asyncio.gather(*(player.group(Task(f"t{i}", (), "a"), 4, i) for i in range(3)))

    return asyncio.run(play())


def batch_of(groups: list[Group], algorithm: Algorithm, learner) -> Batch:
    """The row's batch at a later optimiser step, with what models would say of it."""
    batch = pack(algorithm.select(groups))
    now = learner.logprobs(batch)
    on = batch.mask

    def said(seed: int) -> torch.Tensor:
        return torch.where(on, now + noise(now.shape, seed).float(), 0.0)

    teacher = torch.log_softmax(noise((*now.shape, len(CHAT.words)), 8).float(), -1)
    logprobs, ids = teacher.topk(TOP_K)
    columns = {
        "old_logprobs": said(1), "ref_logprobs": said(2),
        "old_values": torch.where(on, noise(now.shape, 3).float(), 0.0),
        "final_values": noise((len(now),), 4).float(), "teacher_logprobs": said(5),
        "teacher_top_ids": ids * on[..., None], "teacher_top_logprobs": logprobs * on[..., None],
    }  # fmt: skip
    wanted = algorithm.asks | {"old_logprobs"}
    batch = batch.with_(**{name: column for name, column in columns.items() if name in wanted})
    batch = algorithm.credit(batch)
    return batch.with_(weights=algorithm.weigh(batch))


def gradient(algorithm: Algorithm, learner, batch: Batch) -> torch.Tensor:
    learner._accumulate(batch, algorithm.loss.terms, algorithm.loss.needs)
    return torch.cat([w.grad.flatten() for w in learner.weights().values() if w.grad is not None])


def prepared(groups: list[Group], name: str, options):
    algorithm = make_algorithm(name, options, max_completion_length=12).bind(CHAT)
    policy = toy_policy(CHAT, length=16, critic="values" in algorithm.requires)
    return algorithm, policy.learner, batch_of(groups, algorithm, policy.learner)


def places(batch: Batch) -> torch.Tensor:
    """`[B, T]` the place of each token in its completion; −1 in the prompt and the padding."""
    begun = batch.mask.cumsum(1).bool()
    within = torch.arange(batch.mask.shape[1]) < batch.lengths[:, None]
    return torch.where(begun & within, begun.cumsum(1) - 1, -1)


@every_row_that_plays
def test_nothing_is_learned_from_what_the_environment_says(groups, name, options):
    algorithm, learner, batch = prepared(groups, name, options)
    where = places(batch)
    told = (where >= 0) & ~batch.mask
    assert int(told.sum()) >= 3 * batch.size  # it spoke in every row (where two begin alike, after that)
    assert not batch.weights[told].any()
    assert not batch.token_rewards[told].any()
    expected = gradient(algorithm, learner, batch)
    assert float(expected.norm()) > 1e-6

    spoiled = {}
    columns = {"sampler_logprobs", "advantages", "returns", *algorithm.loss.needs}
    for column in columns - SHAPES.keys():
        if batch.has(column):
            spoiled[column] = torch.where(told, torch.nan, getattr(batch, column))
    if "teacher_top_logprobs" in algorithm.loss.needs:
        spoiled["teacher_top_logprobs"] = torch.where(told[..., None], -50.0, batch.teacher_top_logprobs)
        spoiled["teacher_top_ids"] = torch.where(told[..., None], 7, batch.teacher_top_ids)
    assert torch.equal(gradient(algorithm, learner, batch.with_(**spoiled)), expected)

    with torch.no_grad():  # what a model thinks of the environment's words: another distribution at their places
        learner.model.table[:, list(SAID)] += noise(learner.model.table[:, list(SAID)].shape, 9).float()
    if batch.mask[:, 2].all():  # else a row begins to count after what it has in common with another one
        assert torch.equal(gradient(algorithm, learner, batch), expected)
        table = learner.model.table.grad
        assert not table[:, list(SAID)].any()
        assert table[:, list(CHOSEN)].any()


def test_spans_and_masks_agree(groups):
    for group in groups:
        for rollout, score in zip(group.rollouts, group.scores):
            chosen = [role == "assistant" for role in roles(rollout)]
            assert chosen == list(rollout.mask)
            assert all(rollout.logprobs[i] == 0.0 for i, mine in enumerate(rollout.mask) if not mine)
            start = rollout.prompt_length
            assert [i - start for i, mine in enumerate(rollout.mask) if mine] == list(CHOSEN)
            assert [i - start for i, _ in score.step_rewards] == [1, 5, 9]  # the last chosen token of each turn


def roles(rollout):
    return [span.role for span in rollout.spans for _ in range(span.start, span.stop)]
