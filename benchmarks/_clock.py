"""How long things take on a machine that does other things too.

With one thread on a CPU the clock is the processor's time of this process, which others lengthen little; with several
threads, or on an accelerator, it is the wall's. What is compared runs in turn, and the best of several times counts:
what else the machine does can only make a thing slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds of a device: `clock = Clock("cpu"); start = clock(); …; seconds = clock() - start`."""

    device: str

    @property
    def name(self) -> str:
        """What it counts: "processor" or "wall" seconds."""
        alone = torch.device(self.device).type == "cpu" and torch.get_num_threads() == 1
        return "processor" if alone else "wall"

    def __call__(self) -> float:
        """Now, after all that was asked of the device is done."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.name == "processor" else time.perf_counter()

    def of(self, work: Callable[[], object]) -> float:
        """Seconds that `work` takes."""
        start = self()
        work()
        return self() - start


def best_in_turn(
    works: Mapping[str, Callable[[], object]],
    clock: Callable[[Callable[[], object]], float],
    *,
    repeats: int,
    most: float,
) -> dict[str, float]:
    """The least seconds of each work, each run once unmeasured and then `repeats` times, in turn.

    Fewer times, but at least twice, where all of it would take more than `most` seconds.
    """
    first = sum(clock(work) for work in works.values())
    times = max(2, min(repeats, int(most / max(first, 1e-9)) - 1))
    taken = [{name: clock(work) for name, work in works.items()} for _ in range(times)]
    return {name: min(each[name] for each in taken) for name in works}
