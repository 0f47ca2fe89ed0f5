"""Decode steps replayed from captured CUDA graphs, one graph for each number of rows and of columns.

A step of decoding is some hundreds of small operations: asking for them takes the host longer than running them takes a
GPU. A graph is asked for once. What is captured is `static.decode_step`, and it is believed only after its logits were
held against those of the same step asked for as usual; where they differ, or nothing can be captured, steps are asked
for one by one, and that is said once in the log. On a CPU nothing is captured, and the same function runs.

The host looks at what was written every few steps, and while it looks the next steps run already.

    `S` slots · `R` rows of a step · `n` steps between two looks
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maieutic.backends.local.attention import Layout
from maieutic.backends.local.cache import Admission, Store
from maieutic.backends.local.decoder import SlotDecoder
from maieutic.backends.local.narrow import Narrow
from maieutic.backends.local.static import (
    Body,
    LiveRows,
    columns_bucket,
    decode_step,
    rows_bucket,
    rows_fitting,
)
from maieutic.backends.local.trunk import Trunk

log = logging.getLogger("maieutic.backends.local")

PREFILL_TOKENS = 16384
"""Tokens of prompts that are run at once, at most (more only where one prompt is longer)."""

SHARE = 0.8
"""Of the memory that is free when a batch of rows begins, what keys and values may take."""

KEPT = 1 / 8
"""Of a GPU's memory, what keys and values may hold from one batch of rows to the next, with the graphs over them."""

AGREES = 1e-2
"""Largest accepted difference of replayed logits from those of the same step run as usual, relative to their spread."""


@dataclass(frozen=True)
class Block:
    """What `steps` steps wrote for the first `rows` slots, on its way to the host; `ready` when it is there."""

    steps: int
    rows: int
    tokens: Tensor
    logprobs: Tensor
    ready: torch.cuda.Event | None

    def read(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens and log-probs `[n, R]`, once they are here."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.tokens.numpy(), self.logprobs.numpy()


class Stepper:
    """Runs decode steps over one store of keys and values, replayed where that is possible.

    `plainly` says why steps are not replayed (empty: they are).
    """

    def __init__(self, body: Body, store: Store, device: torch.device, plainly: str = "") -> None:
        self.body = body
        self.store = store
        self.device = device
        self.live = LiveRows.of(max(1, store.slots), device)
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.place = self._where()
        self.plainly = plainly if device.type == "cuda" else "there is no CUDA device"
        self.pool: Any = None

    def load(self, rows: NDArray[np.void]) -> None:
        """Take over rows as the host knows them; nothing may be under way."""
        if self._where() != self.place:  # the store has grown: graphs know where it was
            self.place = self._where()
            self.graphs.clear()
        if self.live.slots < self.store.slots:
            self.graphs.clear()
            self.live = LiveRows.of(self.store.slots, self.device)
        self.live.load(rows)

    def launch(self, rows: int, reach: int, steps: int) -> Block:
        """Begin `steps` steps (at most `STEPS`) of the first `rows` slots, which will then reach `reach` columns."""
        covered = min(rows_bucket(rows), self.store.slots)
        columns = min(columns_bucket(reach), self.store.columns)
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            run = self._runner(covered, columns)
            self.live.cursor.zero_()
            for _ in range(steps):
                run()
            return self._bring(steps, rows)

    def _runner(self, rows: int, columns: int) -> Callable[[], object]:
        step = partial(decode_step, self.body, self.store, self.live, rows, columns)
        if not self.plainly and (rows, columns) not in self.graphs:
            self._capture(step, rows, columns)
        graph = None if self.plainly else self.graphs[rows, columns]
        return step if graph is None else graph.replay

    def _bring(self, steps: int, rows: int) -> Block:
        found = [kept[:steps, :rows] for kept in (self.live.tokens, self.live.logprobs)]
        if self.device.type != "cuda":
            return Block(steps, rows, found[0].clone(), found[1].clone(), None)
        here = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in found]
        for target, each in zip(here, found, strict=True):
            target.copy_(each.contiguous(), non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return Block(steps, rows, here[0], here[1], ready)

    def _capture(self, step: partial[Tensor], rows: int, columns: int) -> None:
        """Capture a step, and hold it against the same step run as usual."""
        before = [kept.clone() for kept in self.live.state()]
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        try:
            graph, expected, found = self._captured(step, before)
        except RuntimeError as error:
            self._run_plainly(f"a step of {rows} rows cannot be captured ({str(error).strip().splitlines()[0]})")
        else:
            difference = float((expected - found).abs().max() / expected.std())
            if difference <= AGREES:
                self.graphs[rows, columns] = graph
            else:
                self._run_plainly(f"replayed logits of {rows} rows differ by {difference:.2g} of their spread")
        self._put_back(before)

    def _captured(self, step: partial[Tensor], before: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            expected = step().float().clone()
            self._put_back(before)
            torch.cuda.synchronize(self.device)
            with _without_collecting():
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    logits = step()
                finally:
                    graph.capture_end()
            self._put_back(before)
            graph.replay()
            found = logits.float().clone()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        return graph, expected, found

    def _put_back(self, before: Sequence[Tensor]) -> None:
        for kept, was in zip(self.live.state(), before, strict=True):
            kept.copy_(was)

    def _run_plainly(self, why: str) -> None:
        self.plainly = why
        self.graphs.clear()
        log.warning("decoding goes on without captured graphs, several times slower: %s.", why)

    def _where(self) -> tuple[int, ...]:
        return tuple(each.data_ptr() for pair in self.store.layers.values() for each in pair)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Nothing is to be freed on the device while it is being captured."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class ReplayedDecoder(SlotDecoder):
    """Decoding on coarse copies of the weights, in steps that need not be asked for one by one.

    prefill_tokens   tokens of prompts that are run at once.
    plainly          why the latest steps were not replayed (empty: they were); `captured` graphs there were.
    Keys and values stay, with what was captured over them, from one batch of rows to the next where they are a small
    part of the device's memory; else an update has it.
    """

    def __init__(self, trunk: Trunk, body: Narrow, device: torch.device, prefill_tokens: int = PREFILL_TOKENS) -> None:
        super().__init__(trunk, device, lambda: Store(device))
        self.body = body
        self.prefill_tokens = prefill_tokens
        self.steps: Stepper | None = None
        self.room: int | None = None
        self.plainly, self.captured = "", 0

    def begin(self, version: int = 0) -> None:
        """See `Decoder`: copies of the weights are made anew."""
        self._serve(version)
        self.body.begin()
        self.room = _free(self.device, self._held())

    def end(self) -> None:
        """See `Decoder`."""
        self._note()
        if self.device.type != "cuda" or self._held() > KEPT * torch.cuda.mem_get_info(self.device)[1]:
            self.clear()

    def clear(self) -> None:
        """See `Decoder`."""
        super().clear()
        self._note()
        self.steps = None

    def stepper(self) -> Stepper | None:
        """See `Decoder`."""
        if self.steps is None and self.store.layers:
            self.steps = Stepper(self.body, self._own_store(), self.device, self.plainly)
        return self.steps

    def admit(self, admissions: Sequence[Admission], columns: int, used: int) -> Tensor:
        """See `Decoder`. Prompts are run in turns of `prefill_tokens` tokens; none is cut."""
        self.store.reserve(rows_bucket(used), columns_bucket(columns))
        return torch.cat([self._prefill(part) for part in dealt(admissions, self.prefill_tokens)])

    def decode(self, tokens: NDArray[np.int64], positions: NDArray[np.int64], alive: NDArray[np.bool_]) -> Tensor:
        """See `Decoder`: for rows that are asked after every token."""
        at = np.minimum(positions, positions[alive].max())
        return self.body.logits(self.body.hidden(self._put(tokens), self._put(at), self.store.decode(at, alive)))

    def rows_within(self, size: int, columns: int) -> int:
        """See `Decoder`; within what is free of the device's memory, too."""
        if not self.store.layers:
            self.admit([Admission([0], [0], 1)], 1, 1)
        each = max(1, self.store.bytes_per_slot(columns_bucket(columns)))
        return rows_fitting((size if self.room is None else min(size, self.room)) // each)

    def _run(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        return self.body.hidden(tokens, positions, layout)

    def _head(self, hidden: Tensor) -> Tensor:
        return self.body.logits(hidden)

    def _note(self) -> None:
        if self.steps is not None:
            self.plainly, self.captured = self.steps.plainly, len(self.steps.graphs)

    def _own_store(self) -> Store:
        assert isinstance(self.store, Store), "made by the constructor"
        return self.store

    def _held(self) -> int:
        return self.store.bytes_per_slot(1) * self._own_store().slots * self._own_store().columns


def dealt(admissions: Sequence[Admission], tokens: int) -> Iterator[list[Admission]]:
    """Admissions in turns whose prompts have at most so many tokens together; a longer prompt is a turn by itself."""
    turn: list[Admission] = []
    for one in admissions:
        if turn and sum(len(each.prompt) for each in turn) + len(one.prompt) > tokens:
            yield turn
            turn = []
        turn.append(one)
    yield turn


def _free(device: torch.device, held: int) -> int | None:
    """Bytes that keys and values may take, with the `held` ones that they have; None: not known of a CPU."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(SHARE * (torch.cuda.mem_get_info(device)[0] + unused + held))
