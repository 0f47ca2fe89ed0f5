"""A conversation with one program's process: hand it over, ask it things, end it. The trainer's end.

Everything that the process sends is read here, up to limits, and time is kept here: of the processor, as the zygote
reads it on the process's clock, and of the wall.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maieutic.errors import ConfigError
from maieutic.sandbox import wire
from maieutic.sandbox.host import Clock, Host, SandboxLost
from maieutic.sandbox.limits import Ended, Limits

#: How long a look at the pipes may take when nothing comes.
_TICK = 0.1
_CHUNK = 1 << 16


@dataclass
class Pipes:
    """The trainer's ends. `replies` and `output` are what has come so far."""

    stdin: int
    stdout: int
    stderr: int
    requests: int
    answers: int
    waiting: dict[int, memoryview] = field(default_factory=dict)
    came: dict[int, bytearray] = field(default_factory=dict)

    @classmethod
    def make(cls, stdin: bytes) -> tuple[Pipes, list[int]]:
        """Pipes, and the other ends of them in the order in which a program has them."""
        pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(5)]
        (in_r, in_w), (out_r, out_w), (err_r, err_w), (ask_r, ask_w), (say_r, say_w) = pairs
        pipes = cls(in_w, out_r, err_r, ask_w, say_r)
        pipes.came = {each: bytearray() for each in (out_r, err_r, say_r)}
        for number in (in_w, ask_w, out_r, err_r, say_r):
            os.set_blocking(number, False)
        pipes.give(in_w, stdin)
        if not stdin:
            pipes.shut(in_w)
        return pipes, [in_r, out_w, err_w, ask_r, say_w]

    def give(self, number: int, content: bytes) -> None:
        """See that the content is written as the other end takes it."""
        if content:
            self.waiting[number] = memoryview(bytes(self.waiting.get(number, b"")) + content)

    def shut(self, number: int) -> None:
        """Close one of them; more than once does nothing."""
        self.waiting.pop(number, None)
        for name in ("stdin", "stdout", "stderr", "requests", "answers"):
            if getattr(self, name) == number and number >= 0:
                setattr(self, name, -1)
                os.close(number)

    def close(self) -> None:
        """Close all of them."""
        for number in (self.stdin, self.stdout, self.stderr, self.requests, self.answers):
            self.shut(number)


class Session:
    """One program's process, from its start to its end. Made by `Session(host, limits)`; ends with `close()`.

    `ended` says how it ended, None while it lives; `why` in words. Raises ConfigError where there is no boundary, and
    SandboxLost where the zygote does not take the program.
    """

    def __init__(self, host: Host, limits: Limits, stdin: bytes = b"") -> None:
        boundary = host.ready()
        if limits.scratch_bytes and not boundary.has("root"):
            raise ConfigError(
                "a folder for programs to write in (scratch_bytes) needs a root of the sandbox's own, and this machine "
                f"grants none ({boundary.layers.get('root', (False, 'not tried'))[1]}). Remedy: scratch_bytes = 0"
            )
        self.host = host
        self.limits = limits
        self.ended: Ended | None = None
        self.why = ""
        self.last: dict[str, Any] = {}
        """The zygote's last words of the process: exit status, seconds, memory."""
        self.pipes, theirs = Pipes.make(stdin)
        self._numbers = (self.pipes.stdout, self.pipes.stderr, self.pipes.answers)
        self._spent = 0.0
        try:
            host.send({"run": limits.for_process()}, theirs)
        except SandboxLost:
            self.pipes.close()
            raise
        finally:
            for number in theirs:
                os.close(number)

    @property
    def output(self) -> tuple[str, str]:
        """Standard output and standard error so far, no more of each than the limit."""
        kept = [bytes(self.pipes.came[number][: self.limits.output_bytes]) for number in self._numbers[:2]]
        return kept[0].decode(errors="replace"), kept[1].decode(errors="replace")

    def exchange(self, message: Mapping[str, Any]) -> dict[str, Any] | None:
        """Ask, and wait for the reply; None when the process ended instead, or was ended for taking too long."""
        if self.ended is None:
            self.pipes.give(self.pipes.requests, wire.frame(message))
            return self._until(self._reply)
        return None

    def run_out(self, message: Mapping[str, Any]) -> None:
        """Ask, and wait for the end of the process."""
        self.pipes.give(self.pipes.requests, wire.frame(message))
        self._until(lambda: None)

    def close(self) -> None:
        """End the process if it lives, take what it has still said, and let go of its pipes."""
        if self.ended is None:
            self._kill(Ended.KILLED, "")
        self.pipes.close()

    def _until(self, reply: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        clock, look_at, begun = Clock(), self.limits.seconds, self._spent
        try:
            while self.ended is None:
                self._look(_TICK)
                if self.ended is not None:
                    break
                found = reply()
                if found is not None:
                    return found
                if clock.tick() >= min(look_at, self.limits.wall_seconds):
                    used = self._cpu() - begun
                    if used >= self.limits.seconds or clock.passed >= self.limits.wall_seconds:
                        of = "processor time" if used >= self.limits.seconds else "the clock"
                        limit = self.limits.seconds if used >= self.limits.seconds else self.limits.wall_seconds
                        self._kill(Ended.TIMEOUT, f"it took more than {limit:g} s of {of}")
                    look_at = clock.passed + max(0.02, self.limits.seconds - used)
        except wire.NotPlain as error:
            self._kill(Ended.OUTPUT, str(error))
        return None

    def _reply(self) -> dict[str, Any] | None:
        """The reply, once all of it is there. Raises NotPlain for one that is too large or none at all."""
        came = self.pipes.came[self._numbers[2]]
        if len(came) < wire.HEAD:
            return None
        size = wire.length_of(bytes(came[: wire.HEAD]))
        if size > self.limits.value_bytes:
            raise wire.NotPlain(f"it returned more than {self.limits.value_bytes} bytes")
        if len(came) < wire.HEAD + size:
            return None
        message = wire.parse(bytes(came[wire.HEAD : wire.HEAD + size]))
        del came[: wire.HEAD + size]
        return message

    def _look(self, seconds: float) -> None:
        """Read and write what can be, waiting so long for something to happen; note the process's end."""
        reading = [number for number in (self.pipes.stdout, self.pipes.stderr, self.pipes.answers) if number >= 0]
        writing = list(self.pipes.waiting)
        control = self.host.fileno()
        ready, free, _ = select.select([control, *reading], writing, [], seconds)
        for number in free:
            self._write(number)
        for number in reading:
            if number in ready:
                self._read(number)
        if control in ready and self.ended is None:
            self._hear()

    def _hear(self) -> None:
        try:
            told = self.host.receive()
        except SandboxLost:
            self._lose()
            return
        if "ended" in told:
            self.last = told
            status = os.waitstatus_to_exitcode(told["ended"])
            self.ended = Ended.FINISHED if status >= 0 else Ended.KILLED
            self.why = f"it ended with exit code {status}" if status >= 0 else f"it was killed by signal {-status}"
            for number in self._numbers:
                while self._read(number):  # what was still in the pipes
                    continue
        elif "cpu" in told:
            self._spent = max(self._spent, float(told["cpu"]))
            self.last = told

    def _cpu(self) -> float:
        """Seconds of processor time that the process has taken; those known last if it ends meanwhile."""
        try:
            self.host.send({"cpu": True})
            clock, self.last = Clock(), {}
            while self.ended is None and not self.last:
                if clock.tick() > 5.0:
                    raise SandboxLost
                self._look(_TICK)
        except SandboxLost:
            self._lose()
        return self._spent

    def _write(self, number: int) -> None:
        content = self.pipes.waiting[number]
        try:
            rest = content[os.write(number, content[:_CHUNK]) :]
        except BrokenPipeError:  # the program closed its end
            self.pipes.shut(number)
            return
        except BlockingIOError:
            return
        self.pipes.waiting[number] = rest
        if not rest:
            del self.pipes.waiting[number]
            if number == self.pipes.stdin:
                self.pipes.shut(number)

    def _read(self, number: int) -> bool:
        """Take what is there; False at the end of it. Ends the process where it is more than the limit."""
        if number not in (self.pipes.stdout, self.pipes.stderr, self.pipes.answers):
            return False
        try:
            content = os.read(number, _CHUNK)
        except BlockingIOError:
            return False
        if not content:
            self.pipes.shut(number)
            return False
        came = self.pipes.came[number]
        answers = number == self.pipes.answers
        limit = self.limits.value_bytes + wire.HEAD if answers else self.limits.output_bytes
        if len(came) + len(content) > limit + (_CHUNK if answers else 0):
            came += content[: max(0, limit - len(came))]
            if self.ended is None:
                self._kill(Ended.OUTPUT, f"it {'returned' if answers else 'wrote'} more than {limit} bytes")
            return False
        came += content
        return True

    def _kill(self, ended: Ended, why: str) -> None:
        """End the process and wait until it is gone."""
        self.ended, self.why = ended, why
        try:
            self.host.send({"kill": True})
            while "ended" not in self.last:
                self.last = self.host.receive()
        except SandboxLost:
            self._lose()
            return
        for number in self._numbers[:2]:
            while self._read(number):
                continue

    def _lose(self) -> None:
        self.ended, self.why = Ended.LOST, "the sandbox did not answer"
        self.host.close()
