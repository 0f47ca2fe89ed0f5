"""`maieutic eval --likelihood`."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    """Questions with options, in words that the tiny model knows."""
    path = tmp_path_factory.mktemp("choices") / "choices.jsonl"
    rows = [{"question": f"Ann has {n} apples .", "options": ["3", "4 apples", "5"], "answer": "5"} for n in (3, 4, 5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["multiple_choice", "--set", f"path={path}"]


def test_options_are_chosen_by_their_likelihood(command, trained, choices, tmp_path):
    saved = tmp_path / "before.json"
    said = command("eval", trained, *choices, "--likelihood", "--save", saved, "--json", "-")
    assert said.code == 0, said.err
    told = said.json
    assert set(told["metrics"]) == {"sum", "per_token", "per_byte", "errors"}
    assert told["questions"] == 3
    assert told["settings"]["form"] == "cloze"
    for name in ("sum", "per_byte", "acc_norm"):
        assert name in said.err
    again = command("eval", trained, *choices, "--likelihood", "--against", saved, "--json", "-")
    assert again.code == 0, again.err
    assert again.json["difference"]["greedy"]["value"] == 0.0
    assert again.json["metrics"] == told["metrics"]


def test_what_cannot_be_is_refused(command, trained, choices):
    for words, code, why in (
        ([*choices, "--likelihood", "--samples", 3], 2, "got --samples with --likelihood"),
        ([*choices, "--likelihood", "--form", "close"], 2, "cloze"),
        ([*choices, "--form", "letters"], 2, "--form without --likelihood"),
        (["arithmetic", "--likelihood"], 3, "use the tasksets ai2_arc or multiple_choice"),
    ):
        said = command("eval", trained, *words)
        assert said.code == code
        assert why in " ".join(said.err.split())
