"""The trainer's end of a zygote: start it, hand it programs, replace it when it hangs; and what a machine offers.

a boundary is     seccomp, and (Landlock or a private root)     by the zygote itself
else              bubblewrap                                    around a zygote that is used for one program only
else              none: ConfigError, and nothing runs
"""

from __future__ import annotations

import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from maieutic.errors import ConfigError

#: Seconds for a zygote to start, and for an answer of one that runs; far more than it needs.
_START_SECONDS, _ANSWER_SECONDS = 60.0, 5.0
#: Seconds for a zygote that is not needed any more.
_LEAVE_SECONDS = 0.5
#: The longest time between two looks at the clock that counts: a machine that slept does not count.
_LONGEST_TICK = 0.5
_BEGIN = "import sys; sys.path.insert(0, sys.argv[2]); from maieutic.sandbox.zygote import main; main(sys.argv[1:])"
#: No limit of processes holds for root, whatever it is called inside.
_NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
_SOURCE = str(Path(__file__).parents[2])

#: Layers that a boundary is made of, and what each is for.
LAYERS: Mapping[str, str] = {
    "user": "no right that the user of the trainer has",
    "mounts": "no mount of the system's to change",
    "network": "no network, not even this machine's own",
    "ipc": "no shared memory or message queue of others",
    "host name": "no name of the machine to change",
    "control groups": "no sight of control groups",
    "processes": "no other process to see, and none that survives",
    "root": "no file but Python's standard library",
    "landlock": "no file but Python's standard library, once more",
    "seccomp": "no socket, process, trace, mount or kernel object",
    "bubblewrap": "no way out, by another program's namespaces; each program has a sandbox of its own",
}


class Clock:
    """Seconds that have passed, as far as this process was awake."""

    def __init__(self) -> None:
        self.passed = 0.0
        self._last = time.monotonic()

    def tick(self) -> float:
        """Seconds since the beginning."""
        now = time.monotonic()
        self.passed += min(now - self._last, _LONGEST_TICK)
        self._last = now
        return self.passed


class SandboxLost(Exception):
    """The zygote does not answer, or is gone. Its owner replaces it."""


@dataclass(frozen=True)
class Boundary:
    """What is in force for programs: layer → (in force, a word about it)."""

    layers: Mapping[str, tuple[bool, str]]

    def has(self, layer: str) -> bool:
        """Whether a layer is in force."""
        return self.layers.get(layer, (False, ""))[0]

    @cached_property
    def enough(self) -> bool:
        """Whether this is a boundary."""
        return self.has("bubblewrap") or (self.has("seccomp") and (self.has("landlock") or self.has("root")))

    @property
    def single_use(self) -> bool:
        """Whether a program could reach the zygote that it was forked from, so that each needs one of its own."""
        return not self.has("seccomp")

    def words(self) -> list[str]:
        """A line for each layer: whether it is in force, and how, or why not."""
        return [f"{'yes' if there else 'no '}  {name:<14}  {said}" for name, (there, said) in self.layers.items()]


REMEDY = (
    "Remedy: a Linux kernel with Landlock (5.13 or newer, lsm=landlock,…) and seccomp, in a container whose profile "
    "allows them; or install bubblewrap (apt install bubblewrap). Programs are never run without a boundary"
)


class Host:
    """One zygote, started when it is first needed and again after it was lost. Used by one thread at a time.

    `without` leaves layers out ("namespaces", "landlock", "seccomp", "bubblewrap"), to see what the others do alone.
    `python` is the interpreter that runs programs.
    """

    def __init__(self, without: frozenset[str] = frozenset(), python: str | None = None) -> None:
        self.without = without
        self.python = python or getattr(sys, "_base_executable", None) or sys.executable
        self.boundary: Boundary | None = None
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The process that minds the zygote, while there is one."""
        return None if self._process is None else self._process.pid

    def ready(self) -> Boundary:
        """What is in force; starts the zygote if none runs. Raises ConfigError where there is no boundary."""
        if self._process is not None and self._process.poll() is None and self.boundary is not None:
            return self.boundary
        self.close()
        if sys.platform != "linux":
            raise ConfigError(
                f"running code that a model wrote: got {platform.system()}; expected Linux, whose kernel has the means "
                "to confine it. Remedy: run this part in a Linux container or virtual machine"
            )
        found = self._start(())
        wrapper = shutil.which("bwrap")
        if not found.enough and wrapper is not None and "bubblewrap" not in self.without:
            self.close()
            found = self._start(_wrapped(wrapper, self.python))
            found = Boundary({**found.layers, "bubblewrap": (True, wrapper)})
        if not found.enough:
            self.close()
            missing = [f"{name}: {found.layers.get(name, (False, '?'))[1]}" for name in ("seccomp", "landlock", "root")]
            raise ConfigError(
                "running code that a model wrote needs a boundary, and this machine offers none: got "
                f"{'; '.join(missing)}; bubblewrap: {'not used' if wrapper else 'not installed'}. {REMEDY}"
            )
        self.boundary = found
        return found

    def _start(self, wrapper: Sequence[str]) -> Boundary:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = theirs.fileno()
        command = [*wrapper, self.python, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", _BEGIN]
        try:
            self._process = subprocess.Popen(
                [*command, str(number), _SOURCE, ",".join(sorted(self.without)), "wrapped" if wrapper else ""],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={"PYTHONHASHSEED": "0"},  # sets in the same order in every program: the same verdict every time
                cwd="/",
                pass_fds=[number],
                start_new_session=True,
                **(_NOBODY if wrapper and os.geteuid() == 0 else {}),
            )
        except OSError as error:
            ours.close()
            raise ConfigError(f"the sandbox cannot start {self.python}: {error.strerror}") from error
        finally:
            theirs.close()
        self._control = ours
        self.starts += 1
        try:
            told = self.receive(_START_SECONDS)
        except SandboxLost:
            said = self._said()
            self.close()
            raise ConfigError(f"the sandbox's process did not start: {said or 'no word from it'}") from None
        if "ready" not in told:
            self.close()
            raise ConfigError(f"the sandbox's process did not start: {told.get('failed', 'no reason given')}")
        return Boundary({name: (bool(there), str(said)) for name, (there, said) in told["ready"].items()})

    def _said(self) -> str:
        """The last thing that a process which did not start has said."""
        process = self._process
        if process is None or process.stderr is None:
            return ""
        process.kill()
        return process.stderr.read(10_000).decode(errors="replace").strip().rpartition("\n")[2]

    def send(self, message: Mapping[str, Any], files: Sequence[int] = ()) -> None:
        """Tell the zygote. Raises SandboxLost."""
        if self._control is None:
            raise SandboxLost
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], list(files))
        except OSError:
            raise SandboxLost from None

    def receive(self, seconds: float = _ANSWER_SECONDS) -> dict[str, Any]:
        """What the zygote says next. Raises SandboxLost where it says nothing within that time."""
        clock = Clock()
        while self._control is not None and clock.tick() < seconds:
            if select.select([self._control], [], [], 0.1)[0]:
                try:
                    packet = self._control.recv(4096)
                except OSError:  # it died with something unread
                    break
                if not packet:
                    break
                return dict(json.loads(packet))
        raise SandboxLost

    def fileno(self) -> int:
        """Of the control socket, to wait on."""
        return -1 if self._control is None else self._control.fileno()

    def close(self) -> None:
        """End the zygote, and with it whatever it runs."""
        control, self._control = self._control, None
        process, self._process = self._process, None
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(_LEAVE_SECONDS)  # it leaves by itself when nobody talks to it any more
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stderr is not None:
                process.stderr.close()


def _wrapped(wrapper: str, python: str) -> list[str]:
    """bubblewrap around a command: the interpreter and its libraries to read, and nothing else."""
    prefix = str(Path(python).resolve().parents[1])
    places = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", prefix, str(Path(_SOURCE) / "maieutic")]
    bound = [word for place in dict.fromkeys(places) for word in ("--ro-bind-try", place, place)]
    return [
        wrapper, "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534",
        "--die-with-parent", "--new-session", "--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--cap-drop", "ALL",
        *bound, "--dir", "/tmp", "--proc", "/proc", "--chdir", "/",
    ]  # fmt: skip
