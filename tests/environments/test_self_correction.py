"""Two attempts: the reward by hand, and whose tokens are whose."""

from __future__ import annotations

import asyncio

import pytest

from maieutic.backends.toy import STOP, ScriptedSampler, ToyChat
from maieutic.core.turns import first_turn
from maieutic.environments.self_correction import SelfCorrection
from maieutic.errors import ConfigError
from maieutic.pack import pack
from maieutic.play import Player
from maieutic.run.tasksets import named_taskset
from maieutic.types import Example, Finish, Message, Task, Verdict

CHAT = ToyChat(["q", "again", "right", "wrong", "."])
TASK = Task("t", (Message("user", "q"),), "right")


def verifier(task: Task, text: str) -> Verdict:
    said = text.split()[0] if text.split() else None
    return Verdict(said == task.answer, said)


async def unasked(_task, _rollouts):
    raise AssertionError("the environment has a score of its own")


def play(first: str, second: str, *, alpha: float = 1.0, most: int = 20):
    def script(prompt, _sibling):
        said = second if CHAT.ids["again"] in prompt else first
        return CHAT.completion(said) if said else [CHAT.ids["."]] * 50

    environment = SelfCorrection(verifier, alpha=alpha, instruction="again")
    player = Player(ScriptedSampler(script), CHAT, unasked, environment, max_completion_length=most)
    group = asyncio.run(player.group(TASK, 1, 0))
    return group.rollouts[0], group.scores[0]


@pytest.mark.parametrize(
    ("first", "second", "alpha", "reward"),
    [
        ("wrong", "right", 1.0, 2.0),  # 1 + (1 − 0)
        ("right", "right", 1.0, 1.0),
        ("wrong", "wrong", 1.0, 0.0),
        ("right", "wrong", 1.0, -1.0),  # 0 + (0 − 1)
        ("wrong", "right", 10.0, 11.0),
        ("right", "wrong", 0.0, 0.0),
    ],
)
def test_the_reward(first, second, alpha, reward):
    rollout, score = play(first, second, alpha=alpha)
    assert score.reward == reward
    assert score.correct is (second == "right")
    assert score.answer == second
    assert score.parts == {
        "first": float(first == "right"),
        "second": float(second == "right"),
        "mended": float((first, second) == ("wrong", "right")),
        "broken": float((first, second) == ("right", "wrong")),
    }
    assert rollout.finish is Finish.ENVIRONMENT


def test_the_instruction_is_the_environments_and_the_first_turn_the_models():
    rollout, score = play("wrong .", "right")
    words = [CHAT.words[token] for token in rollout.tokens]
    shown = list(zip(words, rollout.mask, strict=True))
    stop = CHAT.words[STOP]
    assert shown == [
        ("q", False), ("wrong", True), (".", True), (stop, True), ("again", False), ("right", True), (stop, True),
    ]  # fmt: skip
    batch = pack([Example(rollout, score.reward, 0, 0)])
    assert first_turn(batch.mask).tolist() == [[False, True, True, True, False, False, False]]


def test_an_attempt_that_was_cut_is_worth_nothing():
    rollout, score = play("right", "", alpha=1.0, most=6)
    assert rollout.finish is Finish.LENGTH
    assert score.reward == -1.0  # 0 + (0 − 1)
    assert score.note == "no second attempt was finished"
    assert score.answer is None
    _, none = play("", "right", most=6)
    assert none.reward == 0.0


def test_refusals():
    for options in ({"alpha": -1.0}, {"instruction": " "}):
        with pytest.raises(ConfigError, match="self_correction"):
            SelfCorrection(verifier, **options)


def test_a_config_names_it_for_any_taskset():
    made = named_taskset(
        "arithmetic", {"size": 3, "environment": "self_correction", "environment_options": {"alpha": 2.0}}
    )
    assert (made.environment.name, made.environment.alpha, made.environment.max_turns) == ("self_correction", 2.0, 2)
    assert made.environment.verifier is made.verifier
    with pytest.raises(ConfigError, match="did you mean 'alpha'"):
        named_taskset("arithmetic", {"environment": "self_correction", "environment_options": {"alfa": 2.0}})
