"""The zygote: a plain Python process that forks one program at a time into the boundary.

    trainer ──starts──► minder ──forks──► zygote (first process of its namespace) ──forks──► program

It is started anew, with an empty environment, and never holds anything worth reading: programs, their inputs and what
they return travel over pipes between the trainer and the program's process itself, which are handed over as open files.
All it is told are limits. Whatever a program leaves running is killed before the next one: as the first process of its
namespace the zygote can kill everything else in it, and where there is no such namespace no program can fork.

Messages, one a packet: {"run": limits} with six open files → {"ended": status, "cpu": seconds, "memory": bytes};
meanwhile {"cpu": true} → {"cpu": seconds}, and {"kill": true}.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

from maieutic.sandbox import filter as system_calls
from maieutic.sandbox import judge, kernel, program, rooms
from maieutic.sandbox.confine import confine
from maieutic.sandbox.landlock import Ruleset, abi

#: What programs import most, and what needs shared libraries, which lie outside of what they can read.
_PRELOADED = (
    "array", "bisect", "bz2", "calendar", "cmath", "collections.abc", "copy", "csv", "datetime", "decimal",
    "fractions", "functools", "hashlib", "heapq", "html", "io", "itertools", "json", "lzma", "math", "numbers",
    "operator", "random", "re", "statistics", "string", "struct", "textwrap", "threading", "timeit", "traceback",
    "types", "typing", "unicodedata", "zlib",
)  # fmt: skip
#: Standard input, output and error of a program, then its requests and its replies.
_FILES = 5
#: Open files that the zygote itself may have.
_MOST_OPEN = 256


@dataclass
class Boundary:
    """What is in force for every program, and what confining one needs."""

    rooms: rooms.Rooms
    folders: list[str]
    closed: list[str]
    rules: Ruleset | None
    seccomp: bool
    base_bytes: int

    def confine(self, limits: dict[str, int]) -> None:
        """Give everything up, in the process that becomes the program."""
        rules = self.rules
        if rules is not None and limits["scratch_bytes"]:
            rules.close()
            rules = self._rules()
            rules.allow_writing(rooms.SCRATCH)
        confine(limits, self.rooms, rules, self.seccomp, self.base_bytes)

    def _rules(self) -> Ruleset:
        rules = Ruleset()
        rules.allow_reading(self.folders, self.closed)
        return rules


def _folders() -> tuple[list[str], list[str]]:
    """The standard library's folders, and those inside them that are not for programs."""
    found = [path for path in sys.path if os.path.isdir(path)]
    outer = [path for path in found if not any(path.startswith(other + "/") for other in found)]
    return outer, [f"{folder}/{name}" for folder in outer for name in ("site-packages", "dist-packages", "test")]


def _try_seccomp() -> str:
    child = os.fork()
    if child == 0:
        try:
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
            system_calls.install(os.getpid(), False)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code) if code > 0 else f"signal {-code}")
    return f"{len(system_calls.ALLOWED)} harmless system calls are allowed, the rest is refused"


def _enter(without: frozenset[str], folders: list[str], closed: list[str]) -> rooms.Rooms:
    """Namespaces and the root; in the one of processes, the caller's child goes on and the caller minds it."""
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    made = rooms.enter(folders, closed, without)
    if made.has("processes"):
        child = os.fork()
        if child:
            os.closerange(0, _MOST_OPEN)
            os.waitpid(child, 0)
            os._exit(0)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.close_bounding_set()
    return made


def _prepare(without: frozenset[str]) -> Boundary:
    for name in _PRELOADED:
        with contextlib.suppress(ImportError):  # a Python that was built without it
            importlib.import_module(name)
    folders, closed = _folders()
    with open("/proc/self/statm", encoding="ascii") as file:
        base_bytes = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    made = _enter(without, folders, closed)
    boundary = Boundary(made, folders, closed, None, False, base_bytes)
    if "landlock" in without or not abi():
        made.layers["landlock"] = (False, "left out" if "landlock" in without else "this kernel has none")
    else:
        boundary.rules = boundary._rules()
        made.layers["landlock"] = (True, f"ABI {abi()}: nothing but Python's standard library can be read")
    if "seccomp" in without:
        made.layers["seccomp"] = (False, "left out")
    else:
        boundary.seccomp = made.attempt("seccomp", _try_seccomp)
    return boundary


class Zygote:
    """Forks programs as it is told over `control`."""

    def __init__(self, control: socket.socket, boundary: Boundary) -> None:
        self.control = control
        self.boundary = boundary

    def serve(self) -> None:
        """Do so until the other end of `control` is gone."""
        gc.freeze()  # so that a program's collector does not copy pages that it shares with the zygote
        self._send({"ready": self.boundary.rooms.layers})
        while True:
            told, files = self._receive()
            if "run" in told and len(files) == _FILES:
                self._run(told["run"], files)
            for number in files:
                os.close(number)

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        packet, files, _, _ = socket.recv_fds(self.control, 4096, _FILES)
        if not packet:
            os._exit(0)
        return json.loads(packet), files

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self.control.send(json.dumps(message).encode())
        except OSError:
            os._exit(0)

    def _run(self, limits: dict[str, int], files: list[int]) -> None:
        scratch = limits["scratch_bytes"]
        if scratch:
            rooms.mount_scratch(scratch, self.boundary.rooms.user)
        child = os.fork()
        if child == 0:
            _become_program(self.boundary, limits, files)
        for number in files:
            os.close(number)
        files.clear()
        status, spent = self._mind(child)
        self._end_what_is_left()
        if scratch:
            rooms.unmount_scratch()
        cpu = spent.ru_utime + spent.ru_stime
        self._send({"ended": status, "cpu": cpu, "memory": spent.ru_maxrss * 1024})

    def _mind(self, child: int) -> tuple[int, Any]:
        """Wait for the program's end, killing it when told."""
        watch = os.pidfd_open(child)
        try:
            while True:
                ready, _, _ = select.select([self.control.fileno(), watch], [], [])
                if watch in ready:
                    _, status, spent = os.wait4(child, 0)
                    return status, spent
                told, _ = self._receive()
                if "kill" in told:
                    signal.pidfd_send_signal(watch, signal.SIGKILL)
                elif "cpu" in told:
                    self._send({"cpu": time.clock_gettime((~child << 3) | 2)})
        finally:
            os.close(watch)

    def _end_what_is_left(self) -> None:
        if self.boundary.rooms.has("processes"):
            with contextlib.suppress(ProcessLookupError):  # nothing is left, as it should be
                os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0)[0]:
                continue


def _become_program(boundary: Boundary, limits: dict[str, int], files: list[int]) -> None:
    """The rest of a forked process's life."""
    code = 70
    try:
        _take_files(files, None if boundary.rules is None else boundary.rules.number)
        boundary.confine(limits)
        random.seed(0)  # every program begins with the same numbers, so that its verdict is the same every time
        first = program.read_request()
        if first is None:
            os._exit(0)
        if first.get("main"):
            code = program.run_main(first["parts"])
        elif "parts" in first:
            program.serve(first)
            code = 0
        else:
            judge.serve(first)
            code = 0
    # Nothing may be raised into the zygote's loop: this process ends here, whatever happened.
    except BaseException:  # noqa: BLE001
        os.write(2, traceback.format_exc(limit=-4).encode(errors="replace"))
    finally:
        os._exit(code)


def _take_files(files: list[int], kept: int | None) -> None:
    """The files as 0, 1, 2, …, and no others but `kept`."""
    for place, number in enumerate([fcntl.fcntl(each, fcntl.F_DUPFD, 2 * _FILES) for each in files]):
        os.dup2(number, place)
    os.closerange(_FILES, _MOST_OPEN if kept is None else kept)
    if kept is not None:
        os.closerange(kept + 1, _MOST_OPEN)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def main(arguments: list[str]) -> None:
    """Be the zygote. Arguments: the control socket, this package's folder, what to leave out, "wrapped" or ""."""
    number, source, without = int(arguments[0]), arguments[1], frozenset(arguments[2].split(",")) - {""}
    control = socket.socket(fileno=number)
    os.environ.clear()
    sys.path.remove(source)
    sys.argv = [""]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        boundary = _prepare(without)
        boundary.rooms.own_count |= arguments[3] == "wrapped"  # bubblewrap has made a user namespace
    except OSError as error:
        control.send(json.dumps({"failed": str(error)}).encode())
        return
    Zygote(control, boundary).serve()
