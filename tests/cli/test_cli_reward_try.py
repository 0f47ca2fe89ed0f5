"""`maieutic reward try`: what it finds out about rewards, sound and broken, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maieutic.cli import complete
from maieutic.cli.reward import COMMANDS, EXAMPLES

ARITHMETIC = ["arithmetic", "--set", "difficulty=1", "-n", "2"]

REWARDS = '''
import asyncio, itertools, random, signal, time

def right(completion, answer):
    """Whether it ends with the answer."""
    return {"right": float(completion.endswith(answer)), "brief": 0.0}

def contains(completion, answer):
    return float(answer in completion)

def noisy(completion):
    return random.random()

_count = itertools.count()

def first_in_line(completions, **kwargs):
    return [float(i == 0) for i in range(len(completions))]

def fails(completion):
    return 1.0 / len(completion)

def hangs(completion):
    while completion == "":
        time.sleep(0.01)
    return 1.0

def silent(completion):
    return None

def too_few(queries, prompts, labels):
    return [1.0]

def alarmed(completion):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    return float(len(completion))

async def waits(completion):
    await asyncio.sleep(0.01)
    return float(len(completion))

def _hidden(completion):
    return 1.0
'''


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(REWARDS)
    return path


def test_a_sound_reward_is_told_in_full(command, rewards) -> None:
    said = command("reward", "try", f"{rewards}:right", *ARITHMETIC, "--json", "-")
    assert said.code == 0
    made = said.json
    assert (made["family"], made["conversational"], made["broken"]) == ("plain", False, False)
    assert [row["kind"] for row in made["scores"][:5]] == [
        "gold solution", "gold answer", "wrong answer", "empty", "repeated",
    ]  # fmt: skip
    assert [row["reward"] for row in made["scores"]] == [1.0, 1.0, 0.0, 0.0, 1.0] * 2
    assert made["scores"][0]["parts"] == {"right": 1.0, "brief": 0.0}
    assert made["changed"] == {"again": 0, "reversed": 0, "one_by_one": 0}
    assert made["threads"] == ""
    assert made["spread_within_groups"] == pytest.approx([0.24**0.5] * 2)  # three ones and two zeros
    assert 0 < made["seconds"]["median"] <= made["seconds"]["worst"]
    assert "recognised as plain" in said.err
    assert "a repeated text is paid as much as the gold one in 2 of 2 tasks" in said.err


def test_what_a_reward_pays_for_hacks_is_told(command, rewards) -> None:
    sound = command("reward", "try", "answer", *ARITHMETIC, "--json", "-")
    assert sound.json["hacks"] == {}
    assert "known hacks is paid more than an honest wrong answer" in sound.err
    loose = command("reward", "try", f"{rewards}:contains", *ARITHMETIC, "--json", "-")
    assert loose.code == 0
    assert "inside a word" in loose.json["hacks"]
    assert "known hacks are paid more than an honest wrong answer" in loose.err
    left = command("reward", "try", f"{rewards}:contains", *ARITHMETIC, "--no-hacks", "--json", "-")
    assert left.json["hacks"] is None


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("noisy", "not deterministic: 10 completions got another reward when judged again"),
        ("first_in_line", "4 completions got another reward when their group was turned round"),
        ("fails", "2 of 10 completions were not scored: fails: raised: ZeroDivisionError"),
        ("hangs", "1 of 5 completions took too long: hangs: timeout: no result within 1 s"),
        ("silent", "it scored nothing: None for every completion"),
        ("too_few", "it returned 1 scores for 5 completions"),
    ],
)
def test_a_broken_reward_is_named_with_its_remedy(command, rewards, name, verdict) -> None:
    said = command("reward", "try", f"{rewards}:{name}", *ARITHMETIC, "--timeout", 1, "--json", "-")
    assert said.code == 1
    broken = [each for each in said.json["verdicts"] if each["level"] == "broken"]
    assert verdict in broken[0]["said"]
    assert broken[0]["remedy"] or "Remedy" in broken[0]["said"]
    assert said.json["broken"]
    if name == "fails":
        assert "return 1.0 / len(completion)" in said.err  # its traceback


def test_what_is_no_fault_here_is_a_note(command, rewards) -> None:
    said = command("reward", "try", f"{rewards}:alarmed", *ARITHMETIC)
    assert said.code == 0
    assert "not for several threads at once: ValueError: signal only works in main thread" in said.out
    awaited = command("reward", "try", f"{rewards}:waits", *ARITHMETIC)
    assert awaited.code == 0
    assert "one call a completion, awaited" in awaited.out


def test_completions_can_be_given(command, rewards, tmp_path) -> None:
    said = command(
        "reward", "try", f"{rewards}:waits", "arithmetic", "--completion", "abc", "--completion", "", "--json", "-"
    )
    assert [row["reward"] for row in said.json["scores"]] == [3.0, 0.0]
    (tmp_path / "a.txt").write_text("12345")
    said = command("reward", "try", f"{rewards}:waits", "arithmetic", "--file", tmp_path / "a.txt", "--json", "-")
    assert [row["reward"] for row in said.json["scores"]] == [5.0]
    (tmp_path / "a.jsonl").write_text('{"completion": "1"}\n{"text": "12"}\n')
    said = command("reward", "try", f"{rewards}:waits", "arithmetic", "--file", tmp_path / "a.jsonl", "--json", "-")
    assert [row["reward"] for row in said.json["scores"]] == [1.0, 2.0]
    (tmp_path / "a.jsonl").write_text(json.dumps({"answer": "1"}) + "\n")
    said = command("reward", "try", f"{rewards}:waits", "arithmetic", "--file", tmp_path / "a.jsonl")
    assert said.code == 3
    assert "a.jsonl:1: no completion" in said.err


def test_a_model_can_write_them_and_a_named_reward_judge(command, trained) -> None:
    said = command(
        "reward", "try", "soft_overlong", *ARITHMETIC, "--model", trained, "--samples", 3,
        "--max-completion-length", 8, "--option", "cache=4", "--json", "-",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert len(said.json["scores"]) == 6
    assert {row["kind"] for row in said.json["scores"]} == {"sampled"}
    assert said.json["family"] is None


def test_what_cannot_be_is_refused(command, rewards) -> None:
    said = command("reward", "try", f"{rewards}:right", "arithmetic", "--completion", "x", "--model", "y")
    assert (said.code, "got --completion and --model" in said.err) == (2, True)
    said = command("reward", "try", "anwser", "arithmetic")
    assert (said.code, "did you mean 'answer'" in said.err) == (2, True)
    said = command("reward", "try", f"{rewards}:rigth", "arithmetic")
    assert (said.code, "has no 'rigth'; its functions: " in said.err) == (2, True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(command, name) -> None:
    said = command("reward", name, "--help")
    assert said.code == 0
    assert "--json" in said.out
    assert EXAMPLES[name][0].split(" --")[0] in " ".join(said.out.split())


def test_the_shell_offers_rewards(rewards) -> None:
    offered = dict(complete.rewards(f"{rewards}:"))
    assert offered[f"{rewards}:right"] == "Whether it ends with the answer."
    assert f"{rewards}:_hidden" not in offered
    assert "answer" in dict(complete.rewards("ans"))
    assert f"{rewards}" in dict(complete.rewards(f"{rewards.parent}/"))
    assert "http://" in dict(complete.rewards("http"))
    assert "reasoning_gym:" in dict(complete.tasksets("reason"))
