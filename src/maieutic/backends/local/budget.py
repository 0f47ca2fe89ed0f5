"""Micro-batches that fit into memory: where one does not, the batch begins anew in smaller ones.

    total = Budget(16384).over(batch, forward.split, begin=list, add=lambda found, rows: found.append(run(rows)))

What a batch gives is a sum over its micro-batches, so beginning anew leaves nothing of the attempt that failed: neither
the gradients of a backward pass that broke off half-way, nor those of the micro-batches before it. It costs that
attempt's time, once: the smaller budget stays.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from maieutic.errors import ConfigError
from maieutic.types import Batch

log = logging.getLogger("maieutic.backends.local")

State = TypeVar("State")
#: (batch, tokens) → row numbers of micro-batches that run so many tokens at once; see `evaluate.Forward.split`.
Split = Callable[[Batch, int], list[Tensor]]

#: What an allocation that failed says, beside `torch.OutOfMemoryError`: of a CPU, on Linux and on Windows; of cuBLAS.
SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


class Budget:
    """Tokens run through a model at once, at most; fewer once memory has run out.

    `lowered` says whether it has.
    """

    def __init__(self, tokens: int) -> None:
        if tokens < 1:
            raise ConfigError(f"got micro_batch_tokens={tokens}; expected at least 1")
        self.tokens = tokens
        self.lowered = False

    def over(
        self, batch: Batch, split: Split, begin: Callable[[], State], add: Callable[[State, Tensor], object]
    ) -> State:
        """`begin()`, after `add(state, rows)` for the rows of each micro-batch; begun anew where memory runs out.

        Raises `ConfigError` where rows that must stay together do not fit.
        """
        while True:
            state = begin()
            failed, why = _first_failure(split(batch, self.tokens), partial(add, state))
            if failed is None:
                return state
            del state
            _release()
            self._lower(batch.rows(failed), split, why)

    def _lower(self, part: Batch, split: Split, why: str) -> None:
        """Halve the tokens until that part, which did not fit, is several."""
        before = self.tokens
        while len(split(part, self.tokens)) == 1:
            if self.tokens == 1:
                self.tokens = before
                raise ConfigError(
                    f"memory ran out on {part.size} rows of up to {int(part.lengths.max())} tokens that must be run "
                    f"together ({why}). Lower max_completion_length, set gradient_checkpointing = true where these "
                    "rows are learned from, or train an adapter (lora) instead of all weights"
                )
            self.tokens = max(1, self.tokens // 2)
        self.lowered = True
        log.warning(
            "memory ran out (%s): from now on %d tokens are run at once instead of %d. The same numbers; set "
            "micro_batch_tokens = %d to begin with that",
            why,
            self.tokens,
            before,
            self.tokens,
        )


def _first_failure(parts: list[Tensor], run: Callable[[Tensor], object]) -> tuple[Tensor | None, str]:
    """The first part on which memory runs out, and what was said; nothing of the attempt outlives the return."""
    for rows in parts:
        try:
            run(rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return rows, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None, ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: of an accelerator or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def in_parts(
    budget: Budget, batch: Batch, split: Split, compute: Callable[[Batch], tuple[Tensor, ...]]
) -> list[Tensor]:
    """`compute` over micro-batches, what it returns put together in the order of the rows, where the batch is."""

    def add(found: list[tuple[Tensor, tuple[Tensor, ...]]], rows: Tensor) -> None:
        found.append((rows, tuple(each.to(batch.tokens.device) for each in compute(batch.rows(rows)))))

    found = budget.over(batch, split, list, add)
    order = torch.cat([rows for rows, _ in found]).argsort()
    return [torch.cat(column)[order] for column in zip(*(columns for _, columns in found), strict=True)]


def _release() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
