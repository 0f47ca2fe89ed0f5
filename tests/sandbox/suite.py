"""Try everything in `abuses.py`; after each, see that an honest program runs, and that nothing outside has changed.

    python tests/sandbox/suite.py [USER] [LAYERS]     what got through, as JSON; as that user (a number), without layers

As an ordinary user: root gives itself up for good before the first sandbox is made. Where the interpreter lies in a
folder that only root may enter (as under /root), a mount namespace of the suite's own shows it to everybody.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from abuses import FORGERIES, GREED, PRELUDE, WAYS_OUT, WITH_SCRATCH

from maieutic.sandbox import Ended, Limits, Sandbox, examine, kernel, read_tests

SHORT = Limits(
    seconds=0.2, wall_seconds=0.4, total_seconds=0.3, memory_bytes=128 << 20, output_bytes=200_000, value_bytes=100_000
)
#: For what takes no time unless the machine is busy, and must not be taken for stopped because of that.
LONG = replace(SHORT, seconds=5.0, wall_seconds=30.0, total_seconds=10.0)
NAMES = [*WAYS_OUT, *GREED, *FORGERIES]


@contextmanager
def outside() -> Iterator[dict[str, str]]:
    """A world to get out into: what `@name@` stands for."""
    with tempfile.TemporaryDirectory(prefix="outside") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "secret").write_text("secret")
        (folder / "secret").chmod(0o644)
        tcp = socket.create_server(("127.0.0.1", 0))
        unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        unix.bind(f"{name}/socket")
        os.chmod(f"{name}/socket", 0o777)
        label = f"maieutic-{secrets.token_hex(8)}"
        abstract.bind(f"\0{label}")
        for each in (unix, abstract):
            each.listen()
        victim = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        try:
            yield {
                "secret": f"{name}/secret", "folder": name, "tcp": str(tcp.getsockname()[1]), "unix": f"{name}/socket",
                "abstract": label, "trainer": str(os.getpid()), "victim": str(victim.pid), "suite": __file__,
                "packages": repr([str(Path(json.__file__).parents[1] / "site-packages/README.txt"), kernel.__file__]),
                "guess": "token-", "token": "token-",
            }  # fmt: skip
            assert victim.poll() is None, "the victim was killed"
        finally:
            victim.kill()
            victim.wait()
            for each in (tcp, unix, abstract):
                each.close()


def filled(program: str, world: Mapping[str, str]) -> str:
    """The program for this world."""
    for name, value in world.items():
        program = program.replace(f"@{name}@", value)
    return program


def try_way_out(sandbox: Sandbox, name: str, world: Mapping[str, str]) -> str:
    """What is wrong, if anything."""
    room = name in WITH_SCRATCH and sandbox.host.ready().has("root")
    limits = replace(LONG, scratch_bytes=1 << 20 if room else 0)
    outcome = sandbox.run(PRELUDE + filled(WAYS_OUT[name], world), limits=limits)
    if "ESCAPED" in outcome.stdout + outcome.stderr:
        return outcome.stdout + outcome.stderr
    crash = "32-bit" in name or "x32" in name
    if outcome.ended is not Ended.FINISHED and not (crash and outcome.ended is Ended.KILLED):
        return f"{outcome.ended}: {outcome.why}"
    return "" if outcome.exit_code == 0 or crash else f"it could not try: {outcome.stderr}"


def try_greed(sandbox: Sandbox, name: str) -> str:
    """What is wrong, if anything."""
    greed = GREED[name]
    room = greed.scratch if sandbox.host.ready().has("root") else 0
    if greed.scratch and not room:
        return ""
    limits = SHORT if "timeout" in greed.ends else LONG
    outcome = sandbox.run(greed.program, limits=replace(limits, scratch_bytes=room))
    if outcome.ended not in greed.ends or greed.says not in outcome.stdout or "ESCAPED" in outcome.stdout:
        return f"{outcome.ended} {outcome.why} {outcome.stdout[-200:]} {outcome.stderr[-500:]}"
    return ""


def try_forgery(sandbox: Sandbox, name: str, world: Mapping[str, str]) -> str:
    """What is wrong, if anything: no test may pass, neither those compared in the trainer nor those that run apart."""
    token = f"token-{secrets.token_hex(16)}"
    tests = read_tests(f"assert f(3) == {token!r}") + read_tests(
        f"for i in (3, 4):\n    y = f(i)\n    assert y == {token!r} + str(i)\n"
        "    assert not y != y\n    assert isinstance(y, str)"
    )
    tests += read_tests(f"def g(x): return f(x) == {token!r} + str(x)\nassert all(map(g, [3, 4]))")
    report = examine(sandbox, filled(FORGERIES[name], world), tests, SHORT)
    passed = [i for i, result in enumerate(report.results) if result.passed]
    return f"tests {passed} passed" if passed or report.tests != len(report.results) else ""


def honest(sandbox: Sandbox) -> str:
    """What is wrong with a program that is as it should be."""
    outcome = sandbox.run("print(6 * 7)", limits=LONG)
    return "" if outcome.ok and outcome.stdout == "42\n" else f"then an honest program failed: {outcome}"


def names_for(without: frozenset[str]) -> list[str]:
    """What is tried: forgeries once with every layer are enough, since no layer but the pipes concerns them."""
    return [name for name in NAMES if not without or name not in FORGERIES]


def attack(without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Everything, in order: name → what is wrong, "" for what was stopped."""
    sandbox = Sandbox(without)
    found = {}
    try:
        with outside() as world:
            before = sorted(os.listdir(world["folder"]))
            for name in names_for(without):
                if name in WAYS_OUT:
                    wrong = try_way_out(sandbox, name, world)
                else:
                    wrong = try_greed(sandbox, name) if name in GREED else try_forgery(sandbox, name, world)
                if sorted(os.listdir(world["folder"])) != before:
                    wrong += " and it left a mark outside"
                found[name] = wrong + honest(sandbox)
        found["replaced"] = "" if sandbox.host.starts == 1 else f"the zygote was started {sandbox.host.starts} times"
    finally:
        sandbox.close()
    return found


def give_up_root(user: int) -> None:
    """Be that user, who has nothing; and still reach the interpreter."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    prefix = Path(getattr(sys, "_base_executable", sys.executable)).resolve().parents[1]
    closed = [folder for folder in (prefix, *prefix.parents) if not folder.stat().st_mode & 0o001]
    if closed:
        place = os.open(prefix, os.O_PATH)
        kernel.mount("tmpfs", str(closed[-1]), "tmpfs", 0, "mode=755")
        prefix.mkdir(parents=True)
        kernel.mount(f"/proc/self/fd/{place}", str(prefix), None, kernel.MS_BIND | kernel.MS_REC)
        os.close(place)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


if __name__ == "__main__":
    signal.alarm(900)
    if len(sys.argv) > 1 and int(sys.argv[1]):
        give_up_root(int(sys.argv[1]))
    left_out = frozenset(sys.argv[2].split(",")) if len(sys.argv) > 2 else frozenset()
    print(json.dumps(attack(left_out)))
