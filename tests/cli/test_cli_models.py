"""`maieutic eval` and `maieutic sample`."""

from __future__ import annotations

import json
import shutil

import pytest

from maieutic.cli.models import load
from maieutic.cli.sample import pieces_of
from maieutic.evaluate import Evaluation
from maieutic.protocols import Completion
from maieutic.types import Finish, Message

FAST = ["--max-completion-length", "8", "--set", "difficulty=1"]


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """Three tasks in a file, in words that the tiny model knows."""
    path = tmp_path_factory.mktemp("tasks") / "questions.jsonl"
    rows = [{"prompt": f"Ann has {n} apples . how many apples now ?", "answer": str(n)} for n in (3, 4, 5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_evaluation_has_metrics_with_intervals(command, trained):
    said = command("eval", trained, "arithmetic", "--limit", 6, "--samples", 4, "--k", 2, *FAST, "--json", "-")
    assert said.code == 0
    told = said.json
    assert {"greedy", "pass@1", "pass@2", "vote@2", "strict@2", "length"} <= set(told["metrics"])
    assert told["problems"] == 6
    assert told["settings"]["taskset"] == "arithmetic/1/test/0", "the split is test unless it is set"
    assert 0 <= told["metrics"]["pass@2"]["low"] <= told["metrics"]["pass@2"]["high"] <= 1
    assert "pass@2" in said.err, "what people read goes to stderr when stdout carries the JSON"


def test_a_model_is_asked_with_the_template_it_was_trained_with(trained, tmp_path):
    shutil.copytree(trained / "start", tmp_path / "run" / "start")
    shutil.copytree(trained / "start", tmp_path / "elsewhere")
    told = (trained / "config.toml").read_text()
    assert 'template = "auto"' in told
    (tmp_path / "run" / "config.toml").write_text(told.replace('template = "auto"', 'template = "plain"'))
    (tmp_path / "run" / "checkpoints").mkdir()
    words = [Message("user", "Ann has 3 apples .")]

    def asked(folder, **settings):
        return load(str(folder), device="cpu", threads=None, **settings).chat.prompt(words)

    # the template of small models ends a prompt with <sep>; plain ones have words alone
    plain, formatted = asked(tmp_path / "run" / "start"), asked(tmp_path / "elsewhere")
    assert formatted[:-1] == plain
    assert len(formatted) == len(plain) + 1
    assert asked(tmp_path / "run" / "start", template="auto") == formatted
    assert asked(tmp_path / "elsewhere", template="plain") == plain


def test_a_split_that_is_set_is_taken(command, trained):
    said = command("eval", trained, "arithmetic", "--limit", 2, "--samples", 1, *FAST, "--set", "split=train")
    assert "arithmetic/1/train/0: 2 problems" in said.out


def test_an_evaluation_is_compared_with_a_saved_one(command, trained, tmp_path):
    saved = tmp_path / "before.json"
    how = ["arithmetic", "--limit", 5, "--samples", 2, *FAST]
    assert command("eval", trained, *how, "--save", saved).code == 0
    kept = Evaluation.from_json(saved.read_text())
    assert len(kept.problems) == 5
    assert kept.settings["max_tokens"] == 8

    said = command("eval", trained, *how, "--against", saved, "--json", "-")
    assert said.code == 0
    # the same model with the same seed: no problem differs
    assert said.json["difference"]["pass@1"]["value"] == 0
    assert said.json["difference"]["greedy"]["p_value"] == 1

    other = command("eval", trained, "arithmetic", "--limit", 4, "--samples", 2, *FAST, "--against", saved)
    assert other.code == 3
    assert "same problems" in other.err


def test_an_evaluation_is_compared_with_another_model(command, trained):
    how = ["arithmetic", "--limit", 4, "--samples", 3, *FAST, "--no-greedy"]
    said = command("eval", trained, *how, "--against", trained / "start")
    assert said.code == 0
    assert "on the same problems" in said.out
    assert "greedy" not in said.out
    assert f"evaluate {trained / 'start'}" in said.err


def test_what_to_compare_with_is_looked_for_first(command, trained, tmp_path):
    how = ["arithmetic", "--limit", 4, *FAST]
    said = command("eval", trained, *how, "--against", trained / "strat")
    assert said.code == 4
    assert f"did you mean {str(trained / 'start')!r}?" in said.err
    assert "problems" not in said.out
    (tmp_path / "other.json").write_text("{}")
    said = command("eval", trained, *how, "--against", tmp_path / "other.json")
    assert said.code == 3
    assert "--save" in said.err


def test_a_file_of_tasks_is_evaluated(command, trained, questions):
    said = command("eval", trained, questions, "--samples", 2, "--max-completion-length", 8, "--json", "-")
    assert said.code == 0
    assert said.json["problems"] == 3


def test_a_bad_row_is_named_by_file_and_line(command, trained, questions, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(questions.read_text() + '{"prompt": "no answer here"}\n')
    said = command("eval", trained, bad)
    assert said.code == 3
    assert f"{bad}:4" in said.err


def test_a_missing_model_is_answered_with_the_nearest_folder(command, trained):
    said = command("eval", trained.parent / "rum", "arithmetic")
    assert said.code == 4
    assert f"did you mean {str(trained)!r}?" in said.err


def test_settings_that_make_no_sense_are_refused(command, trained, tmp_path):
    for words, wrong in (
        (["--samples", 2, "--k", 3], "--samples 3"),
        (["--samples", 0, "--no-greedy"], "at least one of the two"),
        (["--set", "difficult=3"], "did you mean 'difficulty'?"),
        (["--set", "difficulty"], "expected option=value"),
        (["--set", "seed=1", "--set", "seed=2"], "given twice"),
        (["--json", tmp_path / "no" / "where.json"], "there is no folder"),
        (["--save", tmp_path], "that is a folder"),
    ):
        said = command("eval", trained, "arithmetic", *words)
        assert said.code == 2, words
        assert wrong in said.err


def test_samples_show_prompt_completion_and_verdict(command, trained):
    said = command("sample", trained, "arithmetic", "--n", 2, "--index", 3, "--samples", 2, *FAST, "--json", "-")
    first, second = said.json["tasks"]
    assert (first["id"], second["id"]) == ("arithmetic/1/test/0/3", "arithmetic/1/test/0/4")
    assert first["prompt"][0]["role"] == "user"
    written = first["completions"]
    assert len(written) == 2
    assert all(each["text"] == "".join(piece["text"] for piece in each["pieces"]) for each in written)
    assert {"correct", "answer", "why", "finish", "tokens"} <= set(written[0])

    shown = command("sample", trained, "arithmetic", "--n", 1, "--index", 3, *FAST).out
    assert first["prompt"][0]["content"] in shown
    assert "right" in shown or "wrong" in shown


def test_a_completion_leaves_half_of_the_context_to_the_prompt_unless_told(command, trained):
    # the tiny model reads 128 tokens
    plain = ["eval", trained, "arithmetic", "--limit", 2, "--samples", 1, "--set", "difficulty=1", "--json", "-"]
    assert command(*plain).json["settings"]["max_tokens"] == 64
    assert command(*plain, "--max-completion-length", 80).json["settings"]["max_tokens"] == 80


def test_random_samples_depend_on_the_seed_only(command, trained):
    def ids(seed):
        said = command("sample", trained, "arithmetic", "--random", "--seed", seed, *FAST, "--json", "-")
        return [each["id"] for each in said.json["tasks"]]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
    assert command("sample", trained, "arithmetic", "--random", "--index", 3).code == 2
    assert command("sample", trained, "arithmetic", "--index", 10**6).code == 2


def test_pieces_say_who_wrote_what(trained):
    chat = load(str(trained / "start"), device="cpu", threads=None).chat
    tokens = chat.encode("3 + 4 = 7 ; # 7")
    # the model writes "3 + 4 =", the tool "7", the model the rest
    mask = tuple(i != 4 for i in range(len(tokens)))
    pieces = pieces_of(chat, Completion(tokens, mask, (0.0,) * len(tokens), Finish.STOP))
    assert [(piece.role, piece.text.strip()) for piece in pieces] == [
        ("assistant", "3 + 4 ="),
        ("tool", "7"),
        ("assistant", "; # 7"),
    ]
    assert "".join(piece.text for piece in pieces) == "3 + 4 = 7 ; # 7"
