"""Exact arithmetic on text that a model wrote: read numbers and expressions, show values, complete `3 * 4 =`.

Everything here is total: whatever the text, the answer is a value or None, in time linear in the length of the text.
Expressions are read by a hand-written parser of numbers, names, `+ - * /` and parentheses; nothing is ever evaluated as
a program, and there is no power operator to build enormous numbers with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

#: Longer numbers are refused, read or written: no task has them, and `int` takes 4,300 digits at most.
LONGEST_NUMBER = 40
#: Longer expressions are refused.
LONGEST_EXPRESSION = 200
#: Parentheses nested deeper are refused.
DEEPEST = 20

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]*)?|\.[0-9]+)")
_TOKEN = re.compile(
    r"\s*((?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]*)?|\.[0-9]+)(?![0-9.a-z])|[a-z][0-9]*(?![0-9.a-z])|[-+*/()])"
)


def number(text: str) -> Fraction | None:
    """The exact value of a plain decimal number, thousands commas allowed; None for anything else.

    >>> number("1,234.50"), number("12,34"), number("3 apples")
    (Fraction(2469, 2), None, None)
    """
    text = text.strip()
    if len(text) > LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    return Fraction(text.replace(",", "").rstrip("."))


def show(value: Fraction) -> str:
    """A value as text: whole numbers plain, others to 10 significant decimals, never with an exponent.

    >>> show(Fraction(12)), show(Fraction(5, 2)), show(Fraction(1, 3))
    ('12', '2.5', '0.3333333333')
    """
    if value.denominator == 1:
        return str(value.numerator)
    with localcontext(prec=10):
        text = f"{Decimal(value.numerator) / Decimal(value.denominator):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def evaluate(expression: str, names: Mapping[str, Fraction] | None = None) -> Fraction | None:
    """The exact value of an expression of numbers, names, `+ - * / ( )`; None if it is not one or divides by zero.

    One sign may precede an operand. Parentheses nest at most `DEEPEST` times.

    >>> evaluate("2 * (3 - -.5)"), evaluate("n0 - 1", {"n0": Fraction(3)}), evaluate("2 ** 9"), evaluate("1 / 0")
    (Fraction(7, 1), Fraction(2, 1), None, None)
    """
    if len(expression) > LONGEST_EXPRESSION:
        return None
    try:
        return _Parser(_tokens(expression), names or {}).whole()
    except (_Malformed, ZeroDivisionError):
        return None


class _Malformed(ValueError):
    """The text is not an expression."""


def _tokens(expression: str) -> list[str]:
    """Numbers, names and symbols, then the empty token, which ends every expression."""
    tokens, position, expression = [], 0, expression.rstrip()
    while position < len(expression):
        found = _TOKEN.match(expression, position)
        if found is None:
            raise _Malformed
        tokens.append(found[1])
        position = found.end()
    return [*tokens, ""]


class _Parser:
    """Recursive descent: a sum of products of signed atoms, an atom being a number, a name or a sum in parentheses."""

    def __init__(self, tokens: list[str], names: Mapping[str, Fraction]) -> None:
        self.tokens, self.names = tokens, names
        self.position = self.depth = 0

    def whole(self) -> Fraction:
        value = self.sum()
        if self.take():
            raise _Malformed
        return value

    def take(self) -> str:
        token = self.tokens[self.position]
        self.position += 1
        return token

    def sees(self, symbols: tuple[str, ...]) -> bool:
        return self.tokens[self.position] in symbols

    def sum(self) -> Fraction:
        value = self.product()
        while self.sees(("+", "-")):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while self.sees(("*", "/")):
            value = value * self.signed() if self.take() == "*" else value / self.signed()
        return value

    def signed(self) -> Fraction:
        if self.sees(("+", "-")):
            return -self.atom() if self.take() == "-" else self.atom()
        return self.atom()

    def atom(self) -> Fraction:
        token = self.take()
        if token == "(":
            self.depth += 1
            if self.depth > DEEPEST:
                raise _Malformed
            value = self.sum()
            if self.take() != ")":
                raise _Malformed
            self.depth -= 1
            return value
        value_or_none = self.names.get(token) if token in self.names else number(token)
        if value_or_none is None:
            raise _Malformed
        return value_or_none


@dataclass(frozen=True)
class Calculator:
    """A tool that completes an expression with its value: after `3 * 4 =` it writes ` 12`.

    `Calculator()` serves plain text; the value follows the way the expression is spaced (`3*4=` gives `12`), so it is a
    word of its own for a word tokenizer and continues the text for a BPE one. `Calculator.gsm8k()` is the protocol of
    the GSM8K annotations: after `<<3*4=` it writes `12>>`, and outside of `<<` it is silent.

    The expression is what precedes `=` back to the first character that cannot belong to one; in plain text it must
    have an operator, as `x = 3 =` asks for nothing. The trigger is `=` rather than ` =` or `<<`, because a tool is
    asked only where the text ends in it, however the tokenizer cuts the text before.
    """

    opening: str = ""
    closing: str = ""
    trigger: str = "="

    @classmethod
    def gsm8k(cls) -> Calculator:
        """The protocol of the GSM8K authors (Cobbe et al. 2021, arXiv:2110.14168)."""
        return cls(opening="<<", closing=">>")

    def __call__(self, text: str) -> str | None:
        """What to write after `text`; None where there is nothing to compute. Reads at most its last 210 characters."""
        if not text.endswith(self.trigger):
            return None
        end = len(text) - len(self.trigger)
        before = text[max(0, end - LONGEST_EXPRESSION - 10) : end]
        expression = self._enclosed(before) if self.opening else _trailing(before)
        value = None if expression is None else evaluate(expression)
        if value is None:
            return None
        shown = show(value)
        space = " " if before.endswith(" ") else ""
        return None if len(shown) > LONGEST_NUMBER else f"{space}{shown}{self.closing}"

    def _enclosed(self, before: str) -> str | None:
        """What follows the last `opening`; anything but an expression, a closed annotation too, has no value anyway."""
        found = before.rfind(self.opening)
        return before[found + len(self.opening) :] if found >= 0 else None


def _trailing(before: str) -> str | None:
    """The longest tail of characters of an expression, if it has an operator and clearly begins where it seems to.

    `n0 + 1` must not be read as `0 + 1`, nor `x - 3 + 4` as `- 3 + 4`: a number may not be glued to a word, and a sign
    may only come first where a statement does.
    """
    start = len(before)
    while start > 0 and _belongs(before, start - 1):
        start -= 1
    if len(before) - start > LONGEST_EXPRESSION:
        return None  # where it begins is out of sight
    expression = before[start:].strip()
    if not re.search(r"[0-9)]\s*[-+*/]", expression):
        return None  # a lone number: nothing to compute
    preceding = before[start - 1] if start else "\n"
    signed, glued = expression[0] in "+-", before[start] != " "
    if (signed and preceding not in "\n\t;:=") or (glued and (preceding.isalnum() or preceding in "_%")):
        return None
    return expression


def _belongs(text: str, index: int) -> bool:
    """Whether the character can be part of an expression; a point or comma only directly before a digit."""
    if text[index] in ".,":
        return text[index + 1 : index + 2] in tuple("0123456789")
    return text[index] in "0123456789+-*/() "
