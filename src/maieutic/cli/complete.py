"""What the shell offers on TAB: names and folders, found without importing anything heavy."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Offer = tuple[str, str]


def tasksets(incomplete: str) -> list[Offer]:
    """Tasksets by name, and files of tasks."""
    from maieutic.tasks import TASKSETS
    from maieutic.tasks.files import SUFFIXES
    from maieutic.tasks.reasoning_gym import PREFIX

    if incomplete.startswith(PREFIX):
        return _starting(incomplete, [(f"{PREFIX}{name}", "") for name in _gym()])
    named = [(name, first_line(factory.__doc__)) for name, factory in TASKSETS.items()]
    offers = [*named, (PREFIX, "a data set of reasoning-gym"), *_paths(incomplete, SUFFIXES)]
    return _starting(incomplete, offers)


def searches(incomplete: str) -> list[Offer]:
    """Searches by name, after what is written already of a list of them."""
    from maieutic.search.methods import SEARCHES

    before, comma, last = incomplete.rpartition(",")
    offers = [(before + comma + name, first_line(made.__doc__)) for name, made in SEARCHES.items()]
    return _starting(before + comma + last, offers)


def algorithms(incomplete: str) -> list[Offer]:
    """Algorithms by name, read from the source of the table: importing it would import torch, too slow for a TAB."""
    return _starting(incomplete, algorithm_names())


def algorithm_names() -> list[Offer]:
    """Every algorithm with the first line of its docstring, without importing the table."""
    found = importlib.util.find_spec("maieutic.algorithms")
    if found is None or found.origin is None:
        return []
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    factories = [node for node in tree.body if isinstance(node, ast.FunctionDef) and _makes_algorithm(node)]
    return [(node.name, first_line(ast.get_docstring(node))) for node in factories]


def runs(incomplete: str) -> list[Offer]:
    """Folders of runs under `runs/` and where the incomplete word points."""
    return _starting(incomplete, dict.fromkeys([*_runs_in(Path("runs"), incomplete), *_paths(incomplete, ())]))


def models(incomplete: str) -> list[Offer]:
    """Folders: of runs, and others."""
    return runs(incomplete)


def evaluations(incomplete: str) -> list[Offer]:
    """What an evaluation is compared with: saved ones, and models."""
    return list(dict.fromkeys([*_starting(incomplete, _paths(incomplete, (".json",))), *models(incomplete)]))


def judged(incomplete: str) -> list[Offer]:
    """Files of rows, and folders of runs."""
    from maieutic.tasks.files import SUFFIXES

    return list(dict.fromkeys([*_starting(incomplete, _paths(incomplete, SUFFIXES)), *runs(incomplete)]))


def among(**known: str) -> Callable[[str], list[Offer]]:
    """A completion for few words, each with what it says."""
    return lambda incomplete: _starting(incomplete, known.items())


def rewards(incomplete: str) -> list[Offer]:
    """Rewards by name, and the functions of Python files, as `file.py:function`."""
    from maieutic.run.rewards import NAMED, PREFIXED

    file, colon, _ = incomplete.partition(":")
    if colon and file.endswith(".py") and Path(file).is_file():
        return _starting(incomplete, [(f"{file}:{name}", said) for name, said in _functions_in(Path(file))])
    named = [(name, first_line(factory.__doc__)) for name, factory in NAMED.items()]
    return _starting(incomplete, [*named, *((prefix, "") for prefix in PREFIXED), *_paths(incomplete, (".py",))])


def configs(incomplete: str) -> list[Offer]:
    """TOML files."""
    return _starting(incomplete, _paths(incomplete, (".toml",)))


def plans(incomplete: str) -> list[Offer]:
    """TOML files, and folders of runs."""
    return list(dict.fromkeys([*configs(incomplete), *runs(incomplete)]))


def first_line(docstring: str | None) -> str:
    """The first line of a docstring."""
    return (docstring or "").strip().partition("\n")[0]


def _makes_algorithm(node: ast.FunctionDef) -> bool:
    made = node.returns is not None and ast.unparse(node.returns) == "Algorithm"
    return made and not node.name.startswith("_") and not node.name.startswith("make_")


def _gym() -> list[str]:
    """Data sets by name, where reasoning-gym is installed."""
    from maieutic.errors import ConfigError
    from maieutic.tasks.reasoning_gym import data_sets

    try:
        return sorted(data_sets())
    except ConfigError:
        return []


def _functions_in(file: Path) -> Iterator[Offer]:
    """What stands at the top of a file and can be called or holds something that can, without running the file."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, first_line(ast.get_docstring(node))


def _runs_in(folder: Path, incomplete: str) -> Iterator[Offer]:
    if incomplete.startswith(("/", ".", "~")):
        return
    for config in sorted(folder.glob("*/config.toml")):
        done = (config.parent / "run.complete").exists()
        yield str(config.parent), "complete" if done else "not complete"


def _paths(incomplete: str, suffixes: Iterable[str]) -> Iterator[Offer]:
    """Folders, and files with these suffixes, beside what is written so far."""
    written = incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""
    folder = Path(written or ".").expanduser()
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield f"{written}{path.name}/", "folder"
        elif path.suffix.lower() in tuple(suffixes):
            yield f"{written}{path.name}", "file"


def _starting(incomplete: str, offers: Iterable[Offer]) -> list[Offer]:
    return [offer for offer in offers if offer[0].startswith(incomplete)]
