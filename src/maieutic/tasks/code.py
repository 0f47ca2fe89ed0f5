"""Tasks whose answer is a program: rows with tests, in the layouts of MBPP and HumanEval or a plain one.

    MBPP        {"text" or "prompt": …, "code": …, "test_list": ["assert f(1) == 2", …], "test_setup_code": …}
    HumanEval   {"task_id": …, "prompt": "def f(x): …", "canonical_solution": …, "test": "def check(candidate): …",
                 "entry_point": "f"}
    plain       {"prompt": …, "tests": […], "function": "f", "setup": …, "solution": …}, a test being any of
                "assert f(1) == 2"
                {"args": [1], "kwargs": {}, "expected": 2}     of `function`; True, 1 and 1.0 differ, (1, 2) is [1, 2]
                {"input": "1\\n", "output": "2\\n"}              of a program that reads and prints

A completion is judged by the last fenced block of it that is Python or of no language, outside of its thoughts. It runs
in a sandbox (docs/sandbox.md), where no test and no expected value can be read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.protocols import Tool, Verifier
from maieutic.sandbox.asserts import Call, Script, Test, defined, parsed, read_tests, tests_in
from maieutic.sandbox.limits import Limits
from maieutic.sandbox.pool import shared
from maieutic.sandbox.verdict import examine
from maieutic.sandbox.wire import AS_IN_JSON
from maieutic.tasks.files import existing, read_rows
from maieutic.tasks.taskset import Tasks
from maieutic.types import Message, Task, Verdict

REPLY = "Reply with the whole program in one block that begins with ```python and ends with ```."
REWARDS = ("share", "all")
_LANGUAGES = ("", "python", "py", "python3")
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n`]*$", re.MULTILINE)


def code(
    path: str | Path,
    *,
    reward: str = "share",
    examples: int = 0,
    seconds: float = 2.0,
    memory_mib: int = 512,
    sandboxes: int | None = None,
    system: str | None = None,
    name: str | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """Programming problems with tests from a .jsonl, .json, .csv or .parquet file, as MBPP, HumanEval or plainly.

    `reward` is the share of tests that pass, or 1 for "all" and else 0. `examples` of a task's tests are shown in its
    prompt, and do not count where others are left. A call may take `seconds` of processor time; `sandboxes` run
    programs side by side (default: one for each processor).

    Raises DataError, naming file and line, for a row without a prompt or tests, or with tests that are not Python;
    ConfigError where this machine cannot confine programs: they are never run without a boundary.
    """
    if reward not in REWARDS:
        raise UnknownName("reward of code", reward, REWARDS)
    if examples < 0:
        raise ConfigError(f"code: got examples = {examples}; expected 0 or more")
    limits = Limits(seconds=seconds, wall_seconds=5 * seconds, total_seconds=5 * seconds, memory_bytes=memory_mib << 20)
    path = existing(Path(path))
    rows = read_rows(path)
    name = name or path.stem
    tasks = [_task(row, where, name, index, examples, system) for index, (where, row) in enumerate(rows)]
    if not tasks:
        raise DataError(f"{path}: got no rows; expected at least one task")
    if len({task.id for task in tasks}) < len(tasks):
        raise DataError(f"{path}: two rows have the same task_id; ids are unique")
    if verifier is None:
        shared(sandboxes).ready()
    return Tasks(name, tasks, verifier or PassesTests(limits, reward == "all", sandboxes), tool)


@dataclass(frozen=True)
class PassesTests:
    """Correct when every test of the task passes; `share` is the share of them that do.

    With `all_or_nothing` a program is given up at the first test that it fails, and its share is 1 or 0. The part
    "timed_out" is 1 where a test took too long. What a program does is never raised; RewardError where no sandbox
    answers.
    """

    limits: Limits = field(default_factory=Limits)
    all_or_nothing: bool = False
    sandboxes: int | None = None

    def __call__(self, task: Task, text: str) -> Verdict:
        program = last_block(text)
        if program is None:
            return self._verdict(0.0, None, "no Python block", timed_out=False)
        tests = counting_tests(task)
        with shared(self.sandboxes).lend() as sandbox:
            parts = _whole(task, program)
            report = examine(sandbox, parts, tests, self.limits, stop_at_failure=self.all_or_nothing)
        share = float(report.passed) if self.all_or_nothing else report.share
        return self._verdict(share, program, report.why, report.timed_out)

    def _verdict(self, share: float, program: str | None, why: str, timed_out: bool) -> Verdict:
        return Verdict(
            share == 1.0, program, why, share=share, parts={"tests": share, "timed_out": float(timed_out)}
        )  # fmt: skip


def last_block(text: str) -> str | None:
    """The last fenced block that is Python or of no language, outside of thoughts; None if there is none.

    A block that the end of the text cuts counts only where no whole one precedes it.
    """
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    last, opened, language = None, -1, ""
    for fence in _FENCE.finditer(text):
        if opened < 0:
            opened, language = fence.end() + 1, fence[1].lower()
        elif not fence[1]:
            last = text[opened : fence.start()] if language in _LANGUAGES else last
            opened = -1
    if last is None and opened >= 0 and language in _LANGUAGES:
        last = text[opened:]
    return last


def _whole(task: Task, program: str) -> list[str]:
    """The program with what the task's prompt defines; where it is only the function's body, below its head."""
    head = task.meta.get("head", "")
    if head and not re.search(rf"^(?:async\s+)?(?:def|class)\s+{re.escape(task.meta['function'])}\b", program, re.M):
        return [head + "\n" + program]
    return [task.meta["setup"], program] if head else [program]


def counting_tests(task: Task, where: str = "") -> list[Test]:
    """The tests that count for a task, as `maieutic.sandbox.examine` takes them; `where` it is, for errors."""
    return [test for each in task.meta["tests"] for test in _tests(each, task.meta, where or task.id)]


def _tests(each: Any, meta: Mapping[str, Any], where: str) -> list[Test]:
    if isinstance(each, str) and meta.get("checked"):
        return _tests_of_check(each, meta["setup"], meta["function"], where)
    if isinstance(each, str):
        return read_tests(each, meta["setup"], where, meta.get("names"))
    if isinstance(each, Mapping) and "output" in each:
        return [Script(str(each.get("input", "")), str(each["output"]))]
    if isinstance(each, Mapping) and "expected" in each and meta["function"]:
        args, kwargs = each.get("args", []), each.get("kwargs", {})
        if isinstance(args, list) and isinstance(kwargs, dict):
            return [Call(meta["function"], tuple(args), kwargs, each["expected"], AS_IN_JSON)]
    raise DataError(
        f"{where}: got the test {each!r}; expected an assertion as text, args and expected (with the row's function), "
        "or input and output"
    )


def _tests_of_check(source: str, setup: str, function: str, where: str) -> list[Test]:
    """The tests of `def check(candidate): …`: each assertion in it, or all of it where it is more than assertions."""
    tree = parsed(source, where)
    check = next((each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == "check"), None)
    if check is None or len(check.args.args) != 1:
        raise DataError(f"{where}: got a test without def check(candidate); expected one, as in HumanEval")
    apart = "\n".join(ast.unparse(each) for each in tree.body if each is not check)
    body = [_Renamed(check.args.args[0].arg, function).visit(each) for each in check.body]
    return tests_in(body, f"{ast.unparse(check)}\ncheck({function})", f"{setup}\n{apart}", where, (function,))


class _Renamed(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.new, node.ctx) if node.id == self.old else node


def _task(row: Mapping[str, Any], where: str, name: str, index: int, examples: int, system: str | None) -> Task:
    layouts: Mapping[str, Callable[..., dict[str, Any]]] = {
        "test_list": _mbpp, "entry_point": _human_eval, "tests": _plain
    }  # fmt: skip
    layout = next((make for key, make in layouts.items() if row.get(key)), None)
    if layout is None:
        raise DataError(
            f"{where}: no tests; expected test_list (as MBPP), entry_point and test (as HumanEval), or tests. The row "
            f"has {', '.join(map(repr, row)) or 'no columns'}"
        )
    made = layout(row, where)
    prompt, solution = made.pop("prompt"), made.pop("solution")
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: no prompt; expected what the program should do, as text")
    shown = [each for each in made["tests"] if isinstance(each, str)][:examples] if not made.get("checked") else []
    made["tests"] = [each for each in made["tests"] if each not in shown] or made["tests"]
    if shown:
        prompt += "\n\nFor example:\n```python\n" + "\n".join(shown) + "\n```"
    made |= {"solution": f"```python\n{solution.strip()}\n```"} if solution else {}
    own = next((row[key] for key in ("task_id", "id") if row.get(key) is not None), index)
    messages = (Message("system", system),) if system else ()
    task = Task(
        f"{name}/{own}",
        (*messages, Message("user", f"{prompt.strip()}\n\n{REPLY}")),
        solution or f"a program that passes {len(made['tests'])} tests",
        made,
    )
    if not counting_tests(task, where):
        raise DataError(f"{where}: its tests test nothing; expected at least one that calls the program")
    return task


def _mbpp(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    imports = row.get("test_imports") or []
    setup = "\n".join([*imports, row.get("test_setup_code") or ""]).strip()
    solution = str(row.get("code") or "")
    function = _function(row["test_list"], setup, solution, where)
    said = row.get("text") or row.get("prompt") or ""
    asked = f"{said}\n\nWrite the Python function `{_head(solution, function)}`." if function else said
    return {
        "prompt": asked if said else "", "solution": solution, "tests": list(row["test_list"]), "function": function,
        **_names(solution, setup, function, where),
    }  # fmt: skip


def _human_eval(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    head, function = str(row.get("prompt") or ""), str(row["entry_point"])
    body = parsed(head + "\n    pass\n", where).body
    setup = "\n".join(ast.unparse(each) for each in body if getattr(each, "name", "") != function)
    solution = row.get("canonical_solution")
    return {
        "prompt": f"Complete this Python function.\n\n```python\n{head.strip()}\n```" if head.strip() else "",
        "solution": head + str(solution) if solution else "",
        "tests": [str(row.get("test") or "")], "setup": setup, "function": function, "head": head, "checked": True,
    }  # fmt: skip


def _plain(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    tests, function = row["tests"], str(row.get("function") or "")
    if not isinstance(tests, list):
        raise DataError(f"{where}: got tests of type {type(tests).__name__}; expected a list")
    solution = str(row.get("solution") or "")
    prompt = row.get("prompt")
    if function and isinstance(prompt, str) and function not in prompt:
        prompt += f"\n\nWrite the Python function `{_head(solution, function)}`."
    return {
        "prompt": prompt, "solution": solution, "tests": tests, "function": function,
        **_names(solution, str(row.get("setup") or ""), function, where),
    }  # fmt: skip


def _names(solution: str, setup: str, function: str, where: str) -> dict[str, Any]:
    """What tests may ask the program for, and what they have beside it: the solution's own names, and its imports."""
    body = parsed(solution, where).body
    if not body:
        return {"setup": setup}
    imports = [each for each in body if isinstance(each, ast.Import | ast.ImportFrom)]
    own = frozenset().union(*(defined(each) for each in body if each not in imports))
    return {"setup": "\n".join([*map(ast.unparse, imports), setup]), "names": sorted({*own, function} - {""})}


def _function(tests: Sequence[str], setup: str, solution: str, where: str) -> str:
    """The function that the tests call: of the names in them that the solution defines, the one called first."""
    defined = {each.name for each in parsed(solution, where).body if isinstance(each, ast.FunctionDef | ast.ClassDef)}
    for test in tests:
        calls = [node for node in ast.walk(parsed(test, where)) if isinstance(node, ast.Call)]
        named = [node.func.id for node in calls if isinstance(node.func, ast.Name)]
        for each in named:
            if each in defined:
                return each
        for found in read_tests(test, setup, where) if not defined else ():
            if isinstance(found, Call):
                return found.function
    return ""


def _head(solution: str, function: str) -> str:
    """How the function is called, as its solution says; its name alone where there is none."""
    for each in parsed(solution, "a solution").body:
        if isinstance(each, ast.FunctionDef) and each.name == function:
            return f"{function}({ast.unparse(each.args)})"
    return function
