"""Sampling one step ahead: while this process learns from a batch, another one samples the next.

    this process      ask 0 ─────────► batch 0, ask 1 ─ update 0 ─► batch 1, ask 2 ─ update 1 ─► batch 2, …
    the other one            sample 0                 sample 1                       sample 2
    by the weights           W₀                       W₀                             W₁

Batch k is sampled by the weights that were there when batch k − 1 was handed out, so it is one update old when it is
learned from (the first one: none). That is so however fast either process is: a run is a function of its config, as
one without a second process is, only another one.

One update old is off-policy. The source says so (`stale`), and the loop then takes the ratio of a loss to the policy
that sampled, `old_logprobs` = `sampler_logprobs`, instead of the learner before the update; a loss with a correction
(`core.corrections`) keeps both apart, and the correction has the whole way from the one to the other. A loss that has
neither is refused. `policy/staleness` counts the optimiser steps in between, and `policy/sampler_mismatch_nats` now
holds real drift beside the rounding of two engines (its first value, where nothing is stale, is rounding alone).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from maieutic.ahead.messages import Drawn, Order, Practice, keep, kept
from maieutic.ahead.process import Process, check_possible
from maieutic.ahead.worker import spent_beside
from maieutic.clock import phase
from maieutic.core.cost import Spent
from maieutic.protocols import Learner, Source
from maieutic.types import Group

__all__ = ["Ahead", "Practice", "spent_beside"]

#: The batch that is ahead, in a checkpoint's folder.
FILE = "ahead.safetensors"


class Ahead:
    """A source whose groups are sampled in another process, one step ahead of the learner.

    source    a source like the other process's, which is asked for its state and its settings, never for groups.
    learner   whose weights are handed over.
    make      makes the other process's own source and model, there: a function that can be found by its name.
    batches   how many will be asked for in all, where that is known: none is sampled in vain then.
    threads   CPU threads of the other process (None: as many as torch has here when it is started).

    >>> source = Ahead(sampled, policy.learner, partial(practise, "models/tiny"), batches=100)
    >>> for step in train(source, policy, grpo(), steps=100): ...

    The process is started when the first groups are asked for, and ends with `close`, or with this process. In what is
    not said here it is `source` itself. POSIX only: the other process inherits a file descriptor.

    Raises ConfigError for a `make` that cannot be sent.
    """

    stale = True

    def __init__(
        self,
        source: Source,
        learner: Learner,
        make: Callable[[], Practice],
        *,
        batches: int | None = None,
        threads: int | None = None,
    ) -> None:
        check_possible(make)
        self.source, self.learner, self.make = source, learner, make
        self.batches, self.threads = batches, threads
        self.samples = source.samples
        self.handed_out = 0
        self.spent = Spent()
        self._process: Process | None = None
        self._ready: Drawn | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # not there yet, as when it is copied
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def pid(self) -> int | None:
        """The other process, while there is one."""
        return None if self._process is None else self._process.running.pid

    def next(self) -> list[Group]:
        """The groups of one step, and the next ones are begun. Raises here what was raised there, and RunError when
        the other process died."""
        if self._ahead() is None:
            self._ask()
        drawn = self._ahead()
        assert drawn is not None
        self._ready = None
        self.handed_out += 1
        self.source.restore(drawn.state)
        self.samples, self.spent = drawn.samples, self.spent.plus(drawn.spent)
        if self.batches is None or self.handed_out < self.batches:
            self._ask()
        return list(drawn.groups)

    def _ask(self) -> None:
        """Have the batch after those that were handed out sampled by the weights as they are now."""
        if self._process is None:
            self._process = Process(self.make, self.threads or torch.get_num_threads())
        with phase("handing over"):
            self._process.ask(self.learner.weights(), Order(self.learner.version, self.source.state()))

    def _ahead(self) -> Drawn | None:
        """The batch that was asked for and not handed out yet, once it is there; None where none was."""
        if self._ready is None and self._process is not None and self._process.asked:
            with phase("waiting"):
                self._ready = self._process.drawn()
        return self._ready

    def state(self) -> dict[str, Any]:
        """Where the groups that were handed out left off. What is ahead of them is too large for JSON: see `save`."""
        return {"handed_out": self.handed_out, "source": self.source.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after these groups. Without `load`, those that were ahead are sampled anew, by the present weights."""
        self._ahead()
        self._ready = None
        self.handed_out = int(state["handed_out"])
        self.source.restore(state["source"])

    def save(self, folder: Path) -> None:
        """Wait for the batch that is ahead, if one is, and write it to a checkpoint's folder."""
        drawn = self._ahead()
        if drawn is not None:
            keep(drawn, folder / FILE)

    def load(self, folder: Path) -> None:
        """After `restore`: hand out next what `save` wrote."""
        if (folder / FILE).exists():
            self._ready = kept(folder / FILE)

    def close(self) -> None:
        """End the other process; a batch that is ahead is lost. Asked for groups again, a new one begins."""
        process, self._process, self._ready = self._process, None, None
        if process is not None:
            process.close()
