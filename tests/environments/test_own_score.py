"""An environment's own score among other rewards, and what reward functions see of an episode."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from maieutic.backends.toy import STOP, ScriptedSampler, ToyChat
from maieutic.config import parse_config
from maieutic.environments.episodes import Transcript
from maieutic.environments.rules import EachInItsOwn, Ruled
from maieutic.errors import ConfigError, RewardError
from maieutic.play import Player
from maieutic.protocols import Reply
from maieutic.report.transcripts import shown_first
from maieutic.rewards.compose import nothing, weighted
from maieutic.rewards.lift import load_reward, reward
from maieutic.run.build import describe
from maieutic.run.played import named_environment
from maieutic.run.records import StoredRollout, span_rows
from maieutic.run.runner import resume_or_begin
from maieutic.run.store import Store
from maieutic.run.tasksets import Tasksets
from maieutic.types import Finish, Message, Score, Span, Task

CHAT = ToyChat(["ask", "look", "it", "is", *"12345", "higher", "and", "again"])
TASK = Task("t", (Message("user", "ask"),), "3")
USERS = Path(__file__).parents[1] / "rewards" / "users"


class Told:
    """Says "higher" (paying a quarter) as a tool and as a user, and ends at the second turn with the score given."""

    name, max_turns, at_once = "told", 2, True

    def __init__(self, score, opening=TASK.prompt):
        self.given, self.opening = score, opening

    async def start(self, task, seed):
        return self

    async def step(self, message):
        return Reply((Message("tool", "higher"), Message("user", "and again")), reward=0.25, parts={"heard": 1.0})

    async def score(self):
        return self.given

    async def close(self):
        pass


def played(environment, judge=nothing, weight=None, n=1, most=20):
    """Says 1, then 2."""
    sampler = ScriptedSampler(lambda prompt, _: (CHAT.ids["2" if STOP in prompt else "1"], STOP))
    made = Player(sampler, CHAT, judge, environment, max_completion_length=most, own_weight=weight)
    group = asyncio.run(made.group(TASK, n, 0))
    return group.rollouts[0], group.scores[0]


async def half(task, rollouts):
    return [Score(0.5, correct=False, parts={"half": 0.5, "of": 9.0}, answer="1") for _ in rollouts]


async def unsure(task, rollouts):
    return [Score(None) for _ in rollouts]


# ---- the sum -------------------------------------------------------------------------------------------------------


def test_the_own_score_is_a_reward_among_others():
    own = Score(0.75, correct=True, parts={"win": 1.0}, answer="2", note="won")
    _, score = played(Told(own), weighted({"half": half}, {"half": 0.2}), weight=2.0)
    assert score.reward == pytest.approx(2.0 * 0.75 + 0.2 * 0.5)
    assert (score.correct, score.answer, score.note) == (True, "2", "won")
    named = {"environment": 0.75, "win": 1.0, "half": 0.5, "heard": 1.0}
    assert {name: score.parts[name] for name in named} == named
    assert [paid for _, paid in score.step_rewards] == [0.5, 0.5]  # 2 · 0.25 a turn: its weight is that of all it pays
    alone = played(Told(own), weight=2.0)[1]
    assert (alone.reward, alone.parts) == (1.5, {"environment": 0.75, "win": 1.0, "heard": 1.0})


def test_what_is_missing_of_the_sum():
    judge = weighted({"half": half}, {"half": 1.0})
    assert played(Told(Score(None)), judge, weight=1.0)[1].reward is None
    watched = played(Told(Score(None, parts={"win": 0.0})), judge, weight=0.0)[1]
    assert (watched.reward, watched.step_rewards, watched.parts["win"]) == (0.5, (), 0.0)
    lost = played(Told(Score(1.0)), unsure, weight=1.0)[1]
    assert (lost.reward, lost.parts["environment"], lost.step_rewards) == (None, 1.0, ())
    with pytest.raises(RewardError, match=r"'told', task 't'.*no score of an episode.*Take 'environment' out"):
        played(Told(None), judge, weight=1.0)


def config_of(taskset, **stage):
    return parse_config(
        {
            "model": {"small": {"layers": 1, "width": 16, "context": 64}},
            "tasks": {"train": taskset},
            "stages": [{"algorithm": "grpo", "steps": 1, "prompts": 1, "num_generations": 2, **stage}],
        }
    )


@pytest.mark.parametrize(
    ("taskset", "rewards", "said"),
    [
        ({"taskset": "arithmetic"}, {"answer": 1.0, "environment": 1.0}, "the model answers the tasks 'train' once"),
        ({"taskset": "guess", "environment": "tools", "environment_options": {"tools": ["calculator"]}},
         {"environment": 1.0}, "'tools' gives no score of its own"),
        ({"taskset": "wordle", "reward": {}}, {"environment": 1.0}, "gives no score of its own"),
        ({"taskset": "guess", "max_turns": 2}, {"think_format": 0.5}, "think_format, which do nothing"),
    ],
)  # fmt: skip
def test_rewards_that_contradict_the_environment_are_refused(taskset, rewards, said):
    config = config_of(taskset, rewards=rewards)
    with pytest.raises(ConfigError, match=said):
        describe(config, Tasksets(config))


def test_a_config_mixes_them(tmp_path):
    """A run of two steps, and of one with the environment's score alone: parts are logged by name."""
    options = {"too_long": {"limit": 1, "floor": -2.0}}
    mixed = config_of({"taskset": "guess", "highest": 2}, rewards={"environment": 1.0, "too_long": 0.5},
                      reward_options=options, steps=2, max_completion_length=12, name="play")  # fmt: skip
    describe(mixed, Tasksets(mixed))
    resume_or_begin(mixed, tmp_path / "mixed", resume=False)
    with Store.open_reader(tmp_path / "mixed" / "run.db") as store:
        rows = [row for step in (0, 1) for row in store.rollouts("play", step)]
        names = store.metric_names("play")
    assert {"reward/parts/environment", "reward/parts/too_long", "reward/parts/readable"} <= set(names)
    assert len({row.score.reward for row in rows}) > 1
    for row in rows:
        parts = row.score.parts
        assert row.score.reward == pytest.approx(parts["environment"] + 0.5 * parts["too_long"])
        assert parts["environment"] == float(row.score.correct)


def test_what_wraps_an_environment_says_whether_it_scores():
    scored, tools = named_environment("guess", {}), named_environment("tools", {"tools": ["calculator"]})
    assert (scored.scores, tools.scores) == (True, False)
    assert (Ruled(scored).scores, Ruled(tools, 2).scores, Ruled(Told(None)).scores) == (True, False, None)
    assert EachInItsOwn({"a": scored, "b": scored}).scores is True
    assert EachInItsOwn({"a": scored, "b": tools}).scores is None


# ---- what functions see --------------------------------------------------------------------------------------------

OPENING = (Message("system", "look"), Message("user", "it is ask"))


def test_conversational_functions_see_the_turns():
    seen = []

    @reward(conversational=True)
    def notes(prompts, completions, **columns):
        seen.append((prompts, completions))
        return [1.0 for _ in completions]

    rollout, score = played(Told(None, OPENING), notes)
    (prompt,), (completion,) = seen[0]
    assert score.reward == 1.0
    assert prompt == [{"role": "system", "content": "look"}, {"role": "user", "content": "it is ask"}]
    assert completion == [
        {"role": "assistant", "content": "1"}, {"role": "tool", "content": "higher"},
        {"role": "user", "content": "and again"}, {"role": "assistant", "content": "2"},
    ]  # fmt: skip
    assert rollout.finish is Finish.ENVIRONMENT
    # of a task that is answered once nothing has changed
    assert played(Told(None), notes, most=3)[0].text == "1"
    assert seen[1] == ([[{"role": "user", "content": "ask"}]], [[{"role": "assistant", "content": "1"}]])


def test_what_the_model_was_shown_is_stored_and_shown():
    def stored(rollout):
        kept = replace(rollout, spans=tuple(Span.read(row) for row in json.loads(json.dumps(span_rows(rollout.spans)))))
        assert kept == rollout
        return StoredRollout(1, "play", 0, 0, TASK, kept, Score(1.0), None)

    opened = stored(played(Told(None, OPENING))[0])
    assert shown_first(opened) == OPENING
    assert opened.rollout.spans[2].messages == (Message("tool", "higher"), Message("user", "and again"))
    plain = stored(played(Told(None))[0])
    assert (shown_first(plain), plain.rollout.spans[0].messages) == (TASK.prompt, ())
    # tools that the chat template tells of itself: the text that it made
    made = Transcript((1, 2), "look it", ())
    told = replace(plain, rollout=replace(plain.rollout, spans=(*made.spans, *plain.rollout.spans[1:])))
    assert shown_first(told) == (Message("prompt", "look it"),)


def test_functions_that_people_have():
    """As they are written for TRL and verifiers: the turns by number and by role, and texts as before."""
    file = USERS / "turn_rewards.py"
    values = {
        name: played(Told(None), load_reward(f"{file}:{name}"))[1].reward
        for name in ("last_turn", "first_turn", "tool_calls", "verifiers_turns", "whole_text")
    }
    assert values == {
        "last_turn": 2.0, "first_turn": 1.0, "tool_calls": 1.0, "verifiers_turns": 2.0,
        "whole_text": float(len("1 higher and again 2")),
    }  # fmt: skip
