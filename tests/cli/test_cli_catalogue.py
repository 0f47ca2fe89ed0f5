"""`maieutic tasks`, `maieutic algorithms`, and what the shell offers on TAB."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer

from maieutic.algorithms import ALGORITHMS
from maieutic.cli import complete
from maieutic.cli.app import app
from maieutic.cli.reward_label import AFTER
from maieutic.cli.teacher import KEEPS
from maieutic.cli.values import settings
from maieutic.config.reward_training import RewardTrainConfig
from maieutic.errors import ConfigError
from maieutic.likelihood import FORMS
from maieutic.reward_models.labelling import SEARCHES
from maieutic.tasks import TASKSETS
from maieutic.teachers.records import NUMBERS


def test_every_taskset_is_listed_with_its_first_line(command):
    said = command("tasks", "--json", "-")
    assert set(said.json["tasksets"]) == set(TASKSETS)
    assert all(said.json["tasksets"].values())
    assert "arithmetic" in command("tasks").out


def test_a_taskset_shows_options_and_examples(command):
    said = command("tasks", "arithmetic", "--set", "difficulty=1", "--set", "split=test", "--json", "-")
    told = said.json
    assert told["options"]["difficulty"] == {"default": 2, "needed": False, "type": "int"}
    assert "verifier" not in told["options"], "an object; the names it goes by are told apart"
    assert told["by_name"]["verifier"] == {"names": ["strict", "flexible", "latex", "number"], "default": None}
    assert [each["id"] for each in told["examples"]] == [f"arithmetic/1/test/0/{i}" for i in range(3)]
    shown = command("tasks", "arithmetic", "--set", "difficulty=1", "--set", "split=test").out
    assert told["examples"][2]["prompt"][0]["content"] in shown


def test_a_taskset_of_written_answers_says_which_verifier_it_has(command):
    assert command("tasks", "file", "--json", "-").json["by_name"]["verifier"]["default"] == "strict"
    assert "verifier, by name: strict, flexible, latex, number (default: strict)" in command("tasks", "file").out


def test_a_taskset_that_needs_an_option_shows_which(command):
    said = command("tasks", "svamp", "--json", "-")
    assert said.code == 0
    assert said.json["options"]["path"]["needed"]
    assert said.json["examples"] == []
    assert command("tasks", "svamp", "--set", "path=/no/such/file").code == 3


def test_a_misspelt_taskset_is_answered_with_the_nearest(command):
    said = command("tasks", "aritmetic")
    assert said.code == 2
    assert "did you mean 'arithmetic'?" in said.err


def test_options_that_a_config_gives_by_name_are_listed(command):
    said = command("algorithms", "grpo").out
    assert "kl, by name: k1, k2, k3, k3_plus, corrected_k2, corrected_k3" in said
    assert "correction, by name: none, token_truncate" in said
    assert "by name" not in command("algorithms", "sft").out


def test_the_table_of_algorithms_comes_from_the_values(command):
    told = command("algorithms", "--json", "-").json["algorithms"]
    assert set(told) == set(ALGORITHMS)
    assert told["grpo"]["credit"] == "group_normalized()"
    assert told["dapo"]["which rows"] == "informative(skip_truncated=False)"
    shown = command("algorithms").out
    assert all(name in shown for name in ALGORITHMS)
    assert [
        name for name, parts in told.items() if not re.search(r"\d{4}", parts["source"])
    ] == []  # each has its paper
    assert (told["rloo"]["source"], told["reinforce"]["source"]) == ("arXiv 2402.14740", "Williams, 1992")


def test_an_algorithm_shows_its_hyper_parameters(command):
    told = command("algorithms", "dr_grpo", "--json", "-").json
    assert told["hyper_parameters"]["epsilon"]["default"] == 0.2
    assert told["hyper_parameters"]["max_completion_length"]["needed"]
    assert "2503.20783" in command("algorithms", "dr_grpo").out
    said = command("algorithms", "grop")
    assert said.code == 2
    assert "did you mean 'grpo'?" in said.err


def test_settings_are_toml_where_they_parse():
    assert settings(["a=1", "b=x", "c=true", "d.e=[1, 2]", "d.f='y'", "g=", "h=a=b"]) == {
        "a": 1,
        "b": "x",
        "c": True,
        "d": {"e": [1, 2], "f": "y"},
        "g": "",
        "h": "a=b",
    }
    for wrong in (["a"], ["=1"], ["a=1", "a=2"], ["a=1", "a.b=2"]):
        with pytest.raises(ConfigError):
            settings(wrong)


def test_names_are_offered_as_the_tables_have_them():
    # read from the source, because importing the table takes longer than one waits for a TAB
    assert {name for name, _ in complete.algorithm_names()} == set(ALGORITHMS)
    assert [name for name, _ in complete.algorithms("dr")] == ["dr_grpo"]
    assert [name for name, _ in complete.tasksets("arith")] == ["arithmetic"]


def test_runs_and_files_are_offered(tmp_path, trained):
    (tmp_path / "questions.jsonl").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    assert [name for name, _ in complete.tasksets(f"{tmp_path}/")] == [
        f"{tmp_path}/folder/",
        f"{tmp_path}/questions.jsonl",
    ]
    assert [name for name, _ in complete.runs(str(trained)[:-1])] == [f"{trained}/"]
    assert complete.runs("/no/such/folder/x") == []


def test_what_an_evaluation_and_a_judge_learn_from_is_offered(tmp_path):
    for name in ("before.json", "labels.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    assert [Path(name).name for name, _ in complete.evaluations(f"{tmp_path}/")] == ["before.json"]
    assert [Path(name).name for name, _ in complete.judged(f"{tmp_path}/")] == ["before.json", "labels.jsonl"]
    assert complete.among(first="until the first error", halving="")("f") == [("first", "until the first error")]


def verbs(group: typer.core.TyperGroup, before: str = "") -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Every command by its words."""
    for name, made in group.commands.items():
        if isinstance(made, typer.core.TyperGroup):
            yield from verbs(made, f"{name} ")
        else:
            yield before + name, made


def test_every_verb_gives_its_result_as_json_and_words_from_tables_are_completed():
    found = dict(verbs(typer.main.get_command(app)))
    assert {"demo", "reward try", "teacher write", "sandbox check"} <= set(found)
    options = {verb: {option: each for each in made.params for option in each.opts} for verb, made in found.items()}
    assert [verb for verb, known in options.items() if "--json" not in known] == []
    context = typer.Context(found["eval"])
    kinds = set(get_args(RewardTrainConfig.model_fields["kind"].annotation))
    for verb, option, known in (
        ("reward label", "--search", set(SEARCHES)), ("reward label", "--after", set(AFTER)),
        ("teacher write", "--keep", set(KEEPS)), ("teacher record", "--numbers", set(NUMBERS)),
        ("eval", "--form", set(FORMS)), ("reward train", "--kind", kinds), ("search", "--template", {"auto", "plain"}),
    ):  # fmt: skip
        offered = {each.value for each in options[verb][option].shell_complete(context, "")}
        assert offered == known, (verb, option)


def shell(words: str, **environment: str) -> str:
    """What the completion of bash gets for this line."""
    count = str(len(words.split(" ")) - 1)
    told = {"_MAIEUTIC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count, **environment}
    done = subprocess.run(
        [sys.executable, "-m", "maieutic"], capture_output=True, text=True, env={**os.environ, **told}, check=False
    )
    return done.stdout


def test_the_shell_completes_verbs_and_names():
    assert "algorithms" in shell("maieutic al").split()
    assert "dapo" in shell("maieutic algorithms da").split()
    assert "arithmetic" in shell("maieutic tasks ar").split()


def test_the_completion_script_is_printed():
    script = shell("", _MAIEUTIC_COMPLETE="source_bash")
    assert "_MAIEUTIC_COMPLETE=complete_bash" in script
    assert "complete " in script
