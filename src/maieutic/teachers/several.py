"""Several teachers as one: a mixture of their distributions, or each for its own tasks.

The mixture is p = Σᵢ wᵢ pᵢ, weights that add up to 1. For a chosen token that is exact, and over whole vocabularies it
is exact for every candidate. A teacher that keeps its K likeliest says nothing of the others but their mass together,
its tail. A candidate that only some teachers name counts for the others as 0, and their share of it as tail; so each
candidate's p is a lower bound, at most Σᵢ wᵢ tailᵢ below the true one, all candidates and the tail together are within
that bound of the mixture's in total variation, and they add up to 1 as ever. Of the union of candidates the K likeliest
are kept (K: the most that any of the teachers keeps), and the others go to the tail.

Letters: `B` rows, `T` tokens, `K` candidates, `S` candidates of all teachers together, `M` chosen tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maieutic.errors import ConfigError, DataError
from maieutic.protocols import Teacher
from maieutic.types import Batch

#: Candidates of all teachers together that are sorted at a time (float64: 128 MB).
PIECE = 1 << 24


class MixedTeacher:
    """p = Σᵢ wᵢ pᵢ; `weights` are divided by their sum. Raises ConfigError for weights that are not positive."""

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float]) -> None:
        if len(teachers) < 2 or len(weights) != len(teachers) or not all(0 < w < math.inf for w in weights):
            raise ConfigError(
                f"a mixture of teachers: got {len(teachers)} of them with weights {list(weights)}; expected two or "
                "more, each with a positive weight"
            )
        self.teachers = tuple(teachers)
        self.logs = tuple(math.log(weight / sum(weights)) for weight in weights)

    @property
    def cuts_at(self) -> int | None:
        """The shortest of the teachers' contexts, where one of them cuts rows."""
        return shortest(self.teachers)

    @property
    def asked(self) -> Mapping[str, float]:
        """What asking servers has cost so far, in all."""
        return asked_of(self.teachers)

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats: log Σᵢ wᵢ pᵢ of the chosen tokens, 0 off the mask."""
        each = [teacher.logprobs(batch) + log for teacher, log in zip(self.teachers, self.logs)]
        return torch.where(batch.mask, torch.stack(each).logsumexp(0), 0.0)

    def top(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and log-probs `[B, T, K]` of the likeliest of the union, falling; 0 off the mask."""
        told = [teacher.top(batch) for teacher in self.teachers]
        kept = max(ids.shape[-1] for ids, _ in told)
        all_ids = torch.cat([ids[batch.mask] for ids, _ in told], dim=-1)
        all_logs = torch.cat([logprobs[batch.mask] + log for (_, logprobs), log in zip(told, self.logs)], dim=-1)
        ids = told[0][0].new_zeros((*batch.mask.shape, kept))
        logprobs = told[0][1].new_zeros(ids.shape)
        rows = max(1, PIECE // all_ids.shape[-1])
        found = [united(*pair, kept) for pair in zip(all_ids.split(rows), all_logs.split(rows))]
        if found:
            ids[batch.mask] = torch.cat([some for some, _ in found])
            logprobs[batch.mask] = torch.cat([some for _, some in found]).to(logprobs.dtype)
        return ids, logprobs


def united(ids: Tensor, logprobs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Candidates `[M, S]`, some of them several times, → the `k` likeliest, each once, its probabilities added up.

    Raises ValueError where fewer than `k` are different.
    """
    order = ids.argsort(dim=-1, stable=True)
    ids, logprobs = ids.gather(-1, order), logprobs.gather(-1, order).double()
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    if bool((first.sum(-1) < k).any()):
        raise ValueError(f"united: got fewer than {k} different candidates")
    place = first.long().cumsum(-1) - 1  # which of the different candidates
    most = logprobs.amax(-1, keepdim=True)
    added = torch.zeros_like(logprobs).scatter_add(-1, place, (logprobs - most).exp())
    sums = added.log() + most  # −inf beyond the last
    likely, at = sums.topk(k, dim=-1)
    names = torch.zeros_like(ids).scatter(-1, place, ids)
    return names.gather(-1, at), likely


class TeacherByTasks:
    """Each row's teacher is that of its task's taskset: `teachers["gsm8k"]` for the task "gsm8k/train/7".

    All keep as many candidates; a teacher that keeps fewer than another is refused when it is asked for them.
    """

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        if not teachers:
            raise ConfigError("teachers by tasks: got none; expected at least one, { taskset = teacher }")
        self.teachers = dict(teachers)

    @property
    def cuts_at(self) -> int | None:
        """The shortest of the teachers' contexts, where one of them cuts rows."""
        return shortest(tuple(self.teachers.values()))

    @property
    def asked(self) -> Mapping[str, float]:
        """What asking servers has cost so far, in all."""
        return asked_of(tuple(self.teachers.values()))

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats, 0 off the mask. Raises DataError for a task that has no teacher."""
        found = torch.zeros(batch.tokens.shape, device=batch.mask.device)
        for name, rows in self._rows(batch).items():
            found[rows] = self.teachers[name].logprobs(batch.rows(rows)).to(found)
        return found

    def top(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and log-probs `[B, T, K]`, falling; 0 off the mask. Raises as `logprobs`."""
        told = {name: (rows, *self.teachers[name].top(batch.rows(rows))) for name, rows in self._rows(batch).items()}
        kept = {name: ids.shape[-1] for name, (_, ids, _) in told.items()}
        if len(set(kept.values())) > 1:
            raise ConfigError(f"teachers by tasks: got {kept} candidates; expected the same top_k of all of them")
        shape = (*batch.tokens.shape, next(iter(kept.values())))
        ids = torch.zeros(shape, dtype=torch.long, device=batch.mask.device)
        logprobs = torch.zeros(shape, device=batch.mask.device)
        for rows, some, likely in told.values():
            ids[rows], logprobs[rows] = some.to(ids.device), likely.to(logprobs)
        return ids, logprobs

    def _rows(self, batch: Batch) -> dict[str, Tensor]:
        """Name of a teacher → its rows."""
        if len(batch.task_ids) != batch.size:
            raise DataError("teachers by tasks: got rows whose tasks are not known; expected a batch made by `pack`")
        found: dict[str, list[int]] = {}
        for row, task in enumerate(batch.task_ids):
            name = next((name for name in self.teachers if task == name or task.startswith(f"{name}/")), None)
            if name is None:
                raise DataError(
                    f"task {task!r} has no teacher; expected one whose id begins with one of "
                    f"{', '.join(self.teachers)} (by_tasks names tasksets as they name their tasks)"
                )
            found.setdefault(name, []).append(row)
        return {name: torch.tensor(rows, device=batch.mask.device) for name, rows in found.items()}


def shortest(teachers: Sequence[Teacher]) -> int | None:
    """The least `cuts_at` of those that have one."""
    limits = [limit for limit in (getattr(teacher, "cuts_at", None) for teacher in teachers) if limit is not None]
    return min(limits, default=None)


def asked_of(teachers: Sequence[Teacher]) -> Mapping[str, float]:
    """What each says that asking has cost, added up."""
    total: dict[str, float] = {}
    for teacher in teachers:
        for name, value in getattr(teacher, "asked", {}).items():
            total[name] = total.get(name, 0.0) + value
    return total
