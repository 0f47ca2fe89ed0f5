"""A respondent in this process: any sampler with its chat format, such as those of the local backend."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from maieutic.endpoint.reply import Bill, Outcome, Reply, TokenLogprob
from maieutic.errors import ConfigError, ModelError, PromptTooLong
from maieutic.protocols import Chat, Sampler, Sampling
from maieutic.types import Finish, Message

_OUTCOMES = {Finish.STOP: Outcome.ANSWERED, Finish.ENVIRONMENT: Outcome.ANSWERED, Finish.LENGTH: Outcome.CUT}


class LocalRespondent:
    """Asks a sampler. What it answers depends on (seed, question, sample) only; questions that are asked side by side
    are batched by the engine behind the sampler. `special_tokens` are those of its tokenizer, as they are written.

    >>> judge = LocalRespondent(backend.sampler(model), model.chat, name="models/judge")
    """

    def __init__(
        self,
        sampler: Sampler,
        chat: Chat,
        *,
        name: str = "local",
        seed: int | str = 0,
        special_tokens: Collection[str] = (),
    ) -> None:
        self.special_tokens = tuple(special_tokens)
        self.sampler = sampler
        self.format = chat
        self.name = name
        self.seed = seed

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        sample: int = 0,
        schema: Mapping[str, Any] | None = None,  # noqa: ARG002  (nothing here keeps a model to a schema)
    ) -> Reply:
        """The model's answer; `schema` is not enforced."""
        try:
            prompt = self.format.prompt(messages)
        except ModelError as error:  # a template that refuses these roles
            return Reply(Outcome.REFUSED, note=str(error), bill=Bill(requests=1, failures=1))
        return await self._write(prompt, max_tokens, temperature, sample)

    async def complete(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 16,
        temperature: float = 0.0,
        sample: int = 0,
        logprobs: int = 0,
    ) -> Reply:
        """What follows a text or tokens. `logprobs=1` adds the log-prob of each chosen token; a sampler knows no more
        than that, so a larger number raises ConfigError."""
        if logprobs > 1:
            raise ConfigError(
                f"LocalRespondent.complete: got logprobs={logprobs}; expected 0 or 1, for a sampler reports chosen "
                "tokens only. Likely candidates are what `LocalBackend.teacher` gives"
            )
        tokens = self.format.encode(prompt) if isinstance(prompt, str) else tuple(prompt)
        return await self._write(tokens, max_tokens, temperature, sample, logprobs)

    async def _write(
        self, prompt: tuple[int, ...], max_tokens: int, temperature: float, sample: int, logprobs: int = 0
    ) -> Reply:
        began = time.monotonic()
        digest = blake2b(",".join(map(str, prompt)).encode(), digest_size=8).hexdigest()
        sampling = Sampling(
            max_tokens, temperature, self.format.stop_ids, key=f"{self.seed}/respond/{digest}/{sample}"
        )  # fmt: skip
        try:
            (completion,) = await self.sampler.sample(prompt, sampling, 1)
        except PromptTooLong as error:
            return Reply(Outcome.REFUSED, note=str(error), bill=Bill(requests=1, failures=1))
        bill = Bill(
            requests=1, prompt_tokens=len(prompt), completion_tokens=len(completion.tokens),
            seconds=time.monotonic() - began,
        )  # fmt: skip
        told = zip(completion.tokens, completion.logprobs) if logprobs else ()
        return Reply(
            _OUTCOMES.get(completion.finish, Outcome.SERVER_ERROR),
            self.format.decode(completion.tokens),
            logprobs=tuple(TokenLogprob(self.format.decode((token,)), value) for token, value in told),
            bill=bill,
        )
