"""Equations of word problems as trees, and trees as what a model is to write: programs or chains.

    prefix    - number0 * number1 number2            (MAWPS, ASDiv)
    infix     ( 20.0 - ( 3.0 * 4.0 ) )               (SVAMP, fully parenthesised)
    program   n1 * n2 ; n0 - r0                      numbers masked: the environment knows them, and computes
    chain     3 * 4 = 12 ; 20 - 12 = 8 ; # 8         numbers written: the model or its calculator computes

A tree is a leaf (`number3` for the number of that index, or a constant as text) or (operator, left, right).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from maieutic.calculator import evaluate, number, show
from maieutic.errors import DataError

Tree = str | tuple[str, "Tree", "Tree"]
OPERATORS = frozenset("+-*/")


def read_prefix(text: str) -> Tree:
    """The tree of an equation in prefix notation; raises DataError when it is not one."""
    tokens = iter(text.split())
    try:
        tree = _prefix(tokens)
    except StopIteration:
        raise DataError(f"equation {text!r} ends where an operand is expected") from None
    return _finished(tree, tokens, text)


def read_infix(text: str) -> Tree:
    """The tree of a fully parenthesised equation; raises DataError when it is not one."""
    tokens = iter(text.split())
    try:
        tree = _infix(tokens, text)
    except StopIteration:
        raise DataError(f"equation {text!r} ends where an operand is expected") from None
    return _finished(tree, tokens, text)


def _prefix(tokens: Iterator[str]) -> Tree:
    token = next(tokens)
    return (token, _prefix(tokens), _prefix(tokens)) if token in OPERATORS else token


def _infix(tokens: Iterator[str], text: str) -> Tree:
    token = next(tokens)
    if token != "(":
        return token
    left, operator, right, close = _infix(tokens, text), next(tokens), _infix(tokens, text), next(tokens)
    if operator not in OPERATORS or close != ")":
        raise DataError(
            f"equation {text!r}: got {operator!r} … {close!r}; expected an operator and a closing parenthesis"
        )
    return operator, left, right


def _finished(tree: Tree, tokens: Iterator[str], text: str) -> Tree:
    if (extra := next(tokens, None)) is not None:
        raise DataError(f"equation {text!r} goes on with {extra!r} where its end is expected")
    for leaf in leaves(tree):
        if not leaf.removeprefix("number").isdecimal() and number(leaf) is None:
            raise DataError(f"equation {text!r}: got {leaf!r}; expected a number, a placeholder or an operator")
    return tree


def leaves(tree: Tree) -> list[str]:
    """The leaves from left to right."""
    return [tree] if isinstance(tree, str) else [*leaves(tree[1]), *leaves(tree[2])]


def placed(tree: Tree, numbers: Sequence[str]) -> Tree:
    """The tree with each constant that is among `numbers` replaced by its placeholder, the first unused one."""
    free = [number(text) for text in numbers]
    values = list(free)

    def place(node: Tree) -> Tree:
        if not isinstance(node, str):
            return node[0], place(node[1]), place(node[2])
        value = number(node)
        among = free if value in free else values
        if value is None or value not in among:
            return node
        index = among.index(value)
        free[index] = None
        return f"number{index}"

    return place(tree)


def constants(tree: Tree) -> list[str]:
    """The leaves that are not numbers of the problem."""
    return [leaf for leaf in leaves(tree) if not leaf.startswith("number")]


def value(tree: Tree, numbers: Sequence[str]) -> Fraction | None:
    """The exact value; None when it divides by zero or names a number that the problem does not have."""
    if isinstance(tree, str):
        index = tree.removeprefix("number") if tree.startswith("number") else None
        if index is None:
            return number(tree)
        return number(numbers[int(index)]) if int(index) < len(numbers) else None
    operator, left, right = tree[0], value(tree[1], numbers), value(tree[2], numbers)
    if left is None or right is None:
        return None
    return evaluate(f"a {operator} b", {"a": left, "b": right})


def program(tree: Tree) -> str:
    """The tree as a program over masked numbers: `n1 * n2 ; n0 - r0`; a lone leaf is a statement of its own."""
    statements: list[str] = []

    def write(node: Tree) -> str:
        if isinstance(node, str):
            return f"n{node.removeprefix('number')}" if node.startswith("number") else _plain(node)
        left, right = write(node[1]), write(node[2])
        statements.append(f"{left} {node[0]} {right}")
        return f"r{len(statements) - 1}"

    last = write(tree)
    return " ; ".join(statements or [last])


def chain(tree: Tree, numbers: Sequence[str]) -> str | None:
    """The tree as a chain with every value written, as a calculator completes it; None when it divides by zero."""
    steps: list[str] = []

    def write(node: Tree) -> str | None:
        if isinstance(node, str):
            return numbers[int(node.removeprefix("number"))] if node.startswith("number") else _plain(node)
        left, right = write(node[1]), write(node[2])
        result = evaluate(f"{left} {node[0]} {right}")
        if result is None:
            return None
        steps.append(f"{left} {node[0]} {right} = {show(result)} ;")
        return show(result)

    last = write(tree)
    return None if last is None else " ".join([*steps, f"# {last}"])


def _plain(text: str) -> str:
    """A constant without needless decimals: `12.0` → `12`."""
    found = number(text)
    return text if found is None else show(found)
