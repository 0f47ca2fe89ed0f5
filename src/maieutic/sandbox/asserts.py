"""Tests as people write them, read into tests that can be carried out apart from the program.

assert add(1, 2) == 3              Call("add", (1, 2), expected=3)        compared in the trainer
assert not even(3), "odd"          Call("even", (3,), truth=False)        likewise
assert close(root(2), 1.414)       Checks(…)                              runs in the second process
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maieutic.errors import DataError
from maieutic.sandbox.wire import AS_IN_PYTHON, Rule

_IDENTICAL = Rule(exact_numbers=True)


@dataclass(frozen=True)
class Call:
    """Call a function of the program's and compare what it returns, in the trainer.

    `truth`: only whether it is true or false counts, as in `assert f(x)`.
    """

    function: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    expected: Any = None
    rule: Rule = AS_IN_PYTHON
    truth: bool | None = None


@dataclass(frozen=True)
class Checks:
    """Statements that call the program, and fail by raising. They run in a process of their own (see `judge`).

    `remote` are the names in them that mean something of the program's. `setup` runs before them: trusted definitions,
    which win over the program's of the same name.
    """

    source: str
    setup: str = ""
    remote: tuple[str, ...] = ()


@dataclass(frozen=True)
class Script:
    """Run the program with `stdin` and compare what it prints: line by line, but for blanks at the ends."""

    stdin: str
    stdout: str


Test = Call | Checks | Script


def read_tests(source: str, setup: str = "", where: str = "a test", names: Collection[str] | None = None) -> list[Test]:
    """The tests in statements such as `assert f(1) == 2`; each assertion is one where nothing else stands beside them.

    `setup` are trusted definitions that the tests use. `names` are those that the program is asked for where a test is
    more than a call and a value; without them, every name that nothing else explains, which lets a program define what
    a test forgot to import. Modules of the standard library are always the real ones.

    An assertion of a constant tests nothing and is left out. Raises DataError where `source` or `setup` is not Python.
    """
    return tests_in(parsed(source, where).body, source, setup, where, names)


def tests_in(
    body: Sequence[ast.stmt], source: str, setup: str, where: str, names: Collection[str] | None
) -> list[Test]:
    """Tests of statements that were parsed already; `source` is theirs as one text."""
    own = defined(parsed(setup, where))
    asserts = [each for each in body if isinstance(each, ast.Assert)]
    if len(asserts) < sum(not _idle(each) for each in body):
        return [_checks(source, setup, where, names)]
    tests: list[Test] = []
    for each in asserts:
        if isinstance(each.test, ast.Constant):
            continue
        tests.append(_as_call(each.test, own) or _checks(ast.unparse(each), setup, where, names))
    return tests


def parsed(source: str, where: str) -> ast.Module:
    """The source as a tree; DataError where it is none."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{where}: got {source[:80]!r}, which is not Python ({error}); expected assertions") from None


def defined(tree: ast.AST) -> frozenset[str]:
    """Every name that is bound anywhere in a tree."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return frozenset(found)


def _idle(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _checks(source: str, setup: str, where: str, names: Collection[str] | None) -> Checks:
    trees = [parsed(source, where), parsed(setup, where)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bound = frozenset().union(*(defined(tree) for tree in trees))
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - bound - set(dir(builtins))
    owners = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    modules = sorted(used & owners & sys.stdlib_module_names - set(names or ()))
    remote = used - set(modules) if names is None else used & set(names)
    return Checks(source, "\n".join([*(f"import {name}" for name in modules), setup]), tuple(sorted(remote)))


def _as_call(test: ast.expr, own: frozenset[str]) -> Call | None:
    """The test as a call and a value; None where it is anything else."""
    truth = True
    while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, truth = test.operand, not truth
    if isinstance(test, ast.Call):
        return _call(test, own, {"truth": truth})
    if not truth or not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return None
    sides = (test.left, test.comparators[0])
    call, value = sides if isinstance(sides[0], ast.Call) else sides[::-1]
    if not isinstance(call, ast.Call):
        return None
    found, expected = _literal(value)
    if not found:
        return None
    if isinstance(test.ops[0], ast.Is) and (expected is None or isinstance(expected, bool)):
        return _call(call, own, {"expected": expected, "rule": _IDENTICAL})
    return _call(call, own, {"expected": expected}) if isinstance(test.ops[0], ast.Eq) else None


def _call(call: ast.Call, own: frozenset[str], wanted: Mapping[str, Any]) -> Call | None:
    if not isinstance(call.func, ast.Name) or call.func.id in own or hasattr(builtins, call.func.id):
        return None
    args = [_literal(each) for each in call.args]
    kwargs = {each.arg: _literal(each.value) for each in call.keywords}
    if not all(found for found, _ in [*args, *kwargs.values()]) or None in kwargs:
        return None
    given = {str(name): value for name, (_, value) in kwargs.items()}
    return Call(call.func.id, tuple(value for _, value in args), given, **wanted)


def _literal(node: ast.expr) -> tuple[bool, Any]:
    """Whether the expression is a literal, and its value."""
    try:
        return True, ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False, None
