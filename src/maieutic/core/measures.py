"""Measures: what the groups of a step look like, and its batch once credit is given, for the log.

Names follow what users of other libraries know: `reward/mean`, `reward/std`, `reward/frac_zero_std`,
`completions/mean_length`, `completions/clipped_ratio`. Letters: `G` siblings of a group, `B` rows, `T` tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from maieutic.core.kl import k3
from maieutic.core.parts import Algorithm
from maieutic.environments.episodes import turn_count
from maieutic.protocols import Source
from maieutic.types import Batch, Example, Finish, Group


def group_measures(groups: Sequence[Group]) -> dict[str, float]:
    """Means over all rollouts of a step. Unscorable ones are left out of reward means and are counted.

    Rollouts that had the answer in their prompt are another matter: `hinted/count`, and `hinted/correct` of them.
    `episodes/turns`: of tasks that are played in an environment; `reward/correct` is the share that was won.
    `asked/judge/requests` and the like: what judging asked of other models, in sums; see `maieutic.endpoint.Bill`.
    """
    hinted = [s for g in groups if g.hinted for s in g.scores]
    groups = [g for g in groups if not g.hinted]
    rollouts = [r for g in groups for r in g.rollouts]
    scores = [s for g in groups for s in g.scores]
    rewards = [s.reward for s in scores if s.reward is not None]
    known = [s.correct for s in scores if s.correct is not None]
    lengths = [r.completion_length for r in rollouts]
    measures = {
        "rollouts/count": float(len(rollouts)),
        "rollouts/unscorable": float(sum(s.reward is None for s in scores)),
        "rollouts/errors": float(sum(r.finish is Finish.ERROR for r in rollouts)),
    }
    if rewards:
        compared = [g.rewards for g in groups if len(g.rewards) > 1]
        measures["reward/mean"] = statistics.fmean(rewards)
        measures["reward/std"] = statistics.pstdev(rewards)
        if compared:
            measures["reward/frac_zero_std"] = sum(len(set(r)) == 1 for r in compared) / len(compared)
    if known:
        measures["reward/correct"] = sum(known) / len(known)
    if rollouts:
        measures["completions/mean_length"] = statistics.fmean(lengths)
        measures["completions/max_length"] = float(max(lengths))
        if any(r.finish is Finish.ENVIRONMENT or "environment" in {s.role for s in r.spans} for r in rollouts):
            measures["episodes/turns"] = statistics.fmean(turn_count(r) for r in rollouts)
        measures["completions/clipped_ratio"] = sum(r.finish is Finish.LENGTH for r in rollouts) / len(rollouts)
    for part in sorted({name for s in scores for name in s.parts}):
        measures[f"reward/parts/{part}"] = statistics.fmean(s.parts[part] for s in scores if part in s.parts)
    for item in sorted({name for s in scores for name in s.asked}):
        measures[f"asked/{item}"] = sum(s.asked.get(item, 0.0) for s in scores)
    if hinted:
        measures["hinted/count"] = float(len(hinted))
        measures["hinted/correct"] = sum(bool(s.correct) for s in hinted) / len(hinted)
    return measures


def staleness(source: Source, groups: Sequence[Group], version: int) -> dict[str, float]:
    """`policy/staleness`: how many optimiser steps a policy of that version has taken since it wrote a rollout, mean.

    Of a source that samples ahead (`stale`); what was made by no policy (its making failed) counts for nothing.
    """
    if not (source.samples and getattr(source, "stale", False)):
        return {}
    made = [version - r.version for g in groups for r in g.rollouts if r.completion_length]
    return {"policy/staleness": statistics.fmean(made)} if made else {}


def row_measures(groups: Sequence[Group], examples: Sequence[Example]) -> dict[str, float]:
    """What a select made of the groups of a step.

    rows/count     training rows
    rows/coverage  share of the tasks with at least one row, among those of this step and those that have rows: where
                   what was kept is learned again, and every step has the same tasks, it never falls
    """
    learned = {example.rollout.task_id for example in examples}
    tasks = learned | {group.task.id for group in groups}
    coverage = {"rows/coverage": len(learned) / len(tasks)} if tasks else {}
    return {"rows/count": float(len(examples)), **coverage}


def memory_measures(algorithm: Algorithm) -> dict[str, float]:
    """What an algorithm's memories show of themselves (`watched`): a KL coefficient that adapts, `kl/beta`."""
    memories = [memory for part in algorithm.parts for memory in part.memory]
    return {name: value for memory in memories for name, value in getattr(memory, "watched", {}).items()}


def batch_measures(batch: Batch) -> dict[str, float]:
    """Of the columns that a batch happens to have, over its chosen tokens.

    kl/reference               mean k3 of the old policy to the reference, nats a token
    critic/explained_variance  1 − Var(R − V_old) / Var(R): 1 for a critic that knows the returns, 0 for one that knows
                               their mean, below 0 for one that would better be silent. Not there for equal returns.
    pairs/count                preferences
    pairs/length_difference    mean tokens of the chosen completion minus those of the rejected one: far from 0, the
                               policy learns to write longer or shorter, whatever is right
    """
    mask, found = batch.mask, {}
    if batch.has("old_logprobs") and batch.has("ref_logprobs"):
        found["kl/reference"] = float(k3(batch.old_logprobs, batch.ref_logprobs)[mask].mean())
    if batch.has("old_values") and batch.has("returns"):
        returns = batch.returns[mask].double()
        spread = float(returns.var(correction=0))
        if spread > 1e-12:  # else they differ by rounding only
            left = float((returns - batch.old_values[mask].double()).var(correction=0))
            found["critic/explained_variance"] = 1.0 - left / spread
    if batch.has("pairs"):
        lengths = mask.sum(1).double()[batch.pairs]
        found["pairs/count"] = float(len(batch.pairs))
        found["pairs/length_difference"] = float((lengths[:, 0] - lengths[:, 1]).mean())
    return found
