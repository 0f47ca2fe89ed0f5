"""The state of the rows that are being written, as arrays over slots: nothing is done row by row in the decode loop.

`S` slots · `R` of them in use (alive, or finished and not yet reused) · `C` longest completion · `V` vocabulary
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maieutic.backends.local.uniform import row_key
from maieutic.errors import ModelError
from maieutic.protocols import Completion, Sampling
from maieutic.types import Finish

Ints = NDArray[np.int64]

BLOCK = 64
"""Tokens whose probabilities are summed up before they are cumulated: only within one block is each looked at."""


@dataclass(eq=False)
class Request:
    """One call of `sample`: `pending` siblings are still to be admitted, from number `n - pending` on."""

    prompt: tuple[int, ...]
    params: Sampling
    future: asyncio.Future[list[Completion]]
    completions: list[Completion | None]
    pending: int = field(init=False)

    def __post_init__(self) -> None:
        self.pending = len(self.completions)

    def finish(self, sibling: int, completion: Completion) -> None:
        """Note a sibling's completion; the caller goes on when it is the last one."""
        self.completions[sibling] = completion
        done = [c for c in self.completions if c is not None]
        if len(done) == len(self.completions) and not self.future.done():
            self.future.set_result(done)

    def fail(self, error: BaseException) -> None:
        """Make the caller see the error."""
        if not self.future.done():
            self.future.set_exception(error)


#: One slot. `position` is where `token`, the latest of the row, will be fed; `count` how many tokens were written.
_SLOT = np.dtype([  # aligned, as torch wants the fields
    ("alive", np.bool_), ("token", np.int64), ("position", np.int64), ("count", np.int64), ("limit", np.int64),
    ("temperature", np.float32), ("key", np.uint64), ("rules", np.int64), ("sibling", np.int64),
    ("forced", np.bool_),
], align=True)  # fmt: skip


class Ended(NamedTuple):
    """A row that has ended in `slot`, which nobody has taken yet; `fed` are the tokens after the prompt that it was
    fed: the last one never is."""

    slot: int
    request: Request
    fed: tuple[int, ...]


class Rows:
    """The rows in the slots, what they wrote, and the rules by which they end."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.used = 0
        self.slots = np.zeros(0, _SLOT)
        self.written = np.zeros((0, 0), np.int64)
        self.logprobs = np.zeros((0, 0), np.float32)
        self.chosen = np.zeros((0, 0), np.bool_)
        self.requests: dict[int, Request] = {}
        self.queues: dict[int, deque[int]] = {}
        self.rules = Rules(vocabulary)

    @property
    def alive(self) -> NDArray[np.bool_]:
        """`[R]`."""
        return self.slots["alive"][: self.used]

    def trim(self) -> None:
        """Forget the slots beyond the last live row."""
        alive = np.flatnonzero(self.alive)
        self.used = self._even(int(alive[-1]) + 1) if len(alive) else 0

    def free(self, at_most: int) -> list[int]:
        """Free slots below `at_most`, lowest first."""
        holes = np.flatnonzero(~self.alive[:at_most]).tolist()
        return holes + list(range(self.used, at_most))

    def place(self, request: Request, slots: Sequence[int]) -> None:
        """Put the next siblings of a request, whose prompt has been run, in these slots."""
        first = len(request.completions) - request.pending
        self._reserve(max(slots) + 1, request.params.max_tokens)
        rules = self.rules.number(request.params)
        for sibling, slot in enumerate(slots, first):
            self.requests[slot] = request
            self.queues.pop(slot, None)
            row = self.slots[slot]
            row["alive"], row["forced"], row["count"] = True, False, 0
            row["position"] = len(request.prompt) - 1
            row["limit"], row["temperature"] = request.params.max_tokens, request.params.temperature
            row["key"], row["rules"], row["sibling"] = row_key(request.params.key, sibling), rules, sibling
        request.pending -= len(slots)
        self.used = max(self.used, max(slots) + 1)

    def drop_abandoned(self) -> None:
        """Give up rows whose caller has gone (cancelled, or failed)."""
        for slot in np.flatnonzero(self.alive).tolist():
            if self.requests[slot].future.done():
                self._release(slot)

    def write(self, slots: Ints, tokens: Ints, logprobs: NDArray[np.float32], version: int) -> list[Ended]:
        """Append to the rows in `slots` the tokens drawn for them, and finish those that end here: which are returned.

        A row with tokens waiting in its queue gets the next of those instead of the one drawn.
        """
        chosen = ~self.slots["forced"][slots]
        if not chosen.all():
            tokens, logprobs = tokens.copy(), np.where(chosen, logprobs, np.float32(0))
            for at in np.flatnonzero(~chosen):
                tokens[at] = self._next_forced(int(slots[at]))
        count = self.slots["count"][slots]
        self.written[slots, count], self.logprobs[slots, count], self.chosen[slots, count] = tokens, logprobs, chosen
        self.slots["token"][slots] = tokens
        self.slots["count"][slots] += 1
        self.slots["position"][slots] += 1
        rules = self.slots["rules"][slots]
        stopped = chosen & self.rules.stops[rules, tokens]
        asked = chosen & ~stopped & self.rules.interjects[rules, tokens]
        inserted = ~chosen & ~self.slots["forced"][slots] & self.rules.interjects[rules, tokens]
        for at in np.flatnonzero(asked | inserted):
            stopped[at] = self._until(int(slots[at]))
        for slot in slots[asked & ~stopped].tolist():
            self._interject(slot)
        full = count + 1 >= self.slots["limit"][slots]
        return [
            self._finish(int(slots[at]), Finish.STOP if stopped[at] else Finish.LENGTH, version)
            for at in np.flatnonzero(stopped | full)
        ]

    def _next_forced(self, slot: int) -> int:
        queue = self.queues[slot]
        token = queue.popleft()
        self.slots["forced"][slot] = bool(queue)
        return token

    def _until(self, slot: int) -> bool:
        """Does whoever asked want the row to end with the token that it has just got?"""
        request, count = self.requests[slot], int(self.slots["count"][slot])
        try:
            return request.params.ends(self.written[slot, :count].tolist())
        except Exception as error:  # noqa: BLE001 - the caller's own function: only its request fails
            request.fail(error)
            return False

    def _interject(self, slot: int) -> None:
        request, count = self.requests[slot], int(self.slots["count"][slot])
        interject = request.params.interject
        if interject is None or int(self.slots["token"][slot]) not in request.params.interject_ids:
            return
        try:
            inserted = [int(token) for token in interject(tuple(self.written[slot, :count].tolist()))]
        except Exception as error:  # noqa: BLE001 - the caller's own function: only its request fails
            request.fail(error)
            return
        if inserted and not 0 <= min(inserted) <= max(inserted) < self.vocabulary:
            request.fail(ModelError(f"got inserted tokens {inserted}; expected ids from 0 to {self.vocabulary - 1}"))
        elif inserted:
            self.queues[slot] = deque(inserted)
            self.slots["forced"][slot] = True

    def _finish(self, slot: int, reason: Finish, version: int) -> Ended:
        count = int(self.slots["count"][slot])
        completion = Completion(
            tuple(self.written[slot, :count].tolist()),
            tuple(self.chosen[slot, :count].tolist()),
            tuple(self.logprobs[slot, :count].tolist()),
            reason,
            version,
        )
        request = self.requests[slot]
        request.finish(int(self.slots["sibling"][slot]), completion)
        self._release(slot)
        return Ended(slot, request, completion.tokens[:-1])

    def _release(self, slot: int) -> None:
        self.slots["alive"][slot] = False
        del self.requests[slot]
        self.queues.pop(slot, None)

    def asked_of(self) -> bool:
        """Is there a live row into which tokens may have to be put after the next one that it writes?"""
        own = self.slots[: self.used][self.alive]
        return bool(own["forced"].any() or self.rules.interjects[np.unique(own["rules"])].any())

    def holes_to_fill(self) -> tuple[Ints, Ints]:
        """Moves (sources, targets) after which the live rows are the first slots."""
        alive = np.flatnonzero(self.alive)
        kept = len(alive)
        return alive[alive >= kept], np.flatnonzero(~self.alive[:kept])

    def move(self, sources: Ints, targets: Ints) -> None:
        """Rename slots as `holes_to_fill` said; the live rows are then the first."""
        for array in (self.slots, self.written, self.logprobs, self.chosen):
            array[targets] = array[sources]
        self.slots["alive"][sources] = False
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            self.requests[target] = self.requests.pop(source)
            if source in self.queues:
                self.queues[target] = self.queues.pop(source)
        self.used = self._even(int(self.slots["alive"].sum()))

    def _even(self, rows: int) -> int:
        """So many slots or a few more, dead ones: a processor compiles its products for every number of rows that
        there is, and keeps that."""
        return min(self.used, rows + -rows % (8 if rows <= 64 else 16))

    def _reserve(self, slots: int, tokens: int) -> None:
        before, columns = self.written.shape
        if slots > before:
            self.slots = np.concatenate([self.slots, np.zeros(slots - before, _SLOT)])
        shape = (max(slots, before), max(tokens, columns))
        if shape != (before, columns):
            for name in ("written", "logprobs", "chosen"):
                old = getattr(self, name)
                grown = np.zeros(shape, old.dtype)
                grown[:before, :columns] = old
                setattr(self, name, grown)


class Rules:
    """Tokens that stop a row, and those after which somebody is asked, as tables `[rules, V]`: one row a distinct pair
    of sets."""

    def __init__(self, vocabulary: int) -> None:
        self.numbers: dict[tuple[frozenset[int], frozenset[int]], int] = {}
        self.stops = np.zeros((0, vocabulary), np.bool_)
        self.interjects = np.zeros((0, vocabulary), np.bool_)

    def number(self, params: Sampling) -> int:
        """The row of these sampling parameters' sets."""
        sets = (frozenset(params.stop_ids), frozenset(params.interject_ids | params.until_ids))
        if sets not in self.numbers:
            self.numbers[sets] = len(self.numbers)
            self.stops = np.vstack([self.stops, self._row(sets[0])])
            self.interjects = np.vstack([self.interjects, self._row(sets[1])])
        return self.numbers[sets]

    def _row(self, ids: frozenset[int]) -> NDArray[np.bool_]:
        row = np.zeros((1, self.stops.shape[1]), np.bool_)
        row[0, [i for i in ids if 0 <= i < row.shape[1]]] = True
        return row


def without(barred: Sequence[frozenset[int]], logits: Tensor) -> Tensor:
    """The logits `[R, V]` with −∞ for what is barred in each row."""
    made = logits.clone()
    for row, ids in enumerate(barred):
        made[row, [i for i in ids if 0 <= i < logits.shape[1]]] = -torch.inf
    return made


def draw(logits: Tensor, temperatures: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens `[R]` and their log-probs `[R]` (nats, float32) from logits `[R, V]`, by inverse CDF.

    Token i is drawn when cdf(i - 1) <= u < cdf(i) with cdf the cumulated softmax(logits / temperature) and `uniform`
    `[R]` in [0, 1). A token of probability 0 is never drawn. Temperature 0: the most likely token, its log-prob at
    temperature 1. The cumulated sum is of float32 numbers: probabilities are exact to about 1e-7 absolutely.
    """
    scaled = logits.float()
    if bool((temperatures != 1).any()):
        scaled = scaled / torch.where(temperatures > 0, temperatures, 1.0)[:, None]
    top = scaled.amax(dim=-1, keepdim=True)
    rows, vocabulary = scaled.shape
    powers = scaled.new_zeros(rows, -(-vocabulary // BLOCK), BLOCK)
    torch.exp(scaled - top, out=powers.view(rows, -1)[:, :vocabulary])
    blocks = powers.sum(-1).cumsum(-1)
    total = blocks[:, -1:]
    threshold = torch.minimum(uniform[:, None] * total, _below(total))
    block = torch.searchsorted(blocks, threshold, right=True).clamp_(max=blocks.shape[1] - 1)  # of what is no number
    before = torch.where(block > 0, blocks.gather(-1, (block - 1).clamp_(min=0)), 0.0)
    inside = powers.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1).add_(before)
    # Summed in another order, a block may end a little before where the next begins.
    drawn = torch.searchsorted(inside, torch.minimum(threshold, _below(inside[:, -1:])), right=True)
    drawn = (drawn + block * BLOCK).clamp_(max=vocabulary - 1)
    if bool((temperatures == 0).any()):
        drawn = torch.where(temperatures[:, None] == 0, scaled.argmax(dim=-1, keepdim=True), drawn)
    return drawn[:, 0], (scaled.gather(-1, drawn) - top - total.log())[:, 0]


def _below(numbers: Tensor) -> Tensor:
    """The next smaller ones: rounding may take a threshold up to the end, and the number just below still falls in."""
    return torch.nextafter(numbers, torch.zeros_like(numbers))
