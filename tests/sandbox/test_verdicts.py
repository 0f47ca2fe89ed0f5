"""Tests as people write them, the values that travel, and what a report says of a program."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maieutic.errors import DataError
from maieutic.sandbox import Call, Checks, Limits, Script, examine, read_tests
from maieutic.sandbox.wire import (
    AS_IN_JSON,
    HEAD,
    Encoder,
    NotPlain,
    Rule,
    brief,
    decode,
    frame,
    length_of,
    parse,
    same,
    truth,
)

SHORT = Limits(seconds=0.3, wall_seconds=0.6)


def share(sandbox, program, tests, setup="", **options):
    return examine(sandbox, program, read_tests(tests, setup), Limits(seconds=5, wall_seconds=60), **options).share


def test_assertions_become_calls_where_they_are_calls_and_values():
    read = read_tests(
        "assert f(1, [2], k={'a': (3,)}) == {4}\nassert 5 == f(-1)\n"
        "assert f() is None\nassert f(2)\nassert not f(3), 'no'"
    )
    assert read == [
        Call("f", (1, [2]), {"k": {"a": (3,)}}, {4}),
        Call("f", (-1,), expected=5),
        Call("f", expected=None, rule=Rule(exact_numbers=True)),
        Call("f", (2,), truth=True),
        Call("f", (3,), truth=False),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "assert f(1) != 2", "assert f(1) < 2", "assert abs(f(1) - 2) < 1e-6", "assert f(x) == 2", "assert f(1) == y",
        "assert f(g(1)) == 2", "assert f(*[1]) == 2", "assert f(1)[0] == 2", "assert f(1) == 2 == 2",
        "assert a.f(1) == 2",
        "assert len(f(1)) == 2", "x = f(1)\nassert x == 2", "for i in range(3):\n    assert f(i) == i",
    ],
)  # fmt: skip
def test_other_tests_run_apart(source):
    (test,) = read_tests(source)
    assert isinstance(test, Checks)


def test_what_a_test_asks_the_program_for():
    (test,) = read_tests("assert math.isclose(f(P(1)), g)", "from a import g")
    assert test == Checks("assert math.isclose(f(P(1)), g)", "import math\nfrom a import g", ("P", "f"))
    (test,) = read_tests("assert close(f(1), 2)", names=("f",))
    assert isinstance(test, Checks)
    assert test.remote == ("f",), "what the reference does not define, no program may define"
    assert read_tests("assert True\npass\n'said'") == []
    with pytest.raises(DataError, match="not Python"):
        read_tests("assert f(")


def test_programs_that_are_right_pass(sandbox):
    assert share(sandbox, "def f(x): return {x: (x, [x])}", "assert f(1) == {1: (1, [1])}") == 1.0
    assert share(sandbox, "import math\ndef f(x): return math.pi * x", "assert abs(f(1) - math.pi) < 1e-9") == 1.0
    assert (
        share(sandbox, "def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2] and sorted(f(2)) == [0, 1]")
        == 1
    )
    assert share(sandbox, "f = lambda *a, **k: [a, k]", "assert f(1, k=2) == [(1,), {'k': 2}]") == 1.0
    stack = (
        "class S:\n    def __init__(s): s.a = []\n    def push(s, x): s.a += [x]\n    def __len__(s): return len(s.a)"
    )
    assert share(sandbox, stack, "s = S()\ns.push(1)\nassert len(s) == 1 and s.a == [1] and s.a[0] == 1") == 1.0
    raising = "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'low' in str(e)"
    assert share(sandbox, "def f(x): raise ValueError('low')", raising) == 1.0
    assert share(sandbox, "def f(x): raise KeyError('low')", raising) == 0.0
    assert share(sandbox, "def f(x): return [x]", "from functools import reduce\nassert reduce(max, f(3)) == 3") == 1.0
    assert share(sandbox, "from collections import Counter as f", "assert f('aab') == {'a': 2, 'b': 1}") == 1.0


def test_each_test_counts_and_a_hang_costs_only_its_own(sandbox):
    program = "def f(x):\n    while x == 2: pass\n    if x == 3: raise SystemExit\n    return x"
    tests = read_tests("\n".join(f"assert f({n}) == {n}" for n in (1, 2, 3, 4)))
    report = examine(sandbox, program, tests, SHORT)
    assert [result.passed for result in report.results] == [True, False, False, True]
    assert [result.timed_out for result in report.results] == [False, True, False, False]
    assert (report.share, report.passed, report.timed_out) == (0.5, False, True)
    stopped = examine(sandbox, program, tests, SHORT, stop_at_failure=True)
    assert (len(stopped.results), stopped.tests, stopped.share) == (2, 4, 0.25)


def test_all_tests_together_have_a_limit(sandbox):
    limits = Limits(seconds=0.2, wall_seconds=0.2, total_seconds=0.2)
    report = examine(
        sandbox, "def f(x):\n    while x: pass\n    return 0", read_tests("assert f(1) == 0\n" * 50), limits
    )
    assert {result.timed_out for result in report.results} == {True}
    assert report.results[-1].why == "no time is left for this test: those before it took it"


def test_what_a_program_remembers_lasts_from_test_to_test(sandbox):
    assert (
        share(sandbox, "n = 0\ndef f():\n    global n\n    n += 1\n    return n", "assert f() == 1\nassert f() == 2")
        == 1
    )


def test_scripts_are_judged_by_what_they_print(sandbox):
    tests = [Script("2 3\n", "5\n"), Script("1 1", "2"), Script("0 0", "1")]
    report = examine(sandbox, "print(sum(map(int, input().split())), end='  \\n\\n')", tests, SHORT)
    assert [result.passed for result in report.results] == [True, True, False]
    assert report.why == "it printed '0  \\n\\n', expected '1'"


def test_definitions_of_the_tests_win_over_the_programs(sandbox):
    setup = "def check(a, b): return a == b"
    lying = "def check(a, b): return True\ndef f(x): return 7"
    assert share(sandbox, lying, "assert check(f(1), 1)", setup) == 0.0
    assert (
        share(
            sandbox, "import math\nmath.isclose = lambda *a: True\ndef f(x): return 7", "assert math.isclose(f(1), 1)"
        )
        == 0
    )
    assert share(sandbox, "abs = lambda x: 0\ndef f(x): return 7", "assert abs(f(1) - 1) < 1") == 0.0


def test_why_says_what_came_and_what_was_expected(sandbox):
    report = examine(sandbox, "def f(x): return [x] * 100", read_tests("assert f(1) == 2"), SHORT)
    assert report.why == "f(1) returned list(1, 1, 1, 1, 1, 1, 1, 1, …), expected 2"
    report = examine(sandbox, "def f(x): return 1 / 0", read_tests("assert f(1) == 2"), SHORT)
    assert report.why == "ZeroDivisionError: division by zero"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner)
    | st.frozensets(st.integers() | st.text()) | st.sets(st.integers()),
    max_leaves=12,
)  # fmt: skip


def over_a_pipe(value):
    sent = frame({"value": Encoder().encode(value)})
    assert length_of(sent) == len(sent) - HEAD
    return parse(sent[HEAD:])["value"]


@given(PLAIN, PLAIN)
@settings(max_examples=150, deadline=None)
def test_values_come_out_as_they_went_in_and_compare_as_in_python(value, other):
    arrived = over_a_pipe(value)
    back = decode(arrived)
    assert type(back) is type(value)
    assert repr(back) == repr(value) or back == value
    assert truth(arrived) is bool(value)
    assert isinstance(brief(arrived), str)
    assert same(value, arrived) is (value == back)
    assert same(other, arrived) is bool(other == value)


def test_how_numbers_and_sequences_compare():
    assert same(1, over_a_pipe(1.0))
    assert same(1, over_a_pipe(True))
    assert not same((1,), over_a_pipe([1]))
    assert not same(math.nan, over_a_pipe(math.nan))
    assert not same(1, over_a_pipe(1.0), AS_IN_JSON)
    assert not same(1, over_a_pipe(True), AS_IN_JSON)
    assert same([1, [2]], over_a_pipe((1, (2,))), AS_IN_JSON)
    assert not same([1, 2], over_a_pipe({1, 2}), AS_IN_JSON)
    assert same({1, 2}, over_a_pipe(frozenset({2, 1})))


HOSTILE = [
    [], [[]], ["list"], ["what", 1], ["int", 5], ["int", "zz"], ["int"], ["float", "x"], ["bytes", "q"], ["complex", 1],
    ["complex", ["list"], 1], ["dict", 1], ["set", ["list"]], ["set", 1, 1], ["dict", ["list"], 1], ["object"],
    ["object", 0, "int"], ["tuple", ["object", 1, "x"]], [1, 2], [None], [["int", "1"]], {"list": 1}, ["float", 1, 2],
    ["set", ["frozenset", *range(2000)]],
]  # fmt: skip


@pytest.mark.parametrize(
    "expected", [None, 0, 1, "a", b"a", 1j, [], [1], (), (1,), {1}, {1: 1}, {}, set(), {(1, 1): [1]}]
)
def test_what_arrives_may_be_anything(expected):
    for wire in HOSTILE:
        assert same(expected, wire) is (wire == ["list"] and type(expected) is list and not expected)
        assert truth(wire) in (True, False, None)
        assert len(brief(wire)) < 400
    for wire in HOSTILE[3:]:
        with pytest.raises(NotPlain):
            decode([wire] if isinstance(wire, dict) else ["tuple", wire, ["what"]])


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000, b'{"a": ' * 100_000, b"1" * 10_000, b"null"]
)
def test_what_is_no_message_is_refused(body):
    with pytest.raises(NotPlain):
        parse(body)


def test_a_value_that_cannot_travel_is_said_to_be_too_large():
    deep: list = []
    for _ in range(10**4):
        deep = [deep]
    for value in (deep, [0] * 300_000):
        with pytest.raises(NotPlain, match="deeper than 64 or of more than 200000 parts"):
            Encoder().encode(value)
    assert json.dumps(Encoder(lambda _: 7).encode([object()])) == '["list", ["object", 7, "object"]]'
