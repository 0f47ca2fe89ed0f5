"""The shape of the library, kept by walking its source: layers, sizes, names, citations."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "maieutic"
FILES = sorted(PACKAGE.rglob("*.py"))

#: A module imports from lower levels and from its own package only; docs/read-in-order.md draws them.
LEVELS = [
    {"types", "errors", "clock"},
    {"protocols", "choose", "own_code", "calculator", "loops", "thoughts", "sandbox"},
    {"steps", "endpoint", "wordle"},
    {"environments"},
    {"core", "tasks", "rewards"},
    {"models", "own_environment", "attempts"},
    {"algorithms", "backends"},
    {"rollout", "pack", "annotate", "evaluate", "curriculum", "search"},
    {
        "train",
        "play",
        "sources",
        "ahead",
        "teachers",
        "step_rewards",
        "rationalise",
        "conformance",
        "likelihood",
        "guards",
        "teaching",
    },
    {"config", "reward_models"},
    {"run"},
    {"report"},
    {"compare", "forecast"},
    {"cli"},
    {"__main__"},
]
#: Heavy or conflicting libraries and who may import them.
OWNERS = {
    "transformers": {"models", "backends"},
    "peft": {"models", "backends"},
    "vllm": {"backends"},
    "ray": {"backends"},
}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base"}
FORBIDDEN_ENDINGS = ("Manager", "Handler", "Impl")


def test_the_documentation_draws_the_levels():
    page = (ROOT / "docs" / "read-in-order.md").read_text()
    drawn = page[page.index("```\ntypes") :].split("```")[1].strip().splitlines()
    assert [set(line.split(" · ")) for line in drawn] == LEVELS[:-1]  # __main__ goes without saying


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level_of(part: str) -> int:
    return next(i for i, parts in enumerate(LEVELS) if part in parts)


def imports_of(path: Path) -> list[str]:
    """Every module that a file imports, wherever the import stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    part = part_of(path)
    if part == "__init__":
        return
    wrong = []
    for name in imports_of(path):
        pieces = name.split(".")
        if pieces[0] == "maieutic" and len(pieces) > 1 and pieces[1] not in (part, "__version__"):
            target = pieces[1]
            # those at the bottom may be used by each other's neighbours
            if level_of(target) >= level_of(part) and target not in LEVELS[0]:
                wrong.append(name)
        if pieces[0] in OWNERS and part not in OWNERS[pieces[0]]:
            wrong.append(name)
    assert not wrong, f"{path.name} imports {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400, f"{path} is longer than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{path}:{node.lineno} {node.name} is longer than 60 lines"
        if isinstance(node, ast.ClassDef):
            attributes = {
                target.attr
                for inner in ast.walk(node)
                if isinstance(inner, ast.Assign | ast.AnnAssign)
                for target in (inner.targets if isinstance(inner, ast.Assign) else [inner.target])
                if isinstance(target, ast.Attribute)
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            }
            assert len(attributes) <= 10, f"{path}:{node.lineno} {node.name} sets {len(attributes)} attributes"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_names_say_what_a_thing_is(path):
    assert path.stem not in FORBIDDEN_NAMES
    tree = ast.parse(path.read_text())
    classes = [n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    assert not [name for name in classes if name.endswith(FORBIDDEN_ENDINGS)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_unfinished_paths_and_no_swallowed_errors(path):
    text = path.read_text()
    assert "NotImplementedError" not in text
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if "except Exception" in line or "except BaseException" in line or line.strip() == "except:":
            raised = any(part.strip().startswith("raise") for part in lines[number : number + 3])
            reason = "noqa: BLE001 - " in line or any("# " in part for part in lines[max(0, number - 6) : number - 1])
            assert raised or ("noqa: BLE001" in line and reason), f"{path}:{number}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), f"{path} has no docstring"
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not any("overload" in ast.unparse(d) for d in node.decorator_list)
    ]
    assert not missing, f"{path}: {missing}"


@pytest.mark.parametrize("name", ["credit", "losses", "preference", "weights", "kl"])
def test_formulas_cite_their_source(name):
    """Each public formula of core/ names a paper, or its file does for all of them."""
    tree = ast.parse((PACKAGE / "core" / f"{name}.py").read_text())
    module = ast.get_docstring(tree) or ""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            text = (ast.get_docstring(node) or "") + (module if name == "kl" else "")
            formula = any(sign in text for sign in "=←−")
            cited = any(mark in text for mark in ("arXiv", "19", "20"))
            assert formula or "No credit" in text, f"{name}.{node.name} states no formula"
            assert cited or node.name in ("nll", "none", "whitened", "kl_in_reward"), (
                f"{name}.{node.name} cites nothing"
            )


def test_core_compares_no_strings():
    """Variants are values and functions: nothing in core/ branches on a name."""
    for path in sorted((PACKAGE / "core").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                sides = [node.left, *node.comparators]
                texts = [s.value for s in sides if isinstance(s, ast.Constant) and isinstance(s.value, str)]
                assert not texts, f"{path}:{node.lineno} compares with {texts}"


def test_nothing_asks_for_an_algorithms_name():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                names = [ast.unparse(side) for side in [node.left, *node.comparators]]
                assert not [n for n in names if n.endswith(("algorithm.name", "algorithm"))], f"{path}:{node.lineno}"


def test_the_loop_stays_readable():
    assert len((PACKAGE / "train.py").read_text().splitlines()) <= 80


def test_import_is_light():
    code = (
        "import sys, maieutic; print([m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
