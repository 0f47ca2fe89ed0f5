"""The game of 24 and countdown: make a number of other numbers. Moves, solutions and judgement, all exact.

    state    6 6 8 12                       the numbers that are left, rising: a tuple of fractions
    move     8 + 12 = 20 left 6 6 20        two of them become one; the words are a step of a solution
    chain    8 + 12 = 20 left 6 6 20 ; …    moves until the target is made
    term     6 * (8 + 12)                   an expression, spelled in one way however it was built

Everything is a pure function. A search can play the game with `moves` (all that is legal), `after` (what a written
step makes of a state), `finished` and `solvable` (a perfect judge of states, by brute force that remembers).
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from maieutic.calculator import LONGEST_EXPRESSION
from maieutic.types import Verdict

Numbers = tuple[Fraction, ...]
"""A state: what is left, rising."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is allowed. The default is the game of 24: every number once, and results may be any fractions.

    every   all numbers must be used; else each at most once, and the target may be made of some
    whole   results must be whole and not negative, as in the television game
    limit   no result may be larger in size
    """

    every: bool = True
    whole: bool = False
    limit: int | None = None

    def allow(self, value: Fraction) -> bool:
        """Whether a move may result in this."""
        if self.whole and (value < 0 or value.denominator != 1):
            return False
        return self.limit is None or abs(value) <= self.limit


GAME_OF_24 = Rules()

#: Written signs of operations that mean the same.
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*"})
_STEP = re.compile(r"\s*(\S+)\s+([-+*/])\s+(\S+)\s+=\s+(\S+)(?:\s+left((?:\s+\S+)*))?\s*")
_VALUE = re.compile(r"-?[0-9]{1,20}(?:/[1-9][0-9]{0,19})?")


def state(numbers: Iterable[int | str | Fraction]) -> Numbers:
    """The numbers as a state.

    >>> state([8, 3, "8/3"])
    (Fraction(8, 3), Fraction(3, 1), Fraction(8, 1))
    """
    return tuple(sorted(Fraction(number) for number in numbers))


def moves(numbers: Sequence[int | Fraction], rules: Rules = GAME_OF_24) -> list[tuple[str, Numbers]]:
    """Every legal move, in words and as the state after it; none from a single number.

    >>> moves([2, 6], Rules(whole=True))[0], len(moves([2, 6], Rules(whole=True))), len(moves([2, 6]))
    (('2 + 6 = 8 left 8', (Fraction(8, 1),)), 4, 6)
    """
    made = [(_words(a, sign, b, c, left), left) for a, sign, b, c, left in _steps(state(numbers), rules)]
    return list(dict.fromkeys(made))  # of two equal numbers each makes the same move


def after(step: str, numbers: Sequence[int | Fraction], rules: Rules = GAME_OF_24) -> Numbers | None:
    """The state after a written step; None where it is not a legal move, miscalculates, or miscounts what is left.

    >>> after("2 * 6 = 12 left 12", [2, 6]), after("2 * 6 = 13", [2, 6]), after("3 * 6 = 18", [2, 6])
    ((Fraction(12, 1),), None, None)
    """
    said = read_step(step)
    if said is None:
        return None
    left = list(state(numbers))
    for operand in (said.left, said.right):
        if operand not in left:
            return None
        left.remove(operand)
    found = state([*left, said.result])
    return None if said.mistake(found) or not rules.allow(said.result) else found


@dataclass(frozen=True, slots=True)
class Step:
    """What a written step says: `left sign right = result`, and what it says remains (None: nothing is said)."""

    left: Fraction
    sign: str
    right: Fraction
    result: Fraction
    remaining: Numbers | None

    def mistake(self, found: Sequence[Fraction]) -> str:
        """What it says wrongly, where `found` is what remains if the result is taken as written; empty: nothing."""
        value = _result(self.left, self.sign, self.right)
        if value != self.result:
            return f"{self.left} {self.sign} {self.right} is not {self.result}"
        if self.remaining is not None and self.remaining != state(found):
            return f"after {self.left} {self.sign} {self.right} there is left {' '.join(map(str, state(found)))}"
        return ""


def read_step(text: str) -> Step | None:
    """The step that a text says; None for anything else.

    >>> read_step("2 * 6 = 12 left 4 12").result, read_step("so, 2 * 6 = 12")
    (Fraction(12, 1), None)
    """
    found = _STEP.fullmatch(text.translate(_SIGNS))
    if found is None:
        return None
    values = [found[1], found[3], found[4], *(found[5] or "").split()]
    if not all(_VALUE.fullmatch(value) for value in values):
        return None
    a, b, c, *left = map(Fraction, values)
    return Step(a, found[2], b, c, None if found[5] is None else state(left))


def finished(numbers: Sequence[int | Fraction], target: int | Fraction = 24, rules: Rules = GAME_OF_24) -> bool:
    """Whether the target is made: it is all that is left, or, where not every number must be used, among it."""
    return target in numbers and (len(numbers) == 1 or not rules.every)


def solvable(numbers: Sequence[int | Fraction], target: int | Fraction = 24, rules: Rules = GAME_OF_24) -> bool:
    """Whether the target can be made from here, by brute force.

    >>> solvable([3, 3, 8, 8]), solvable([1, 1, 1, 1])
    (True, False)
    """
    return _solvable(state(numbers), Fraction(target), rules)


def solve(
    numbers: Sequence[int | Fraction], target: int | Fraction = 24, rules: Rules = GAME_OF_24
) -> tuple[str, ...] | None:
    """The moves of the first solution, in the order of `moves`; None where there is none, () where none is needed.

    >>> solve([4, 6])
    ('4 * 6 = 24 left 24',)
    """
    now, goal = state(numbers), Fraction(target)
    if not _solvable(now, goal, rules):
        return None
    chain: list[str] = []
    while not finished(now, goal, rules):
        words, now = next(move for move in moves(now, rules) if _solvable(move[1], goal, rules))
        chain.append(words)
    return tuple(chain)


def solutions(numbers: Sequence[int | Fraction], target: int | Fraction = 24, rules: Rules = GAME_OF_24) -> list[str]:
    """Every expression that makes the target, each spelled once, sorted.

    >>> solutions([3, 3, 8, 8])
    ['8 / (3 - 8 / 3)']
    """
    found: set[str] = set()
    seen: set[tuple[str, ...]] = set()

    def search(terms: tuple[Term, ...]) -> None:
        key = tuple(sorted(map(str, terms)))
        if key in seen or not _solvable(state(term.value for term in terms), Fraction(target), rules):
            return
        seen.add(key)
        if finished([term.value for term in terms], target, rules):
            found.update(str(term) for term in terms if term.value == target)
        for i, j in _ordered_pairs(len(terms)):
            others = tuple(term for k, term in enumerate(terms) if k not in (i, j))
            for sign in "+-*/":
                joined = join(terms[i], sign, terms[j])
                if joined is not None and rules.allow(joined.value):
                    search((*others, joined))

    search(tuple(Term(number) for number in state(numbers)))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Term:
    """An expression with its value: a number, a sum of `direct` less `inverse`, or a product of them likewise.

    Sums of sums and products of products are flattened and sorted, so that `str` spells expressions equally that
    differ only in order and parentheses: `(12 + 8) * 6` is `6 * (8 + 12)`.
    """

    value: Fraction
    kind: str = ""
    direct: tuple[Term, ...] = ()
    inverse: tuple[Term, ...] = ()

    def __str__(self) -> str:
        if not self.kind:
            return str(self.value)
        inverse = {"+": " - ", "*": " / "}[self.kind]
        parts = [self._part(term) for term in self.direct], [self._part(term) for term in self.inverse]
        return inverse.join([f" {self.kind} ".join(parts[0]), *parts[1]])

    def _part(self, term: Term) -> str:
        simple = term.kind == "*" or (not term.kind and term.value.denominator == 1 and term.value >= 0)
        return str(term) if simple and not (term.kind and self.kind == "*") else f"({term})"

    def leaves(self) -> list[Fraction]:
        """The numbers that it uses."""
        parts = (*self.direct, *self.inverse)
        return [leaf for term in parts for leaf in term.leaves()] if self.kind else [self.value]


def join(left: Term, sign: str, right: Term) -> Term | None:
    """The term `left sign right`; None for a division by zero."""
    value = _result(left.value, sign, right.value)
    if value is None:
        return None
    kind = "+" if sign in "+-" else "*"
    (direct, inverse), (more, less) = _parts(left, kind), _parts(right, kind)
    if sign in "-/":
        more, less = less, more
    return Term(value, kind, _sorted([*direct, *more]), _sorted([*inverse, *less]))


def read_expression(text: str) -> Term | str:
    """The term that a text is, or what keeps it from being one. Reads whole numbers, `+ - * / ( )` and nothing else.

    >>> str(read_expression("(12+8)*6")), read_expression("2 ** 9")
    ('6 * (8 + 12)', 'no expression of whole numbers, + - * / and parentheses')
    """
    text = text.translate(_SIGNS).strip()
    refused = "no expression of whole numbers, + - * / and parentheses"
    if len(text) > LONGEST_EXPRESSION or not re.fullmatch(r"[-+*/() 0-9]+", text):
        return refused
    try:
        tree = ast.parse(text, mode="eval").body  # parsed, never run
    except SyntaxError:
        return refused
    return _term(tree) or refused


_SIGN_OF = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def _term(node: ast.expr) -> Term | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Term(Fraction(node.value))
    if not isinstance(node, ast.BinOp) or type(node.op) not in _SIGN_OF:
        return None
    left, right = _term(node.left), _term(node.right)
    return None if left is None or right is None else join(left, _SIGN_OF[type(node.op)], right)


def check(
    expression: str, numbers: Sequence[int | Fraction], target: int | Fraction = 24, rules: Rules = GAME_OF_24
) -> Verdict:
    """Whether the expression makes the target of these numbers; `answer` is its one spelling.

    Results on the way may be anything: `whole` and `limit` bind moves, and an expression shows no order of moves.

    >>> check("(8+12)*6", [6, 8, 12], 120).correct, check("4 * 6", [2, 4, 6]).why
    (True, '2 is not used')
    """
    term = read_expression(expression)
    if isinstance(term, str):
        return Verdict(False, None, term)
    used, given = Counter(term.leaves()), Counter(Fraction(number) for number in numbers)
    why = ""
    if extra := used - given:
        why = f"{min(extra)} is used more often than it is given"
    elif rules.every and (unused := given - used):
        why = f"{min(unused)} is not used"
    elif term.value != target:
        why = f"its value is {term.value}, expected {target}"
    return Verdict(not why, str(term), why)


def _steps(numbers: Numbers, rules: Rules) -> Iterator[tuple[Fraction, str, Fraction, Fraction, Numbers]]:
    """`a sign b = c`, and what is then left, for every pair and operation that the rules allow."""
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            a, b = numbers[i], numbers[j]
            others = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for x, sign, y in ((a, "+", b), (b, "-", a), (a, "-", b), (a, "*", b), (b, "/", a), (a, "/", b)):
                c = _result(x, sign, y)
                if c is not None and rules.allow(c):
                    yield x, sign, y, c, tuple(sorted((*others, c)))


@lru_cache(maxsize=500_000)
def _solvable(numbers: Numbers, target: Fraction, rules: Rules) -> bool:
    if finished(numbers, target, rules):
        return True
    return any(_solvable(left, target, rules) for *_, left in _steps(numbers, rules))


def _result(a: Fraction, sign: str, b: Fraction) -> Fraction | None:
    if sign == "+":
        return a + b
    if sign == "-":
        return a - b
    if sign == "*":
        return a * b
    return a / b if b else None


def _words(a: Fraction, sign: str, b: Fraction, c: Fraction, left: Numbers) -> str:
    return f"{a} {sign} {b} = {c} left {' '.join(map(str, left))}"


def _ordered_pairs(count: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(count) for j in range(count) if i != j)


def _parts(term: Term, kind: str) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    return (term.direct, term.inverse) if term.kind == kind else ((term,), ())


def _sorted(terms: list[Term]) -> tuple[Term, ...]:
    return tuple(sorted(terms, key=lambda term: (bool(term.kind), term.value, str(term))))
