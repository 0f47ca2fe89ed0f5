"""A teacher that has spoken: what it said of fixed sequences, read from a folder.

Asked about a sequence that is not there, it refuses; it cannot know. So it teaches what is shown (`distil`), and not
what a student writes. `B` rows, `T` tokens, `K` candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from maieutic.errors import ConfigError, DataError, ModelError
from maieutic.teachers.records import Origin, Records, Said, fingerprint, key_of
from maieutic.types import Batch


class RecordedTeacher:
    """See `maieutic.protocols.Teacher`; `folder` is one of `maieutic teacher record`.

    `vocabulary` (token → id) is the student's, `top_k` how many candidates are used of those recorded (None: all).
    Raises ModelError for another vocabulary than was recorded, ConfigError for more candidates.
    """

    def __init__(self, folder: str | Path, vocabulary: Mapping[str, int], top_k: int | None = None) -> None:
        self.records = Records(folder)
        self.vocabulary = vocabulary
        origin = self.origin
        if fingerprint(vocabulary) != origin.vocabulary:
            raise ModelError(
                f"got what {origin.teacher} said of {origin.tokens} tokens ({folder}) for a policy of "
                f"{len(vocabulary)}; expected the same tokens with the same ids (fingerprint {origin.vocabulary}, got "
                f"{fingerprint(vocabulary)}). Record again with a teacher of the policy's vocabulary; from one of "
                "another, learn by text (`maieutic teacher write`, then sft)"
            )
        if top_k is not None and not 1 <= top_k <= origin.top_k:
            raise ConfigError(f"{folder}: got top_k = {top_k}; expected 1 to the {origin.top_k} that were recorded")
        self.top_k = top_k or origin.top_k

    @property
    def origin(self) -> Origin:
        """Who spoke, and how."""
        return self.records.origin

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats, 0 off the mask. Raises DataError for a row that was not recorded."""
        found = torch.zeros(batch.tokens.shape)
        for row, said in enumerate(self._said(batch)):
            found[row, said.places] = said.chosen
        return torch.where(batch.mask, found.to(batch.mask.device), 0.0)

    def top(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and log-probs `[B, T, K]`, falling; 0 off the mask. Raises as `logprobs`."""
        shape = (*batch.tokens.shape, self.top_k)
        ids, logprobs = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        for row, said in enumerate(self._said(batch)):
            ids[row, said.places] = said.ids[:, : self.top_k]
            logprobs[row, said.places] = said.logprobs[:, : self.top_k]
        chosen, device = batch.mask[..., None], batch.mask.device
        return torch.where(chosen, ids.to(device), 0), torch.where(chosen, logprobs.to(device), 0.0)

    def _said(self, batch: Batch) -> list[Said]:
        if batch.temperature != self.origin.temperature:
            raise DataError(
                f"got rows at temperature {batch.temperature:g}; {self.records.folder} was recorded at "
                f"{self.origin.temperature:g}"
            )
        return [self._of(batch, row) for row in range(batch.size)]

    def _of(self, batch: Batch, row: int) -> Said:
        tokens, mask = batch.tokens[row, : int(batch.lengths[row])].cpu(), batch.mask[row].cpu()
        key, task = key_of(tokens), batch.task_ids[row] if batch.task_ids else f"row {row}"
        if key not in self.records:
            raise DataError(
                f"{task}: a sequence of {len(tokens)} tokens ({_shown(tokens)}) is not among the {len(self.records)} "
                f"of which {self.records.folder} says what {self.origin.teacher} said. Expected what was recorded: the "
                "same tasks and solutions, the same chat template. Record it (`maieutic teacher record`, which goes on "
                "with a folder that is there), or let the teacher itself be asked ([stages.teacher] path or url)"
            )
        said = self.records.get(key)
        there = torch.zeros(len(mask), dtype=torch.bool)
        there[said.places] = True
        if bool((mask & ~there).any()):
            place = int((mask & ~there).nonzero()[0])
            raise DataError(
                f"{task}: token {place} is to be learned, and {self.records.folder} says nothing of it: it was "
                "recorded with another tool, or another template. Record again into another folder"
            )
        return said


def _shown(tokens: Tensor) -> str:
    return " ".join(map(str, tokens[:8].tolist())) + (" …" if len(tokens) > 8 else "")
