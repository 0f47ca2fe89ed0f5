"""Python as a tool: cells, as in a notebook, each run inside the boundary of `maieutic.sandbox`.

An episode's cells share one namespace: for a new cell the earlier ones run again, silently, in a process of its own.
So nothing is held between turns, and an episode of many siblings needs no more sandboxes than there are processors.
`random` begins with the same seed in every process: what a cell says depends on the cells only.
"""

from __future__ import annotations

from collections.abc import Sequence

from maieutic.environments.tool_functions import ToolFailed, ToolFunction, tool_function
from maieutic.sandbox.limits import Ended, Limits
from maieutic.sandbox.pool import LONGEST_PROGRAM, Sandbox, Sandboxes, shared

#: A cell that is lost with its sandbox is run so often.
_ATTEMPTS = 3
#: What runs the cells, inside: a value at the end of a cell is shown, as notebooks do.
_KERNEL = """
import ast as _ast, contextlib as _contextlib, io as _io, linecache as _linecache, random as _random
import traceback as _traceback

_space = {"__name__": "__main__"}
_random.seed(0)
_count = 0


def cell(code, most):
    global _count
    _count += 1
    file = f"<cell {_count}>"
    _linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    out, error = _io.StringIO(), ""
    try:
        with _contextlib.redirect_stdout(out), _contextlib.redirect_stderr(out):
            tree = _ast.parse(code, file)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
            exec(compile(tree, file, "exec", dont_inherit=True), _space)
            if last is not None:
                value = eval(compile(_ast.Expression(last.value), file, "eval", dont_inherit=True), _space)
                if value is not None:
                    print(repr(value))
    except BaseException as raised:  # noqa: BLE001 - whatever the cell raises is shown
        trace = raised.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell"):
            trace = trace.tb_next
        error = "".join(_traceback.format_exception(type(raised), raised, trace, limit=-4))
    return [out.getvalue()[:most], error[-most:]]
"""


class PythonCells:
    """The cells of one episode. Called with a cell's code, it returns what the cell prints and its last value.

    Raises ToolFailed with the traceback where the cell raises, and with the reason where it is ended; ConfigError
    where the machine has no boundary.
    """

    def __init__(self, limits: Limits, sandboxes: Sandboxes, most: int) -> None:
        self.limits, self.sandboxes, self.most = limits, sandboxes, most
        self.cells: list[str] = []

    def __call__(self, code: str) -> str:
        """Run a cell after the earlier ones."""
        if len(code) + sum(map(len, self.cells)) > LONGEST_PROGRAM:
            raise ToolFailed(f"a program longer than {LONGEST_PROGRAM} characters")
        with self.sandboxes.lend() as sandbox:
            out, error = self._run(sandbox, [*self.cells, code])
        self.cells.append(code)
        if error:
            raise ToolFailed(f"{out}{error}".strip())
        return out.strip() or "(no output)"

    def _run(self, sandbox: Sandbox, cells: Sequence[str]) -> tuple[str, str]:
        for _ in range(_ATTEMPTS):
            session = sandbox.open(self.limits)
            try:
                reply = session.exchange({"parts": [_KERNEL]})
                for code in cells:
                    reply = session.exchange({"call": "cell", "args": [code, self.most], "kwargs": {}})
                    if reply is None:
                        break
            finally:
                session.close()
            if reply is not None:
                return _told(reply.get("value"))
            if session.ended is not Ended.LOST:
                raise ToolFailed(f"the program was ended: {session.why}")
        raise ToolFailed("the sandbox did not answer")


def _told(value: object) -> tuple[str, str]:
    """Output and error, as `cell` returns them. The process is the program's, so they may be anything."""
    if isinstance(value, list) and len(value) == 3 and isinstance(value[1], str) and isinstance(value[2], str):
        return value[1], value[2]
    raise ToolFailed("the program broke its own process")


def python_tool(seconds: float = 2.0, most: int = 4000, sandboxes: Sandboxes | None = None) -> ToolFunction:
    """The tool `python`: a program's output, in the sandbox.

    `seconds` of processor time for each cell, `most` characters of its output. Raises ConfigError, with the remedy,
    where this machine offers no boundary.
    """
    pool = sandboxes or shared()
    pool.ready()
    limits = Limits(seconds=seconds, wall_seconds=max(10.0, 5 * seconds))

    def fresh() -> ToolFunction:
        cells = PythonCells(limits, pool, most)

        def python(code: str) -> str:
            """Run Python code and return what it prints, and the value of its last line.

            Names of earlier calls are still there. There are the standard library, no files and no network.

            Args:
                code: the program
            """
            return cells(code)

        # the sandbox keeps the time: a call may also wait for a sandbox that is free
        return tool_function(python, seconds=None)

    tool = fresh()
    tool.fresh = fresh
    return tool
