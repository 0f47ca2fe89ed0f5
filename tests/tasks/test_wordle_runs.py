"""`maieutic train` on Wordle, from a config: imitation of games, practice of games, practice of snapshots."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from benchmarks import wordle as study
from maieutic.backends.toy import ScriptedSampler
from maieutic.cli import main
from maieutic.config import parse_config
from maieutic.errors import DataError
from maieutic.loops import run_async
from maieutic.models.causal import load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.play import Player
from maieutic.rewards.wordle import WORDLE
from maieutic.run.build import describe
from maieutic.run.rewards import make_reward
from maieutic.run.store import Store
from maieutic.run.tasksets import Tasksets
from maieutic.sources import Recorded
from maieutic.tasks.wordle import wordle, wordle_vocabulary
from maieutic.types import Finish
from maieutic.wordle import word_list

GAME = {"taskset": "wordle", "words": 20, "layout": "letters", "held_out": 30}


def test_games_and_snapshots_train_from_a_config(tmp_path, capsys):
    step = {"steps": 2, "prompts": 2, "max_completion_length": 96}
    sampled = {"algorithm": "grpo", "num_generations": 2, **step}
    small = {"width": 16, "context": 128, "extra_words": wordle_vocabulary(word_list(20, held_out=30), "letters")}
    config = {
        "name": "wordle",
        "threads": 1,
        "model": {"small": small},
        "tasks": {
            "shown": {**GAME, "demonstrations": 0.4, "size": 20},
            "played": {**GAME, "max_turn_length": 8, "reward": {"win": 1.0, "early": 0.5}},
            "snapshots": {**GAME, "kind": "snapshots", "size": 20},
        },
        "stages": [
            {"name": "imitate", "algorithm": "sft", "tasks": "shown", **{**step, "steps": 12}},
            {"name": "play", "tasks": "played", **sampled},
            {"name": "guess", "tasks": "snapshots", **sampled, "max_completion_length": 8,
             "rewards": {"wordle:format": 1.0, "wordle:guess_value": 1.0, "wordle:binary": 1.0}},
        ],
    }  # fmt: skip
    config["stages"][0].pop("max_completion_length")
    config["stages"][0]["optimiser"] = {"learning_rate": 0.01}
    (tmp_path / "w.toml").write_text(tomli_w.dumps(config))
    assert main(["train", str(tmp_path / "w.toml"), "--run", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    with Store.open_reader(tmp_path / "run" / "run.db") as store:
        played, guessed = (store.rollouts(stage) for stage in ("play", "guess"))
        for each in played:
            assert each.score.reward is None or "win" in each.score.parts
            assert each.rollout.finish in (Finish.ENVIRONMENT, Finish.LENGTH)
        assert {"wordle:format", "wordle:guess_value", "wordle:binary"} <= set(guessed[0].score.parts)


def test_a_demonstrated_game_is_learned_as_it_is_played(tmp_path):
    vocabulary = wordle_vocabulary(word_list(20, held_out=30), "letters")
    folder = build_small(tmp_path / "m", SmallModel(width=16, context=128), vocabulary=vocabulary)
    chat = load_causal(folder).chat
    tasks = wordle(words=20, layout="letters", held_out=30)
    (group,) = Recorded(tasks, chat, batch=1).next()
    (shown,) = group.rollouts
    turns = [text for _, text in group.task.meta["demonstrated_turns"]]

    def script(tokens, sibling):
        return chat.completion(turns[2 * tokens.count(chat.end_id)])

    table = Player(ScriptedSampler(script), chat, WORDLE["wordle:binary"](), tasks.environment, 96)
    (played,) = run_async(table.group(group.task, 1, 0)).rollouts
    assert (shown.tokens, shown.mask, shown.spans) == (played.tokens, played.mask, played.spans)
    assert shown.completion_length == 6 * len(turns[::2])  # five letters and the end of each turn
    assert any(span.role == "environment" for span in shown.spans)
    broken = replace(group.task, meta={**group.task.meta, "demonstrated_turns": [("user", "C R A N E")]})
    with pytest.raises(DataError, match="expected pairs"):
        Recorded([broken], chat, batch=1).next()


PAGE = (Path(__file__).parents[2] / "docs" / "wordle.md").read_text()


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", PAGE, re.S))
def test_the_configs_of_the_page_are_ones(text):
    config = parse_config(tomllib.loads(text))
    tasksets = Tasksets(config)
    for name in config.tasks:
        assert len(tasksets[name])
    assert "grpo" in describe(config, tasksets)
    make_reward(config.stages[0], tasksets[config.stages[0].tasks])


def test_the_page_names_every_reward():
    assert all(f"`{name}`" in PAGE for name in WORDLE)
    assert f"{len(word_list().all):,} common words" in PAGE


def test_the_table_of_the_study():
    """Two secrets, two seeds: 1 of 2 won before, 2 of 2 after; by sampling, 1 of 4 games before and 3 of 4 after."""

    def games(greedy, sampled):
        def parts(won):
            return {"win": float(won), "valid_word": 1.0}

        rows = zip(("CRANE", "CRATE"), greedy, sampled)
        return [{"secret": s, "greedy": [parts(g)], "sampled": [parts(w) for w in ws]} for s, g, ws in rows]

    few, many = ((0, 1), (0, 0)), ((1, 0), (1, 1))
    seed = {
        "start": {"test": games((0, 1), few), "train": games((0, 0), few)},
        "practice": {"test": games((1, 1), many), "train": games((1, 0), ((1, 1), (1, 1)))},
        "curve": [(0, 0.5)],
        "seconds": [1.0, 2.0],
    }
    found = study.found_in([seed, seed], study.QUICK)
    assert found["gains"]["test, greedy"]["secrets"]["value"] == 0.5
    assert found["gains"]["test, sampled"]["secrets"]["value"] == 0.5
    assert found["gaps"] == {"start": [0.0, 0.0], "practice": [0.25, 0.25]}
    assert found["seeds"][0]["start test, sampled"]["win_rate"]["value"] == 0.25
    assert found["scripted"]["careful"] > found["scripted"]["guessing"]
    assert "+50.0" in study.table(found)
    assert "| seed 3, practice test, greedy | 100.0 %" in study.table(found)
