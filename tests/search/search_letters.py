"""A chat in which every character is a token, and a sampler that goes on with a text as a script says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from maieutic.protocols import Completion, Sampling
from maieutic.types import Finish, Message

STOP = 0


@dataclass
class Letters:
    """Characters are tokens; token 0 ends a turn. `said` stands between two turns."""

    stop_ids: frozenset[int] = frozenset({STOP})

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.encode("".join(message.content for message in messages))

    def completion(self, text: str) -> tuple[int, ...]:
        return (*self.encode(text), STOP)

    def continuation(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.encode("[" + "".join(message.content for message in messages) + "]")

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token) for token in tokens if token != STOP)

    def tokens_ending(self, trigger: str) -> frozenset[int]:
        return frozenset({ord(trigger[-1])})


@dataclass
class Continues:
    """Writes `script(text so far, key)`, a full stop being the token that ends a turn: as far as a stop token or
    `max_tokens`. What is barred from the first place is left out there."""

    script: Callable[[str, str], str]
    asked: list[tuple[str, Sampling, int]] = field(default_factory=list)

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]:
        shown = Letters().decode(prompt_tokens)
        self.asked.append((shown, params, n))
        return [self._one(shown, params, f"{params.key}/{sibling}") for sibling in range(n)]

    def _one(self, shown: str, params: Sampling, key: str) -> Completion:
        tokens: list[int] = []
        mask: list[bool] = []
        finish = Finish.LENGTH
        for token in (STOP if letter == "." else ord(letter) for letter in self.script(shown, key)):
            if not tokens and token in params.not_first:
                continue
            tokens.append(token)
            mask.append(True)
            if token in params.stop_ids or params.ends(tokens):
                finish = Finish.STOP
                break
            if params.interject is not None and token in params.interject_ids:
                added = params.interject(tuple(tokens))
                tokens += added
                mask += [False] * len(added)
            if len(tokens) >= params.max_tokens:
                break
        return Completion(tuple(tokens), tuple(mask), tuple(-0.5 * m for m in mask), finish)
