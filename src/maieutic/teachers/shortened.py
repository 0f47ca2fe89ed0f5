"""A teacher whose context is too short for some rows: these teach up to where it can read, both models alike.

The cut is made in the batch itself, before anything is asked of it (`maieutic.annotate`): tokens beyond the teacher's
context are no chosen tokens any more, so they are in no loss, in no mean, and in no normaliser.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from maieutic.errors import ConfigError
from maieutic.protocols import Teacher
from maieutic.types import Batch


class Shortened:
    """A teacher that is shown the first `cuts_at` tokens of each row. In all else it is the teacher itself."""

    def __init__(self, teacher: Teacher, cuts_at: int) -> None:
        if cuts_at < 2:
            raise ConfigError(f"got a teacher that reads {cuts_at} tokens; expected at least 2")
        self.teacher = teacher
        self.cuts_at = cuts_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.teacher, name)

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats, 0 off the mask and beyond the cut."""
        return pad(self.teacher.logprobs(self._seen(batch)), (0, self._beyond(batch)))

    def top(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and log-probs `[B, T, K]`, falling; 0 off the mask and beyond the cut."""
        ids, logprobs = self.teacher.top(self._seen(batch))
        rest = (0, 0, 0, self._beyond(batch))
        return pad(ids, rest), pad(logprobs, rest)

    def _beyond(self, batch: Batch) -> int:
        return max(0, batch.tokens.shape[1] - self.cuts_at)

    def _seen(self, batch: Batch) -> Batch:
        if not self._beyond(batch):
            return batch
        wide = {name: getattr(batch, name)[:, : self.cuts_at] for name in WIDE}
        return replace(batch, lengths=batch.lengths.clamp(max=self.cuts_at), columns={}, **wide)


#: The columns of a bare batch that are `[B, T]`.
WIDE = ("tokens", "mask", "sampler_logprobs", "token_rewards")
