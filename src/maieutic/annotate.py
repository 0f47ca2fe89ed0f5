"""Annotate: the columns that models fill, asked of them only where an algorithm reads them.

    old_logprobs                       the learner, before the update; what sampled, where that is an older policy, or
                                       where it is asked for and says the same (`RecordedOld`)
    old_values, final_values           the learner's critic
    ref_logprobs                       the reference
    teacher_logprobs, teacher_top_*    the teacher (teacher_spans: of one whose tokens are others)

Letters: `B` rows, `T` tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from maieutic.clock import phase
from maieutic.core.parts import CAPABILITIES, Algorithm
from maieutic.core.select import sampled_share
from maieutic.core.stepwise import spends_steps
from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Learner, Policy, Scorer, Source, Teacher
from maieutic.rewards.compose import gives_steps
from maieutic.types import PROVIDERS, Batch

Filler = Callable[[Batch], Mapping[str, Tensor]]
Annotator = Callable[[Batch], Batch]
Annotation = Callable[[Batch], Tensor]

log = logging.getLogger("maieutic.annotate")


class RecordedOld:
    """Fills `old_logprobs` with what was recorded while sampling: a forward pass over the whole batch fewer.

    The old policy is the one that sampled, so both are the same numbers as far as two engines compute the same. Whether
    they do is seen on one row in sixteen of every batch, which the learner is asked about; where they are further apart
    than `bound` (nats a token, the mean of |learner − sampler|), the learner fills the whole column. Nothing is
    remembered from batch to batch, so a resumed run decides as an unbroken one.
    """

    def __init__(self, learner: Learner, bound: float = 1e-4, every: int = 16) -> None:
        self.learner = learner
        self.bound = bound
        self.every = every
        self.said = False

    def __call__(self, batch: Batch) -> Mapping[str, Tensor]:
        """See `Filler`."""
        rows = batch.mask.any(1).nonzero().flatten()[:: self.every]
        some = batch.rows(rows)
        apart = (self.learner.logprobs(some) - some.sampler_logprobs).abs()[some.mask]
        worst = float(apart.mean()) if len(apart) else 0.0
        if worst <= self.bound:
            return {"old_logprobs": batch.sampler_logprobs}
        if not self.said:
            self.said = True
            log.warning(
                "old_logprobs = 'sampler', but learner and sampler are %.2g nats a token apart (accepted: %.2g), so "
                "the learner computes them. Leave the setting out: here it only costs",
                worst,
                self.bound,
            )
        return {"old_logprobs": self.learner.logprobs(batch)}


#: Who fills `old_logprobs`, by name.
OLD_LOGPROBS: Mapping[str, Callable[[Learner], Filler]] = {
    "learner": lambda learner: lambda batch: {"old_logprobs": learner.logprobs(batch)},
    "sampler": RecordedOld,
}


def fillers(
    policy: Policy,
    reference: Scorer | None,
    teacher: Teacher | None,
    *,
    sampler_is_old: bool = False,
    old_logprobs: str = "learner",
) -> Mapping[str, Filler]:
    """Column → what fills it (perhaps with others), for every column that these models can fill.

    `sampler_is_old`: see `is_anchored_at_sampler`. `old_logprobs`: a name in `OLD_LOGPROBS`. Raises `UnknownName`.
    """
    if old_logprobs not in OLD_LOGPROBS:
        raise UnknownName("way to fill old_logprobs", old_logprobs, OLD_LOGPROBS)
    found: dict[str, Filler] = {"old_logprobs": OLD_LOGPROBS[old_logprobs](policy.learner)}
    if sampler_is_old:
        found["old_logprobs"] = lambda batch: {"old_logprobs": batch.sampler_logprobs}
    if "values" in policy.learner.capabilities:
        found |= dict.fromkeys(("old_values", "final_values"), lambda batch: values(policy.learner, batch))
    if reference is not None:
        found["ref_logprobs"] = lambda batch: {"ref_logprobs": reference.logprobs(batch)}
    if teacher is not None:
        found["teacher_logprobs"] = lambda batch: said(teacher, batch)
        found |= dict.fromkeys(("teacher_top_ids", "teacher_top_logprobs"), lambda batch: top(teacher, batch))
    return found


def is_anchored_at_sampler(source: Source, algorithm: Algorithm) -> bool:
    """Whether ratios are taken to the policy that sampled: where that is an older one than the learner's before the
    update, or coarser (`source.stale`). A loss with a correction reads the way from the one to the other itself."""
    return getattr(source, "stale", False) and not algorithm.loss.corrected


def asked_columns(source: Source, algorithm: Algorithm) -> frozenset[str]:
    """What is to be filled. A ratio to the policy that sampled is no ratio to the present one, so its column is never
    spared, as it is for a single optimiser step on fresh rows."""
    anchored = is_anchored_at_sampler(source, algorithm)
    return algorithm.asks | ({"old_logprobs"} & algorithm.needs if anchored else frozenset())


def annotator(
    source: Source,
    policy: Policy,
    algorithm: Algorithm,
    reference: Scorer | None,
    teacher: Teacher | None,
    old_logprobs: str,
) -> Annotator:
    """What fills the columns of each batch of a training.

    Raises ConfigError at once when the source or the models cannot serve the algorithm.
    """
    anchored = is_anchored_at_sampler(source, algorithm)
    fill = fillers(policy, reference, teacher, sampler_is_old=anchored, old_logprobs=old_logprobs)
    check(source, policy, algorithm, fill)
    check_old(source, old_logprobs)
    check_steps(source, algorithm)
    columns, noticed = asked_columns(source, algorithm), StepsNoticed(algorithm)
    shorten = Cut(getattr(teacher, "cuts_at", None))

    def fill_in(batch: Batch) -> Batch:
        noticed(batch)
        return annotate(shorten(batch), columns, fill)

    return fill_in


def annotate(batch: Batch, columns: frozenset[str], fill: Mapping[str, Filler]) -> Batch:
    """The batch with these columns filled; those that it has already are left as they are."""
    for column in sorted(columns):
        if not batch.has(column):
            with phase("annotate"), phase(column):
                batch = batch.with_(**fill[column](batch))
    return batch


def cut(batch: Batch, width: int) -> Batch:
    """The batch with no chosen tokens beyond the first `width` of each row, which is all that a teacher can read: what
    teacher and student are compared on ends at the same token."""
    seen = torch.arange(batch.mask.shape[1], device=batch.mask.device) < width
    return batch.with_(mask=batch.mask & seen)


class Cut:
    """Cuts each batch to `width` (None: leaves them whole), and says once how many rows that concerns."""

    def __init__(self, width: int | None) -> None:
        self.width = width
        self.said = False

    def __call__(self, batch: Batch) -> Batch:
        """The batch, cut."""
        if self.width is None:
            return batch
        beyond = int((batch.lengths > self.width).sum())
        if beyond and not self.said:
            self.said = True
            log.warning(
                "%d of %d rows are longer than the %d tokens that the teacher can read; what comes after these teaches "
                "nothing, in this step and the next ones", beyond, batch.size, self.width,
            )  # fmt: skip
        return cut(batch, self.width)


def values(learner: Learner, batch: Batch) -> dict[str, Tensor]:
    """`old_values [B, T]`, and `final_values [B]` of the states in which the length limit cut the rows (else 0).

    The value of a state is asked as the value of the state in which the next token is chosen, so a row that was cut is
    asked once more, with one more chosen token (which one does not matter: nothing follows it).
    """
    width = batch.tokens.shape[1]
    cut = ~batch.terminated
    rows = cut.nonzero().flatten()
    wide: dict[str, Any] = {name: pad(getattr(batch, name), (0, 1)) for name in WIDE}
    wide["mask"][rows, batch.lengths[rows]] = True
    found = learner.values(replace(batch, columns={}, **wide))
    ends = found.gather(1, batch.lengths[:, None])[:, 0]
    return {
        "old_values": torch.where(batch.mask, found[:, :width], 0.0),
        "final_values": torch.where(cut, ends, 0.0),
    }


#: The columns of a bare batch that are `[B, T]`.
WIDE = ("tokens", "mask", "sampler_logprobs", "token_rewards")


def said(teacher: Teacher, batch: Batch) -> dict[str, Tensor]:
    """`teacher_logprobs [B, T]`; of a teacher of other tokens `teacher_spans` too: which it speaks of together."""
    spans: Annotation | None = getattr(teacher, "spans", None)
    more = {} if spans is None else {"teacher_spans": spans(batch)}
    return {"teacher_logprobs": teacher.logprobs(batch), **more}


def top(teacher: Teacher, batch: Batch) -> dict[str, Tensor]:
    """`teacher_top_ids`, `teacher_top_logprobs [B, T, K]`: the teacher's likeliest candidates for each chosen token."""
    ids, logprobs = teacher.top(batch)
    return {"teacher_top_ids": ids, "teacher_top_logprobs": logprobs}


def check(source: Source, policy: Policy, algorithm: Algorithm, fill: Mapping[str, Filler]) -> None:
    """Raise ConfigError for an algorithm with a source or models that cannot serve it, with the remedy."""
    for column in sorted(algorithm.asks - fill.keys()):
        raise ConfigError(f"{algorithm.name} reads {column!r}, and nothing fills it: it needs {PROVIDERS[column]}.")
    for capability in sorted(algorithm.requires - policy.learner.capabilities):
        raise ConfigError(f"{algorithm.name} needs {CAPABILITIES[capability]}; this learner is not one.")
    if algorithm.samples and not source.samples:
        raise ConfigError(
            f"{algorithm.name} learns from what the policy writes, and got a source of recorded rows, which have no "
            "log-probs of it and no reward to compare. Give it `Sampled(tasks, roller, …)`"
        )
    if source.samples and not algorithm.samples:
        raise ConfigError(
            f"{algorithm.name} learns from what it is shown, and got a source that samples. Give it `Recorded(…)`, or "
            "choose an algorithm that judges what the policy wrote (rejection_sampling imitates what was right)"
        )
    if getattr(source, "stale", False):
        check_stale(algorithm)
    if getattr(source, "share", 1.0) < 1.0 and sampled_share(algorithm.select) == 1.0:
        raise ConfigError(
            f"{algorithm.name} learns from what the policy writes alone, and got a source that mixes recorded rows in. "
            "Give it `Sampled(tasks, roller, …)`, or choose an algorithm that asks nothing of a row (gkd)"
        )
    siblings = getattr(source, "num_generations", algorithm.siblings)
    if not algorithm.samples and siblings > algorithm.siblings:
        raise ConfigError(
            f"{algorithm.name} learns from every completion that it is shown, and got a source that shows {siblings} "
            "of a task, one of them rejected. Give it `Recorded(…)`, or choose one that learns from pairs (dpo)"
        )
    if siblings < algorithm.siblings:
        raise ConfigError(
            f"{algorithm.name} compares rollouts of one task: got num_generations={siblings}; expected at least "
            f"{algorithm.siblings}"
        )


def check_steps(source: Source, algorithm: Algorithm) -> None:
    """Raise ConfigError where a reward gives rewards of steps that the algorithm would throw away."""
    judge = getattr(getattr(source, "roller", None), "reward", None)
    if judge is not None and gives_steps(judge) and not learns_from_steps(algorithm):
        raise ConfigError(f"{wasted(algorithm)}, and got a reward that gives rewards of steps. {SPEND}")


def learns_from_steps(algorithm: Algorithm) -> bool:
    """Whether rewards of steps do anything: they reach the advantages, or say how steps are labelled."""
    return spends_steps(algorithm.credit) or algorithm.select.labels is not None


def wasted(algorithm: Algorithm) -> str:
    """What an algorithm does with rewards of steps, that does nothing with them."""
    return f"{algorithm.name} learns from outcomes alone (its credit is {algorithm.credit})"


SPEND = (
    'Remedy: grpo with options = { supervision = "process" } or "both", an algorithm that spends them (ppo, reinforce, '
    'reinforce_plus_plus), or one outcome made of them (`Stepwise(reward, "min")`)'
)


class StepsNoticed:
    """Says once, of the first batch that has rewards of steps, that the algorithm throws them away, where it does."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.silent = learns_from_steps(algorithm)

    def __call__(self, batch: Batch) -> None:
        """Look at a batch."""
        if not self.silent and batch.has("step_rewards"):
            self.silent = True
            log.warning("%s, and its rows have rewards of steps, which do nothing. %s", wasted(self.algorithm), SPEND)


def check_old(source: Source, old_logprobs: str) -> None:
    """Raise ConfigError where rows that the policy did not write would say what the old policy was."""
    if old_logprobs != "learner" and (not source.samples or getattr(source, "share", 1.0) < 1.0):
        raise ConfigError(
            f"got old_logprobs = {old_logprobs!r} and a source with recorded rows, of which no sampler said anything; "
            "expected rows that the policy wrote. Leave it out"
        )


def check_stale(algorithm: Algorithm) -> None:
    """Raise ConfigError for an algorithm whose loss takes rows of an older policy for its own."""
    reads = algorithm.loss.needs
    if "advantages" in reads and "old_logprobs" not in reads:
        raise ConfigError(
            f"{algorithm.name} takes every row for the present policy's ({algorithm.loss} has no ratio), and got a "
            "source that samples ahead, or in coarser numbers: from another policy. Give it a correction where it "
            'takes one (rloo: options = { correction = "token_truncate" }), choose an algorithm with a ratio (grpo, '
            "reinforce_plus_plus), or sample from the policy itself (overlap = false, sampling_precision = 'same')"
        )
