"""A reward model on judged completions that it has not learned from; see `core.judging` for what the numbers are."""

from __future__ import annotations

from collections.abc import Sequence

from maieutic.core.judging import (
    auc,
    bce,
    brier,
    expected_calibration_error,
    first_error_accuracy,
    pair_accuracy,
)
from maieutic.models.reward_model import RewardModel
from maieutic.types import Group


def measure(model: RewardModel, groups: Sequence[Group]) -> dict[str, float]:
    """What the kind of model is for: `count` completions (or pairs, or labelled steps), and its measures.

    outcome   auc, pair_accuracy, bce, brier, ece, accuracy
    pairs     pair_accuracy, margin (the mean of s_c − s_r)
    process   of steps: auc, bce, brier, ece, accuracy; of solutions: first_error/wrong, /right, /f1
    """
    kept = [(g, i) for g in groups for i, score in enumerate(g.scores) if score.reward is not None]
    if model.kind == "pairs":
        return _pairs(model, [group for group in groups if all(score.reward is not None for score in group.scores)])
    rollouts = [group.rollouts[i] for group, i in kept]
    starts = [rollout.prompt_length for rollout in rollouts]
    if model.kind == "process":
        ends = [[at + 1 for at, _ in group.scores[i].step_rewards] for group, i in kept]
    else:
        ends = [[len(rollout.tokens)] for rollout in rollouts]
    said = model.read([rollout.tokens for rollout in rollouts], starts, ends)
    if model.kind == "process":
        labels = [[z for _, z in group.scores[i].step_rewards] for group, i in kept]
        found = first_error_accuracy(said, labels)
        flat = _probabilities([p for row in said for p in row], [z for row in labels for z in row])
        return {**flat, **{f"first_error/{name}": value for name, value in found.items()}}
    wholes = [group.scores[i].reward or 0.0 for group, i in kept]
    scores = [row[0] for row in said]
    within = pair_accuracy(scores, wholes, [group.id for group, _ in kept])
    return {**_probabilities(scores, wholes), "pair_accuracy": within}


def _probabilities(said: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
    right = [(p > 0.5) == (z > 0.5) for p, z in zip(said, labels)]
    return {
        "count": float(len(said)),
        "auc": auc(said, labels),
        "accuracy": sum(right) / len(right) if right else float("nan"),
        "bce": bce(said, labels),
        "brier": brier(said, labels),
        "ece": expected_calibration_error(said, labels),
    }


def _pairs(model: RewardModel, groups: Sequence[Group]) -> dict[str, float]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    starts = [rollout.prompt_length for rollout in rollouts]
    said = model.read([r.tokens for r in rollouts], starts, [[len(r.tokens)] for r in rollouts])
    apart = [chosen[0] - rejected[0] for chosen, rejected in zip(said[::2], said[1::2])]
    if not apart:
        return {"count": 0.0, "pair_accuracy": float("nan"), "margin": float("nan")}
    won = sum((difference > 0) + (difference == 0) / 2 for difference in apart)
    return {
        "count": float(len(apart)),
        "pair_accuracy": won / len(apart),
        "margin": sum(apart) / len(apart),
    }
