"""Let a teacher speak of sequences, to be written down. Works with any teacher: loaded, served, several."""

from __future__ import annotations

import torch

from maieutic.protocols import Teacher
from maieutic.teachers.records import Said, key_of
from maieutic.types import Batch


def said_of(teacher: Teacher, batch: Batch) -> dict[bytes, Said]:
    """What the teacher says of each row, by the row's key; equal rows are one."""
    ids, logprobs = teacher.top(batch)
    chosen = teacher.logprobs(batch)
    found = {}
    for row, length in enumerate(batch.lengths.tolist()):
        places = batch.mask[row].nonzero().flatten().cpu()
        at = torch.full_like(places, row)
        found[key_of(batch.tokens[row, :length].cpu())] = Said(
            places, chosen.cpu()[at, places], ids.cpu()[at, places], logprobs.cpu()[at, places]
        )
    return found
