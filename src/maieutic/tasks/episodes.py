"""Tasks that are nothing but a number: for games that bring everything else themselves."""

from __future__ import annotations

import hashlib

from maieutic.errors import ConfigError
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.types import Message, Task, Verdict


def episodes(
    size: int = 1000,
    split: str = "train",
    prompt: str = "",
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """Numbered episodes of an environment that makes its own questions (gymnasium, textarena, verifiers).

    An episode's number and split decide its chance (`meta["seed"]`), so that a task is the same game at every visit,
    and those of another split are others. `prompt` is what the model is told before the game says anything. An
    environment with a data set takes the row of that number. Raises ConfigError for none.
    """
    if size < 1:
        raise ConfigError(f"episodes: got size={size}; expected at least 1")

    def make(index: int) -> Task:
        digest = hashlib.blake2b(f"{split}/{index}".encode(), digest_size=4).digest()
        meta = {"number": index, "split": split, "seed": int.from_bytes(digest, "big") >> 1}
        return Task(f"episodes/{split}/{index}", (Message("user", prompt),), None, meta)

    return Tasks("episodes", Lazy(size, make), verifier or _unread, tool)


def _unread(task: Task, text: str) -> Verdict:  # noqa: ARG001
    return Verdict(False, why="no answer: only its environment can say how an episode went")
