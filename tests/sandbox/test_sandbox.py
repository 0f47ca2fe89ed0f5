"""Running programs: what they have, what an outcome says, how a sandbox is replaced, and when nothing is run at all."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maieutic.errors import ConfigError
from maieutic.sandbox import Ended, Limits, Sandbox, Sandboxes, probe, run
from maieutic.sandbox.filter import ALLOWED, CLONE, CLONE3, SIGNALS, SOME, WRITING, assemble
from maieutic.sandbox.host import Clock, Host

SHORT = Limits(seconds=0.2, wall_seconds=0.4)


def test_a_program_has_the_standard_library_and_its_input(sandbox):
    program = "import json, decimal, subprocess\nfor line in open(0): print(json.dumps(line.split()))"
    outcome = sandbox.run(program, stdin="a b\nc\n")
    assert outcome.ok
    assert outcome.stdout == '["a", "b"]\n["c"]\n'


def test_what_a_program_raises_at_its_very_end_ends_that_program_only(sandbox):
    odd = "import sys\nclass Odd:\n    def flush(self): raise SystemExit(9)\nsys.stdout = Odd()"
    ended = sandbox.run(odd)
    assert (ended.ended, ended.exit_code) == (Ended.FINISHED, 70)
    assert ended.stderr.endswith("SystemExit: 9\n")
    assert sandbox.run("print(1)").stdout == "1\n"


def test_large_input_and_output_pass_through(sandbox):
    text = "x" * 300_000
    outcome = sandbox.run("import sys; print(len(sys.stdin.read())); print('y' * 300_000)", stdin=text)
    assert outcome.stdout == "300000\n" + "y" * 300_000 + "\n"


def test_an_outcome_says_how_it_ended(sandbox):
    raised = sandbox.run("def f(): return 1 / 0\nf()")
    assert (raised.ended, raised.exit_code, raised.ok) == (Ended.FINISHED, 1, False)
    assert raised.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert raised.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert 'File "<program>", line 1, in f' in raised.stderr
    assert "maieutic" not in raised.stderr
    assert sandbox.run("import sys; sys.exit(3)").exit_code == 3
    assert sandbox.run("raise SystemExit('bad')").stderr == "bad\n"
    killed = sandbox.run("import os; os.kill(os.getpid(), 11)")
    assert (killed.ended, killed.exit_code, killed.why) == (Ended.KILLED, None, "it was killed by signal 11")
    slow = sandbox.run("print('begun')\nwhile True: pass", limits=Limits(seconds=0.2, wall_seconds=30))
    assert (slow.ended, slow.stdout, slow.why) == (
        Ended.TIMEOUT,
        "begun\n",
        "it took more than 0.2 s of processor time",
    )
    assert slow.seconds >= 0.2
    asleep = sandbox.run("import time; time.sleep(99)", limits=SHORT)
    assert (asleep.ended, asleep.why) == (Ended.TIMEOUT, "it took more than 0.4 s of the clock")
    loud = sandbox.run("while True: print('.' * 99)", limits=Limits(output_bytes=1000))
    assert (loud.ended, len(loud.stdout)) == (Ended.OUTPUT, 1000)


def test_a_program_is_what_python_would_make_of_it(sandbox):
    program = (
        "import atexit, threading, dataclasses, pickle\n"
        "@dataclasses.dataclass\nclass P:\n    x: int\n"
        "atexit.register(print, 'last')\n"
        "threading.Thread(target=print, args=['thread']).start()\n"
        "if __name__ == '__main__': print(pickle.loads(pickle.dumps(P(1))))"
    )
    outcome = sandbox.run(program)
    assert sorted(outcome.stdout.splitlines()[:2]) == ["P(x=1)", "thread"]
    assert outcome.stdout.splitlines()[2] == "last"


def test_programs_begin_alike_and_leave_nothing_behind(sandbox):
    program = (
        "import random, builtins as b\nprint(random.random(), list({'a', 'b', 'c', 'd'}), hasattr(b, 'x'))\nb.x = 1"
    )
    first, second = sandbox.run(program), sandbox.run(program)
    other = Sandbox()
    try:
        assert first.stdout == second.stdout == other.run(program).stdout
    finally:
        other.close()


def test_a_folder_of_its_own_is_empty_every_time(sandbox):
    if not sandbox.host.ready().has("root"):
        pytest.skip("this machine grants no root of the sandbox's own")
    program = "import os, tempfile\nprint(os.listdir()); open('a', 'w').write('b'); print(open('a').read())"
    program += "\nwith tempfile.TemporaryDirectory() as d: open(d + '/c', 'w')"
    for _ in range(2):
        outcome = sandbox.run(program, limits=Limits(scratch_bytes=1 << 20))
        assert outcome.stdout == "[]\nb\n", outcome


def test_a_zygote_that_hangs_or_dies_is_replaced():
    sandbox = Sandbox()
    try:
        assert sandbox.run("print(1)").ok
        first = sandbox.host.pid
        assert first is not None
        os.killpg(first, signal.SIGSTOP)  # the zygote is of its minder's group
        assert sandbox.run("print(2)").stdout == "2\n"
        second = sandbox.host.pid
        assert second not in (None, first)
        os.killpg(second, signal.SIGKILL)
        assert sandbox.run("print(3)").stdout == "3\n"
        assert sandbox.host.starts == 3
        assert not Path(f"/proc/{first}").exists(), "the one that hung is gone"
    finally:
        sandbox.close()


def test_nothing_is_left_when_the_trainer_is_killed():
    code = (
        "import os, signal, sys\nfrom maieutic.sandbox import shared, run, Limits\n"
        "shared(1).ready()\nprint(os.getpid(), flush=True)\n"
        "shared(1).run('import time; time.sleep(100)', limits=Limits(seconds=50, wall_seconds=100))"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    trainer.stdout.readline()
    time.sleep(0.3)  # the program sleeps by now, or will find nobody to run it
    below = descendants(trainer.pid)
    assert below
    trainer.kill()
    trainer.wait()
    for _ in range(200):
        if not any(Path(f"/proc/{pid}").exists() for pid in below):
            break
        time.sleep(0.05)
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]


def descendants(pid: int) -> list[int]:
    """Every process below that one."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def test_several_threads_run_programs_side_by_side():
    with Sandboxes(2).lend() as sandbox:  # one of two: the other is not started
        assert sandbox.run("print(1)").ok
    pool = Sandboxes(2)
    try:
        with ThreadPoolExecutor(6) as threads:
            outcomes = list(threads.map(lambda n: pool.run(f"print({n} ** 2)"), range(30)))
        assert [outcome.stdout for outcome in outcomes] == [f"{n * n}\n" for n in range(30)]
    finally:
        pool.close()


def test_a_pool_has_at_least_one():
    with pytest.raises(ConfigError, match="count = 0"):
        Sandboxes(0)


def test_run_needs_nothing_but_a_program():
    assert run("print(input()[::-1])", stdin="stressed").stdout == "desserts\n"


@pytest.mark.parametrize(
    "text", ["\x00", "print('\ud83d')", "é" * 10 + "(", " " * 9 + "x", "\n" * 10**5, "#" * (1 << 21)]
)
def test_no_text_raises(sandbox, text):
    assert sandbox.run(text).ended in (Ended.FINISHED, Ended.OUTPUT)


def test_without_a_boundary_nothing_is_run():
    every = frozenset({"namespaces", "landlock", "seccomp", "bubblewrap"})
    for without in (every, every - {"landlock"}, every - {"seccomp"}):
        host = Host(without)
        with pytest.raises(ConfigError, match=r"needs a boundary.*Remedy: a Linux kernel with Landlock.*bubblewrap"):
            host.ready()
        assert host.pid is None
    with pytest.raises(ConfigError, match="needs a boundary"):
        Sandbox(every).run("print('ran')")


def test_each_of_two_ways_to_close_the_files_is_enough():
    for left_out, kept in (("namespaces", "landlock"), ("landlock", "root")):
        boundary = probe(frozenset({left_out, "bubblewrap"}))
        assert boundary.enough
        assert boundary.has(kept)
        assert boundary.has("seccomp")
        sandbox = Sandbox(frozenset({left_out, "bubblewrap"}))
        try:
            outcome = sandbox.run("print('ran')\nopen('/etc/passwd')")
            assert (outcome.stdout, outcome.exit_code) == ("ran\n", 1)
        finally:
            sandbox.close()


def test_a_folder_to_write_in_is_refused_where_it_could_not_be_limited():
    sandbox = Sandbox(frozenset({"namespaces"}))
    try:
        with pytest.raises(ConfigError, match=r"scratch_bytes.*Remedy: scratch_bytes = 0"):
            sandbox.run("print(1)", limits=Limits(scratch_bytes=1))
        assert sandbox.run("print(1)").ok
    finally:
        sandbox.close()


def reachable(python: str) -> bool:
    """Whether every user may run the interpreter, which is no older than ours."""
    path = Path(python).resolve()
    return path.exists() and path.name >= "python3.11" and all(p.stat().st_mode & 0o001 for p in (path, *path.parents))


def test_bubblewrap_stands_in_for_what_a_kernel_lacks():
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    python = next((p for p in (sys._base_executable, "/usr/bin/python3") if reachable(p)), None)
    if python is None:
        pytest.skip("every interpreter lies in a folder that only root may enter")
    sandbox = Sandbox(frozenset({"namespaces", "landlock", "seccomp"}), python)
    try:
        assert sandbox.host.ready().has("bubblewrap")
        bomb = "import os, time\nfor i in range(9): os.fork()\ntime.sleep(9)"
        assert "BlockingIOError" in sandbox.run(bomb, limits=SHORT).stderr
        for program in ("open('/etc/passwd')", "import socket; socket.create_connection(('127.0.0.1', 22), 1)"):
            assert sandbox.run(program).exit_code == 1
        assert sandbox.run("print(1)").stdout == "1\n"
    finally:
        sandbox.close()


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"memory_bytes": -1}, {"wall_seconds": float("nan")}, {"threads": -1}]
)
def test_impossible_limits_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Limits(**wrong)


def test_time_that_the_machine_slept_through_does_not_count():
    clock = Clock()
    time.sleep(0.7)
    assert clock.tick() == pytest.approx(0.5, abs=0.01)  # the longest step between two looks


def decide(lines: bytes, machine: int, number: int, argument: int = 0) -> int:
    """What a filter answers, run as the kernel would run it; `argument` stands for each of the six."""
    program = [(int.from_bytes(lines[i : i + 2], "little"), lines[i + 2], lines[i + 3],
                int.from_bytes(lines[i + 4 : i + 8], "little")) for i in range(0, len(lines), 8)]  # fmt: skip
    at, accumulator = 0, 0
    while True:
        code, true, false, value = program[at]
        at += 1
        if code == 0x20:
            accumulator = {0: number, 4: machine}.get(value, argument)
        elif code == 0x06:
            return value
        else:
            taken = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += true if taken else false


@pytest.mark.parametrize(("column", "machine"), [(0, 0xC000003E), (1, 0xC00000B7)])
def test_the_filter_allows_what_is_listed_and_nothing_else(column, machine):
    allow, refuse, unknown, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
    lines = assemble(column, 77, writing=False)
    listed = {numbers[column] for numbers in ALLOWED.values()} - {-1}
    special = {numbers[column] for numbers, _, _ in SOME.values()} | {n[column] for n in (*SIGNALS.values(), CLONE)}
    for number in range(1024):
        if number in listed:
            assert decide(lines, machine, number) == allow
        elif number == CLONE3[column]:
            assert decide(lines, machine, number) == unknown
        elif number not in special:
            assert decide(lines, machine, number) == refuse, number
    for numbers, _, values in SOME.values():
        assert decide(lines, machine, numbers[column], values[0]) == allow
        assert decide(lines, machine, numbers[column], 0x7777) == refuse
    for numbers in SIGNALS.values():
        assert [decide(lines, machine, numbers[column], pid) for pid in (77, 78, 0, 2**32 - 1)] == [allow] + [
            refuse
        ] * 3
    clone = CLONE[column]
    assert decide(lines, machine, clone, 0x3D0F00) == allow  # a thread, as glibc makes it
    assert decide(lines, machine, clone, 0x01200011) == refuse  # a process, as fork makes it
    assert decide(lines, machine, clone, 0x3D0F00 | 0x10000000) == refuse  # a thread in a user namespace
    assert decide(lines, machine, 0x40000000) == kill
    assert decide(lines, 0x40000003, 0) == kill  # 32-bit
    writing = assemble(column, 77, writing=True)
    assert {decide(writing, machine, n[column]) for n in WRITING.values() if n[column] >= 0} == {allow}
    assert len(writing) // 8 < 4096  # what the kernel takes


def test_check_says_what_is_in_force():
    words = "\n".join(probe().words())
    assert "seccomp" in words
    assert platform.system() == "Linux"
