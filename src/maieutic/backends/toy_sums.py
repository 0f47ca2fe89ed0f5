"""What the toy backend talks about: a fixed vocabulary of words, and sums of one digit written in it."""

from __future__ import annotations

from collections.abc import Sequence

from maieutic.types import Message, Task, Verdict

STOP = 0
"""The id of the toy's stop token."""


class ToyChat:
    """Words ↔ ids over a fixed vocabulary; id 0 is the stop token, unknown words raise KeyError."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.words = ["<stop>", *vocabulary]
        self.ids = {word: i for i, word in enumerate(self.words)}
        self.stop_ids = frozenset({STOP})

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The words of all messages."""
        return self.encode(" ".join(m.content for m in messages))

    def completion(self, text: str) -> tuple[int, ...]:
        """The words and the stop token."""
        return (*self.encode(text), STOP)

    def continuation(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The words of what is said between two turns of the model."""
        return self.prompt(messages)

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of the words."""
        return tuple(self.ids[word] for word in text.split())

    def decode(self, tokens: Sequence[int]) -> str:
        """The words without the stop token."""
        return " ".join(self.words[t] for t in tokens if t != STOP)

    def tokens_ending(self, trigger: str) -> frozenset[int]:
        """Ids of the words that end in the trigger's last word, or in the trigger where it is blank."""
        last = (trigger.split() or [trigger])[-1]
        return frozenset(i for i, word in enumerate(self.words) if word.endswith(last))


class ToySums:
    """A taskset for the toy backend: `a + b` with one-digit `a`, `b` below `limit`, answer digit by digit."""

    name = "toy_sums"
    tool = None

    def __init__(self, limit: int = 4) -> None:
        self.limit = limit

    @property
    def vocabulary(self) -> list[str]:
        """Digits and the plus sign."""
        return [str(d) for d in range(10)] + ["+"]

    def __len__(self) -> int:
        return self.limit**2

    def __getitem__(self, index: int) -> Task:
        if not 0 <= index < len(self):
            raise IndexError(index)
        a, b = divmod(index, self.limit)
        solution = " ".join(str(a + b))
        return Task(f"toy/{a}+{b}", (Message("user", f"{a} + {b}"),), solution, {"solution": solution})

    def verifier(self, task: Task, text: str) -> Verdict:
        """Right when the words are the digits of the sum."""
        return Verdict(text == task.answer, text or None)
