"""Data sets of reasoning-gym as tasksets, and as rewards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from maieutic.config import parse_config
from maieutic.errors import ConfigError, UnknownName
from maieutic.rewards.adapt_arguments import given_answer
from maieutic.rewards.adapt_gym import GymVerifier, gym_reward
from maieutic.rewards.lift import PlainReward, load_reward
from maieutic.run.tasksets import Tasksets, named_taskset
from maieutic.types import Finish, Message, Rollout, Task

reasoning_gym = pytest.importorskip(
    "reasoning_gym", reason="an extra with thirty packages: pip install 'maieutic[reasoning-gym]'"
)

USERS = Path(__file__).parent / "users"


def rollouts(*texts: str) -> list[Rollout]:
    return [Rollout("t", (1, 2), (False, True), (0.0, -0.1), Finish.STOP, text) for text in texts]


def test_a_data_set_is_a_taskset() -> None:
    made = named_taskset("reasoning_gym:chain_sum", {"size": 20, "seed": 7, "max_terms": 3})
    own = reasoning_gym.create_dataset("chain_sum", size=20, seed=7, max_terms=3)
    assert (len(made), made.name) == (20, "reasoning_gym:chain_sum")
    for i in (0, 19):
        assert made[i].prompt == (Message("user", own[i]["question"]),)
        assert (made[i].answer, made[i].meta["entry"]) == (own[i]["answer"], own[i])
        assert made[i] == made[i]
        assert made.verifier(made[i], made[i].meta["solution"]).correct
        assert not made.verifier(made[i], "<answer>no</answer>").correct
    assert made[0].id == "reasoning_gym:chain_sum/train/7/0"
    test = named_taskset("reasoning_gym:chain_sum", {"size": 20, "seed": 7, "split": "test", "system": "Be brief."})
    assert not {task.prompt[1].content for task in test} & {task.prompt[0].content for task in made}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["countdown", "propositional_logic"])
def test_other_data_sets_score_their_own_answers(name: str) -> None:
    made = named_taskset(f"reasoning_gym:{name}", {"size": 2})
    for i in range(2):
        solution = made[i].meta.get("solution")
        if solution is not None:  # a few data sets have no answer of their own
            assert made.verifier(made[i], solution).correct
        assert not made.verifier(made[i], "").correct


def test_what_there_is_not_is_refused_with_what_there_is() -> None:
    with pytest.raises(UnknownName, match="did you mean 'chain_sum'"):
        named_taskset("reasoning_gym:chain_sums", {})
    with pytest.raises(ConfigError, match=r"no option 'max_term'; did you mean 'max_terms'\? It takes: size, seed"):
        named_taskset("reasoning_gym:chain_sum", {"max_term": 3})
    with pytest.raises(ConfigError, match=r"refuses min_terms = 9, max_terms = 2.*must be"):
        named_taskset("reasoning_gym:chain_sum", {"min_terms": 9, "max_terms": 2})
    for seed in (-1, 2**31, None):
        with pytest.raises(ConfigError, match="expected a whole number from 0"):
            named_taskset("reasoning_gym:chain_sum", {"seed": seed})


def test_a_config_names_them() -> None:
    stage = {"algorithm": "grpo", "steps": 1}
    tasks = {"train": {"taskset": "reasoning_gym:leg_counting", "size": 5, "max_animals": 3, "limit": 4}}
    config = parse_config({"model": {"small": {}}, "tasks": tasks, "stages": [stage]})
    assert len(Tasksets(config)["train"]) == 4
    tasks["train"]["max_animal"] = 3
    config = parse_config({"model": {"small": {}}, "tasks": tasks, "stages": [stage]})
    with pytest.raises(ConfigError, match="unknown key 'max_animal'; did you mean 'max_animals'"):
        Tasksets(config)["train"]


def test_the_score_itself_is_a_reward() -> None:
    """score_answer of most data sets gives len(gold) / len(answer) where the gold is in the answer: 1/3 for 'so 4'."""
    verifier = GymVerifier("chain_sum")
    entry = {"question": "2 + 2", "answer": "4", "metadata": {}}
    task = Task("t", (Message("user", "2 + 2"),), "4", {"entry": entry})
    scores = asyncio.run(gym_reward(verifier)(task, rollouts("so 4?", "<answer>4</answer>", "5")))
    assert [score.reward for score in scores] == [1 / 5, 1.0, 0.0]
    assert [score.correct for score in scores] == [False, True, False]
    with pytest.raises(ConfigError, match="reasoning_gym:NAME"):
        gym_reward(named_taskset("arithmetic", {}).verifier)


def test_a_scorer_that_raises_makes_no_verdict_of_right() -> None:
    verifier = GymVerifier("countdown")
    verdict = verifier(Task("t", (Message("user", "?"),), "4", {"entry": {"answer": "4"}}), "1 + 1")
    assert not verdict.correct
    assert "no score" in verdict.why or "scored 0" in verdict.why


@pytest.mark.parametrize("name", ["dataset", "score", "half_for_format"])
def test_users_have_their_data_set_at_hand(name: str) -> None:
    made = load_reward(f"{USERS / 'gym_rewards.py'}:{name}")
    assert isinstance(made, PlainReward)
    assert made.form.family.name == "reasoning-gym"
    task = Task("t", (Message("user", "2 + 2?"),), "4")
    (score,) = asyncio.run(made(task, rollouts("I think <answer>4</answer>")))
    assert score.reward == 1.0
    made.close()


def test_the_answer_in_a_text() -> None:
    assert given_answer("<answer>3</answer> no, <answer>\n4 </answer>.") == "4"
    assert given_answer("so\n#### 4") == "4"
    assert given_answer(" 4\n") == "4"
    assert given_answer("4</answer>") == "4</answer>"
