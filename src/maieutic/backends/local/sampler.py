"""The sampler: concurrent calls are decoded together, and rows that finish make room for those that wait.

The token at a position depends on (key, sibling, position in the completion) and on the distribution there, through
`uniform`; positions count every token of the completion, inserted ones too. Which rows share a batch changes logits by
rounding only (about 1e-7), so it can change a token only where its uniform number falls that close to a boundary.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maieutic.backends.local import fused
from maieutic.backends.local.cache import Admission
from maieutic.backends.local.decoder import Decoder
from maieutic.backends.local.replay import Block, Stepper
from maieutic.backends.local.rows import Ended, Request, Rows, draw, without
from maieutic.backends.local.static import STEPS
from maieutic.backends.local.trunk import bare
from maieutic.backends.local.uniform import uniforms
from maieutic.clock import count, phase
from maieutic.errors import ConfigError, ModelError, NumericalError, PromptTooLong
from maieutic.protocols import Completion, Sampling

COMPACT_BELOW = 0.85
"""Rows are moved together when fewer than this share of them is alive: moving copies their keys and values."""


class LocalSampler:
    """Samples from a module in this process.

    module      read for its limits; `decoder` runs it.
    version     says how often the policy has been updated; stamped on each completion.
    max_rows    rows decoded together at most; further ones wait.
    cache_bytes bound on the key-value store; it lowers the number of rows when they are long.
    """

    def __init__(
        self,
        module: nn.Module,
        decoder: Decoder,
        *,
        version: Callable[[], int] = lambda: 0,
        max_rows: int = 512,
        cache_bytes: int = 4 << 30,
    ) -> None:
        if max_rows < 1:
            raise ConfigError(f"got max_rows={max_rows}; expected at least 1")
        base: Any = bare(module)
        self.limit: int | None = getattr(base.config, "max_position_embeddings", None)
        self.decoder = decoder
        self.version = version
        self.max_rows = max_rows
        self.cache_bytes = cache_bytes
        self.rows = Rows(base.get_input_embeddings().weight.shape[0])
        self.waiting: deque[Request] = deque()
        self.driver: asyncio.Task[None] | None = None
        self.columns = 0
        self.under_way: Block | None = None

    @property
    def off_policy(self) -> bool:
        """Whether it samples in coarser numbers than the policy learns in: from another policy."""
        return self.decoder.off_policy

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]:
        """`n` completions of a prompt; see `maieutic.protocols.Sampler`.

        Raises `PromptTooLong` for a prompt that leaves no room for `max_tokens`, `ModelError` for one that is empty or
        has unknown tokens, `ConfigError` for impossible parameters, such as so many `max_tokens` that no prompt
        would fit. An error of `params.interject` is raised here too.
        """
        prompt = tuple(int(token) for token in prompt_tokens)
        self._check(prompt, params, n)
        loop = asyncio.get_running_loop()
        self._leave_other_loop(loop)
        request = Request(prompt, params, loop.create_future(), [None] * n)
        self.waiting.append(request)
        if self.driver is None or self.driver.done():
            self.driver = loop.create_task(self._drive(), name="maieutic-sampler")
        return await request.future

    def _check(self, prompt: tuple[int, ...], params: Sampling, n: int) -> None:
        if n < 1 or params.max_tokens < 1:
            raise ConfigError(f"got n={n} completions of max_tokens={params.max_tokens}; expected at least 1 of each")
        if not 0 <= params.temperature < float("inf"):
            raise ConfigError(f"got temperature={params.temperature}; expected 0 (greedy) or more, finite")
        if not prompt:
            raise ModelError("got an empty prompt; expected at least one token (a BOS token will do)")
        if min(prompt) < 0 or max(prompt) >= self.rows.vocabulary:
            raise ModelError(
                f"got prompt tokens from {min(prompt)} to {max(prompt)}; expected 0 to {self.rows.vocabulary - 1}: "
                "the tokenizer is not this model's"
            )
        if self.limit is not None and params.max_tokens >= self.limit:  # of every prompt: a setting, not a prompt
            raise ConfigError(
                f"got max_tokens={params.max_tokens} (max_completion_length); the model has {self.limit} positions for "
                "prompt and completion together, so no prompt fits. Lower it, or use a model with a longer context"
            )
        if self.limit is not None and len(prompt) + params.max_tokens > self.limit:
            raise PromptTooLong(
                f"got a prompt of {len(prompt)} tokens and max_tokens={params.max_tokens}, together "
                f"{len(prompt) + params.max_tokens}; the model has {self.limit} positions. Lower max_tokens to "
                f"{max(0, self.limit - len(prompt))}, shorten the prompt, or use a model with a longer context"
            )

    def _leave_other_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forget what an event loop left behind that was closed with calls still running in it."""
        if self.driver is None or self.driver.done() or self.driver.get_loop() is loop:
            return
        if not self.driver.get_loop().is_closed():
            raise ConfigError(
                "got calls to one sampler from two event loops; expected one at a time. Make a second sampler, or run "
                "both in one loop"
            )
        self.driver = None
        self._forget()

    async def _drive(self) -> None:
        """Admit, decode, finish, until nobody waits. Between steps other tasks run (rewards of finished groups)."""
        try:
            await asyncio.sleep(0)  # callers started together are admitted together
            self.decoder.begin(self.version())
            while self.waiting or self.rows.alive.any():
                self.rows.drop_abandoned()
                self._admit()
                with phase("decode"):
                    self._compact()
                    if self.rows.alive.any():
                        self._decode()
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - whatever happened, every caller must hear of it
            self._abandon(error)
        except asyncio.CancelledError:
            self._abandon(asyncio.CancelledError())
            raise
        finally:
            self.under_way = None
            self.decoder.end()

    def _abandon(self, error: BaseException) -> None:
        for request in {*self.rows.requests.values(), *self.waiting}:
            if isinstance(error, asyncio.CancelledError):
                request.future.cancel()
            else:
                request.fail(error)
        self._forget()

    def _forget(self) -> None:
        self.waiting.clear()
        self.under_way = None
        self.rows = Rows(self.rows.vocabulary)
        self.decoder.clear()

    @torch.inference_mode()
    def _admit(self) -> None:
        """Run waiting prompts into free slots: first come, first served, all siblings of a request together."""
        self.rows.trim()
        alive = int(self.rows.alive.sum())
        if not alive:
            self.columns = 0
        admitted: list[tuple[Request, list[int]]] = []
        free: list[int] | None = None
        while self.waiting:
            request = self.waiting[0]
            if request.future.done():
                self.waiting.popleft()
                continue
            siblings = len(request.completions)
            own = self.decoder.columns_for(len(request.prompt), request.params.max_tokens, siblings)
            columns = max(self.columns, own)
            room = min(self.max_rows, self.decoder.rows_within(self.cache_bytes, columns))
            taken = alive + sum(len(slots) for _, slots in admitted)
            wanted = min(request.pending, room)
            # A prefill for every row that ends would cost more than waiting for some to end together.
            patience = 0 if admitted or not alive else min(room // 8, self._wanted())
            if room - taken < max(wanted, patience):
                break
            if alive and columns > self.columns:  # every slot becomes longer: let there be no more than are needed
                if admitted:
                    break
                self._compact(1.0)
            if free is None:
                free = self.rows.free(self.max_rows)
            admitted.append((request, free[:wanted]))
            free = free[wanted:]
            self.columns = columns
            if wanted == request.pending:
                self.waiting.popleft()
            else:
                break
        if admitted:
            with phase("prefill"):
                before = _reused(admitted)
                self._prefill(admitted)
                count(sum(len(request.prompt) for request, _ in admitted) - _reused(admitted) + before)

    def _wanted(self) -> int:
        return sum(request.pending for request in self.waiting)

    def _prefill(self, admitted: list[tuple[Request, list[int]]]) -> None:
        self._catch_up()
        for request, slots in admitted:  # first, so that their callers hear of it when the model fails
            self.rows.place(request, slots)
        admissions = [
            Admission(
                request.prompt, slots, request.params.max_tokens, len(request.completions), request.params.prefill
            )
            for request, slots in admitted
        ]
        logits = self.decoder.admit(admissions, self.columns, self.rows.used)
        if any(request.params.not_first for request, _ in admitted):
            logits = without([request.params.not_first for request, _ in admitted], logits)
        numbers = np.concatenate([np.asarray(slots, np.int64) for _, slots in admitted])
        family = np.repeat(np.arange(len(admitted)), [len(slots) for _, slots in admitted])
        self._write(numbers, logits[torch.from_numpy(family).to(logits.device)])

    @torch.inference_mode()
    def _decode(self) -> None:
        stepper = self.decoder.stepper()
        if stepper is not None and not self.rows.asked_of():
            self._decode_ahead(stepper)
            return
        self._catch_up()
        slots, alive = self.rows.slots[: self.rows.used], self.rows.alive
        logits = self.decoder.decode(slots["token"], slots["position"], alive)
        if alive.all():
            count(self.rows.used)
            self._write(np.arange(self.rows.used), logits)
        else:
            live = np.flatnonzero(alive)
            count(len(live))
            self._write(live, logits[torch.from_numpy(live).to(logits.device)])

    def _decode_ahead(self, stepper: Stepper) -> None:
        """Have the next few steps begun, and take in those that were begun before: rows may have ended in them, and
        then run along for as long as it takes to see that."""
        slots, alive = self.rows.slots[: self.rows.used], self.rows.alive
        before = self.under_way
        if before is None:
            stepper.load(slots)
        ahead = 0 if before is None else before.steps
        steps = min(STEPS, int((slots["limit"] - slots["count"])[alive].max()) - ahead)
        reach = int(slots["position"][alive].max()) + 1 + ahead
        self.under_way = stepper.launch(self.rows.used, reach + steps - 1, steps) if steps > 0 else None
        if before is not None:
            self._take_in(before)

    def _catch_up(self) -> None:
        """Take in what is under way, so that the rows are again where the decoder is."""
        before, self.under_way = self.under_way, None
        if before is not None:
            self._take_in(before)

    def _take_in(self, block: Block) -> None:
        for tokens, logprobs in zip(*block.read(), strict=True):
            live = np.flatnonzero(self.rows.alive)
            if not len(live):
                return
            count(len(live))
            self._check_finite(logprobs[live])
            self._keep(self.rows.write(live, tokens[live], logprobs[live], self.version()))

    def _write(self, numbers: np.ndarray, logits: Tensor) -> None:
        slots = self.rows.slots[numbers]
        uniform = torch.from_numpy(uniforms(slots["key"], slots["count"])).to(logits.device)
        temperatures = torch.from_numpy(np.ascontiguousarray(slots["temperature"])).to(logits.device)
        drawing = draw if getattr(self.decoder, "fused", None) is None else fused.draw
        tokens, logprobs = drawing(logits, temperatures, uniform)
        found = logprobs.cpu().numpy()
        self._check_finite(found)
        self._keep(self.rows.write(numbers, tokens.cpu().numpy(), found, self.version()))

    def _keep(self, ended: Sequence[Ended]) -> None:
        """What rows have read is there for prompts that begin with it, where their callers go on from such."""
        for slot, request, fed in ended:
            if request.params.prefill is not None and request.params.prefill.keep:
                self.decoder.keep(slot, (*request.prompt, *fed))

    @staticmethod
    def _check_finite(logprobs: np.ndarray) -> None:
        if not np.isfinite(logprobs).all():
            raise NumericalError(
                "the model's logits are not finite, so nothing can be sampled from it; expected finite numbers. "
                "Go back to an earlier checkpoint and lower the learning rate"
            )

    @torch.inference_mode()
    def _compact(self, below: float = COMPACT_BELOW) -> None:
        alive = int(self.rows.alive.sum())
        if alive >= below * self.rows.used:
            return
        self._catch_up()
        sources, targets = self.rows.holes_to_fill()
        if len(sources):
            columns = int(self.rows.slots["position"][sources].max())
            self.decoder.move(sources, targets, columns)
        self.rows.move(sources, targets)


def _reused(admitted: Sequence[tuple[Request, list[int]]]) -> int:
    """Tokens counted as reused so far by those who count."""
    counters = {id(request.params.prefill): request.params.prefill for request, _ in admitted}
    return sum(counter.reused for counter in counters.values() if counter is not None)
