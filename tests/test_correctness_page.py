"""docs/correctness.md promises tests for each of its traps: they are there, under its number."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "correctness.md"


def tagged():
    """Number of a trap → names of the tests (or of the files) whose docstring begins with it."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
        for node in [tree, *functions]:
            head = re.match(r"(A\d+(?:, A\d+)*):", ast.get_docstring(node) or "")
            for number in head.group(1).split(", ") if head else ():
                found.setdefault(number, []).append(getattr(node, "name", path.name))
    return found


def test_every_trap_has_a_test_under_its_number():
    traps = re.findall(r"^\| (A\d+) \|", PAGE.read_text(), re.M)
    assert traps == [f"A{number}" for number in range(1, 31)]
    found = tagged()
    assert [trap for trap in traps if not found.get(trap)] == []


def test_pages_that_the_page_names_are_there():
    for name in re.findall(r"\]\(([\w-]+\.md)\)", PAGE.read_text()):
        assert (PAGE.parent / name).is_file(), name
    for folder in re.findall(r"`(tests/[\w/.]+)`", PAGE.read_text()):
        assert (TESTS.parent / folder).exists(), folder
