"""The calculator: a table by hand, text it must be silent on, and speed."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.calculator import Calculator, evaluate, number, show
from maieutic.environments.tools import TOOLS, make_tool
from maieutic.errors import UnknownName

PLAIN, GSM8K = Calculator(), Calculator.gsm8k()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("3 * 4 =", " 12"),
        ("3*4=", "12"),
        ("2 - 5 =", " -3"),
        ("6 / 4 =", " 1.5"),
        ("1 / 3 =", " 0.3333333333"),
        ("2 / 3 =", " 0.6666666667"),
        ("1 + 2 * 3 =", " 7"),
        ("8 - 3 - 2 =", " 3"),
        ("8 / 4 / 2 =", " 1"),
        ("( 1 + 2 ) * 3 =", " 9"),
        ("3 - -5 =", " 8"),
        ("-3 + 5 =", " 2"),
        (".5 + 0.25 =", " 0.75"),
        ("1,234 + 1 =", " 1235"),
        ("0.1 + 0.2 =", " 0.3"),
        ("10000000001 / 2 =", " 5000000000"),  # 5000000000.5 to 10 significant decimals, a tie goes to the even one
        ("so 6 / 2 = 3 ; 3 + 4 =", " 7"),
        ("She has 5. 3 + 4 =", " 7"),
        ("first , 3 + 4 =", " 7"),
        ("cost: $3 + 4 =", " 7"),
        ("; -3 + 4 =", " 1"),
        ("(3 + 4) * 2 =", " 14"),
        ("total (3+4)=", "7"),
    ],
)
def test_plain_text(text: str, written: str) -> None:
    assert PLAIN(text) == written


@pytest.mark.parametrize(
    "text",
    [
        "", "=", "3 * 4", "3 * 4 = ", "x = 3 =", "3 =", "x - 3 =", "five - 3 + 4 =", "3 + =", "* 3 =", "2 ** 3 =",
        "7 // 2 =", "1 / 0 =", "1 / (2 - 2) =", "(1 + 2 =", "1 + 2) =", "5 3 + 1 =", "1.2.3 + 1 =", "1,23 + 1 =",
        "٣ + 1 =", "²+1=", "1e3 + 1 =", "__import__('os') =", "n0 + n1 =", "9" * 41 + " + 1 =",
        "9" * 39 + " * 99 =", "(" * 21 + "1" + ")" * 21 + " + 1 =", "1 + " * 60 + "1 =", "a + 1 = = =",
        "1 +" + " " * 205 + "3 + 4 =", "n0 + 1 =", "x -3 + 4 =", "50%-3+1=", "50%+ 3 + 1 =", "é3 + 1 =", "a.5 + 1 =",
    ],
)  # fmt: skip
def test_silent_where_there_is_nothing_to_compute(text: str) -> None:
    assert PLAIN(text) is None


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("sold 48/2 = <<48/2=", "24>>"),
        ("$<<12*0.5=", "6>>"),
        ("<<80=", "80>>"),
        ("<<1,000+1=", "1001>>"),
        ("<<3 * 4 =", " 12>>"),
        ("sold 48/2 =", None),
        ("<<48/2=24>>24 + 1=", None),
        ("<<2**9=", None),
        ("<<x+1=", None),
        ("<<=", None),
        ("<<1/0=", None),
        ("<<" + "1+" * 200 + "1=", None),
    ],
)
def test_the_gsm8k_protocol(text: str, written: str | None) -> None:
    assert GSM8K(text) == written


def test_expressions_with_names() -> None:
    names = {"n0": Fraction(20), "r1": Fraction(1, 3)}
    assert evaluate("n0 * r1", names) == Fraction(20, 3)
    assert evaluate("n0 - n1", names) is None
    assert evaluate("2n0", names) is evaluate("n0 r1", names) is evaluate("n0x", names) is None


@given(st.text() | st.text(alphabet="0123456789+-*/().,= <>nr#;") | st.text(alphabet="()+-1", min_size=50))
def test_never_raises_and_always_writes_a_number(text: str) -> None:
    for tool, tail in ((PLAIN, "="), (PLAIN, " ="), (GSM8K, "="), (GSM8K, "<<1+1=")):
        written = tool(text + tail)
        assert written is None or number(written.removesuffix(">>")) is not None


@given(st.integers(-999, 999), st.sampled_from("+-*/"), st.integers(-999, 999))
def test_agrees_with_fractions(a: int, operator: str, b: int) -> None:
    exact = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b) if b else None}[operator]
    assert evaluate(f"{a} {operator} {b}") == exact
    if exact is not None:
        written = PLAIN(f"{a} {operator} {b} =")
        assert written is not None
        assert abs(number(written) - exact) <= abs(exact) * Fraction(1, 10**9)


@pytest.mark.parametrize("character", ["1", " ", "(", "+", "=", "<", "9,", "1+"])
def test_a_million_characters_in_a_moment(character: str) -> None:
    text = character * (10**6 // len(character)) + "="
    start = time.thread_time()
    for tool in (PLAIN, GSM8K):
        assert tool(text) is None
    assert evaluate(text) is number(text) is None
    assert time.thread_time() - start < 0.05


def test_numbers_are_read_and_shown() -> None:
    assert number("1,234.50") == Fraction(2469, 2)
    assert number("12,34") is None
    assert number(".5") == Fraction(1, 2)
    assert number("5.") == 5
    assert number("-") is number("") is number(".") is number("1e3") is number("3 4") is None
    assert show(Fraction(-7)) == "-7"
    assert show(Fraction(5, 2)) == "2.5"
    assert show(Fraction(1, 10**9)) == "0.000000001"
    assert show(Fraction(-1, 3)) == "-0.3333333333"


def test_tools_by_name() -> None:
    assert make_tool("calculator") == PLAIN
    assert make_tool("gsm8k_calculator") == GSM8K
    assert set(TOOLS) == {"calculator", "gsm8k_calculator"}
    with pytest.raises(UnknownName, match="did you mean 'calculator'"):
        make_tool("calculater")
