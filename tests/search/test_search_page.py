"""docs/search.md: every search has its row, its config is one, and its commands can be read."""

from __future__ import annotations

import re
from pathlib import Path

from maieutic.cli import main
from maieutic.cli.search import parsed, parsed_budgets
from maieutic.run.store import Store
from maieutic.search.methods import SEARCHES

PAGE = (Path(__file__).parents[2] / "docs" / "search.md").read_text()


def test_every_search_has_a_row():
    rows = {name for line in PAGE.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert set(SEARCHES) <= rows


def test_the_command():
    [command] = re.findall(r"^maieutic search .*$", PAGE, re.MULTILINE)
    words = command.split()
    methods = parsed([words[words.index("--method") + 1]])
    assert [(each.name, dict(each.options)) for each in methods] == [
        ("vote", {}), ("best_of_n", {}), ("wait", {"times": 2}),
    ]  # fmt: skip
    assert parsed_budgets(words[words.index("--budget") + 1]) == [64, 128, 256]


def test_the_two_stages_of_self_correction_run(tmp_path):
    [text] = [block for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if "[[stages]]" in block]
    model = "[model]\nsmall = { layers = 1, width = 16, heads = 2, kv_heads = 1, context = 160 }\n"
    small = 'prompts = 2\nnum_generations = 2\nmax_completion_length = 30\n[[stages]]\nname = "together"'
    text = re.sub(r"steps = \d+", "steps = 1", text).replace('[[stages]]\nname = "together"', small)
    path = tmp_path / "correct.toml"
    path.write_text(
        f'name = "correct"\nthreads = 1\n{model}{text}prompts = 2\nnum_generations = 2\nmax_completion_length = 30\n'
    )
    assert main(["train", str(path), "--run", str(tmp_path / "run"), "-q"]) == 0
    with Store.open_reader(tmp_path / "run" / "run.db") as store:
        shown = list(store.rollouts(None, limit=50, offset=0))
        assert len(shown) == 8
        assert any("environment" in {span.role for span in each.rollout.spans} for each in shown)
        assert {"first", "second", "mended", "broken"} <= {part for each in shown for part in each.score.parts}
