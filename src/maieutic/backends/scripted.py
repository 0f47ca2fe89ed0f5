"""Policies that do what they are told: for tests, documentation, and searches whose every outcome is known.

    ScriptedSampler   writes what a function of the prompt says, with certainty
    TreeSampler       draws each token from a distribution that is a function of all tokens before it
    ScriptedTexts     reads and writes text, a character a token: a policy is a function of the text before

Unlike the toy backend's table, these go on from a prefix as they would have gone on from the prompt.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from maieutic.protocols import Completion, Sampling
from maieutic.types import Finish, Message


@dataclass
class ScriptedSampler:
    """A sampler that writes what `script(prompt_tokens, sibling)` says, tokens chosen with certainty (log-prob 0)."""

    script: Callable[[tuple[int, ...], int], Sequence[int]]

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]:
        """The script's tokens, cut at `max_tokens` and where `until` says so."""
        return [_written(self.script(tuple(prompt_tokens), sibling), params) for sibling in range(n)]


def _written(script: Sequence[int], params: Sampling) -> Completion:
    tokens = tuple(script)[: params.max_tokens]
    tokens = next((tokens[:i] for i in range(1, len(tokens)) if params.ends(tokens[:i])), tokens)
    stops = bool(tokens) and (tokens[-1] in params.stop_ids or params.ends(tokens))
    finish = Finish.STOP if stops else Finish.LENGTH
    return Completion(tokens, (True,) * len(tokens), (0.0,) * len(tokens), finish)


@dataclass
class TreeSampler:
    """A policy that is a function: `chances(tokens so far, the prompt's included)` → token → its probability.

    Probabilities need not sum to one; they are taken relative to one another, at temperature 1. Which token is drawn
    depends on (key, sibling, position) as in every sampler. `asked` holds (tokens before, n) of every call.

    >>> coin = TreeSampler(lambda tokens: {1: 0.5, 2: 0.5} if len(tokens) < 4 else {0: 1.0})
    """

    chances: Callable[[tuple[int, ...]], Mapping[int, float]]
    asked: list[tuple[tuple[int, ...], int]] = field(default_factory=list)

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]:
        """`n` completions."""
        prompt = tuple(prompt_tokens)
        self.asked.append((prompt, n))
        return [self._one(prompt, params, sibling) for sibling in range(n)]

    def _one(self, prompt: tuple[int, ...], params: Sampling, sibling: int) -> Completion:
        tokens: list[int] = []
        mask: list[bool] = []
        logprobs: list[float] = []
        finish = Finish.LENGTH
        while len(tokens) < params.max_tokens:
            draw = random.Random(f"{params.key}/{sibling}/{len(tokens)}").random()
            barred = frozenset() if tokens else params.not_first
            token, logprob = self._drawn((*prompt, *tokens), params.temperature, draw, barred)
            inserted: list[int] = []
            tokens.append(token)
            ended = token in params.stop_ids or params.ends(tokens)
            if not ended and params.interject is not None and token in params.interject_ids:
                inserted = list(params.interject(tuple(tokens)))[: params.max_tokens - len(tokens)]
                tokens += inserted
                ended = bool(inserted) and params.ends(tokens)
            mask += [True, *[False] * len(inserted)]
            logprobs += [logprob, *[0.0] * len(inserted)]
            if ended:
                finish = Finish.STOP
                break
        return Completion(tuple(tokens), tuple(mask), tuple(logprobs), finish)

    def _drawn(
        self, before: tuple[int, ...], temperature: float, draw: float, barred: frozenset[int]
    ) -> tuple[int, float]:
        weights = {token: p for token, p in self.chances(before).items() if p > 0 and token not in barred}
        powers = {token: p ** (1 / (temperature or 1.0)) for token, p in weights.items()}
        total = math.fsum(powers.values())
        if not temperature:
            token = max(powers, key=lambda each: powers[each])
            return token, math.log(powers[token] / total)
        ends = list(itertools.accumulate(powers.values()))
        token = list(powers)[min(bisect_right(ends, draw * ends[-1]), len(ends) - 1)]
        return token, math.log(powers[token] / total)


class ScriptedTexts:
    """A chat and a sampler in one whose tokens are characters: it says `script(text so far, sibling)`, and stops.

    Messages are put one under the other, and a turn begins on a new line.

    >>> parrot = ScriptedTexts(lambda text, sibling: text.splitlines()[-1])
    """

    STOP = 0

    def __init__(self, script: Callable[[str, int], str]) -> None:
        self.script = script
        self.stop_ids = frozenset({self.STOP})
        self.asked: list[tuple[str, int]] = []

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]:
        """What the script says and the stop token, cut at `max_tokens` and where `until` says so."""
        text = self.decode(prompt_tokens)
        self.asked.append((text, n))
        return [_written(self.completion(self.script(text, sibling)), params) for sibling in range(n)]

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The messages, one under the other."""
        return self.encode("".join(message.content + "\n" for message in messages))

    def continuation(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What is said between two turns, on lines of its own."""
        return self.encode("\n" + "".join(message.content + "\n" for message in messages))

    def completion(self, text: str) -> tuple[int, ...]:
        """The characters and the stop token."""
        return (*self.encode(text), self.STOP)

    def encode(self, text: str) -> tuple[int, ...]:
        """The characters' code points."""
        return tuple(map(ord, text))

    def decode(self, tokens: Sequence[int]) -> str:
        """The characters, without the stop token."""
        return "".join(chr(token) for token in tokens if token != self.STOP)

    def tokens_ending(self, trigger: str) -> frozenset[int]:
        """The trigger's last character."""
        return frozenset(map(ord, trigger[-1:]))
