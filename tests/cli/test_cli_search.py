"""`maieutic search` on the tiny run: its table, what is kept, going on after a stop, and what is refused."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

TASK = ("arithmetic", "--set", "difficulty=1", "--max-completion-length", "12", "--threads", "1")


@pytest.fixture(scope="module")
def searched(trained, tmp_path_factory):
    """The folder of a search of six problems by two methods at two budgets, and what `--json` told."""
    from maieutic.cli import main

    out = tmp_path_factory.mktemp("search") / "out"
    told = out.parent / "told.json"
    arguments = ["search", trained, *TASK, "--method", "wait:ignore=#:form=;,greedy", "--budget", "12,24", "--limit", 6]
    assert main([*map(str, arguments), "--out", str(out), "--json", str(told), "-q"]) == 0
    return out, json.loads(told.read_text())


def test_every_method_at_every_budget(searched):
    out, told = searched
    arms = [(row["method"], row["budget"]) for row in told["results"]]
    assert arms == [(m, b) for b in (12, 24) for m in ("vote", "wait:ignore=#:form=;", "greedy")]
    for row in told["results"]:
        assert row["problems"] == 6
        assert 0 < row["cost"]["generated"] <= row["budget"]
        assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"]
        assert (row["against"] is None) == (row["method"] == "vote")
        assert (row["control"] is None) == (not row["method"].startswith("wait"))
    assert set(told["sequential"]) == {"vote"}  # the others wrote as much at 24 as at 12: there is no slope
    names = {f"{m}@{b}.jsonl" for m in ("vote", "greedy", "wait+ignore=+form=+") for b in (12, 24)}
    assert {place.name for place in (out / "found").iterdir()} == names


def test_the_page_is_one_file_with_a_picture(searched):
    out, _ = searched
    page = (out / "search.html").read_text()
    assert "<script" not in page
    assert "http://" not in page
    svg = page[page.index("<svg viewBox", page.index('class="legend"')) :]
    root = ElementTree.fromstring(svg[: svg.index("</svg>") + 6])
    assert root is not None
    for word in ("greedy", "tokens generated a problem", "Sequential scaling", "vote"):
        assert word in page


def written(line: bytes) -> dict:
    """A row without what depends on what the engine had read before."""
    row = json.loads(line)
    return {**row, "cost": {name: row["cost"][name] for name in ("generated", "inserted", "calls")}}


def test_what_was_found_is_not_asked_again_and_a_cut_line_is(searched, command, trained):
    out, told = searched
    [place] = [p for p in (out / "found").iterdir() if p.name.startswith("greedy@12")]
    content = place.read_bytes()
    lines = content.split(b"\n")
    place.write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][:25])  # a kill in the middle of the fourth row
    again = command(
        "search", trained, *TASK, "--method", "greedy", "--budget", "12", "--limit", 6, "--out", out, "--json", "-"
    )
    assert again.code == 0
    assert [written(line) for line in sorted(place.read_bytes().split(b"\n")[:-1])] == [
        written(line) for line in sorted(lines[:-1])
    ]
    [greedy] = [row for row in told["results"] if (row["method"], row["budget"]) == ("greedy", 12)]
    assert again.json["results"][1]["accuracy"] == greedy["accuracy"]
    # vote was complete: not a row was added
    [vote] = [p for p in (out / "found").iterdir() if p.name.startswith("vote@12")]
    assert len(vote.read_bytes().splitlines()) == 6


def test_more_problems_go_on_from_fewer(searched, command, trained):
    out, _ = searched
    said = command("search", trained, *TASK, "--budget", "12", "--limit", 8, "--out", out, "--json", "-")
    assert said.json["results"][0]["problems"] == 8


def test_the_table(searched, command, trained):
    out, _ = searched
    said = command("search", trained, *TASK, "--method", "vote,greedy", "--budget", "12", "--limit", 6, "--out", out)
    assert "right (95 % interval)" in said.out
    assert "page: " in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "votes"], "unknown search 'votes'; did you mean 'vote'?"),
        (["--method", "wait:tims=2"], "did you mean 'times'?"),
        (["--method", "wait:times"], "expected option=value after the colon"),
        (["--method", "wait:times=x"], "got times='x'; expected a whole number"),
        (["--method", "wait:ignore=5"], "got ignore=5; expected a text (a number in quotes)"),
        (["--method", "uct:c=high"], "got c='high'; expected a number"),
        (["--method", "best_of_n:score=1"], "score cannot be said here; --reward-model FOLDER"),
        (["--method", "vote,vote"], "vote is given twice"),
        (["--out", __file__], "that is a file; expected a folder"),
        (["--budget", "many"], "expected numbers of tokens"),
        (["--budget", "0"], "expected numbers of tokens"),
        (["--method", "best_of_n"], "--reward-model FOLDER"),
        (["--method", "wait"], "'Wait' is not in this model's vocabulary"),
    ],
)
def test_refusals(arguments, message, command, trained):
    said = command("search", trained, *TASK, *arguments)
    assert said.code in (2, 4)
    assert message in said.err.replace("\n", " ")


def test_another_search_may_not_go_on_in_its_folder(searched, command, trained):
    out, _ = searched
    said = command("search", trained, *TASK, "--seed", "5", "--out", out, "--limit", 2)
    assert said.code == 2
    assert "'seed': 0" in said.err
    assert "'seed': 5" in said.err
