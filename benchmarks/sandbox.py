"""How many programs a sandbox judges in a second of one core: python -m benchmarks sandbox [--quick] [--json FILE].

Each kind of program is run in one sandbox, one after the other. Counted is the processor time of everything: the
trainer's end, the zygote and the programs themselves (the children's, which is known once they are gone), so that the
figure holds on a machine that does other things as well. Then the same on several sandboxes at a time, by the clock.

    script       print(6 * 7), as `maieutic.sandbox.run` does it
    three calls  a function and three assertions of the form f(x) == literal
    apart        a function and three assertions that run in a process of their own
    a folder     a script that writes a file into a folder of its own
    plain        `python -I -S -c`, a process of its own without any boundary: what there is to be compared with
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks._results import write_json
from benchmarks.svamp import machine
from maieutic.sandbox import Limits, Sandbox, Sandboxes, examine, read_tests

#: What has to be reached (`three calls`), and with how many programs of each kind and how many repeats it is measured.
WANTED = 30.0
PROGRAMS, REPEATS = 100, 7
FUNCTION = "def add(a, b):\n    return a + b"
CALLS = read_tests("assert add(1, 2) == 3\nassert add(-1, 1) == 0\nassert add('a', 'b') == 'ab'")
APART = read_tests("assert add(1, 2) > 2\nassert abs(add(0.1, 0.2) - 0.3) < 1e-9\nassert len(add('a', 'b')) == 2")
FOLDER = "open('a', 'w').write('b')\nprint(42)"


def script(sandbox: Sandbox) -> bool:
    """One program as `run` does it."""
    return sandbox.run("print(6 * 7)").stdout == "42\n"


def calls(sandbox: Sandbox) -> bool:
    """A function against three assertions, compared outside."""
    return examine(sandbox, FUNCTION, CALLS).passed


def apart(sandbox: Sandbox) -> bool:
    """A function against three assertions that run apart."""
    return examine(sandbox, FUNCTION, APART).passed


def folder(sandbox: Sandbox) -> bool:
    """A program with a folder of its own."""
    return sandbox.run(FOLDER, limits=Limits(scratch_bytes=1 << 20)).stdout == "42\n"


def plain(_: Sandbox) -> bool:
    """A process without a boundary."""
    command = [sys.executable, "-I", "-S", "-c", "print(6 * 7)"]
    return subprocess.run(command, capture_output=True, check=True).stdout == b"42\n"


KINDS: Mapping[str, Callable[[Sandbox], bool]] = {
    "script": script, "three calls": calls, "apart": apart, "a folder": folder, "plain": plain,
}  # fmt: skip


def processor_seconds() -> float:
    """Of this process and of all below it that are gone."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in both)


def per_core(kind: Callable[[Sandbox], bool], programs: int) -> float:
    """Programs for each second of processor time, the sandbox's start left out."""
    costs = []
    for count in (1, programs + 1):  # what a start costs is in both
        before = processor_seconds()
        sandbox = Sandbox()
        if not all(kind(sandbox) for _ in range(count)):
            raise SystemExit("a program did not come out as it should")
        sandbox.close()
        costs.append(processor_seconds() - before)
    return programs / max(costs[1] - costs[0], 1e-9)


def by_the_clock(count: int, programs: int) -> float:
    """Programs a second on so many sandboxes at a time."""
    pool = Sandboxes(count)

    def one(_: int) -> bool:
        with pool.lend() as sandbox:
            return calls(sandbox)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(one, range(4 * count)))  # all have started
        begun = time.perf_counter()
        list(threads.map(one, range(programs)))
        spent = time.perf_counter() - begun
    pool.close()
    return programs / spent


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 where a core judges fewer programs than it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer programs and repeats: within a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="what was measured, for programs")
    given = parser.parse_args(arguments)
    programs, repeats = (40, 3) if given.quick else (PROGRAMS, REPEATS)
    found: dict[str, Any] = {"machine": machine(), "per_core": {}, "by_the_clock": {}}
    for name, kind in KINDS.items():
        print(f"{name} …", file=sys.stderr)
        found["per_core"][name] = sorted(per_core(kind, programs) for _ in range(repeats))[repeats // 2]
    for count in (1, 2, 4):
        print(f"{count} at a time …", file=sys.stderr)
        found["by_the_clock"][str(count)] = by_the_clock(count, programs)
    print(found["machine"])
    print(f"\nprograms for each second of one core (median of {repeats})")
    for name, rate in found["per_core"].items():
        print(f"  {name:<12} {rate:7.1f}")
    print("\nthree calls, programs a second by the clock")
    for count, rate in found["by_the_clock"].items():
        print(f"  {count} at a time  {rate:7.1f}")
    reached = found["per_core"]["three calls"] >= WANTED
    print(f"\nthree calls: {'at least' if reached else 'FEWER THAN'} {WANTED:g} a second of one core")
    if given.json:
        write_json(given.json, found)
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
