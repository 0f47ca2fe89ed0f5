"""README.md: its programs run; and of every page the links lead somewhere and the commands are ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from maieutic import reward
from maieutic.algorithms import ALGORITHMS, grpo
from maieutic.cli.app import app
from maieutic.core import credit, losses, select, update, weights
from maieutic.core.parts import Algorithm
from maieutic.models.small import SmallModel, build_small
from maieutic.tasks import arithmetic_vocabulary

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LOOP, OWN_REWARD, VALUE = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_loop_runs(tmp_path, capsys):
    """On word problems and a model from scratch, and shorter."""
    folder = build_small(
        tmp_path / "model", SmallModel(layers=1, width=16, heads=2, kv_heads=1), vocabulary=arithmetic_vocabulary(1)
    )
    code = LOOP.replace("import LocalBackend, ", "import LocalBackend, arithmetic, ")
    for pattern, shorter in (
        (r"gsm8k\(\n.*?\n\)", "arithmetic(difficulty=1)"), ("Qwen/[^\"]*", str(folder)), ("steps=100", "steps=2"),
        ("prompts=16, num_generations=8", "prompts=2, num_generations=2"),
        ("max_completion_length=256", "max_completion_length=6"),
    ):  # fmt: skip
        code, times = re.subn(pattern, shorter, code, flags=re.S)
        assert times == 1, pattern
    exec(code, {})
    assert re.findall(r"^(\d+) \d\.\d+$", capsys.readouterr().out, re.M) == ["0", "1"]


def test_a_reward_is_a_function():
    made: dict[str, Any] = {}
    exec(OWN_REWARD, made)
    assert type(made["short"]) is type(reward(lambda completion: 1.0))


def test_an_algorithm_is_the_value_that_it_shows():
    parts = {name: each for module in (select, credit, losses, weights, update) for name, each in vars(module).items()}
    shown = eval(VALUE.splitlines()[0], {**parts, "Algorithm": Algorithm})
    whole = grpo(beta=0.0)
    assert shown.name == whole.name
    assert shown.needs == whole.needs
    assert shown.name in ALGORITHMS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def commands(text: str) -> list[list[str]]:
    """The words of every `maieutic …` line of the blocks; what follows two spaces or a # says what it does."""
    found = []
    for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("maieutic "):
                words = re.sub(r"(?<=\S) {2,}(?!-).*| # .*| · .*", "", line)
                found.append(shlex.split(re.sub(r" +", " ", words))[1:])
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page.read_text())], ids=lambda page: page.name)
def test_commands_are_ones(page):
    """Their verbs are there, and each has the options that the page gives it."""
    group = typer.main.get_command(app)
    for words in commands(page.read_text()):
        verb, given = group.commands[words[0]], words[1:]
        if hasattr(verb, "commands"):
            verb, given = verb.commands[given[0]], given[1:]
        known = {option for each in verb.params for option in (*each.opts, *each.secondary_opts)}
        assert {word.partition("=")[0] for word in given if re.match(r"--?[a-z]", word)} <= known, words
