"""`python -m benchmarks` lists the benchmarks; `python -m benchmarks NAME …` runs one (`NAME --help` says how)."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from maieutic.errors import MaieuticError, UnknownName


def benchmarks() -> dict[str, str]:
    """Name → first line of the docstring, read without importing anything."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = said.partition("\n")[0]
    return found


def main(arguments: list[str]) -> int:
    """Run the benchmark named first with the rest of the arguments; without a name, list them."""
    known = benchmarks()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m benchmarks NAME …\n")
        for name, said in known.items():
            print(f"  {name:<{max(map(len, known))}}  {said}")
        return 0
    name, *rest = arguments
    try:
        if name not in known:
            raise UnknownName("benchmark", name, known)
        return importlib.import_module(f"benchmarks.{name}").main(rest)
    except MaieuticError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
