"""How a config says what practice is made of: penalties, curriculum, corrections, and what it refuses."""

from __future__ import annotations

import asyncio

import pytest

from maieutic.backends.toy import ToyChat, ToySums, toy_policy
from maieutic.config import StageConfig, parse_config
from maieutic.errors import ConfigError
from maieutic.run.build import describe, make_source, make_stage_algorithm
from maieutic.run.rewards import make_reward
from maieutic.run.tasksets import Tasksets
from maieutic.types import Finish, Rollout, Task

TASKS = ToySums()


def config_of(**stage):
    return parse_config({
        "model": {"small": {}},
        "tasks": {"train": {"taskset": "arithmetic"}},
        "stages": [{"algorithm": "grpo", "steps": 1, **stage}],
    })  # fmt: skip


def stage_of(**stage) -> StageConfig:
    return config_of(**stage).stages[0]


def judged(stage, tokens, finish=Finish.STOP):
    rollout = Rollout("t", (0, *tokens), (False,) + (True,) * len(tokens), (0.0,) * (1 + len(tokens)), finish, "7")
    (score,) = asyncio.run(make_reward(stage, TASKS)(Task("t", (), answer="7"), [rollout]))
    return score


def test_penalties_are_rewards_by_name():
    # 9 of 10 tokens: the last fifth begins at 8, half of it is −.5; cut: −1
    stage = stage_of(max_completion_length=10, rewards={"answer": 1.0, "soft_overlong": 0.5, "missing_eos": 0.25})
    score = judged(stage, range(9), Finish.LENGTH)
    assert score.parts == {"answer": 1.0, "soft_overlong": -0.5, "missing_eos": -1.0}
    assert score.reward == 1.0 - 0.25 - 0.25
    assert score.correct


def test_a_reward_takes_options():
    options = {"soft_overlong": {"cache": 10}, "repetition": {"n": 2, "penalty": -0.5}, "answer": {"truncated": -1.0}}
    rewards = {"answer": 1.0, "soft_overlong": 1.0, "repetition": 1.0}
    stage = stage_of(max_completion_length=10, rewards=rewards, reward_options=options)
    # 5 of 10 tokens: (0 − 5)/10; four bigrams, one different: −.5 · ¾
    assert judged(stage, [5] * 5).parts == {"answer": 1.0, "soft_overlong": -0.5, "repetition": -0.375}
    assert judged(stage, [5], Finish.LENGTH).parts["answer"] == -1.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"soft_overlnog": {}}, r"unknown reward with options 'soft_overlnog'; did you mean 'soft_overlong'\?"),
        ({"repetition": {}}, "unknown reward with options 'repetition'"),  # not among the stage's rewards
        ({"soft_overlong": {"cach": 5}}, "has no option 'cach'; did you mean 'cache'"),
        ({"soft_overlong": {"cache": 500}}, "cache=500; expected 1 ≤ cache ≤ max_completion_length"),
    ],
)
def test_options_that_do_nothing_are_refused(options, said):
    stage = stage_of(rewards={"answer": 1.0, "soft_overlong": 1.0}, reward_options=options)
    with pytest.raises(ConfigError, match=said):
        make_reward(stage, TASKS)


def test_gdpo_weighs_parts_as_the_stage_does():
    stage = stage_of(algorithm="gdpo", rewards={"answer": 1.0, "think_format": 0.1})
    assert "reward_weights={'answer': 1.0, 'think_format': 0.1}" in make_stage_algorithm(stage).credit.label
    own = stage_of(algorithm="gdpo", options={"reward_weights": {"answer": 2.0}})
    assert "reward_weights={'answer': 2.0}" in make_stage_algorithm(own).credit.label


def test_a_curriculum_reaches_the_source():
    config = config_of(curriculum={"low": 0.1, "skip": 3})
    stage = config.stages[0]
    policy = toy_policy(ToyChat(TASKS.vocabulary), length=3)
    source = make_source(config, stage, make_stage_algorithm(stage), TASKS, policy)
    assert (source.curriculum.low, source.curriculum.high, source.curriculum.skip) == (0.1, 1.0, 3)
    assert source.state() == {"visits": 0, "curriculum": {"until": {}}}


def test_a_curriculum_without_room_or_without_practice_is_refused():
    with pytest.raises(ConfigError, match="expected low below high"):
        config_of(curriculum={"low": 0.9, "high": 0.5})
    with pytest.raises(ConfigError, match=r"got curriculum = .*does nothing: sft learns from demonstrations"):
        make_stage_algorithm(stage_of(algorithm="sft", curriculum={}))


def test_a_correction_and_an_estimator_are_named():
    options = {"beta": 0.1, "kl": "corrected_k3", "correction": "sequence_mask", "scale": "none"}
    row = make_stage_algorithm(stage_of(options=options))
    assert "masked(low=0, high=3, level=sequence)" in row.loss.label
    assert "kl_to_reference(estimator=corrected_k3)" in row.loss.label
    assert str(row.credit) == "group_centered()"
    for option, near, said in (
        ("correction", "token_trunkate", "unknown correction 'token_trunkate'; did you mean 'token_truncate'"),
        ("kl", "k4", "unknown KL estimator 'k4'; did you mean"),
        ("scale", "grup", "unknown scale 'grup'; did you mean 'group'"),
        ("ratio_anchor", "new", "got anchor='new'; expected one of old, ref"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_stage_algorithm(stage_of(options={option: near}))


@pytest.mark.parametrize("key", ["top_p", "top_k", "min_p"])
def test_truncated_sampling_is_refused_in_training(key):
    """A20: what was drawn from a truncated distribution has other log-probs than the learner computes."""
    with pytest.raises(ConfigError, match=f"unknown key 'stages.0.{key}'"):
        config_of(**{key: 0.9})


@pytest.mark.parametrize("key", ["repetition_penalty", "presence_penalty", "logit_bias", "grammar"])
def test_what_bends_the_sampling_distribution_is_refused_in_training(key):
    """A21: penalties on logits and structured decoding make another policy behave than the one that learns."""
    with pytest.raises(ConfigError, match=f"unknown key 'stages.0.{key}'"):
        config_of(**{key: 1.1})


def test_sampling_in_bytes_asks_for_a_ratio():
    told = {"sampling_precision": "int8", "model": {"small": {}}, "tasks": {"train": {"taskset": "arithmetic"}}}
    asked = {"tasks": "train", "steps": 1}
    config = parse_config({**told, "stages": [{"algorithm": "grpo", **asked}]})
    assert "sampled in int8: from a coarser policy than is learned" in describe(config, Tasksets(config))
    config = parse_config({**told, "stages": [{"algorithm": "reinforce", **asked}]})
    with pytest.raises(ConfigError, match="in coarser numbers: from another policy"):
        describe(config, Tasksets(config))


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"algorithm": "grpo", "early_stop": 2}, r"early_stop = 2, and grpo learns from every group.*dapo"),
        ({"algorithm": "dapo", "early_stop": 8}, "expected fewer than num_generations = 8"),
        ({"algorithm": "sft", "early_stop": 2}, "early_stop"),
    ],
)
def test_an_early_stop_that_does_nothing_is_refused(stage, said):
    with pytest.raises(ConfigError, match=said):
        make_stage_algorithm(stage_of(**stage))


def test_an_early_stop_reaches_the_roller():
    stage = stage_of(algorithm="dapo", early_stop=3)
    policy = toy_policy(ToyChat(TASKS.vocabulary), length=3)
    source = make_source(config_of(), stage, make_stage_algorithm(stage), TASKS, policy)
    assert source.roller.first == 3
    assert source.roller.decided is not None


def test_rows_are_spared_only_where_their_gradient_is_none():
    assert make_stage_algorithm(stage_of(spare_rows=True)).name == "grpo"
    for asked in ({"options": {"beta": 0.1}}, {"algorithm": "sft"}, {"algorithm": "trpo"}):
        with pytest.raises(ConfigError, match="spare_rows"):
            make_stage_algorithm(stage_of(spare_rows=True, **asked))
