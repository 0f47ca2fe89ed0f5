"""A teacher behind a server that says how likely it finds given tokens (vLLM: `prompt_logprobs`).

    endpoint = Endpoint("http://127.0.0.1:8000/v1", "teacher")
    teacher = EndpointTeacher(endpoint, student.tokenizer, top_k=20, name="models/student")

Token ids go there and ids come back; nothing is tokenised on the way. That an id means the same to both is looked at
before anything is asked: the server writes out some two thousand ids, spread over the student's vocabulary, and so does
the student's tokenizer. Where a server cannot (no `/detokenize`), each token that it was given is compared instead.

A server speaks at temperature 1, so rows have to be sampled at 1, unless all candidates are asked for (`top_k=None`;
vLLM has to be started with `--max-logprobs -1`): then any temperature is exact. The same row is asked once.
`B` rows, `T` tokens, `K` candidates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maieutic.endpoint import Endpoint, Outcome, Reply
from maieutic.errors import ConfigError, DataError, ModelError
from maieutic.loops import run_async
from maieutic.types import Batch

#: Ids that are written out by both, to see that they mean the same.
COMPARED = 2048


class EndpointTeacher:
    """See `maieutic.protocols.Teacher`. `tokenizer` is the student's (`get_vocab`, `decode`), `name` its model's.

    Raises ConfigError for a `top_k` below 1; when it is first asked, ModelError for another vocabulary, and for a
    server that is away, says nothing of given tokens, or fails for longer than its `Terms` have patience.
    """

    def __init__(self, endpoint: Endpoint, tokenizer: Any, top_k: int | None = 20, name: str = "the policy") -> None:
        if top_k is not None and top_k < 1:
            raise ConfigError(f"got a teacher with top_k={top_k}; expected at least 1, or None (the whole vocabulary)")
        self.endpoint = endpoint
        self.tokenizer = tokenizer
        self.name = name
        self.vocabulary = 1 + max(tokenizer.get_vocab().values())
        self.top_k = self.vocabulary if top_k is None else min(top_k, self.vocabulary)
        self._limit: int | None = None
        self._met = False
        self._written_out = False

    @property
    def asked(self) -> Mapping[str, float]:
        """What asking has cost so far, by the names of `maieutic.endpoint.Bill`."""
        return {f"teacher/{item}": float(value) for item, value in self.endpoint.bill._asdict().items()}

    @property
    def limit(self) -> int | None:
        """Tokens of a row that it can read; None where the server does not say."""
        self._meet()
        return self._limit

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats, 0 off the mask."""
        tempered = batch.temperature != 1.0
        found = torch.zeros(batch.tokens.shape)
        for row, reply in enumerate(self._ask(batch, None if tempered else 1)):
            for t in batch.mask[row].nonzero().flatten().tolist():
                told = reply.read[t]
                found[row, t] = float(told.logprob or 0.0)
                if tempered:
                    ids, values = self._candidates(told.ids, told.logprobs, batch.temperature)
                    found[row, t] = values[ids == told.token][0]
        return found.to(batch.mask.device)

    def top(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and log-probs `[B, T, K]`, falling; 0 off the mask."""
        shape = (*batch.tokens.shape, self.top_k)
        ids, logprobs = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        everything = self.top_k == self.vocabulary
        for row, reply in enumerate(self._ask(batch, None if everything else self.top_k)):
            for t in batch.mask[row].nonzero().flatten().tolist():
                told = reply.read[t]
                some, values = self._candidates(told.ids, told.logprobs, batch.temperature)
                ids[row, t], logprobs[row, t] = some[: self.top_k], values[: self.top_k]
        return ids.to(batch.mask.device), logprobs.to(batch.mask.device)

    def _candidates(self, ids: Sequence[int], logprobs: Sequence[float], temperature: float) -> tuple[Tensor, Tensor]:
        """Those that are tokens of the student. At a temperature other than 1, `logprobs` are of all that there are."""
        names, values = torch.tensor(ids), torch.tensor(logprobs, dtype=torch.float64)
        if temperature != 1.0:
            values = torch.log_softmax(values / temperature, dim=-1)
        own = names < self.vocabulary  # embeddings may be padded: rows that are no token
        if int(own.sum()) < self.top_k:
            raise ModelError(
                f"{self.endpoint.name} says {len(ids)} candidates, {int(own.sum())} of them tokens of {self.name}; "
                f"expected {self.top_k}. Lower top_k, or raise --max-logprobs where the server is started"
            )
        return names[own], values[own].float()

    def _ask(self, batch: Batch, top: int | None) -> list[Reply]:
        self._meet()
        if batch.temperature != 1.0 and self.top_k != self.vocabulary:
            raise ConfigError(
                f"got rows at temperature {batch.temperature:g} and a teacher behind a server, which speaks at 1; "
                'expected temperature = 1, or top_k = "all" (start vLLM with --max-logprobs -1)'
            )
        rows = [tuple(batch.tokens[row, :length].tolist()) for row, length in enumerate(batch.lengths.tolist())]
        longest = max(map(len, rows))
        if self._limit is not None and longest > self._limit:
            raise DataError(
                f"got a row of {longest} tokens; the teacher ({self.endpoint.name}) has {self._limit} positions. Lower "
                'max_completion_length, or let rows teach as far as it can read (too_long = "cut")'
            )
        told = run_async(self._judged(tuple(dict.fromkeys(rows)), top))
        return [told[row] for row in rows]

    async def _judged(self, rows: Sequence[tuple[int, ...]], top: int | None) -> dict[tuple[int, ...], Reply]:
        replies = await asyncio.gather(*(self.endpoint.judge(row, top=top) for row in rows))
        for reply in replies:
            if reply.outcome is not Outcome.ANSWERED:
                raise ModelError(
                    f"the teacher could not be asked. {reply.why}. Expected a server that says how likely it finds the "
                    f"token ids of {self.name} (vLLM). A run that has stopped goes on with --resume when it is back"
                )
            if not self._written_out:
                self._compare_texts(reply)
        return dict(zip(rows, replies))

    def _compare_texts(self, reply: Reply) -> None:
        for token, _, _, _, text in reply.read:
            own = {self.tokenizer.decode([token]), self.tokenizer.convert_ids_to_tokens(token)}
            # half a character, which the server joins to its neighbours as it sees fit
            if text is not None and not any("\ufffd" in each for each in (*own, text)) and text not in own:
                raise self._stranger(token, text, self.tokenizer.decode([token]))

    def _meet(self) -> None:
        """Once: is it there, how much can it read, and do ids mean the same?"""
        if self._met:
            return
        some = spread(sorted(self.tokenizer.get_vocab().values()), COMPARED)
        limit, written = run_async(self._introduced(some))
        if written.outcome is Outcome.ANSWERED:
            own = self.tokenizer.decode(some)
            if written.text != own:
                self._find_stranger(some)
                raise self._stranger(some[0], written.text[:40], own[:40])
            self._written_out = True
        # one position is for the token that it must write
        self._limit = limit.limit - 1 if limit.limit is not None else None
        self._met = True

    async def _introduced(self, some: Sequence[int]) -> tuple[Reply, Reply]:
        limit, written = await asyncio.gather(self.endpoint.reads(), self.endpoint.text_of(some))
        return limit, written

    def _find_stranger(self, some: Sequence[int]) -> None:
        """Raise for one id on which both differ, where there is one that does alone: halves, and halves of these."""
        while len(some) > 1:
            half = some[: len(some) // 2]
            there = run_async(self.endpoint.text_of(half)).text
            some = half if there != self.tokenizer.decode(half) else some[len(half) :]
        there, here = run_async(self.endpoint.text_of(some)).text, self.tokenizer.decode(some)
        if there != here:
            raise self._stranger(some[0], there, here)

    def _stranger(self, token: int, there: str, here: str) -> ModelError:
        return ModelError(
            f"the teacher ({self.endpoint.name}) and {self.name} have different vocabularies: the token {token} is "
            f"{there!r} to the one and {here!r} to the other. Expected the same tokens with the same ids, because "
            "log-probs are compared token by token. What remains is text: let the teacher write solutions (`maieutic "
            "teacher write`), and fine-tune on them (sft)"
        )


def spread(ids: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly, the first and the last included."""
    if len(ids) <= most:
        return list(ids)
    return [ids[round(i * (len(ids) - 1) / (most - 1))] for i in range(most)]
