"""What confines programs on this machine, in words, and an attempt to get past it."""

from __future__ import annotations

from collections.abc import Mapping

from maieutic.sandbox.host import Boundary, Host
from maieutic.sandbox.limits import Ended, Limits
from maieutic.sandbox.pool import Sandbox

#: What is tried → a program that prints "out" where it succeeds.
ATTEMPTS: Mapping[str, str] = {
    "read a file of the system": "open('/etc/passwd').read(); print('out')",
    "list the root folder": "import os; os.listdir('/'); print('out')",
    "write a file": "open('/tmp/out', 'w').write('x'); print('out')",
    "see the environment": "import os; print('out' if os.environ else 'nothing')",
    "open a network socket": "import socket; socket.socket(); print('out')",
    "make a process": "import os; pid = os.fork(); print('out')",
    "run a shell": "import os; os.execv('/bin/sh', ['sh', '-c', 'echo out'])",
    "signal another process": "import os; os.kill(os.getppid() or 1, 0); print('out')",
    "trace a process": "import ctypes; print('out' if ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0 else 'no')",
    "take more memory than it may": "b'x' * (1 << 40); print('out')",
    "run for longer than it may": "while True: pass",
    "write more than it may": "while True: print('.' * 1000)",
}
_LIMITS = Limits(seconds=0.5, wall_seconds=2.0, output_bytes=100_000, memory_bytes=256 << 20)


def probe(without: frozenset[str] = frozenset()) -> Boundary:
    """What is in force for programs on this machine, layer by layer: `print("\\n".join(probe().words()))`.

    Raises ConfigError, with the remedy, where that is no boundary.
    """
    host = Host(without)
    try:
        return host.ready()
    finally:
        host.close()


def attempt() -> dict[str, bool]:
    """Try to get past the boundary in the ways of `ATTEMPTS`: what was tried → whether it was stopped."""
    sandbox = Sandbox()
    try:
        stopped = {}
        for name, program in ATTEMPTS.items():
            outcome = sandbox.run(program, limits=_LIMITS)
            stopped[name] = "out" not in outcome.stdout and outcome.ended is not Ended.LOST
        return stopped
    finally:
        sandbox.close()
