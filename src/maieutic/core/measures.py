"""Measures: what the groups of a step look like, for the log.

Names follow what users of other libraries know: `reward/mean`, `reward/std`, `reward/frac_zero_std`,
`completions/mean_length`, `completions/clipped_ratio`. Letters: `G` siblings of a group.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from maieutic.types import Finish, Group


def group_measures(groups: Sequence[Group]) -> dict[str, float]:
    """Means over all rollouts of a step. Unscorable ones are left out of reward means and are counted."""
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
        measures["completions/clipped_ratio"] = sum(r.finish is Finish.LENGTH for r in rollouts) / len(rollouts)
    for part in sorted({name for s in scores for name in s.parts}):
        measures[f"reward/parts/{part}"] = statistics.fmean(s.parts[part] for s in scores if part in s.parts)
    return measures
