"""Exit codes and messages: one line with the remedy, a traceback only for a fault of maieutic's own."""

from __future__ import annotations

import errno
import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import maieutic
from maieutic import errors
from maieutic.cli import exit_code, main
from maieutic.cli.app import EXAMPLES, VERBS, app
from maieutic.cli.distil import go_on
from maieutic.cli.screen import Screen, error_console
from maieutic.run.interrupt import unkept

HEAVY = ("torch", "transformers", "numpy")


def test_each_kind_of_error_has_its_exit_code(capsys):
    kinds = {
        errors.ConfigError: 2,
        errors.DataError: 3,
        errors.ModelError: 4,
        errors.RewardError: 5,
        errors.NumericalError: 6,
        errors.RunError: 7,
        errors.MissingColumn: 1,
    }
    for kind, code in kinds.items():

        def work(kind=kind):
            raise kind("got [this], expected that")

        assert exit_code(work) == code
        said = capsys.readouterr()
        assert said.err == "error: got [this], expected that\n", "brackets are not colours"
        assert said.out == ""


def test_debug_shows_where_an_error_came_from(capsys, tmp_path):
    assert main(["train", str(tmp_path / "no.toml")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    for words in (["--debug", "train", str(tmp_path / "no.toml")], ["train", str(tmp_path / "no.toml"), "--debug"]):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert "Traceback" in told
        assert "error: no config at" in told


def test_a_full_disk_is_said_in_words(capsys):
    def work():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/run.db")

    assert exit_code(work) == 1
    assert capsys.readouterr().err == "error: runs/x/run.db: No space left on device\n"


def test_a_fault_of_our_own_shows_the_traceback_and_asks_for_a_report(capsys):
    assert exit_code(lambda: 1 // 0) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError" in told
    assert "please report it" in told


def test_ctrl_c_ends_with_130_and_one_line(capsys):
    def work():
        raise KeyboardInterrupt

    assert exit_code(work) == 130
    assert exit_code(lambda: sys.exit(130)) == 130
    assert capsys.readouterr().err == "interrupted; what was saved before stays\n" * 2


def test_ctrl_c_in_an_evaluation_says_that_nothing_of_it_stands(capsys):
    def work():
        with unkept("an evaluation"):
            raise KeyboardInterrupt

    assert exit_code(work) == 130
    told = capsys.readouterr().err
    assert told == "interrupted; an evaluation is whole or not at all: the same command begins it anew\n"


def test_a_distillation_that_was_stopped_goes_on_with_the_settings_that_it_was_begun_with():
    said = go_on(Path("my.toml"), ['collect.rank="reward"', "collect.limit=4"], Path("runs/my own"))
    assert shlex.split(said)[:2] == ["maieutic", "distil"]
    read = get_command(app).commands["distil"].make_context("distil", shlex.split(said)[2:]).params
    assert read["overrides"] == ['collect.rank="reward"', "collect.limit=4"]
    assert (read["config"], read["out"], read["resume"]) == (Path("my.toml"), Path("runs/my own"), True)


def test_usage_errors_end_with_2(command):
    for words in (["trian"], ["train", "--bogus"], ["eval"], ["sample", "model"], ["tasks", "--set"], []):
        said = command(*words)
        assert said.code == 2, words
        assert "Traceback" not in said.err
    assert "Did you mean 'train'?" in command("trian").err


def test_mistakes_in_a_config_are_answered_with_the_nearest_name(command, config, tmp_path):
    empty, broken = tmp_path / "empty.toml", tmp_path / "broken.toml"
    empty.write_text("")
    broken.write_text("name = \n")
    for words, wrong in (
        ([config.parent / "tyny.toml"], f"Did you mean {config}?"),
        ([config, "--set", "stages.0.stps=3"], "unknown key 'stages.0.stps'; did you mean 'steps'?"),
        ([config, "--set", "stages.0.algorithm=grop"], "did you mean 'grpo'?"),
        ([config, "--set", "tasks.test.taskset=arithmetc"], "did you mean 'arithmetic'?"),
        ([empty], "is empty; expected at least [model]"),
        ([broken], "is not TOML"),
        ([tmp_path], "is a folder"),
    ):
        said = command("train", *words)
        assert said.code == 2, words
        assert wrong in said.err
        assert said.err.startswith("error: ")
        assert said.out == ""


def test_a_model_that_is_not_there_is_answered_with_the_nearest(command, config, trained, tmp_path):
    text = config.read_text().splitlines()
    small = next(i for i, line in enumerate(text) if line.startswith("small"))
    text[small] = f'path = "{trained.parent / "rum"}"'
    (tmp_path / "path.toml").write_text("\n".join(text))
    said = command("train", tmp_path / "path.toml", "--run", tmp_path / "run")
    assert said.code == 4
    assert f"did you mean {str(trained)!r}?" in said.err


def test_json_of_a_number_that_is_none_is_null(capsys):
    show = Screen(error_console(), error_console(), False, "-")
    show.write_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": "ü"}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": "ü"}}


def test_the_version_is_said(command):
    assert command("--version").out == f"maieutic {maieutic.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(command, verb):
    said = command(verb, "--help")
    assert said.code == 0
    assert "--json" in said.out
    assert EXAMPLES[verb][0].split(" --")[0] in " ".join(said.out.split())


def test_help_says_what_is_taken_when_nothing_is_given(command):
    shown = " ".join(command("eval", "--help").out.replace("│", " ").split())
    assert "(samples)" in shown
    assert "[default: 8]" in shown
    assert "--max-completion-length" in shown, "no name is cut on a terminal of 80 columns"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["tasks"], ["algorithms", "--help"]])
def test_help_and_lists_import_nothing_heavy(words):
    code = (
        "import sys; from maieutic.cli import main; main(sys.argv[1:]);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_help_comes_at_once():
    """Under 0.6 s of processor time, which unlike time on the wall does not depend on what else the machine does."""

    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "maieutic", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.6


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "maieutic", "tasks", "arithmetic"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    told = process.stderr.read().decode()
    process.wait(timeout=60)
    assert told == ""
