"""What a program's process does to itself before the program's first line: limits, user, Landlock, seccomp.

The order matters: each step needs something that a later one takes away. Any failure ends the process, so a program
never runs with less than the zygote has reported.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping

from maieutic.sandbox import filter as system_calls
from maieutic.sandbox import kernel
from maieutic.sandbox.landlock import Ruleset
from maieutic.sandbox.rooms import SCRATCH, Rooms

#: Limits that are 0 for every program: nothing to dump, lock or queue, and no precedence over others.
_NONE = ("CORE", "MEMLOCK", "MSGQUEUE", "NICE", "RTPRIO", "SIGPENDING")


def limit(limits: Mapping[str, int], base_bytes: int, own_count: bool) -> None:
    """Resource limits. `base_bytes` of address space the interpreter has before the program begins."""
    wanted = {getattr(resource, f"RLIMIT_{name}"): 0 for name in _NONE if hasattr(resource, f"RLIMIT_{name}")}
    wanted |= {
        resource.RLIMIT_AS: base_bytes + limits["memory_bytes"],
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_FSIZE: limits["scratch_bytes"],
        resource.RLIMIT_NOFILE: limits["files"],
        resource.RLIMIT_STACK: 8 << 20,
    }
    if own_count:  # where a limit would count other processes of the same user, address space limits threads
        wanted[resource.RLIMIT_NPROC] = limits["threads"] + 4  # and the zygote with those who mind it
    for which, value in wanted.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def confine(limits: Mapping[str, int], rooms: Rooms, rules: Ruleset | None, seccomp: bool, base_bytes: int) -> None:
    """Give up everything, for good; see the top of this file. Raises OSError where that fails."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    scratch = limits["scratch_bytes"] > 0
    os.chdir(SCRATCH if scratch else "/")
    limit(limits, base_bytes, rooms.own_count)
    if rooms.user is not None:
        os.setgroups([])
        os.setresgid(rooms.user, rooms.user, rooms.user)
        os.setresuid(rooms.user, rooms.user, rooms.user)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    if rules is not None:
        rules.restrict()
        rules.close()
    if seccomp:
        system_calls.install(os.getpid(), scratch)
