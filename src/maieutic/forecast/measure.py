"""What this machine can do and what it has left, measured when it is first asked for, once each."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from maieutic.backends.local import peak
from maieutic.run.memory import peak_resident

#: Rows and sides of a product beyond which its rate is that of these.
MOST_ROWS, MOST_SIDE = 1024, 4096

#: Seconds that a measurement goes on.
PATIENCE = 0.05

#: Repetitions of the smallest operation.
CALLS = 2000


@dataclass
class Measured:
    """This machine, see `work.Machine`: with the threads that torch uses now."""

    device: str = "cpu"
    rates: dict[tuple[int, int, int, torch.dtype], float] = field(default_factory=dict)
    found: dict[str, float] = field(default_factory=dict)

    def rate(self, rows: int, inner: int, outer: int) -> float:
        """See `work.Machine`. Rows are taken as the next lower power of two, so that few are measured."""
        return self._rate(rows, inner, outer, torch.float32)

    def coarse_rate(self, rows: int, inner: int, outer: int) -> float:
        """See `work.Machine`."""
        return self._rate(rows, inner, outer, torch.bfloat16)

    def _rate(self, rows: int, inner: int, outer: int, dtype: torch.dtype) -> float:
        some = 1 << (min(max(1, rows), MOST_ROWS).bit_length() - 1)
        key = (some, min(inner, MOST_SIDE), min(outer, MOST_SIDE), dtype)
        if key not in self.rates:
            self.rates[key] = peak.matrix_rate(*key[:3], dtype=dtype, device=self.device, seconds=PATIENCE)
        return self.rates[key]

    def bandwidth(self) -> float:
        """See `work.Machine`."""
        if "bandwidth" not in self.found:
            self.found["bandwidth"] = peak.bandwidth(device=self.device, seconds=PATIENCE)
        return self.found["bandwidth"]

    def call(self) -> float:
        """See `work.Machine`: the best of several turns, of an operation on four numbers."""
        if "call" not in self.found:
            self.found["call"] = _call(self.device)
        return self.found["call"]


def _call(device: str) -> float:
    number, taken = torch.ones(4, device=device), []
    alone = number.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter  # as in `peak`: others lengthen it less
    with torch.inference_mode():
        for _ in range(5):
            start = clock()
            for _ in range(CALLS):
                number.add(number)
            taken.append((clock() - start) / CALLS)
    return min(taken)


def free_memory(device: str = "cpu") -> int:
    """Bytes that a run may still take: of the GPU, or of this machine and of the limit that it was given, if any.

    Linux says what is available, caches that it would give back among it; elsewhere it is the half of all memory.
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    found = [_available(), *_granted()]
    return min(found)


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        told = dict(line.split(":", 1) for line in lines)
        return 1024 * int(told["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _granted(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What is left of a container's limit (cgroup v2); nothing where there is none."""
    try:
        most = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        return [] if most == "max" else [max(0, int(most) - used)]
    except (OSError, ValueError):
        return []


def forget_peak() -> None:
    """Let the most memory that this process has had be what it has now, where Linux allows that: what is measured
    afterwards is then of what comes afterwards."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # a peak that is too high is noted then, and no more


def resident() -> int:
    """Bytes of memory that this process has now, where Linux says; else the most that it has had."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_resident()
    return pages * os.sysconf("SC_PAGE_SIZE")
