"""Environments of other libraries, unmodified, in the files that their users would write (foreign/)."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest

from maieutic.backends.scripted import ScriptedTexts
from maieutic.config import Config
from maieutic.environments.adapt import adapted
from maieutic.environments.foreign import Dice, acted
from maieutic.errors import ConfigError, UnknownName
from maieutic.own_environment import load_environment
from maieutic.play import Player
from maieutic.rewards.adapt_rubric import rubric_reads
from maieutic.run.played import named_environment
from maieutic.run.tasksets import Tasksets
from maieutic.tasks import episodes
from maieutic.types import Finish, Message, Score, Task

FOREIGN = Path(__file__).parent / "foreign"
TASKS = episodes(size=8)


def foreign(name: str, **options):
    return load_environment(str(FOREIGN / name), options)


async def unasked(_task, _rollouts):
    raise AssertionError("the environment has a score of its own")


async def by_length(_task, rollouts):
    return [Score(float(len(rollout.text))) for rollout in rollouts]


def play(environment, *turns: str, task: Task = TASKS[0], reward=unasked, most: int = 5000, siblings: int = 1):
    """An episode in which the model says these turns: its rollout, its score, and what was said after each turn."""

    def script(text: str, _sibling: int) -> str:
        return turns[min(len(chat.asked) - 1, len(turns) - 1)]

    chat = ScriptedTexts(script)
    player = Player(chat, chat, reward, environment, max_completion_length=most)
    group = asyncio.run(player.group(task, siblings, 0))
    rollout = group.rollouts[0]
    for span in rollout.spans:
        assert set(rollout.mask[span.start : span.stop]) <= {span.role == "assistant"}
    heard = [span.text for span in rollout.spans if span.role == "environment"]
    return SimpleNamespace(
        rollout=rollout, score=group.scores[0], heard=heard, opening=chat.asked[0][0] if chat.asked else "", group=group
    )


# ---- Gymnasium -----------------------------------------------------------------------------------------------------


def test_a_text_world_of_gymnasium():
    pytest.importorskip("gymnasium")
    world = foreign("gymnasium_worlds.py:Corridor", make={"rooms": 5}, actions=["west", "east"])
    played = play(world, "I go <action>East</action>", "sideways", "east", "west and east", "east", "east")
    place = int(played.opening.split()[4])
    assert played.opening == f"You are in room {place} of 5. The treasure is in room 4.\n"
    assert played.heard[0] == (f"You are in room {place + 1} of 5. The treasure is in room 4.")
    assert played.heard[1] == "That is no action: expected one of west, east."
    assert played.rollout.finish is Finish.ENVIRONMENT
    steps = 4 - place
    assert played.score.reward == pytest.approx(1.0 - 0.1 * (steps - 1))
    assert played.score.correct
    assert played.score.parts["invalid_actions"] == (2.0 if steps > 2 else 1.0)


def test_a_task_is_the_same_game_whoever_plays_it_when():
    pytest.importorskip("gymnasium")
    world = foreign("gymnasium_worlds.py:Corridor", make={"rooms": 50})
    games = [play(world, "1", task=task, most=100).opening for task in (*TASKS, *episodes(size=8, split="test"))]
    assert len(set(games)) > 8
    assert games == [play(world, "0", task=t, most=100).opening for t in (*TASKS, *episodes(size=8, split="test"))]


def test_each_turn_can_be_paid():
    pytest.importorskip("gymnasium")
    task = Task("t", (Message("user", "Find it."),), None, {"seed": 5})
    world = foreign("gymnasium_worlds.py:short_corridor", actions=["west", "east"], pay="turns")
    played = play(world, "west", "hm", "east", "east", task=task)
    assert played.opening == "Find it.\n\nYou are in room 1 of 3. The treasure is in room 2.\n"
    assert [reward for _, reward in played.score.step_rewards] == [-0.1, 0.0, -0.1, 1.0]
    assert all(played.rollout.mask[at] for at, _ in played.score.step_rewards)
    assert (played.score.reward, played.score.correct) == (0.0, True)
    assert played.score.parts["return"] == pytest.approx(0.8)


def test_texts_as_actions_and_observations_in_parts():
    pytest.importorskip("gymnasium")
    played = play(foreign("gymnasium_worlds.py:Riddle"), "A LOCK?", "a door", "a piano")
    assert played.opening == "riddle: What has keys and opens no door?\nhint: none\n"
    assert "expected text of 1 to 20 known characters" in played.heard[0]
    assert played.heard[1].endswith("hint: it makes music")
    assert (played.score.reward, played.score.correct) == (1.0, True)
    assert play(foreign("gymnasium_worlds.py:Riddle", max_turns=1), "a door").score.correct is False


def test_observations_in_ones_own_words():
    pytest.importorskip("gymnasium")
    world = foreign("gymnasium_worlds.py:Corridor", observe=str(FOREIGN / "gymnasium_worlds.py:in_short"))
    assert play(world, "0", most=60).opening.endswith(" of 4\n")


def test_a_world_by_its_id_is_drawn_in_text():
    pytest.importorskip("gymnasium")
    options = {"make": {"is_slippery": False}, "actions": ["left", "down", "right", "up"]}
    lake = named_environment("gymnasium:FrozenLake-v1", options)
    played = play(lake, "down", "down", "right", "right", "down", "right")
    assert played.opening.strip() == "[S]FFF\nFHFH\nFFFH\nHFFG"
    assert played.heard[0].splitlines()[1:] == ["SFFF", "[F]HFH", "FFFH", "HFFG"]
    assert (played.score.reward, played.score.correct) == (1.0, True)
    fallen = play(lake, "right", "down")
    assert (fallen.rollout.finish, fallen.score.reward, fallen.score.correct) == (Finish.ENVIRONMENT, 0.0, False)


# ---- TextArena -----------------------------------------------------------------------------------------------------


def test_a_game_for_one_is_seeded_and_says_only_what_is_new():
    pytest.importorskip("textarena")
    game = named_environment("textarena:GuessTheNumber-v0", {"max_turns": 12})
    first, second = (
        play(game, *(f"I say [{n}]" for n in (5, 10, 12, 11, 7, 8, 9, 6, 1, 2, 3, 4))),
        play(game, "[5]"),
    )
    assert first.opening.count("You have to guess the number") == 1
    assert first.heard[0] == second.heard[0]
    assert first.heard[0] in ("[GAME] The target number is higher.", "[GAME] The target number is lower.")
    assert not any("You have to guess" in each for each in first.heard)
    assert first.score.parts["finished"] == 1.0


def test_a_game_that_was_not_finished_has_not_been_won():
    pytest.importorskip("textarena")
    game = named_environment("textarena:TicTacToe-v0", {"opponent": ["[0]", "[1]"], "max_turns": 1})
    played = play(game, "[4]")
    assert (played.score.reward, played.score.correct) == (-1.0, False)
    assert "the game was not over" in played.score.note


def test_a_game_against_a_scripted_opponent():
    pytest.importorskip("textarena")
    options = {"opponent": ["[0]", "[1]", "[2]"]}
    won = play(named_environment("textarena:TicTacToe-v0", options), "[4]", "[3]", "[5]")
    assert (won.score.reward, won.score.correct, won.score.parts["invalid_move"]) == (1.0, True, 0.0)
    assert won.score.note == "Player 0 has won!"
    lost = play(named_environment("textarena:TicTacToe-v0", {**options, "player": 1}), "[4]", "[3]")
    assert "[Player 0] [0]" in lost.opening  # the other one began
    assert (lost.score.reward, lost.score.correct) == (-1.0, False)
    silly = play(named_environment("textarena:TicTacToe-v0", options), "no", "no")
    assert (silly.score.reward, silly.score.parts["invalid_move"]) == (-1.0, 1.0)


def test_a_users_own_game_and_opponent():
    pytest.importorskip("textarena")
    cautious = str(FOREIGN / "textarena_games.py:cautious")
    played = play(foreign("textarena_games.py:HighestCard", opponent=cautious), "[2]", "[3]")
    assert played.opening.startswith("[GAME] You are Player 0. Bid up to")
    assert played.heard == ["[GAME] Player 0 takes the round."]
    assert played.score.correct
    each = foreign("textarena_games.py:HighestCard", opponent=cautious, player="each")
    assert {play(each, "[2]", task=task).opening[15:23] for task in TASKS} == {"Player 0", "Player 1"}


def test_chance_of_an_episode_is_its_own():
    """Two episodes that take turns draw what each would have drawn alone, and nobody else notices."""

    def draws(*dice: Dice) -> list[tuple[float, float]]:
        found = []
        for each in dice:
            with each.thrown():
                found.append((random.random(), float(numpy.random.random())))
        return found

    before = random.getstate(), numpy.random.get_state()[1].tolist()
    one, other = Dice(1), Dice(2)
    together = draws(one, other, one, other)
    again = Dice(1)
    assert together[::2] == draws(again, again)
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == before


# ---- TRL -----------------------------------------------------------------------------------------------------------


def tool(name: str, arguments: str) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def test_a_class_for_trl_brings_tools_and_its_reward():
    task = Task("t", (Message("user", "Count up."),), "5")
    for name in ("CounterEnv", "make_counter"):
        counter = foreign(f"trl_factories.py:{name}")
        right = play(counter, tool("increment", '{"step": 2}'), tool("increment", '{"step": "3"}'), "done", task=task)
        assert right.heard == ["2", "5"]
        assert (right.score.reward, right.score.correct) == (1.0, True)
        assert "Count up. The target is 5." in right.opening
        assert "- increment(step: integer): Increment the internal counter." in right.opening
        wrong = play(counter, tool("_hidden", "{}"), tool("get_reward", "{}"), "done", task=task)
        assert all("there is no tool" in each for each in wrong.heard)
        assert (wrong.score.reward, wrong.score.correct, wrong.score.parts["failed_tool_calls"]) == (-0.5, False, 2.0)


def test_a_class_for_trl_without_a_reward_is_judged_by_the_runs():
    task = Task("t", (Message("user", "Who wrote Emma?"),), "Austen", {"level": 3, "split": "train"})
    shelf = foreign("trl_factories.py:Library")
    played = play(shelf, tool("lookup", '{"title": "Emma"}'), "Austen", task=task, reward=by_length)
    assert played.heard == ['{"author": "Austen", "level": 3, "asked": "Who wrote Emma?"}']
    assert played.score.reward == 6.0
    failed = play(shelf, tool("lookup", '{"title": "Ulysses"}'), "?", task=task, reward=by_length)
    assert failed.heard == ["error: KeyError: 'Ulysses'"]


# ---- verifiers -----------------------------------------------------------------------------------------------------


def test_a_game_of_verifiers_runs_its_own_loop():
    pytest.importorskip("datasets")
    game = foreign("verifiers_games.py:load_environment", make={"max_turns": 4})
    assert game.max_turns == 4
    played = play(game, "5", "9", "7")
    assert played.opening == "Guess my number from 1 to 9.\n"
    assert played.heard == ["higher", "lower"]
    assert played.score.note == "Right!"
    assert played.rollout.finish is Finish.ENVIRONMENT
    assert played.score.reward == pytest.approx(1 + 0.5 / 3)
    assert (played.score.parts["solved"], played.score.correct) == (1.0, True)
    second = play(game, "3", task=TASKS[1])  # the next row of its data set
    assert second.score.parts["solved"] == 1.0
    slow = play(game, "1", "2", "4", "5")
    assert (len(slow.heard), slow.score.correct) == (3, False)


def test_an_episode_that_is_cut_is_judged_as_far_as_it_came():
    pytest.importorskip("datasets")
    played = play(foreign("verifiers_games.py:load_environment"), "5", "5" * 100, most=40)
    assert played.rollout.finish is Finish.LENGTH
    assert (played.score.reward, played.score.correct) == (0.5, False)


def test_one_turn_of_verifiers_and_tasks_of_ones_own():
    pytest.importorskip("datasets")
    sums = foreign("verifiers_games.py:load_sums")
    assert play(sums, "4", task=TASKS[2]).score.reward == 1.0
    mine = Task("t", (Message("user", "What is 20 + 22?"),), "42")
    played = play(sums, "It is 42.", task=mine)
    assert (played.opening, played.score.correct) == ("What is 20 + 22?\n", True)


def test_what_fails_in_verifiers_fails_the_episode():
    pytest.importorskip("datasets")
    failed = play(foreign("verifiers_games.py:load_environment"), "x")
    assert failed.rollout.finish is Finish.ERROR
    assert "what is x?" in failed.rollout.note
    assert failed.score.reward is None
    with pytest.raises(ConfigError, match="longest of its rubric judge a whole group"):
        foreign("verifiers_games.py:load_compared")


class Old:
    """As verifiers 0.1.5 has it: the rollout takes columns and returns a conversation and a state."""

    max_turns = -1

    def __init__(self):
        def sure(completion, answer, state):
            return float(completion[-1]["content"] == answer and state["checked"])

        self.rubric = SimpleNamespace(reward_funcs=[sure], reward_weights=[1.0])

    async def get_model_response(self, client, model, prompt, **kwargs):
        raise AssertionError("a server would be asked")

    async def rollout(self, client, model, prompt, answer="", task="default", info=None, sampling_args=None, **kwargs):
        state = {"prompt": prompt, "completion": [], "answer": answer, "task": task, "info": info, "checked": False}
        said = list(prompt)
        for turn in range(2):
            response = await self.get_model_response(client, model, said, sampling_args=sampling_args)
            said = [*said, {"role": "assistant", "content": response.choices[0].message.content}]
            if turn == 0:
                said = [*said, {"role": "user", "content": "Are you sure?"}]
                state["checked"] = True
        return said[len(prompt) :], state


def test_the_old_interface_of_verifiers():
    pytest.importorskip("datasets")
    foreign("verifiers_games.py:load_sums")  # whichever verifiers there is, is there now
    environment = adapted(Old(), "old.py:Old", {}, rubric_reads)
    played = play(environment, "5", "4", task=Task("t", (Message("user", "2 + 2?"),), "4"))
    assert (played.heard, played.score.reward) == (["Are you sure?"], 1.0)


class Rewriting(Old):
    async def rollout(self, client, model, prompt, answer="", task="default", info=None, sampling_args=None, **kwargs):
        for text in ("first", "second"):
            await self.get_model_response(client, model, [{"role": "user", "content": text}])
        return [], {}


def test_one_that_rewrites_what_was_said_is_refused():
    environment = adapted(Rewriting(), "old.py:Rewriting", {}, rubric_reads)
    failed = play(environment, "5", task=Task("t", (Message("user", "2 + 2?"),), "4"))
    assert failed.rollout.finish is Finish.ERROR
    assert "it rewrites what was said before" in failed.rollout.note


# ---- by name and by shape ------------------------------------------------------------------------------------------


def test_what_a_turn_does():
    assert acted("<think>left</think> I go <action> up </action>, or <move>down</move>.") == "down"
    assert acted("<think>left</think>\nright ") == "right"


def test_what_there_is_not():
    with pytest.raises(UnknownName, match=r"did you mean 'tools'\?.* gymnasium:ID"):
        named_environment("tolls", {})
    for name in ("textarena", "gymnasium"):
        if importlib.util.find_spec(name) is not None:
            with pytest.raises(ConfigError, match=f"environment '{name}:Nothing-v0'"):
                named_environment(f"{name}:Nothing-v0", {})
    with pytest.raises(ConfigError, match="has no option 'oponent'; did you mean 'opponent'"):
        named_environment("textarena:TicTacToe-v0", {"oponent": []})
    with pytest.raises(ConfigError, match="players = 2 without an opponent"):
        named_environment("textarena:TicTacToe-v0", {"players": 2})
    with pytest.raises(ConfigError, match="got pay = 'all'; expected"):
        foreign("gymnasium_worlds.py:Corridor", pay="all")


def test_tools_in_a_config(tmp_path):
    (tmp_path / "sums.jsonl").write_text('{"prompt": "3 * 4 ?", "answer": "12"}\n')
    table = {
        "taskset": "file",
        "path": str(tmp_path / "sums.jsonl"),
        "environment": "tools",
        "environment_options": {"tools": ["calculator"], "describe": False},
        "max_turns": 3,
    }
    config = Config.model_validate(
        {"model": {"small": {}}, "tasks": {"train": table}, "stages": [{"algorithm": "grpo", "steps": 1}]}
    )
    tasks = Tasksets(config)["train"]
    played = play(tasks.environment, "```calculator\n3 * 4\n```", "12", task=tasks[0], reward=by_length)
    assert (played.opening, played.heard, played.rollout.text) == ("3 * 4 ?\n", ["12"], "12")
    assert tasks.environment.max_turns == 3
    with pytest.raises(ConfigError, match="expected a list"):
        named_environment("tools", {"tools": "calculator"})
